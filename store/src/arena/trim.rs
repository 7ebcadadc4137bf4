//! Giving memory back: frames that hold no slot in use are punched out of the file. They are marked under the class's
//! lock and punched without it, so that a thread that only needs a slot does not wait for the kernel.
//!
//! A thread that is short of memory gives back all idle frames that it finds. The background is slower: in each plan it
//! gives back half of the idle frames, and no prefaulted frames of a class that took slots since the last plan, because
//! populating a frame again costs more than keeping it for a moment.

use std::sync::atomic::Ordering;

use super::Arena;
use super::segment::{frame_run, runs};
use super::size_class::{CLASSES, Classes, slot_bytes};
use crate::memory::FRAME_BYTES;

/// Segments that frames leave at a time.
const AT_A_TIME: usize = 8;

impl Arena {
    /// Decides what [`Arena::trim_slowly`] may give back until the next plan. `true` when frames are spared that a
    /// later plan may find idle.
    pub(crate) fn plan_trim(&self) -> bool {
        let mut spares = false;
        for (class, cell) in self.classes.iter().enumerate() {
            let gauges = &cell.gauges;
            let taken = gauges.live.get() + gauges.frees.get();
            let spared = if taken == cell.trim_plan.taken.get() {
                0
            } else {
                self.prefault_target(class)
            };
            cell.trim_plan.taken.set(taken);
            cell.trim_plan.spared.set(spared);
            let idle = self.waste(class) / FRAME_BYTES as u64;
            cell.trim_plan.trim_budget.set(idle.div_ceil(2));
            spares |= spared > 0;
        }
        self.retired_trim_budget
            .set(self.retired_frames.get().div_ceil(2));
        spares
    }

    /// Gives back frames without slots in use, at most `most` of them and no more than the last plan allows. Returns
    /// the bytes.
    pub(crate) fn trim_slowly(&self, most: usize) -> u64 {
        let most = most.min(self.spendable());
        let budget = &self.retired_trim_budget;
        let mut frames = self.trim_retired(most.min(budget.get() as usize));
        budget.set(budget.get().saturating_sub(frames as u64));
        for (class, cell) in self.classes.iter().enumerate() {
            if frames >= most {
                break;
            }
            let budget = &cell.trim_plan.trim_budget;
            let now = (most - frames).min(budget.get() as usize);
            if now > 0 {
                let gone = self.trim_class(class, now, cell.trim_plan.spared.get());
                budget.set(budget.get().saturating_sub(gone as u64));
                frames += gone;
            }
        }
        (frames * FRAME_BYTES) as u64
    }

    /// Gives frames without slots in use back to the kernel, at most about `most` of them. Returns
    /// the bytes. Costs nothing when there are none.
    pub(crate) fn trim(&self, most: usize) -> u64 {
        if !self.has_idle() {
            return 0;
        }
        let mut frames = self.trim_retired(most);
        for class in Classes(self.idle.load(Ordering::Relaxed)) {
            if frames >= most {
                break;
            }
            frames += self.trim_class(class, most - frames, 0);
        }
        (frames * FRAME_BYTES) as u64
    }

    fn trim_retired(&self, most: usize) -> usize {
        let mut frames = 0;
        while frames < most {
            let Some((segment_id, resident)) = self.pop_retired(&mut self.spare.lock()) else {
                break;
            };
            let count = u64::from(resident.count_ones());
            self.on_the_way.fetch_add(count, Ordering::Relaxed);
            let left = self.punch(segment_id, resident);
            frames += (resident & !left).count_ones() as usize;
            self.retire(segment_id, left);
            self.on_the_way.fetch_sub(count, Ordering::Relaxed);
            if left != 0 {
                break;
            }
        }
        frames
    }

    /// Gives back at most `most` frames of a class; `spared` frames behind the lowest free slot stay. Returns the frames.
    pub(crate) fn trim_class(&self, class: usize, most: usize, spared: u64) -> usize {
        let mut frames = 0;
        while frames < most {
            let mut picked = [(0, 0); AT_A_TIME];
            let count = self.pick_idle(class, most - frames, spared, &mut picked);
            let gone = self.expel(class, &picked[..count]);
            if gone == 0 {
                break;
            }
            frames += gone;
        }
        frames
    }

