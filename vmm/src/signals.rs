//! Signals that end a machine.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::SigId;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};

/// In the order in which they are taken when several came.
const SIGNALS: [i32; 4] = [SIGQUIT, SIGTERM, SIGINT, SIGHUP];

/// Catches the signals while it lives. The handlers stay with the process afterwards, without effect.
#[derive(Debug)]
pub struct Signals {
    caught: [Arc<AtomicBool>; SIGNALS.len()],
    wake: UnixStream,
    registered: Vec<SigId>,
}

impl Signals {
    /// Catches them from now on; one that comes before the machine runs ends it at once.
    pub fn new() -> io::Result<Self> {
        let (wake, handler) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        let mut signals = Self {
            caught: Default::default(),
            wake,
            registered: Vec::new(),
        };
        for (signal, caught) in SIGNALS.into_iter().zip(&signals.caught) {
            // The flag first: handlers run in the order in which they were registered.
            let flag = signal_hook::flag::register(signal, Arc::clone(caught))?;
            signals.registered.push(flag);
            signals
                .registered
                .push(signal_hook::low_level::pipe::register(
                    signal,
                    handler.try_clone()?,
                )?);
        }
        Ok(signals)
    }

    /// A signal that came, if one did. The same again before it is taken is one, as signals are.
    pub(crate) fn take(&self) -> Option<i32> {
        // First the descriptor: what comes from here on makes it readable again.
        let mut bytes = [0; 64];
        while matches!(rustix::io::read(&self.wake, &mut bytes), Ok(1..)) {}
        SIGNALS
            .into_iter()
            .zip(&self.caught)
            .find_map(|(signal, caught)| caught.swap(false, Ordering::SeqCst).then_some(signal))
    }
}

impl AsFd for Signals {
    /// Readable once a signal came.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        for id in self.registered.drain(..) {
            signal_hook::low_level::unregister(id);
        }
    }
}

/// `SIGTERM` for 15.
pub fn signal_name(signal: i32) -> String {
    signal_hook::low_level::signal_name(signal)
        .map_or_else(|| format!("signal {signal}"), str::to_owned)
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    fn is_readable(signals: &Signals) -> bool {
        let mut fds = [PollFd::new(signals, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec::default())) == Ok(1)
    }

    #[test]
    fn each_signal_is_seen_once_and_wakes_who_polls_each_time() {
        let signals = Signals::new().unwrap();
        assert_eq!(signals.take(), None);
        for _ in 0..2 {
            signal_hook::low_level::raise(SIGTERM).unwrap();
            assert!(is_readable(&signals));
            assert_eq!(signals.take(), Some(SIGTERM));
            assert!(!is_readable(&signals));
            assert_eq!(signals.take(), None);
        }
        for signal in [SIGHUP, SIGINT, SIGQUIT] {
            signal_hook::low_level::raise(signal).unwrap();
        }
        let taken = [signals.take(), signals.take(), signals.take()];
        assert_eq!(taken, [Some(SIGQUIT), Some(SIGINT), Some(SIGHUP)]);
        assert_eq!(signal_name(SIGINT), "SIGINT");
    }
}
