//! A segment cut into slots of one size class: which are in use, by whom, in which frames.

use crate::memory::{FRAME_BYTES, SEGMENT_BYTES};

/// Bytes between two size classes.
pub(crate) const CLASS_STEP: usize = 64;
/// Size classes: 64, 128, ... 4096 bytes.
pub(crate) const CLASSES: usize = 64;

/// The class that holds a payload of `len` bytes (1 to 4096).
pub(crate) fn class_of(len: u16) -> usize {
    (usize::from(len) - 1) / CLASS_STEP
}

/// Bytes of the class's slots.
pub(crate) const fn slot_bytes(class: usize) -> usize {
    (class + 1) * CLASS_STEP
}

/// Slots of a segment of the class.
pub(crate) const fn slots_per_segment(class: usize) -> usize {
    SEGMENT_BYTES / slot_bytes(class)
}

/// Bits for `count` frames (1 to 64) from `first` on, as far as a segment has them.
pub(crate) fn frame_run(first: usize, count: usize) -> u64 {
    (u64::MAX >> (64 - count)) << first
}

/// Bits for the frames that `bytes` at `offset` touch.
fn frames(offset: usize, bytes: usize) -> u64 {
    let first = offset / FRAME_BYTES;
    let last = (offset + bytes - 1) / FRAME_BYTES;
    (u64::MAX << first) & (u64::MAX >> (63 - last))
}

/// Names the index entry that holds a slot: see `index::Holder`. Zero names none.
pub(crate) type Backref = u64;

/// A segment of a size class.
#[derive(Debug)]
pub(crate) struct Segment {
    class: u8,
    /// Slots in use.
    live: u16,
    /// No slot below this word of `used` is free.
    low: u16,
    /// Frames that have memory, and are charged.
    pub(crate) resident: u64,
    /// Frames that are charged, and that the kernel is asked for without the class's lock. Until that ends the
    /// segment stays, and none of its frames is given back.
    pub(crate) filling: u64,
    /// Bit per slot; bits beyond the last slot are set.
    used: Box<[u64]>,
    /// Per slot, up to the highest that was ever used.
    backrefs: Vec<Backref>,
}

impl Segment {
    /// A segment without slots in use. `None` when there is no memory for its bookkeeping.
    pub(crate) fn new(class: usize, resident: u64) -> Option<Self> {
        let slots = slots_per_segment(class);
        let words = slots.div_ceil(64);
        let mut used = Vec::new();
        used.try_reserve_exact(words).ok()?;
        used.resize(words, 0);
        if !slots.is_multiple_of(64) {
            used[words - 1] = u64::MAX << (slots % 64);
        }
        Some(Self {
            class: class as u8,
            live: 0,
            low: 0,
            resident,
            filling: 0,
            used: used.into_boxed_slice(),
            backrefs: Vec::new(),
        })
    }

    pub(crate) fn class(&self) -> usize {
        usize::from(self.class)
    }

    pub(crate) fn live(&self) -> usize {
        usize::from(self.live)
    }

    pub(crate) fn is_full(&self) -> bool {
        self.live() == slots_per_segment(self.class())
    }

    /// Bytes of bookkeeping, as the allocator rounds them.
    pub(crate) fn metadata_bytes(&self) -> u64 {
        Self::base_bytes(self.class()) + heap_bytes(self.backrefs.capacity() * 8)
    }

    /// Bytes of bookkeeping of a new segment.
    pub(crate) fn base_bytes(class: usize) -> u64 {
        // The segment in its table, the segment's number in two sets, the bit map.
        heap_bytes(size_of::<Self>()) + 48 + heap_bytes(slots_per_segment(class).div_ceil(64) * 8)
    }

    /// The lowest free slot; with `resident_only`, the lowest that needs no new frame.
    pub(crate) fn find(&mut self, resident_only: bool) -> Option<u16> {
        let mut word = usize::from(self.low);
        while word < self.used.len() && self.used[word] == u64::MAX {
            word += 1;
        }
        self.low = word as u16;
        for word in word..self.used.len() {
            let mut free = !self.used[word];
            while free != 0 {
                let slot = (word * 64 + free.trailing_zeros() as usize) as u16;
                if !resident_only || self.missing(slot) == 0 {
                    return Some(slot);
                }
                free &= free - 1;
            }
        }
        None
    }

