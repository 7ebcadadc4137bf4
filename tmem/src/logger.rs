//! Log lines on standard error, limited so that a guest that misbehaves cannot flood them.

use std::io::{IsTerminal, Write};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// Lines in one period; the rest is counted.
const LINES: u32 = 10;
const PERIOD: Duration = Duration::from_secs(10);

struct Logger {
    window: Mutex<Window>,
    /// Asked once: a confined thread may not ask a terminal anything.
    terminal: OnceLock<bool>,
}

struct Window {
    start: Option<Instant>,
    lines: u32,
    suppressed: u64,
}

impl Window {
    /// Whether a line may be written now, and how many were not since the last.
    fn admit(&mut self, now: Instant) -> Option<u64> {
        if self
            .start
            .is_none_or(|start| now.duration_since(start) >= PERIOD)
        {
            self.start = Some(now);
            self.lines = 0;
        }
        if self.lines >= LINES {
            self.suppressed += 1;
            return None;
        }
        self.lines += 1;
        Some(std::mem::take(&mut self.suppressed))
    }
}

static LOGGER: Logger = Logger {
    window: Mutex::new(Window {
        start: None,
        lines: 0,
        suppressed: 0,
    }),
    terminal: OnceLock::new(),
};

/// Makes this the logger of the process: warnings and errors.
pub(crate) fn install() {
    LOGGER
        .terminal
        .get_or_init(|| std::io::stderr().is_terminal());
    if log::set_logger(&LOGGER).is_ok() {
        log::set_max_level(log::LevelFilter::Warn);
    }
}

impl log::Log for Logger {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::Level::Warn
    }

    fn log(&self, record: &log::Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let admitted = self
            .window
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .admit(Instant::now());
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
        let mut window = Window {
            start: None,
            lines: 0,
            suppressed: 0,
        };
        let start = Instant::now();
        for _ in 0..LINES {
            assert_eq!(window.admit(start), Some(0));
        }
        assert_eq!(window.admit(start), None);
        assert_eq!(window.admit(start + PERIOD / 2), None);
        assert_eq!(window.admit(start + PERIOD), Some(2));
        assert_eq!(window.admit(start + PERIOD), Some(0));
    }
}
