//! Log lines about one guest, no more of them than somebody can read.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lines of one level that one guest may cause in one [`WINDOW`].
const LINES: u32 = 20;
const WINDOW: Duration = Duration::from_secs(60);

/// Says what happens to one guest. Its lines have a target of their own, `guest NAME`, so that the logger of the
/// process can tell the guests apart.
#[derive(Debug)]
pub(crate) struct Journal {
    guest: String,
    target: String,
    /// An allowance for each level: what goes well leaves that of what goes wrong alone.
    info: Mutex<Window>,
    warn: Mutex<Window>,
}

#[derive(Debug)]
struct Window {
    began: Instant,
    /// Written since then.
    lines: u32,
    /// Left out since the last line that was written.
    missed: u64,
}

impl Journal {
    pub(crate) fn new(guest: &str) -> Self {
        let window = || {
            Mutex::new(Window {
                began: Instant::now(),
                lines: 0,
                missed: 0,
            })
        };
        Self {
            guest: guest.to_owned(),
            target: format!("guest {guest}"),
            info: window(),
            warn: window(),
        }
    }

    pub(crate) fn info(&self, what: fmt::Arguments<'_>) {
        self.log(log::Level::Info, &self.info, what);
    }

    pub(crate) fn warn(&self, what: fmt::Arguments<'_>) {
        self.log(log::Level::Warn, &self.warn, what);
    }

    fn log(&self, level: log::Level, window: &Mutex<Window>, what: fmt::Arguments<'_>) {
        let target = self.target.as_str();
        match admit(window, Instant::now()) {
            Some(0) => log::log!(target: target, level, "Guest {}: {what}", self.guest),
            Some(missed) => {
                log::log!(
                    target: target,
                    level,
                    "Guest {}: {what} ({missed} lines left out before)",
                    self.guest
                );
            }
            None => {}
        }
    }
}

/// Whether there may be a line at `now`; then, how many were left out since the last one.
fn admit(window: &Mutex<Window>, now: Instant) -> Option<u64> {
    // The numbers are valid whatever happened to a thread between them.
    let mut window = window.lock().unwrap_or_else(PoisonError::into_inner);
    if now.saturating_duration_since(window.began) >= WINDOW {
        window.began = now;
        window.lines = 0;
    }
    if window.lines >= LINES {
        window.missed = window.missed.saturating_add(1);
        return None;
    }
    window.lines += 1;
    Some(std::mem::take(&mut window.missed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_cannot_flood_the_log() {
        let journal = Journal::new("a");
        let now = Instant::now();
        let admitted = (0..1000).filter(|_| admit(&journal.warn, now).is_some());
        assert_eq!(admitted.count(), 20);
        let later = now + WINDOW * 2;
        assert_eq!(
            admit(&journal.warn, later),
            Some(980),
            "and says so afterwards"
        );
        assert_eq!(admit(&journal.warn, later), Some(0));
    }

    #[test]
    fn what_goes_well_does_not_use_up_the_lines_of_what_goes_wrong() {
        let journal = Journal::new("a");
        for _ in 0..1000 {
            journal.info(format_args!("Connected"));
        }
        assert_eq!(admit(&journal.info, Instant::now()), None);
        assert_eq!(admit(&journal.warn, Instant::now()), Some(0));
    }
}
