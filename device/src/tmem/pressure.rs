//! When to tell the guest that its stores are being refused, that the host is short of memory, and that there is memory
//! again.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use tmem_protocol::{Pressure, Status};

/// There is room again when a guest uses at most this many eighths of what it used at the refusal: a guest that stays
/// at its limit gets one event, not one with every page.
const ROOM_EIGHTHS: u64 = 7;

#[derive(Debug, Default)]
pub(super) struct PressureWatch {
    /// A store was refused since the level changed last.
    refused: AtomicBool,
    /// Bytes in use when the level became full; 0 while there is room.
    full_at: AtomicU64,
    /// A store was refused because the host had no memory: it is room when the host has some.
    for_host: AtomicBool,
    /// The host is short of memory.
    short: AtomicBool,
    /// The host told something that the transport has not seen.
    told: AtomicBool,
}

impl PressureWatch {
    /// Notes the result of a store: some refusals are for want of space or memory.
    pub(super) fn note(&self, result: Result<(), Status>) {
        match result {
            Err(Status::NoMemory) => self.for_host.store(true, Relaxed),
            Err(Status::NoSpace) => {}
            _ => return,
        }
        if !self.refused.load(Relaxed) {
            self.refused.store(true, Relaxed);
        }
    }

    /// There may be room again: the next refusal counts as the first. Returns whether the level was full.
    pub(super) fn ease(&self) -> bool {
        self.refused.store(false, Relaxed);
        self.for_host.store(false, Relaxed);
        self.full_at.swap(0, Relaxed) != 0
    }

    /// The level while no store is refused.
    pub(super) fn at_ease(&self) -> Pressure {
        if self.short.load(Relaxed) {
            Pressure::Some
        } else {
            Pressure::None
        }
    }

    /// Notes whether the host is short of memory. The new level, if it changed.
    pub(super) fn host(&self, short: bool) -> Option<Pressure> {
        let was_short = self.short.swap(short, Relaxed);
        let is_full = self.full_at.load(Relaxed) != 0;
        let eased = !short && is_full && self.for_host.load(Relaxed) && self.ease();
        let changed = eased || (was_short != short && !is_full);
        if changed {
            self.told.store(true, Relaxed);
        }
        changed.then(|| self.at_ease())
    }

    /// Whether [`Self::host`] changed the level since this was asked last.
    pub(super) fn take_told(&self) -> bool {
        self.told.load(Relaxed) && self.told.swap(false, Relaxed)
    }

    /// The new level, if it changed. If several threads ask at once, one of them gets it.
    pub(super) fn update(&self, used: impl FnOnce() -> u64) -> Option<Pressure> {
        let full_at = self.full_at.load(Relaxed);
        let (next, level) = if full_at == 0 {
            if !self.refused.load(Relaxed) {
                return None;
            }
            (used().max(1), Pressure::Full)
        } else {
            let room = (full_at / 8).saturating_mul(ROOM_EIGHTHS);
            if used() > room {
                return None;
            }
            self.for_host.store(false, Relaxed);
            (0, self.at_ease())
        };
        self.full_at
            .compare_exchange(full_at, next, Relaxed, Relaxed)
            .ok()?;
        self.refused.store(false, Relaxed);
        Some(level)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: Result<(), Status> = Err(Status::NoSpace);

    #[test]
    fn a_guest_at_its_limit_hears_of_it_once() {
        let watch = PressureWatch::default();
        assert_eq!(watch.update(|| 800), None);
        watch.note(FULL);
        assert_eq!(watch.update(|| 800), Some(Pressure::Full));
        watch.note(FULL);
        assert_eq!(watch.update(|| 800), None);
        assert_eq!(watch.update(|| 701), None);
        assert_eq!(watch.update(|| 700), Some(Pressure::None));
        assert_eq!(watch.update(|| 700), None);
        watch.note(FULL);
        assert_eq!(watch.update(|| 700), Some(Pressure::Full));
    }

    #[test]
    fn a_guest_that_got_more_room_hears_of_the_next_refusal() {
        let watch = PressureWatch::default();
        watch.note(FULL);
        assert_eq!(watch.update(|| 800), Some(Pressure::Full));
        assert!(watch.ease());
        assert!(!watch.ease());
        assert_eq!(watch.update(|| 800), None);
        watch.note(FULL);
        assert_eq!(watch.update(|| 900), Some(Pressure::Full));
    }

    #[test]
    fn a_host_that_is_short_is_heard_of_once_and_again_when_it_is_not() {
        let watch = PressureWatch::default();
        assert_eq!(watch.host(false), None);
        assert_eq!(watch.host(true), Some(Pressure::Some));
        assert!(watch.take_told());
        assert!(!watch.take_told());
        assert_eq!(watch.host(true), None);
        assert_eq!(watch.host(false), Some(Pressure::None));
        assert!(watch.take_told());
    }

    #[test]
    fn stores_that_the_host_refused_are_heard_of_until_it_has_memory() {
        let watch = PressureWatch::default();
        assert_eq!(watch.host(true), Some(Pressure::Some));
        watch.note(Err(Status::NoMemory));
        assert_eq!(watch.update(|| 800), Some(Pressure::Full));
        assert_eq!(watch.host(true), None, "still");
        assert_eq!(watch.host(false), Some(Pressure::None));
        // A guest that gave pages up while the host is short has room, and not much.
        assert_eq!(watch.host(true), Some(Pressure::Some));
        watch.note(Err(Status::NoMemory));
        assert_eq!(watch.update(|| 800), Some(Pressure::Full));
        assert_eq!(watch.update(|| 700), Some(Pressure::Some));
    }

    #[test]
    fn a_host_with_memory_is_no_room_for_a_guest_at_its_limit() {
        let watch = PressureWatch::default();
        watch.note(FULL);
        assert_eq!(watch.update(|| 800), Some(Pressure::Full));
        assert_eq!(watch.host(true), None);
        assert_eq!(watch.host(false), None);
        assert_eq!(watch.update(|| 700), Some(Pressure::None));
    }

    #[test]
    fn what_is_no_refusal_for_want_of_room_is_not_heard_of() {
        let watch = PressureWatch::default();
        for result in [Ok(()), Err(Status::Frozen), Err(Status::Invalid)] {
            watch.note(result);
        }
        assert_eq!(watch.update(|| 800), None);
    }
}