    /// Bits of the frames that the slot needs and that have no memory yet.
    pub(crate) fn missing(&self, slot: u16) -> u64 {
        let bytes = slot_bytes(self.class());
        frames(usize::from(slot) * bytes, bytes) & !self.resident
    }

    /// Up to `count` frames from that of the lowest free slot on.
    pub(crate) fn next_frames(&self, count: u64) -> u64 {
        let bytes = slot_bytes(self.class());
        let free = (usize::from(self.low)..self.used.len())
            .find(|word| self.used[*word] != u64::MAX)
            .map(|word| word * 64 + self.used[word].trailing_ones() as usize);
        match free {
            Some(slot) if count > 0 => {
                let first = slot * bytes / FRAME_BYTES;
                frame_run(first, count.min(64) as usize)
            }
            _ => 0,
        }
    }

    /// Frames with memory that follow the slot without a gap; 64 when they reach the end of the segment.
    pub(crate) fn frames_behind(&self, slot: u16) -> u64 {
        let end = (usize::from(slot) + 1) * slot_bytes(self.class());
        let next = end.div_ceil(FRAME_BYTES);
        let last = slots_per_segment(self.class()) * slot_bytes(self.class());
        if next >= last.div_ceil(FRAME_BYTES) {
            return 64;
        }
        let run = ((self.resident | self.filling) >> next).trailing_ones() as usize;
        if next + run >= last.div_ceil(FRAME_BYTES) {
            64
        } else {
            run as u64
        }
    }

    /// `missing` frames and up to `ahead` more that follow and have no memory.
    pub(crate) fn run_from(&self, missing: u64, ahead: u64) -> u64 {
        let mut run = missing;
        for _ in 0..ahead {
            let next = run << 1 & !run & !self.resident;
            if next == 0 {
                break;
            }
            run |= next;
        }
        run
    }

    /// Bytes that the list of backrefs must grow by before the slot can be taken.
    pub(crate) fn growth(&self, slot: u16) -> u64 {
        if usize::from(slot) < self.backrefs.capacity() {
            return 0;
        }
        heap_bytes(self.grown(slot) * 8) - heap_bytes(self.backrefs.capacity() * 8)
    }

    fn grown(&self, slot: u16) -> usize {
        let slots = slots_per_segment(self.class());
        let half_more = self.backrefs.capacity() * 3 / 2;
        half_more.max(usize::from(slot) + 8).min(slots)
    }

    /// Grows the list of backrefs. `false` when there is no memory.
    pub(crate) fn grow(&mut self, slot: u16) -> bool {
        let want = self.grown(slot);
        if usize::from(slot) < self.backrefs.capacity() {
            return true;
        }
        let len = self.backrefs.len();
        self.backrefs.try_reserve_exact(want - len).is_ok()
    }

    /// Marks a free slot used. The caller has grown the list and populated the frames.
    pub(crate) fn take(&mut self, slot: u16, backref: Backref) {
        let at = usize::from(slot);
        self.used[at / 64] |= 1 << (at % 64);
        self.live += 1;
        if self.backrefs.len() <= at {
            self.backrefs.resize(at + 1, 0);
        }
        self.backrefs[at] = backref;
    }

    /// Marks a slot free. `false` (and nothing done) when it was not in use.
    pub(crate) fn give(&mut self, slot: u16) -> bool {
        let at = usize::from(slot);
        let bit = 1u64 << (at % 64);
        let Some(word) = self.used.get_mut(at / 64) else {
            return false;
        };
        if *word & bit == 0 || at >= slots_per_segment(usize::from(self.class)) {
            return false;
        }
        *word &= !bit;
        self.live -= 1;
        self.low = self.low.min((at / 64) as u16);
        true
    }

