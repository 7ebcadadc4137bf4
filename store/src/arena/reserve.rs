//! A reserve that is taken from the host before it is needed, and kept: frames of segments that have no class yet. Who opens a
//! segment takes them first.

use std::sync::atomic::Ordering;

use super::Arena;
use super::segment::frame_run;
use crate::account::quota::AllocError;
use crate::entry::MAX_SEGMENTS;
use crate::memory::FRAME_BYTES;

/// Frames of a segment.
const FRAMES: u64 = 64;
/// Part of a reserve that is left for the tables of pools and segments, which are not frames.
const TABLES: u64 = 32;

impl Arena {
    /// Has the background keep the owner's reserve, and gets memory for a part of it. `true` when there is more to get.
    pub(crate) fn populate_reserve(&self) -> Result<bool, AllocError> {
        self.keeps_reserve.store(true, Ordering::Relaxed);
        let account = &self.quota.account;
        let reserve = account.reserve();
        let wanted = reserve - reserve / TABLES;
        let missing = wanted.saturating_sub(account.used()) / FRAME_BYTES as u64;
        if missing == 0 || self.ended.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let Some(segment_id) = self.unused_segment() else {
            return Ok(false);
        };
        let frames = frame_run(0, missing.min(FRAMES) as usize);
        let mapped = self
            .memory
            .map(segment_id)
            .map_err(|_| AllocError::NoMemory);
        if let Err(error) = mapped.and_then(|()| self.charge_frames(frames)) {
            self.retire(segment_id, 0);
            return Err(error);
        }
        let got = self.populate(segment_id, frames);
        self.retire(segment_id, got);
        let refused = u64::from((frames & !got).count_ones());
        if refused > 0 {
            self.quota.uncharge(refused * FRAME_BYTES as u64);
            return Err(AllocError::NoMemory);
        }
        Ok(missing > FRAMES)
    }

    /// A segment without memory.
    fn unused_segment(&self) -> Option<u32> {
        let mut spare = self.spare.lock();
        if let Some(segment_id) = spare.free_ids.pop() {
            return Some(segment_id);
        }
        if spare.next == MAX_SEGMENTS {
            return None;
        }
        spare.next += 1;
        Some(spare.next - 1)
    }

    /// Frames that can be given back without the owner's asking, at most.
    pub(crate) fn spendable(&self) -> usize {
        if !self.keeps_reserve.load(Ordering::Relaxed) {
            return usize::MAX;
        }
        let account = &self.quota.account;
        let beyond = account.used().saturating_sub(account.reserve());
        (beyond / FRAME_BYTES as u64) as usize
    }
}
