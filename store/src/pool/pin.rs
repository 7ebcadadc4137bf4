//! Slots whose bytes a thread reads without a lock. The host may have swapped their memory out, and a thread that waits
//! for a lock must not wait for such a read. The reader must not find another page's bytes, or a frame that was given
//! back to the kernel. So a pinned slot is not freed before its last reader is done.

use crate::arena::Arena;
use crate::entry::Slot;
use crate::sync::InnerMutex;

/// The pinned slots of what a lock guards: at most one for each thread.
#[derive(Debug, Default)]
pub(super) struct Pins(Vec<Pin>);

#[derive(Debug)]
struct Pin {
    slot: Slot,
    readers: u32,
    /// No entry names the slot any more: the last reader gives it back.
    doomed: bool,
}

impl Pins {
    fn position(&self, slot: Slot) -> Option<usize> {
        self.0.iter().position(|pin| pin.slot.id() == slot.id())
    }

    /// `false` when there is no memory to note it.
    fn pin(&mut self, slot: Slot) -> bool {
        match self.position(slot) {
            Some(at) => self.0[at].readers += 1,
            None if self.0.try_reserve(1).is_ok() => self.0.push(Pin {
                slot,
                readers: 1,
                doomed: false,
            }),
            None => return false,
        }
        true
    }

    /// A reader is done. Returns whether it has to give the slot back.
    fn unpin(&mut self, slot: Slot) -> bool {
        let Some(at) = self.position(slot) else {
            return false;
        };
        self.0[at].readers -= 1;
        self.0[at].readers == 0 && self.0.swap_remove(at).doomed
    }

    /// Gives back a slot that no entry names any more, now or when its last reader is done.
    pub(super) fn free(&mut self, slot: Slot, arena: &Arena) {
        match self.position(slot) {
            Some(at) => self.0[at].doomed = true,
            None => arena.free(slot),
        }
    }
}

/// The data under a lock that protects entries which name slots.
pub(super) trait HasPins {
    fn pins(&mut self) -> &mut Pins;
}

/// A slot that stays where it is, with its bytes, whatever becomes of its page.
pub(super) struct Pinned<'a, T: HasPins> {
    arena: &'a Arena,
    lock: &'a InnerMutex<T>,
    slot: Slot,
}

impl<'a, T: HasPins> Pinned<'a, T> {
    /// Pins a slot that an entry names. The caller holds the lock, which guards `locked`. `None` when there is no memory
    /// to note it.
    pub(super) fn new(
        arena: &'a Arena,
        lock: &'a InnerMutex<T>,
        locked: &mut T,
        slot: Slot,
    ) -> Option<Self> {
        let pinned = locked.pins().pin(slot);
        pinned.then_some(Self { arena, lock, slot })
    }

    pub(super) fn slot(&self) -> Slot {
        self.slot
    }

    /// Copies the slot's bytes out. `false` when they are not those that were written. The caller holds no lock.
    pub(super) fn read(&self, bytes: &mut [u8]) -> bool {
        self.arena.fetch(self.slot, bytes)
    }
}

impl<T: HasPins> Drop for Pinned<'_, T> {
    fn drop(&mut self) {
        let last = self.lock.lock().pins().unpin(self.slot);
        if last {
            self.arena.free(self.slot);
        }
    }
}

#[cfg(test)]
mod tests;
