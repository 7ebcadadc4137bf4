//! Log lines about one guest, no more of them than somebody can read.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lines that one guest may cause in one [`WINDOW`].
const LINES: u32 = 20;
const WINDOW: Duration = Duration::from_secs(60);

/// Says what happens to one guest.
#[derive(Debug)]
pub(crate) struct Journal {
    guest: String,
    window: Mutex<Window>,
}

#[derive(Debug)]
struct Window {
    began: Instant,
    lines: u32,
}

impl Journal {
    pub(crate) fn new(guest: &str) -> Self {
        Self {
            guest: guest.to_owned(),
            window: Mutex::new(Window {
                began: Instant::now(),
                lines: 0,
            }),
        }
    }

    pub(crate) fn info(&self, what: fmt::Arguments<'_>) {
        self.log(log::Level::Info, what);
    }

    pub(crate) fn warn(&self, what: fmt::Arguments<'_>) {
        self.log(log::Level::Warn, what);
    }

    fn log(&self, level: log::Level, what: fmt::Arguments<'_>) {
        match self.admit(Instant::now()) {
            Some(0) => log::log!(level, "Guest {}: {what}", self.guest),
            Some(missed) => {
                log::log!(
                    level,
                    "Guest {}: {what} ({missed} lines left out)",
                    self.guest
                );
            }
            None => {}
        }
    }

    /// Whether there may be a line at `now`; then, how many were left out since the last one.
    fn admit(&self, now: Instant) -> Option<u32> {
        // The numbers are valid whatever happened to a thread between them.
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        let mut missed = 0;
        if now.saturating_duration_since(window.began) >= WINDOW {
            missed = window.lines.saturating_sub(LINES);
            *window = Window {
                began: now,
                lines: 0,
            };
        }
        window.lines = window.lines.saturating_add(1);
        (window.lines <= LINES).then_some(missed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_cannot_flood_the_log() {
        let journal = Journal::new("a");
        let now = Instant::now();
        let admitted = (0..1000).filter(|_| journal.admit(now).is_some()).count();
        assert_eq!(admitted, 20);
        assert_eq!(
            journal.admit(now + WINDOW * 2),
            Some(980),
            "and says so afterwards"
        );
        assert_eq!(journal.admit(now + WINDOW * 2), Some(0));
    }
}
