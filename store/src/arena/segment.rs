//! A segment cut into slots of one size class: which are in use, by whom, in which frames.

use super::size_class::{slot_bytes, slots_per_segment};
use crate::account::heap::heap_bytes;
use crate::memory::{FRAME_BYTES, SEGMENT_BYTES};

/// Frames of a segment.
const FRAMES: usize = SEGMENT_BYTES / FRAME_BYTES;

/// The runs of set bits: first bit and length.
pub(crate) fn runs(mut bits: u64) -> impl Iterator<Item = (usize, usize)> {
    std::iter::from_fn(move || {
        if bits == 0 {
            return None;
        }
        let first = bits.trailing_zeros() as usize;
        let count = (!(bits >> first)).trailing_zeros() as usize;
        bits &= !frame_run(first, count);
        Some((first, count))
    })
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

/// Backref of a slot, in 8 bytes: see `index::backref::Backref`. Zero is none.
pub(crate) type PackedBackref = u64;

/// Lists of its class that a segment is in: it has a free slot.
pub(crate) const OPEN: u8 = 1;
/// It has a free slot whose frames all have memory.
pub(crate) const READY: u8 = 2;
/// It has frames that may be given back.
pub(crate) const IDLE: u8 = 4;

/// A segment of a size class.
#[derive(Debug)]
pub(crate) struct Segment {
    class: u8,
    /// The lists that it is in, written by the owner of the lists.
    pub(crate) listed: u8,
    /// Slots in use.
    live: u16,
    /// Free slots whose frames all have memory.
    ready: u16,
    /// No slot below this word of `used` is free.
    low: u16,
    /// Frames that have memory, and are charged.
    resident: u64,
    /// Frames that are charged, and that a thread is populating without a lock: they are that thread's until it is
    /// done. The segment stays meanwhile.
    filling: u64,
    /// Frames that are still charged, and that a thread is giving back to the kernel, in the same way. No slot in them
    /// is in use or taken.
    leaving: u64,
    /// Frames that a slot in use touches.
    busy: u64,
    /// Slots in use that touch a frame.
    touching: [u8; FRAMES],
    /// Bit per slot; bits beyond the last slot are set.
    used: Box<[u64]>,
    /// Per slot, up to the highest that was ever used.
    backrefs: Vec<PackedBackref>,
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
        let mut segment = Self {
            class: class as u8,
            listed: 0,
            live: 0,
            ready: 0,
            low: 0,
            resident: 0,
            filling: 0,
            leaving: 0,
            busy: 0,
            touching: [0; FRAMES],
            used: used.into_boxed_slice(),
            backrefs: Vec::new(),
        };
        segment.add_memory(resident);
        Some(segment)
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

    /// Free slots whose frames all have memory.
    pub(crate) fn ready(&self) -> u64 {
        u64::from(self.ready)
    }

    /// Frames that have memory.
    pub(crate) fn resident(&self) -> u64 {
        self.resident
    }

    /// Frames that a thread gets from the kernel or gives back to it.
    pub(crate) fn on_the_way(&self) -> u64 {
        self.filling | self.leaving
    }

    /// Frames that have memory and that no slot in use touches.
    pub(crate) fn idle(&self) -> u64 {
        self.resident & !self.busy
    }

    /// The lists that the segment belongs in.
    pub(crate) fn lists(&self) -> u8 {
        let mut lists = 0;
        if !self.is_full() {
            lists |= OPEN;
        }
        if self.ready > 0 {
            lists |= READY;
        }
        if self.idle() != 0 {
            lists |= IDLE;
        }
        lists
    }

    /// Bytes of bookkeeping, as the allocator rounds them.
    pub(crate) fn metadata_bytes(&self) -> u64 {
        Self::base_bytes(self.class()) + heap_bytes(self.backrefs.capacity() * 8)
    }

    /// Bytes of bookkeeping of a new segment.
    pub(crate) fn base_bytes(class: usize) -> u64 {
        // The segment in its table, the segment's id in four sets, the bit map.
        heap_bytes(size_of::<Self>()) + 64 + heap_bytes(slots_per_segment(class).div_ceil(64) * 8)
    }

    /// Marks frames as being populated by the caller.
    pub(crate) fn begin_filling(&mut self, frames: u64) {
        debug_assert_eq!(frames & (self.resident | self.on_the_way()), 0);
        self.filling |= frames;
    }

    /// The kernel gave `got` of these frames; the others it takes back.
    pub(crate) fn end_filling(&mut self, frames: u64, got: u64) {
        debug_assert_eq!(frames & !self.filling, 0);
        self.filling &= !frames;
        self.add_memory(frames & got);
        self.leaving |= frames & !got;
    }

    /// Marks idle frames as being given back by the caller.
    pub(crate) fn begin_leaving(&mut self, frames: u64) {
        debug_assert_eq!(frames & !self.idle(), 0);
        self.ready -= self.ready_in(frames);
        self.resident &= !frames;
        self.leaving |= frames;
    }

    /// The kernel took these frames, but for those in `left`.
    pub(crate) fn end_leaving(&mut self, frames: u64, left: u64) {
        debug_assert_eq!(frames & !self.leaving, 0);
        self.leaving &= !frames;
        self.add_memory(frames & left);
    }

    fn add_memory(&mut self, frames: u64) {
        self.resident |= frames;
        self.ready += self.ready_in(frames);
    }

    /// Free slots that touch one of these frames with memory, and whose frames all have some.
    fn ready_in(&self, frames: u64) -> u16 {
        let bytes = slot_bytes(self.class());
        let slots = slots_per_segment(self.class());
        let mut ready = 0;
        // Between two runs lies a frame, and no slot is longer than one: none is counted twice.
        for (first, count) in runs(frames) {
            let low = first * FRAME_BYTES / bytes;
            let high = (((first + count) * FRAME_BYTES - 1) / bytes).min(slots - 1);
            ready += self.free_between(low, high);
            // Only the outermost may reach into frames beside the run.
            for slot in [low, high] {
                if self.is_free(slot) && self.missing(slot as u16) != 0 {
                    ready -= 1;
                }
                if low == high {
                    break;
                }
            }
        }
        ready
    }

    fn is_free(&self, slot: usize) -> bool {
        self.used[slot / 64] >> (slot % 64) & 1 == 0
    }

    /// Free slots from `low` to `high`.
    fn free_between(&self, low: usize, high: usize) -> u16 {
        let mut free = 0;
        for word in low / 64..=high / 64 {
            let mut bits = !self.used[word];
            if word == low / 64 {
                bits &= u64::MAX << (low % 64);
            }
            if word == high / 64 {
                bits &= u64::MAX >> (63 - high % 64);
            }
            free += bits.count_ones() as u16;
        }
        free
    }

    /// The lowest free slot from `from` on.
    fn free_from(&self, from: usize) -> Option<usize> {
        for word in from / 64..self.used.len() {
            let mut free = !self.used[word];
            if word == from / 64 {
                free &= u64::MAX << (from % 64);
            }
            if free != 0 {
                return Some(word * 64 + free.trailing_zeros() as usize);
            }
        }
        None
    }

    /// The lowest free slot that touches none of these frames.
    fn find(&mut self, without: u64) -> Option<u16> {
        let bytes = slot_bytes(self.class());
        let mut slot = self.free_from(usize::from(self.low) * 64)?;
        self.low = (slot / 64) as u16;
        loop {
            let blocked = frames(slot * bytes, bytes) & without;
            if blocked == 0 {
                return Some(slot as u16);
            }
            let first = blocked.trailing_zeros();
            let behind = first + (without >> first).trailing_ones();
            slot = self.free_from((behind as usize * FRAME_BYTES).div_ceil(bytes))?;
        }
    }

    /// The lowest free slot whose frames all have memory.
    pub(crate) fn find_ready(&mut self) -> Option<u16> {
        self.find(!self.resident)
    }

    /// The lowest free slot, of those in frames that no thread has on the way.
    pub(crate) fn find_free(&mut self) -> Option<u16> {
        self.find(self.on_the_way())
    }

    /// Bits of the frames that the slot needs and that have no memory yet.
    pub(crate) fn missing(&self, slot: u16) -> u64 {
        let bytes = slot_bytes(self.class());
        frames(usize::from(slot) * bytes, bytes) & !self.resident
    }

    /// Up to `count` frames from that of the lowest free slot on.
    pub(crate) fn next_frames(&self, count: u64) -> u64 {
        match self.free_from(usize::from(self.low) * 64) {
            Some(slot) if count > 0 => {
                let first = slot * slot_bytes(self.class()) / FRAME_BYTES;
                frame_run(first, count.min(64) as usize)
            }
            _ => 0,
        }
    }

    /// Frames with memory that follow the slot without a gap; 64 when they reach the end of the segment.
    pub(crate) fn frames_behind(&self, slot: u16) -> u64 {
        let end = (usize::from(slot) + 1) * slot_bytes(self.class());
        let next = end.div_ceil(FRAME_BYTES);
        if next >= FRAMES {
            return 64;
        }
        let run = ((self.resident | self.filling) >> next).trailing_ones() as usize;
        if next + run >= FRAMES { 64 } else { run as u64 }
    }

    /// `missing` frames and up to `extra` more that follow and have no memory.
    pub(crate) fn run_from(&self, missing: u64, extra: u64) -> u64 {
        let mut run = missing;
        for _ in 0..extra {
            let next = run << 1 & !run & !self.resident & !self.on_the_way();
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

    /// Marks a free slot used. The caller has grown the list, and gets the frames that are missing.
    pub(crate) fn alloc(&mut self, slot: u16, backref: PackedBackref) {
        let at = usize::from(slot);
        if self.missing(slot) == 0 {
            self.ready -= 1;
        }
        self.used[at / 64] |= 1 << (at % 64);
        self.live += 1;
        for frame in self.frames_of(slot) {
            self.touching[frame] += 1;
            self.busy |= 1 << frame;
        }
        if self.backrefs.len() <= at {
            self.backrefs.resize(at + 1, 0);
        }
        self.backrefs[at] = backref;
    }

    /// Says what names a slot in use.
    pub(crate) fn set_backref(&mut self, slot: u16, backref: PackedBackref) {
        if let Some(known) = self.backrefs.get_mut(usize::from(slot)) {
            *known = backref;
        }
    }

    fn frames_of(&self, slot: u16) -> std::ops::RangeInclusive<usize> {
        let bytes = slot_bytes(self.class());
        let first = usize::from(slot) * bytes;
        first / FRAME_BYTES..=(first + bytes - 1) / FRAME_BYTES
    }

    /// Marks a slot free. `false` (and nothing done) when it was not in use.
    pub(crate) fn free(&mut self, slot: u16) -> bool {
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
        for frame in self.frames_of(slot) {
            self.touching[frame] -= 1;
            if self.touching[frame] == 0 {
                self.busy &= !(1 << frame);
            }
        }
        if self.missing(slot) == 0 {
            self.ready += 1;
        }
        true
    }

    /// The first slot in use from `from` on, and what names it.
    pub(crate) fn next_used(&self, from: u16) -> Option<(u16, PackedBackref)> {
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

    /// The highest slot in use, and what names it.
    pub(crate) fn highest(&self) -> Option<(u16, PackedBackref)> {
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

    /// How many slots must move so that the highest frame in use holds none, and how many free slots with memory
    /// are in it or above. `None` without a slot, or while that frame is on its way.
    pub(crate) fn top(&self) -> Option<(u64, u64)> {
        let frame = self.busy.checked_ilog2()?;
        if self.resident >> frame & 1 == 0 {
            return None;
        }
        let above = self.ready_in(self.resident & u64::MAX << frame);
        Some((u64::from(self.touching[frame as usize]), u64::from(above)))
    }

    /// Compares the counts with the slots in use.
    #[cfg(test)]
    pub(crate) fn recount(&self) {
        let bytes = slot_bytes(self.class());
        let (mut live, mut ready, mut touching) = (0, 0, [0; FRAMES]);
        for slot in 0..slots_per_segment(self.class()) {
            if self.is_free(slot) {
                ready += u16::from(self.missing(slot as u16) == 0);
                continue;
            }
            live += 1;
            let touched = frames(slot * bytes, bytes);
            assert_eq!(
                touched & self.leaving,
                0,
                "a slot in use in a frame that leaves"
            );
            for (frame, count) in touching.iter_mut().enumerate() {
                *count += (touched >> frame & 1) as u8;
            }
        }
        assert_eq!((self.live, self.ready), (live, ready));
        assert_eq!(self.touching, touching);
        for (frame, count) in touching.iter().enumerate() {
            assert_eq!(self.busy >> frame & 1 == 1, *count > 0);
        }
        let [resident, filling, leaving] = [self.resident, self.filling, self.leaving];
        assert_eq!(
            resident & filling | filling & leaving | leaving & resident,
            0
        );
    }
}

#[cfg(test)]
mod tests;
