//! How often a front end may have its memory mapped anew. A thread that maps or unmaps holds the lock of the address
//! space, which a thread of another guest needs for a page fault.

use std::time::{Duration, Instant};

/// Time that may be spent at once: a guest that starts sends a dozen tables.
const BURST: Duration = Duration::from_millis(50);
/// Beyond it, the time that passes for each that is spent.
const SHARE: u32 = 5;
/// Longest wait for one table: unmapping a terabyte takes long, and a guest that does it once should not be stopped for
/// long.
const LONGEST: Duration = Duration::from_secs(1);

/// Processor time that one guest's tables took. It does not include time in which the thread waited because of others.
#[derive(Debug)]
pub(super) struct Pace {
    spent: Duration,
    at: Instant,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            spent: Duration::ZERO,
            at: now,
        }
    }

    /// Notes work that took so long.
    pub(super) fn spend(&mut self, time: Duration, now: Instant) {
        self.forget(now);
        self.spent = self.spent.saturating_add(time);
    }

    /// Time until the next table.
    pub(super) fn wait(&mut self, now: Instant) -> Duration {
        self.forget(now);
        let longest = BURST.saturating_add(LONGEST / SHARE);
        self.spent = self.spent.min(longest);
        self.spent.saturating_sub(BURST).saturating_mul(SHARE)
    }

    fn forget(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at);
        self.spent = self.spent.saturating_sub(passed / SHARE);
        self.at = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_without_end_take_a_fifth_of_the_time_and_some_take_what_they_need() {
        let begin = Instant::now();
        let mut pace = Pace::new(begin);
        let table = Duration::from_micros(500);
        let (mut now, mut worked) = (begin, Duration::ZERO);
        for round in 0..100_000 {
            let wait = pace.wait(now);
            assert!(
                round >= 90 || wait.is_zero(),
                "round {round} waits {wait:?}"
            );
            now += wait + table;
            pace.spend(table, now);
            worked += table;
        }
        let passed = now.duration_since(begin);
        assert!(
            worked <= passed / SHARE + BURST + table,
            "{worked:?} of {passed:?}"
        );
        // Who rests a while has all of it again.
        now += (BURST + table) * SHARE;
        assert_eq!(pace.wait(now), Duration::ZERO);
        pace.spend(BURST, now);
        assert_eq!(pace.wait(now), Duration::ZERO);
    }

    #[test]
    fn no_table_is_waited_for_longer_than_a_second() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        pace.spend(Duration::from_secs(3600), now);
        assert_eq!(pace.wait(now), LONGEST);
        assert_eq!(pace.wait(now + LONGEST), Duration::ZERO);
    }
}
