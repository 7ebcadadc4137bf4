//! When the guest hears that its stores are being refused, and when that there is room again.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use tmem_protocol::Pressure;

/// There is room again when a guest uses at most this many eighths of what it used at the refusal:
/// a guest that stays at its limit hears of it once, not with every page.
const ROOM_EIGHTHS: u64 = 7;

#[derive(Debug, Default)]
pub(super) struct PressureWatch {
    /// A store was refused for want of space since the level changed last.
    refused: AtomicBool,
    /// Bytes in use when the level became full; 0 while there is room.
    full_at: AtomicU64,
}

impl PressureWatch {
    /// A store was refused for want of space.
    pub(super) fn note_refusal(&self) {
        if !self.refused.load(Relaxed) {
            self.refused.store(true, Relaxed);
        }
    }

    /// There may be room again: the next refusal counts as the first. Returns whether the level was full.
    pub(super) fn ease(&self) -> bool {
        self.refused.store(false, Relaxed);
        self.full_at.swap(0, Relaxed) != 0
    }

    /// The new level, if it changed. Of several threads that ask at once one hears of it.
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
            (0, Pressure::None)
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

    #[test]
    fn a_guest_at_its_limit_hears_of_it_once() {
        let watch = PressureWatch::default();
        assert_eq!(watch.update(|| 800), None);
        watch.note_refusal();
        assert_eq!(watch.update(|| 800), Some(Pressure::Full));
        watch.note_refusal();
        assert_eq!(watch.update(|| 800), None);
        assert_eq!(watch.update(|| 701), None);
        assert_eq!(watch.update(|| 700), Some(Pressure::None));
        assert_eq!(watch.update(|| 700), None);
        watch.note_refusal();
        assert_eq!(watch.update(|| 700), Some(Pressure::Full));
    }

    #[test]
    fn a_guest_that_got_more_room_hears_of_the_next_refusal() {
        let watch = PressureWatch::default();
        watch.note_refusal();
        assert_eq!(watch.update(|| 800), Some(Pressure::Full));
        assert!(watch.ease());
        assert!(!watch.ease());
        assert_eq!(watch.update(|| 800), None);
        watch.note_refusal();
        assert_eq!(watch.update(|| 900), Some(Pressure::Full));
    }
}
