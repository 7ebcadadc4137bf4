//! Which slots to move so that frames become idle: the highest of a class, to the lowest places that are free.

use std::sync::atomic::Ordering;

use super::{Classes, Held, Movable, Space};
use crate::entry::Slot;
use crate::segment::{Backref, class_of, slot_bytes};

impl Space {
    /// Classes where moving slots may free a frame.
    pub(crate) fn movable(&self) -> Classes {
        Classes(self.movable.load(Ordering::Relaxed))
    }

    /// How many slots of the class must move so that a frame becomes idle, if there are as many free places for
    /// them in the frames that the class has.
    pub(crate) fn moves_to_win(&self, class: usize) -> Option<usize> {
        let cell = &self.classes[class];
        let inner = cell.locked.lock();
        let Some((_, segment)) = inner.segments.last_key_value() else {
            self.movable.fetch_and(!(1 << class), Ordering::Relaxed);
            return None;
        };
        // While frames are on the way, their owner knows more in a moment.
        let (moves, above) = segment.top()?;
        if cell.gauges.ready.get() - above < moves {
            self.movable.fetch_and(!(1 << class), Ordering::Relaxed);
            return None;
        }
        Some(moves as usize)
    }

    /// The slot at the highest address of the class.
    pub(crate) fn highest(&self, class: usize) -> Option<Movable> {
        let inner = self.classes[class].locked.lock();
        let (number, segment) = inner.segments.last_key_value()?;
        let (slot, backref) = segment.highest()?;
        Some(Movable {
            slot: (*number, slot),
            backref,
        })
    }

    /// Copies a slot to a lower place that the caller got. It holds the lock of the entry that names the slot,
    /// changes the entry, and frees the old slot.
    pub(crate) fn relocate(
        &self,
        slot: Slot,
        backref: Backref,
        to: &mut Option<Held<'_>>,
    ) -> Option<Slot> {
        let class = class_of(slot.len);
        let from = (slot.segment, slot.number);
        let to = to.take_if(|to| to.is_of(self, class) && to.place() < from)?;
        let (segment, number) = to.keep(backref);
        let bytes = slot_bytes(class);
        let copied = self.memory.copy(
            (slot.segment, usize::from(slot.number) * bytes),
            (segment, usize::from(number) * bytes),
            usize::from(slot.len),
        );
        if !copied {
            self.give(class, segment, number);
            return None;
        }
        Some(Slot {
            segment,
            number,
            ..slot
        })
    }
}
