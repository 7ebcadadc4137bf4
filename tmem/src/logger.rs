//! Log lines on standard error, limited so that a guest that misbehaves cannot flood them.
//!
//! Each source of lines, by the target of the record and its level, has an allowance of its own: an error is not left
//! out because of warnings, nor a line about one guest because of another guest.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use log::Level;
use tmem_base::rate_limit::RateLimit;

/// Lines of one source in one period; the rest is counted.
const LINES: u32 = 10;
const PERIOD: Duration = Duration::from_secs(10);

/// Sources with an allowance of their own. More at a time than a service has guests and this program has modules; what
/// comes beyond them shares one.
const SOURCES: usize = 256;

struct Logger {
    limits: Mutex<Limits>,
    /// Asked once: a confined thread may not ask a terminal anything.
    terminal: OnceLock<bool>,
}

/// The allowances, by target and level.
struct Limits {
    of: BTreeMap<(String, Level), RateLimit>,
    shared: RateLimit,
}

const FRESH: RateLimit = RateLimit::new(LINES, PERIOD);

impl Limits {
    const fn new() -> Self {
        Self {
            of: BTreeMap::new(),
            shared: FRESH,
        }
    }

    /// Whether a line of this source may be written now, and how many were not since its last.
    fn admit(&mut self, target: &str, level: Level, now: Instant) -> Option<u64> {
        let source = (target.to_owned(), level);
        if !self.of.contains_key(&source) && self.of.len() >= SOURCES {
            self.forget(now);
        }
        if self.of.contains_key(&source) || self.of.len() < SOURCES {
            self.of.entry(source).or_insert(FRESH).admit(now)
        } else {
            self.shared.admit(now)
        }
    }

    /// Drops the limits whose period is over. The shared one reports the lines that they suppressed.
    fn forget(&mut self, now: Instant) {
        self.of.retain(|_, limit| {
            if limit.is_over(now) {
                self.shared.add_suppressed(limit.suppressed());
                return false;
            }
            true
        });
    }
}

static LOGGER: Logger = Logger {
    limits: Mutex::new(Limits::new()),
    terminal: OnceLock::new(),
};

/// Target of lines that an operator asked for: they are shown though nothing is wrong.
pub(crate) const NOTICE: &str = "notice";

/// Makes this the logger of the process: warnings, errors and lines that are a [`NOTICE`].
pub(crate) fn install() {
    LOGGER
        .terminal
        .get_or_init(|| std::io::stderr().is_terminal());
    if log::set_logger(&LOGGER).is_ok() {
        log::set_max_level(log::LevelFilter::Info);
    }
}

impl log::Log for Logger {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= Level::Warn || metadata.target() == NOTICE
    }

    fn log(&self, record: &log::Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let admitted = self
            .limits
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .admit(record.target(), record.level(), Instant::now());
        let Some(suppressed) = admitted else { return };
        let mut stderr = std::io::stderr();
        // A terminal may be raw.
        let terminal = self.terminal.get().is_some_and(|terminal| *terminal);
        let end = if terminal { "\r\n" } else { "\n" };
        let more = if suppressed > 0 {
            format!(" ({suppressed} lines left out before)")
        } else {
            String::new()
        };
        let _ = write!(stderr, "tmem: {}{more}{end}", record.args());
    }

    fn flush(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_and_counted() {
        let mut limits = Limits::new();
        let start = Instant::now();
        let mut admit = |now| limits.admit("guest a", Level::Warn, now);
        for _ in 0..LINES {
            assert_eq!(admit(start), Some(0));
        }
        assert_eq!(admit(start), None);
        assert_eq!(admit(start + PERIOD / 2), None);
        assert_eq!(admit(start + PERIOD), Some(2));
        assert_eq!(admit(start + PERIOD), Some(0));
    }

    #[test]
    fn a_flood_takes_nothing_from_another_source_or_level() {
        let mut limits = Limits::new();
        let now = Instant::now();
        for _ in 0..1000 {
            limits.admit("guest a", Level::Warn, now);
        }
        assert_eq!(limits.admit("guest a", Level::Warn, now), None);
        assert_eq!(limits.admit("guest a", Level::Error, now), Some(0));
        assert_eq!(limits.admit("guest b", Level::Warn, now), Some(0));
    }

    #[test]
    fn sources_without_number_cost_neither_memory_nor_log() {
        let mut limits = Limits::new();
        let start = Instant::now();
        let mut lines = 0;
        for number in 0..10_000 {
            let source = format!("guest {number}");
            lines += usize::from(limits.admit(&source, Level::Warn, start).is_some());
        }
        assert_eq!(limits.of.len(), SOURCES);
        assert_eq!(lines, SOURCES + LINES as usize);
        // The next of those that share an allowance says how many were left out.
        let left_out = (10_000 - lines) as u64;
        for number in 0..SOURCES {
            let source = format!("guest {number}");
            limits.admit(&source, Level::Warn, start + PERIOD);
        }
        let next = limits.admit("one more", Level::Warn, start + PERIOD);
        assert_eq!(next, Some(left_out));
        assert!(limits.of.len() <= SOURCES);
    }
}
