//! Signals that end a machine.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use signal_hook::SigId;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};

/// Catches the signals while it lives. The handlers stay with the process afterwards, without effect.
#[derive(Debug)]
pub struct Signals {
    caught: Arc<AtomicUsize>,
    wake: UnixStream,
    registered: Vec<SigId>,
}

impl Signals {
    /// Catches them from now on; one that comes before the machine runs ends it at once.
    pub fn new() -> io::Result<Self> {
        let (wake, handler) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        let mut signals = Self {
            caught: Arc::new(AtomicUsize::new(0)),
            wake,
            registered: Vec::new(),
        };
        for signal in [SIGINT, SIGTERM, SIGHUP, SIGQUIT] {
            let number = usize::try_from(signal).unwrap_or(0);
            // The flag first: handlers run in the order in which they were registered.
            let flag =
                signal_hook::flag::register_usize(signal, Arc::clone(&signals.caught), number)?;
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

    /// The signal that came, if one did.
    pub(crate) fn caught(&self) -> Option<i32> {
        match self.caught.load(Ordering::SeqCst) {
            0 => None,
            number => i32::try_from(number).ok(),
        }
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
