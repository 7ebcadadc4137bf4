//! The end of a machine: the effect of signals, the time that a guest has after its power button was pressed or after
//! it panicked, and which of several events is reported as the reason. It has no clock and no thread.

use std::time::{Duration, Instant};

use signal_hook::consts::{SIGHUP, SIGQUIT};

use crate::vcpu::{ExitReason, Panic};

/// Time that a guest has after a panic to write to its console and to reset, which `panic=-1` makes it do at once.
const PANIC_GRACE: Duration = Duration::from_secs(5);

/// The effect of a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Press the power button.
    Press,
    /// It is over.
    End(ExitReason),
    /// Nothing more: the machine is ending already.
    Wait,
}

/// The end of one machine.
#[derive(Debug)]
pub(crate) struct Ending {
    grace: Duration,
    /// The signal that pressed the power button, and when the grace time is over.
    asked: Option<(i32, Instant)>,
    /// The guest panicked; how long to wait for it, unless a crash kernel handles the panic.
    panicked: Option<Option<Instant>>,
}

impl Ending {
    /// `grace` is the time that a guest has to power itself off; with none, its power is cut.
    pub(crate) fn new(grace: Duration) -> Self {
        Self {
            grace,
            asked: None,
            panicked: None,
        }
    }

    /// The time that a guest has to power itself off.
    pub(crate) fn grace(&self) -> Duration {
        self.grace
    }

    /// A signal came. The first presses the button, a second cuts the power, and SIGQUIT always does. SIGHUP is not a
    /// second one: a supervisor may send it together with another.
    pub(crate) fn signal(&mut self, signal: i32, now: Instant) -> Step {
        if self.panicked.is_some() {
            return Step::End(ExitReason::Panic);
        }
        if signal == SIGQUIT || self.grace.is_zero() {
            return Step::End(ExitReason::Signal(signal));
        }
        match self.asked {
            None => {
                // A grace time that no clock can hold has no end.
                let deadline = now.checked_add(self.grace);
                self.asked = Some((signal, deadline.unwrap_or(now + DAY)));
                Step::Press
            }
            Some(_) if signal == SIGHUP => Step::Wait,
            Some(_) => Step::End(ExitReason::Signal(signal)),
        }
    }

    /// The guest panicked. Only the first time counts.
    pub(crate) fn panicked(&mut self, how: Panic, now: Instant) {
        let until = match how {
            Panic::Plain => Some(now + PANIC_GRACE),
            Panic::CrashKernel => None,
        };
        self.panicked.get_or_insert(until);
    }

    /// Whether it is over because time has passed.
    pub(crate) fn due(&self, now: Instant) -> Option<ExitReason> {
        if let Some(Some(until)) = self.panicked
            && now >= until
        {
            return Some(ExitReason::Panic);
        }
        match self.asked {
            Some((signal, until)) if now >= until => Some(ExitReason::Signal(signal)),
            _ => None,
        }
    }

    /// When to call [`due`](Self::due) next.
    pub(crate) fn next(&self) -> Option<Instant> {
        let asked = self.asked.map(|(_, until)| until);
        [asked, self.panicked.flatten()].into_iter().flatten().min()
    }

    /// The reason to report for a machine that ended this way: a panic if the guest panicked, whatever came afterwards.
    pub(crate) fn reason(&self, ended: ExitReason) -> ExitReason {
        match ended {
            ExitReason::Reset
            | ExitReason::PowerOff
            | ExitReason::Halted
            | ExitReason::TripleFault
                if self.panicked.is_some() =>
            {
                ExitReason::Panic
            }
            other => other,
        }
    }
}

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

#[cfg(test)]
mod tests {
    use signal_hook::consts::{SIGINT, SIGTERM};

    use super::*;

    const GRACE: Duration = Duration::from_secs(10);
    const MOMENT: Duration = Duration::from_millis(1);

    fn ending() -> (Ending, Instant) {
        (Ending::new(GRACE), Instant::now())
    }

    #[test]
    fn the_first_signal_presses_the_button_and_the_grace_time_ends_in_a_cut() {
        for signal in [SIGTERM, SIGINT, SIGHUP] {
            let (mut ending, now) = ending();
            assert_eq!((ending.next(), ending.due(now)), (None, None));
            assert_eq!(ending.signal(signal, now), Step::Press);
            assert_eq!(ending.next(), Some(now + GRACE));
            assert_eq!(ending.due(now + GRACE - MOMENT), None);
            let cut = Some(ExitReason::Signal(signal));
            assert_eq!(ending.due(now + GRACE), cut);
        }
    }

    #[test]
    fn a_second_signal_cuts_and_a_hangup_is_none() {
        let (mut ending, now) = ending();
        assert_eq!(ending.signal(SIGTERM, now), Step::Press);
        assert_eq!(ending.signal(SIGHUP, now), Step::Wait);
        assert_eq!(
            ending.signal(SIGINT, now),
            Step::End(ExitReason::Signal(SIGINT))
        );
        assert_eq!(ending.next(), Some(now + GRACE), "no time is won by it");
    }

    #[test]
    fn sigquit_and_a_grace_time_of_none_cut_at_once() {
        let (mut ending, now) = ending();
        let quit = Step::End(ExitReason::Signal(SIGQUIT));
        assert_eq!(ending.signal(SIGQUIT, now), quit);
        let mut none = Ending::new(Duration::ZERO);
        let cut = Step::End(ExitReason::Signal(SIGTERM));
        assert_eq!(none.signal(SIGTERM, now), cut);
    }

    #[test]
    fn a_guest_that_powers_itself_off_when_asked_has_powered_itself_off() {
        let (mut ending, now) = ending();
        ending.signal(SIGTERM, now);
        assert_eq!(ending.reason(ExitReason::PowerOff), ExitReason::PowerOff);
        assert_eq!(ending.reason(ExitReason::Reset), ExitReason::Reset);
    }

    #[test]
    fn whatever_follows_a_panic_the_panic_is_told() {
        for ended in [
            ExitReason::Reset,
            ExitReason::PowerOff,
            ExitReason::Halted,
            ExitReason::TripleFault,
        ] {
            let (mut ending, now) = ending();
            assert_eq!(ending.reason(ended), ended);
            ending.panicked(Panic::Plain, now);
            assert_eq!(ending.reason(ended), ExitReason::Panic);
        }
    }

    #[test]
    fn a_guest_that_panicked_and_does_not_reset_is_not_waited_for() {
        let (mut ending, now) = ending();
        ending.panicked(Panic::Plain, now);
        ending.panicked(Panic::Plain, now + MOMENT);
        assert_eq!(ending.next(), Some(now + PANIC_GRACE));
        assert_eq!(ending.due(now + PANIC_GRACE - MOMENT), None);
        assert_eq!(ending.due(now + PANIC_GRACE), Some(ExitReason::Panic));
        let over = Step::End(ExitReason::Panic);
        assert_eq!(ending.signal(SIGTERM, now), over);
    }

    #[test]
    fn a_crash_kernel_has_all_the_time_it_needs() {
        let (mut ending, now) = ending();
        ending.panicked(Panic::CrashKernel, now);
        assert_eq!((ending.next(), ending.due(now + 100 * DAY)), (None, None));
        assert_eq!(ending.reason(ExitReason::Reset), ExitReason::Panic);
    }

    #[test]
    fn a_grace_time_beyond_all_clocks_is_no_panic() {
        let now = Instant::now();
        let mut ending = Ending::new(Duration::MAX);
        assert_eq!(ending.signal(SIGTERM, now), Step::Press);
        assert_eq!(ending.due(now), None);
    }
}
