//! Slots whose bytes somebody reads without a lock. The host may have swapped their memory out, so nobody who waits for
//! a lock is to wait for such a read; and whoever reads is not to find another page's bytes, or a frame that the
//! kernel has again. A slot that is pinned is not given back before the last reader is done.

use crate::entry::Slot;
use crate::space::Space;
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
        let place = |slot: Slot| (slot.segment, slot.number);
        self.0.iter().position(|pin| place(pin.slot) == place(slot))
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
    pub(super) fn free(&mut self, slot: Slot, space: &Space) {
        match self.position(slot) {
            Some(at) => self.0[at].doomed = true,
            None => space.free(slot),
        }
    }
}

/// What a lock guards whose entries name slots.
pub(super) trait HasPins {
    fn pins(&mut self) -> &mut Pins;
}

/// A slot that stays where it is, with its bytes, whatever becomes of its page.
pub(super) struct Pinned<'a, T: HasPins> {
    space: &'a Space,
    lock: &'a InnerMutex<T>,
    slot: Slot,
}

impl<'a, T: HasPins> Pinned<'a, T> {
    /// Pins a slot that an entry names. The caller holds the lock, which guards `locked`. `None` when there is no memory
    /// to note it.
    pub(super) fn new(
        space: &'a Space,
        lock: &'a InnerMutex<T>,
        locked: &mut T,
        slot: Slot,
    ) -> Option<Self> {
        let pinned = locked.pins().pin(slot);
        pinned.then_some(Self { space, lock, slot })
    }

    pub(super) fn slot(&self) -> Slot {
        self.slot
    }

    /// Copies the slot's bytes out. `false` when they are not those that were written. The caller holds no lock.
    pub(super) fn read(&self, bytes: &mut [u8]) -> bool {
        self.space.fetch(self.slot, bytes)
    }
}

impl<T: HasPins> Drop for Pinned<'_, T> {
    fn drop(&mut self) {
        let last = self.lock.lock().pins().unpin(self.slot);
        if last {
            self.space.free(self.slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::{Arc, mpsc};
    use std::time::Duration;

    use crate::space::tests::SWAP_IN;
    use crate::{
        Dedup, Domain, DomainConfig, ObjectId, Page, PoolId, PoolSpec, Store, StoreConfig,
    };

    const OBJECT: ObjectId = ObjectId([0; 3]);

    fn page(seed: usize) -> Page {
        std::array::from_fn(|at| (at / 9 * seed) as u8)
    }

    fn store() -> Store {
        let config = StoreConfig {
            background: false,
            ..StoreConfig::default()
        };
        Store::new(config).expect("store")
    }

    fn domain(store: &Store, name: &str) -> Domain {
        let config = DomainConfig {
            groups: vec!["files".to_owned()],
            ..DomainConfig::default()
        };
        store.add_domain(name, config).expect("new name")
    }

    /// While this thread touches a slot next, another one has time for `act`.
    fn meanwhile(act: impl FnOnce() + Send + 'static) -> Arc<AtomicBool> {
        let done = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&done);
        SWAP_IN.set(Some(Box::new(move || {
            let (say, heard) = mpsc::channel();
            std::thread::spawn(move || {
                act();
                let _ = say.send(());
            });
            let ended = heard.recv_timeout(Duration::from_secs(20)).is_ok();
            seen.store(ended, Ordering::SeqCst);
        })));
        done
    }

    type Guest = (Domain, PoolId);

    /// Two guests of each kind of pool in which one may wait for the other's lock.
    fn guests(dedup: Dedup) -> (Store, Guest, Guest) {
        let store = store();
        let [a, b] = ["a", "b"].map(|name| {
            let domain = domain(&store, name);
            let group = PoolSpec::Shared { group: "files" };
            let pool = domain.create_pool_with(group, dedup).expect("room");
            (domain, pool)
        });
        (store, a, b)
    }

    #[test]
    fn a_member_that_waits_for_its_page_to_be_swapped_in_holds_no_other_up() {
        for dedup in [Dedup::On, Dedup::Off] {
            let (_store, a, b) = guests(dedup);
            a.0.store(a.1, OBJECT, 1, &page(3)).expect("room");
            // Another guest takes the very page away, and would take its slot.
            let went_on = meanwhile({
                let b = b.clone();
                move || {
                    for index in [1, 2] {
                        b.0.store(b.1, OBJECT, index, &page(5 + index as usize))
                            .expect("room");
                    }
                }
            });
            let mut back = [0; 4096];
            a.0.load(a.1, OBJECT, 1, &mut back).expect("is there");
            assert!(went_on.load(Ordering::SeqCst), "another guest waited");
            assert!(back == page(3), "the page that was there");
            a.0.load(a.1, OBJECT, 1, &mut back).expect("is there");
            assert!(back == page(6));
        }
    }

    #[test]
    fn a_member_that_waits_for_a_slot_to_be_swapped_in_holds_no_other_up() {
        for dedup in [Dedup::On, Dedup::Off] {
            let (_store, a, b) = guests(dedup);
            let went_on = meanwhile({
                let b = b.clone();
                move || b.0.store(b.1, OBJECT, 1, &page(5)).expect("room")
            });
            a.0.store(a.1, OBJECT, 1, &page(3)).expect("room");
            assert!(went_on.load(Ordering::SeqCst), "another guest waited");
            let mut back = [0; 4096];
            b.0.load(b.1, OBJECT, 1, &mut back).expect("is there");
            assert!(back == page(3), "the store that ended last");
        }
    }
}