    /// The first slot in use from `from` on, and who holds it.
    pub(crate) fn next_used(&self, from: u16) -> Option<(u16, Backref)> {
        let slots = slots_per_segment(self.class());
        let first = usize::from(from);
        for word in first / 64..self.used.len() {
            let mut used = self.used[word];
            if word == first / 64 {
                used &= u64::MAX << (first % 64);
            }
            let slot = word * 64 + used.trailing_zeros() as usize;
            if used != 0 && slot < slots {
                return Some((slot as u16, self.backrefs.get(slot).copied().unwrap_or(0)));
            }
        }
        None
    }

    /// The highest slot in use, and who holds it.
    pub(crate) fn highest(&self) -> Option<(u16, Backref)> {
        let slots = slots_per_segment(self.class());
        for word in (0..self.used.len()).rev() {
            let mut used = self.used[word];
            if word == slots / 64 {
                used &= !(u64::MAX << (slots % 64));
            }
            if used != 0 {
                let slot = word * 64 + 63 - used.leading_zeros() as usize;
                return Some((slot as u16, self.backrefs.get(slot).copied().unwrap_or(0)));
            }
        }
        None
    }

    /// Bits of the frames that have memory and no slot in use, and may be given back.
    pub(crate) fn idle_frames(&self) -> u64 {
        if self.filling != 0 {
            return 0;
        }
        let bytes = slot_bytes(self.class());
        let slots = slots_per_segment(self.class());
        let mut needed = 0u64;
        if self.live() == slots {
            needed = self.resident;
        }
        let mut left = self.live();
        for (number, word) in self.used.iter().enumerate() {
            if left == 0 || needed == self.resident {
                break;
            }
            let mut used = *word;
            while used != 0 {
                let slot = number * 64 + used.trailing_zeros() as usize;
                if slot >= slots {
                    break;
                }
                needed |= frames(slot * bytes, bytes);
                left -= 1;
                used &= used - 1;
            }
        }
        self.resident & !needed
    }
}

/// Bytes that the heap spends on an allocation of `bytes`.
pub(crate) fn heap_bytes(bytes: usize) -> u64 {
    if bytes == 0 {
        0
    } else {
        ((bytes + 8).next_multiple_of(16)).max(32) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_slot_of_every_class_is_given_once_and_lies_in_the_segment() {
        for class in 0..CLASSES {
            let mut segment = Segment::new(class, 0).expect("memory");
            let slots = slots_per_segment(class);
            for expected in 0..slots {
                let slot = segment.find(false).expect("free slot");
                assert_eq!(usize::from(slot), expected);
                assert!(segment.grow(slot));
                segment.resident |= segment.missing(slot);
                segment.take(slot, expected as u64 + 1);
            }
            assert!(segment.is_full() && segment.find(false).is_none());
            assert_eq!(segment.next_used(0), Some((0, 1)));
            assert_eq!(segment.next_used(slots as u16), None);
            assert_eq!(segment.idle_frames(), 0);
            assert_eq!(segment.highest(), Some((slots as u16 - 1, slots as u64)));
            assert!(segment.give(0));
            assert!(!segment.give(0));
            assert_eq!(segment.next_used(0), Some((1, 2)));
            assert!(!segment.give(slots as u16));
            assert_eq!(segment.find(true), Some(0));
        }
    }

    #[test]
    fn a_frame_is_idle_when_no_slot_in_use_touches_it() {
        let class = 23; // 1536 bytes: frames 0..3 hold slots 0..8
        let mut segment = Segment::new(class, 0).expect("memory");
        for slot in 0..8 {
            assert!(segment.grow(slot));
            segment.resident |= segment.missing(slot);
            segment.take(slot, 1);
        }
        assert_eq!(segment.resident, 0b111);
        for slot in 0..5 {
            segment.give(slot);
        }
        assert_eq!(segment.idle_frames(), 0b001);
        segment.resident &= !segment.idle_frames();
        assert_eq!(segment.find(true), Some(3));
        assert_eq!(segment.find(false), Some(0));
    }
}
