//! Prefault: frames before they are needed. The kernel takes longer to find and clear a frame than a codec needs for a
//! page, so a thread of its own gets the next frames of a class that is growing; a store that finds none gets its own.

use std::sync::atomic::Ordering;

use super::Arena;
use super::segment::Segment;
use super::size_class::CLASSES;

/// Most frames that a class has before it needs them.
const MOST: u64 = 32;

impl Arena {
    /// Frames that a growing class is to have before it needs them: a 64th of what it has.
    pub(super) fn prefault_target(&self, class: usize) -> u64 {
        (self.classes[class].gauges.frames.get() / 64).min(MOST)
    }

    /// Asks for frames when those behind a slot that was just taken are few.
    pub(super) fn request_prefault(&self, class: usize, segment: &Segment, slot: u16) {
        let wanted = self.prefault_target(class);
        if segment.frames_behind(slot) >= wanted.div_ceil(2) {
            return;
        }
        let bit = 1 << class;
        if self.wanting.load(Ordering::Relaxed) & bit == 0 {
            self.wanting.fetch_or(bit, Ordering::Relaxed);
        }
        self.quota.wakes().prefault.ask_soon();
    }

    /// Prefaults for the classes that asked. Returns whether any did.
    pub(crate) fn prefault(&self) -> bool {
        let wanting = self.wanting.swap(0, Ordering::Relaxed);
        for class in (0..CLASSES).filter(|class| wanting >> class & 1 == 1) {
            self.prefault_class(class);
        }
        if wanting != 0 {
            // Frames that are not needed after all are given back.
            self.quota.wakes().background.ask_soon();
        }
        wanting != 0
    }

    fn prefault_class(&self, class: usize) {
        if let Some((segment_id, frames)) = self.begin_filling(class) {
            let got = self.populate(segment_id, frames);
            self.end_filling(class, segment_id, (frames, got), None);
            self.finish_if_ended();
        }
    }

    /// Charges the next frames of the class and marks them.
    fn begin_filling(&self, class: usize) -> Option<(u32, u64)> {
        let mut guard = self.classes[class].locked.lock();
        let inner = &mut *guard;
        let segment_id = *inner.open.first()?;
        let segment = inner.segments.get_mut(&segment_id)?;
        if self.ended.load(Ordering::Relaxed) {
            return None;
        }
        let known = segment.resident() | segment.on_the_way();
        let frames = segment.next_frames(self.prefault_target(class)) & !known;
        if frames == 0 || self.charge_frames(frames).is_err() {
            return None;
        }
        self.change(class, inner, segment_id, |segment| {
            segment.begin_filling(frames)
        });
        self.count_begun(class, frames);
        Some((segment_id, frames))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::account::allotment::Allotment;
    use crate::account::ledger::Ledger;
    use crate::account::quota::AllocError;
    use crate::arena::tests::arena;
    use crate::entry::{Encoding, Slot};
    use crate::memory::FRAME_BYTES;

    const RAW: usize = CLASSES - 1;

    fn store(arena: &Arena) -> Result<Slot, AllocError> {
        let mut held = Some(arena.hold_for(&[7; 4096])?);
        arena.commit(4096, Encoding::Raw, 1, &mut held)
    }

    /// A class of so many pages or a few more, and no frame without one.
    fn fill(arena: &Arena, ledger: &Ledger, pages: usize) -> Vec<Slot> {
        let mut slots: Vec<_> = (0..pages).map(|_| store(arena).expect("room")).collect();
        while idle(arena, ledger) > 0 {
            slots.push(store(arena).expect("room"));
        }
        slots
    }

    /// Frames that hold no slot. The charge equals the populated frames.
    fn idle(arena: &Arena, ledger: &Ledger) -> u64 {
        let usage = arena.usage();
        assert_eq!(ledger.used(), usage.frames + usage.metadata);
        (usage.frames - usage.slots) / FRAME_BYTES as u64
    }

    #[test]
    fn a_growing_class_has_frames_prefaulted_and_gives_them_back_when_it_rests() {
        let (ledger, arena) = arena(u64::MAX);
        assert!(!arena.prefault(), "nobody asked");
        fill(&arena, &ledger, 64 * 5 + 1);
        assert_eq!(arena.prefault_target(RAW), 5);
        assert!(arena.prefault());
        assert_eq!(idle(&arena, &ledger), 5);
        store(&arena).expect("room");
        assert_eq!(
            idle(&arena, &ledger),
            4,
            "a store takes a frame that is there"
        );
        assert!(!arena.prefault(), "four are enough");

        assert!(arena.plan_trim(), "the class took slots");
        assert_eq!(arena.trim_slowly(64), 0);
        assert!(!arena.plan_trim(), "it took no more");
        assert_eq!(arena.trim_slowly(64), 2 * 4096, "half of them");
        assert_eq!(arena.trim_slowly(64), 0, "until the next plan");
        arena.plan_trim();
        assert_eq!(arena.trim_slowly(64), 4096);
        arena.plan_trim();
        assert_eq!(arena.trim_slowly(64), 4096);
        assert_eq!(idle(&arena, &ledger), 0);
    }

    #[test]
    fn a_frame_on_its_way_is_nobody_elses_and_goes_back_when_the_kernel_refuses() {
        let (ledger, arena) = arena(u64::MAX);
        fill(&arena, &ledger, 64 * 5 + 1);
        let (segment_id, frames) = arena.begin_filling(RAW).expect("frames");
        assert_eq!(frames.count_ones(), 5);
        assert_eq!(arena.begin_filling(RAW), None, "they are on their way");
        let slot = store(&arena).expect("room");
        let taken = arena.usage().frames;
        assert!(arena.has_frames_on_the_way());
        while arena.trim(64) > 0 {}
        assert_eq!(idle(&arena, &ledger), 5, "what is on its way stays");
        arena.end_filling(
            RAW,
            segment_id,
            (frames, 0b11 << frames.trailing_zeros()),
            None,
        );
        assert!(arena.fetch(slot, &mut [0; 4096]));
        assert_eq!(idle(&arena, &ledger), 2);
        assert!(arena.usage().frames < taken);
        assert!(!arena.has_frames_on_the_way());
    }

    #[test]
    fn a_segment_that_empties_while_it_is_filled_goes_afterwards() {
        for ends in [false, true] {
            let (ledger, arena) = arena(u64::MAX);
            let slots = fill(&arena, &ledger, 70);
            let (segment_id, frames) = arena.begin_filling(RAW).expect("frames");
            for slot in slots {
                arena.free(slot);
            }
            if ends {
                arena.end();
            }
            while arena.trim(64) > 0 {}
            assert!(idle(&arena, &ledger) > 0);
            arena.end_filling(RAW, segment_id, (frames, frames), None);
            if ends {
                arena.finish_if_ended();
            } else {
                while arena.trim(64) > 0 {}
            }
            assert_eq!(ledger.used(), 0);
            assert_eq!(arena.begin_filling(RAW), None);
        }
    }

    #[test]
    fn frames_are_not_prefaulted_beyond_a_limit() {
        let (ledger, arena) = arena(u64::MAX);
        fill(&arena, &ledger, 64 * 5 + 1);
        let account = Arc::clone(&arena.quota.account);
        let used = ledger.used();
        ledger
            .configure(&account, Allotment::of(0, used))
            .expect("fits");
        assert!(arena.prefault());
        assert_eq!(ledger.used(), used);
        assert!(store(&arena).is_err());
        ledger
            .configure(&account, Allotment::of(0, used + 4096))
            .expect("fits");
        store(&arena).expect("room for one");
    }
}
