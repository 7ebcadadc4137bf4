//! Which slots to move so that frames become idle: the highest of a class, to the lowest places that are free.

use std::sync::atomic::Ordering;

use super::hold::Held;
use super::size_class::{Classes, class_of};
use super::{Arena, Movable, before_touch};
use crate::entry::{Slot, SlotId};

impl Arena {
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
        let (segment_id, segment) = inner.segments.last_key_value()?;
        let (slot, backref) = segment.highest()?;
        Some(Movable {
            slot: SlotId {
                segment: *segment_id,
                index: slot,
            },
            backref,
        })
    }

    /// Copies a slot that stays where it is to a lower one that is held. Returns whether it did. The caller holds no lock of
    /// the crate.
    pub(crate) fn copy(&self, slot: Slot, to: &mut Option<Held<'_>>) -> bool {
        before_touch();
        to.as_mut().is_some_and(|to| {
            to.is_of(self, class_of(slot.len)) && to.id() < slot.id() && to.copy_from(slot)
        })
    }
}
