//! The handle of a guest's thread: how other threads wake, stop or disconnect it.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::event::{EventfdFlags, eventfd};

/// Shared by the thread of a guest and those that want something from it.
#[derive(Debug)]
pub(crate) struct ThreadHandle {
    wake: OwnedFd,
    stop: AtomicBool,
    /// The connection, while there is one: to cut it off.
    stream: Mutex<Option<UnixStream>>,
    connections: AtomicU64,
}

impl ThreadHandle {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            wake: eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?,
            stop: AtomicBool::new(false),
            stream: Mutex::new(None),
            connections: AtomicU64::new(0),
        })
    }

    /// Readable after [`Self::wake`].
    pub(crate) fn wakes(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// Makes the thread check for changes: its stop flag, events for the guest.
    pub(crate) fn wake(&self) {
        // Full is readable as well.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    /// Takes the wake-ups back.
    pub(crate) fn clear(&self) {
        let _ = rustix::io::read(&self.wake, &mut [0u8; 8]);
    }

    /// Asks the thread to end, also while it waits for the front end.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
        self.wake();
        self.disconnect();
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    /// Cuts the connection off, if there is one.
    fn disconnect(&self) {
        if let Some(stream) = self.stream().as_ref() {
            // The thread may have ended already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Notes the connection that the thread serves from now on.
    pub(crate) fn connected(&self, stream: UnixStream) {
        *self.stream() = Some(stream);
        self.connections.fetch_add(1, Ordering::Relaxed);
        // A stop that came before did not find it.
        if self.is_stopped() {
            self.disconnect();
        }
    }

    pub(crate) fn disconnected(&self) {
        *self.stream() = None;
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.stream().is_some()
    }

    /// Connections since the beginning.
    pub(crate) fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }

    fn stream(&self) -> MutexGuard<'_, Option<UnixStream>> {
        // Only ever replaced as a whole.
        self.stream.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
