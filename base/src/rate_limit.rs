//! A limit on how often something may happen, which counts what it held back.

use std::time::{Duration, Instant};

/// So many events in each period. A period begins with the first event after the last one is over.
#[derive(Clone, Copy, Debug)]
pub struct RateLimit {
    most: u32,
    period: Duration,
    began: Option<Instant>,
    admitted: u32,
    suppressed: u64,
}

impl RateLimit {
    /// Admits `most` events in each `period`.
    pub const fn new(most: u32, period: Duration) -> Self {
        Self {
            most,
            period,
            began: None,
            admitted: 0,
            suppressed: 0,
        }
    }

    /// Whether an event may happen at `now`; then, how many were suppressed since the last one that might.
    pub fn admit(&mut self, now: Instant) -> Option<u64> {
        if self.is_over(now) {
            self.began = Some(now);
            self.admitted = 0;
        }
        if self.admitted >= self.most {
            self.suppressed = self.suppressed.saturating_add(1);
            return None;
        }
        self.admitted += 1;
        Some(std::mem::take(&mut self.suppressed))
    }

    /// Whether no period is running at `now`.
    pub fn is_over(&self, now: Instant) -> bool {
        self.began
            .is_none_or(|began| now.saturating_duration_since(began) >= self.period)
    }

    /// Events that were suppressed since the last one that was admitted.
    pub fn suppressed(&self) -> u64 {
        self.suppressed
    }

    /// Counts events that another limit suppressed.
    pub fn add_suppressed(&mut self, events: u64) {
        self.suppressed = self.suppressed.saturating_add(events);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_suppressed_is_counted_by_the_next_event_that_is_admitted() {
        const PERIOD: Duration = Duration::from_secs(10);
        let mut limit = RateLimit::new(3, PERIOD);
        let start = Instant::now();
        assert!(limit.is_over(start));
        for _ in 0..3 {
            assert_eq!(limit.admit(start), Some(0));
        }
        assert_eq!(limit.admit(start), None);
        assert_eq!(limit.admit(start + PERIOD / 2), None);
        limit.add_suppressed(5);
        assert_eq!(limit.suppressed(), 7);
        assert!(limit.is_over(start + PERIOD));
        assert_eq!(limit.admit(start + PERIOD), Some(7));
        assert_eq!(limit.admit(start + PERIOD), Some(0));
        assert_eq!(limit.admit(start), Some(0), "a clock that went back");
        assert_eq!(limit.admit(start), None);
    }
}
