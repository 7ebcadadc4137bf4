//! Giving memory back: frames that hold no slot in use are punched out of the file.
//!
//! Whoever is short of memory takes what it finds. The background takes its time: at each look half of what is
//! idle, and nothing of the frames ahead of a class that took slots since the last look, because a frame costs more
//! to get again than to keep for a moment.

use super::{SizeClass, Space, runs};
use crate::memory::FRAME_BYTES;
use crate::segment::{CLASSES, frame_run, slot_bytes};
use crate::sync::Counter;

/// What the background saw of a class at its last look. Written by whoever looks.
#[derive(Debug, Default)]
pub(super) struct Look {
    /// Slots taken so far.
    taken: Counter,
    /// Frames that it may still give back.
    allowed: Counter,
    /// Frames behind the lowest free slot that stay.
    kept: Counter,
}

impl Space {
    /// Decides what [`Space::trim_slowly`] may give back until the next look. `true` when frames are kept that a
    /// later look may find idle.
    pub(crate) fn look(&self) -> bool {
        let mut keeps = false;
        for (class, cell) in self.classes.iter().enumerate() {
            let gauges = &cell.gauges;
            let taken = gauges.live.get() + gauges.frees.get();
            let kept = if taken == cell.look.taken.get() {
                0
            } else {
                self.stock(class)
            };
            cell.look.taken.set(taken);
            cell.look.kept.set(kept);
            let idle = self.waste(class) / FRAME_BYTES as u64;
            cell.look.allowed.set(idle.div_ceil(2));
            keeps |= kept > 0;
        }
        self.retired_allowed
            .set(self.retired_frames.get().div_ceil(2));
        keeps
    }

    /// Gives back frames without slots in use, at most `most` of them and no more than the last look allowed. Returns
    /// the bytes.
    pub(crate) fn trim_slowly(&self, most: usize) -> u64 {
        let most = most.min(self.spendable());
        let allowed = &self.retired_allowed;
        let mut frames = self.trim_retired(most.min(allowed.get() as usize));
        allowed.set(allowed.get().saturating_sub(frames as u64));
        for (class, cell) in self.classes.iter().enumerate() {
            if frames >= most {
                break;
            }
            let allowed = &cell.look.allowed;
            let now = (most - frames).min(allowed.get() as usize);
            if now > 0 {
                let gone = self.trim_class(class, now, cell.look.kept.get());
                allowed.set(allowed.get().saturating_sub(gone as u64));
                frames += gone;
            }
        }
        (frames * FRAME_BYTES) as u64
    }

    /// Gives frames without slots in use back to the kernel, at most about `most` of them. Returns
    /// the bytes.
    pub(crate) fn trim(&self, most: usize) -> u64 {
        let mut frames = self.trim_retired(most);
        for class in 0..CLASSES {
            if frames >= most {
                break;
            }
            if self.waste(class) >= FRAME_BYTES as u64 {
                frames += self.trim_class(class, most - frames, 0);
            }
        }
        (frames * FRAME_BYTES) as u64
    }

    fn trim_retired(&self, most: usize) -> usize {
        let mut frames = 0;
        while frames < most {
            let Some((number, resident)) = self.pop_retired() else {
                break;
            };
            let left = self.punch(number, resident);
            frames += (resident & !left).count_ones() as usize;
            self.retire(number, left);
            if left != 0 {
                break;
            }
        }
        frames
    }

    fn pop_retired(&self) -> Option<(u32, u64)> {
        let mut spare = self.spare.lock();
        let (number, resident) = spare.retired.pop()?;
        self.retired_frames.sub(u64::from(resident.count_ones()));
        Some((number, resident))
    }

    /// Gives back at most `most` frames of a class; `kept` frames behind the lowest free slot stay. Returns the frames.
    pub(crate) fn trim_class(&self, class: usize, most: usize, kept: u64) -> usize {
        let mut guard = self.classes[class].locked.lock();
        let SizeClass { segments, open, .. } = &mut *guard;
        let lowest = open.first().copied();
        let mut frames = 0;
        // From the top: low frames are the next to be used again.
        for number in open.iter().rev() {
            if frames >= most {
                break;
            }
            let Some(segment) = segments.get_mut(number) else {
                continue;
            };
            let mut idle = segment.idle_frames();
            if kept > 0 && lowest == Some(*number) {
                idle &= !segment.next_frames(kept);
            }
            while idle.count_ones() as usize > most - frames {
                idle &= idle - 1;
            }
            if idle == 0 {
                continue;
            }
            let left = self.punch(*number, idle);
            let gone = idle & !left;
            segment.resident &= !gone;
            self.classes[class]
                .gauges
                .frames
                .sub(u64::from(gone.count_ones()));
            frames += gone.count_ones() as usize;
        }
        frames
    }

    /// Punches frames and takes them off the account. Returns those that the kernel did not take.
    pub(super) fn punch(&self, number: u32, frames: u64) -> u64 {
        let mut left = 0;
        for (first, count) in runs(frames) {
            if self.memory.punch(number, first, count).is_ok() {
                self.purse.give_back((count * FRAME_BYTES) as u64);
            } else {
                left |= frame_run(first, count);
            }
        }
        left
    }

    /// Bytes of the class's frames that hold no slot in use: what compacting and trimming it may win.
    fn waste(&self, class: usize) -> u64 {
        let gauges = &self.classes[class].gauges;
        (gauges.frames.get() * FRAME_BYTES as u64)
            .saturating_sub(gauges.live.get() * slot_bytes(class) as u64)
    }

    /// Whether more than a frame in 128, and than a frame of each class, holds no slot in use.
    pub(crate) fn is_wasteful(&self) -> bool {
        let usage = self.usage();
        usage.frames - usage.slots.min(usage.frames)
            > usage.frames / 128 + (CLASSES * FRAME_BYTES) as u64
    }
}