    /// Takes idle frames out of the segments of a class, at most `most`. Returns how many segments.
    fn pick_idle(
        &self,
        class: usize,
        most: usize,
        spared: u64,
        picked: &mut [(u32, u64); AT_A_TIME],
    ) -> usize {
        if self.idle.load(Ordering::Relaxed) >> class & 1 == 0 {
            return 0;
        }
        let mut guard = self.classes[class].locked.lock();
        let inner = &mut *guard;
        let lowest = inner.open.first().copied();
        let (mut segments, mut frames) = (0, 0);
        let mut below = u32::MAX;
        // From the top: low frames are the next to be used again.
        while frames < most && segments < AT_A_TIME {
            let Some(segment_id) = inner.idle.range(..below).next_back().copied() else {
                break;
            };
            below = segment_id;
            let most = most - frames;
            let taken = self.change(class, inner, segment_id, |segment| {
                let mut idle = segment.idle();
                if spared > 0 && lowest == Some(segment_id) {
                    idle &= !segment.next_frames(spared);
                }
                while idle.count_ones() as usize > most {
                    idle &= idle - 1;
                }
                segment.begin_leaving(idle);
                idle
            });
            let taken = taken.unwrap_or(0);
            if taken != 0 {
                picked[segments] = (segment_id, taken);
                segments += 1;
                frames += taken.count_ones() as usize;
            }
        }
        self.on_the_way.fetch_add(frames as u64, Ordering::Relaxed);
        segments
    }

    /// Gives frames that leave their segments to the kernel. Returns how many it took.
    pub(super) fn expel(&self, class: usize, leaving: &[(u32, u64)]) -> usize {
        let mut left = [0; AT_A_TIME];
        for (left, (segment_id, frames)) in left.iter_mut().zip(leaving) {
            *left = self.punch(*segment_id, *frames);
        }
        if leaving.is_empty() {
            return 0;
        }
        let mut gone = 0;
        let mut guard = self.classes[class].locked.lock();
        let inner = &mut *guard;
        for ((segment_id, frames), left) in leaving.iter().zip(left) {
            self.change(class, inner, *segment_id, |segment| {
                segment.end_leaving(*frames, left);
            });
            self.close_empty(class, inner, *segment_id);
            let count = u64::from((frames & !left).count_ones());
            self.classes[class].gauges.frames.sub(count);
            gone += count as usize;
            self.on_the_way
                .fetch_sub(u64::from(frames.count_ones()), Ordering::Relaxed);
        }
        gone
    }

    /// Punches frames and takes them off the account. Returns those that the kernel did not take.
    fn punch(&self, segment_id: u32, frames: u64) -> u64 {
        let mut left = 0;
        for (first, count) in runs(frames) {
            if self.memory.punch(segment_id, first, count).is_ok() {
                self.quota.uncharge_returned((count * FRAME_BYTES) as u64);
            } else {
                left |= frame_run(first, count);
            }
        }
        left
    }

    /// Bytes of the class's frames that hold no slot in use: the most that compacting and trimming may free.
    fn waste(&self, class: usize) -> u64 {
        let gauges = &self.classes[class].gauges;
        (gauges.frames.get() * FRAME_BYTES as u64)
            .saturating_sub(gauges.live.get() * slot_bytes(class) as u64)
    }

    /// Whether more than a frame in 128, and than a frame of each class, holds no slot in use. Looks at the counters only
    /// when the last measurement, taken as slots were given back, found it so.
    pub(crate) fn is_wasteful(&self) -> bool {
        self.wasteful.load(Ordering::Relaxed) && self.measure_waste()
    }

    pub(super) fn measure_waste(&self) -> bool {
        let usage = self.usage();
        let wasteful = usage.frames - usage.slots.min(usage.frames)
            > usage.frames / 128 + (CLASSES * FRAME_BYTES) as u64;
        self.wasteful.store(wasteful, Ordering::Relaxed);
        wasteful
    }
}
