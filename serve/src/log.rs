//! The rate-limited log of one guest: what happens to it, in as many lines as a person can read.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tmem_base::rate_limit::RateLimit;

/// Lines of one level that one guest may cause in one [`PERIOD`].
const LINES: u32 = 20;
const PERIOD: Duration = Duration::from_secs(60);

/// Says what happens to one guest. Its lines have a target of their own, `guest NAME`, so that the logger of the
/// process can tell the guests apart.
#[derive(Debug)]
pub(crate) struct RateLimitedLog {
    guest: String,
    target: String,
    /// A limit for each level, so that lines about success do not use up the limit of warnings.
    info: Mutex<RateLimit>,
    warn: Mutex<RateLimit>,
}

impl RateLimitedLog {
    pub(crate) fn new(guest: &str) -> Self {
        let limit = || Mutex::new(RateLimit::new(LINES, PERIOD));
        Self {
            guest: guest.to_owned(),
            target: format!("guest {guest}"),
            info: limit(),
            warn: limit(),
        }
    }

    pub(crate) fn info(&self, what: fmt::Arguments<'_>) {
        self.log(log::Level::Info, &self.info, what);
    }

    pub(crate) fn warn(&self, what: fmt::Arguments<'_>) {
        self.log(log::Level::Warn, &self.warn, what);
    }

    fn log(&self, level: log::Level, limit: &Mutex<RateLimit>, what: fmt::Arguments<'_>) {
        let target = self.target.as_str();
        match admit(limit, Instant::now()) {
            Some(0) => log::log!(target: target, level, "Guest {}: {what}", self.guest),
            Some(left_out) => {
                log::log!(
                    target: target,
                    level,
                    "Guest {}: {what} ({left_out} lines left out before)",
                    self.guest
                );
            }
            None => {}
        }
    }
}

/// Whether there may be a line at `now`; then, how many were left out since the last one.
fn admit(limit: &Mutex<RateLimit>, now: Instant) -> Option<u64> {
    // The numbers are valid whatever happened to a thread between them.
    let mut limit = limit.lock().unwrap_or_else(PoisonError::into_inner);
    limit.admit(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_cannot_flood_the_log() {
        let log = RateLimitedLog::new("a");
        let now = Instant::now();
        let admitted = (0..1000).filter(|_| admit(&log.warn, now).is_some());
        assert_eq!(admitted.count(), 20);
        let later = now + PERIOD * 2;
        assert_eq!(admit(&log.warn, later), Some(980), "and says so afterwards");
        assert_eq!(admit(&log.warn, later), Some(0));
    }

    #[test]
    fn what_goes_well_does_not_use_up_the_lines_of_what_goes_wrong() {
        let log = RateLimitedLog::new("a");
        for _ in 0..1000 {
            log.info(format_args!("Connected"));
        }
        assert_eq!(admit(&log.info, Instant::now()), None);
        assert_eq!(admit(&log.warn, Instant::now()), Some(0));
    }
}
