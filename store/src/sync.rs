//! Locks and atomics: the standard library's, or those of the checker that `--cfg shuttle` chooses.

#[cfg(not(shuttle))]
pub(crate) use std::sync::{Mutex as RawMutex, MutexGuard};

#[cfg(shuttle)]
pub(crate) use shuttle::sync::{Mutex as RawMutex, MutexGuard};

#[cfg(not(shuttle))]
pub(crate) use std::thread_local;

#[cfg(shuttle)]
pub(crate) use shuttle::thread_local;

use std::sync::PoisonError;

/// A lock that a panic of another thread does not poison: everything it guards is valid between
/// two statements, and a page that another guest stored must stay readable.
#[derive(Debug, Default)]
pub(crate) struct Mutex<T>(RawMutex<T>);

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(RawMutex::new(value))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A counter that one thread at a time writes (under a lock) and anybody reads.
#[derive(Debug, Default)]
pub(crate) struct Counter(std::sync::atomic::AtomicU64);

impl Counter {
    pub(crate) fn get(&self) -> u64 {
        self.0.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Adds; the caller holds the lock that guards writing.
    pub(crate) fn add(&self, n: u64) {
        self.set(self.get().wrapping_add(n));
    }

    /// Takes off; the caller holds the lock that guards writing.
    pub(crate) fn sub(&self, n: u64) {
        self.set(self.get().wrapping_sub(n));
    }

    /// Sets; the caller holds the lock that guards writing.
    pub(crate) fn set(&self, n: u64) {
        self.0.store(n, std::sync::atomic::Ordering::Relaxed);
    }
}
