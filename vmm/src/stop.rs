//! One flag that tells every thread of a machine to end, and a descriptor that becomes readable with it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use rustix::event::{EventfdFlags, eventfd};

/// A descriptor that wakes a thread in `poll`.
#[derive(Debug)]
pub(crate) struct Wake(OwnedFd);

impl Wake {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self(eventfd(
            0,
            EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK,
        )?))
    }

    /// Makes it readable. A full counter is readable already.
    pub(crate) fn wake(&self) {
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    /// Makes it unreadable again.
    pub(crate) fn clear(&self) {
        let mut count = [0; 8];
        let _ = rustix::io::read(&self.0, &mut count);
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[derive(Debug)]
struct Shared {
    stopped: AtomicBool,
    /// The thread that could not go on.
    failed: OnceLock<String>,
    wake: Wake,
}

/// Handle on the flag; clones share it.
#[derive(Debug, Clone)]
pub(crate) struct StopFlag(Arc<Shared>);

impl StopFlag {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(Shared {
            stopped: AtomicBool::new(false),
            failed: OnceLock::new(),
            wake: Wake::new()?,
        })))
    }

    pub(crate) fn stop(&self) {
        self.0.stopped.store(true, Ordering::SeqCst);
        self.0.wake.wake();
    }

    /// Stops because the named thread cannot go on.
    pub(crate) fn report_failure(&self, thread: &str) {
        let _ = self.0.failed.set(thread.to_owned());
        self.stop();
    }

    /// The first thread that could not go on.
    pub(crate) fn failed(&self) -> Option<&str> {
        self.0.failed.get().map(String::as_str)
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.0.stopped.load(Ordering::SeqCst)
    }
}

impl AsFd for StopFlag {
    /// Readable once stopped.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.wake.as_fd()
    }
}
