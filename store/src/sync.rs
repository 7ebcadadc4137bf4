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

/// A lock that another guest's store may wait for: no thread asks the kernel for memory, or gives it some, while it
/// holds one. Debug builds count those that a thread has.
#[derive(Debug, Default)]
pub(crate) struct InnerMutex<T>(Mutex<T>);

#[cfg(debug_assertions)]
thread_local! {
    static HELD: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
    static TAKEN: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

/// How many [`InnerMutex`] this thread took so far.
#[cfg(all(test, debug_assertions))]
pub(crate) fn locks_taken() -> u64 {
    TAKEN.with(std::cell::Cell::get)
}

impl<T> InnerMutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> InnerGuard<'_, T> {
        let guard = self.0.lock();
        #[cfg(debug_assertions)]
        {
            HELD.with(|held| held.set(held.get() + 1));
            TAKEN.with(|taken| taken.set(taken.get() + 1));
        }
        InnerGuard(guard)
    }
}

/// An [`InnerMutex`] that is held.
pub(crate) struct InnerGuard<'a, T>(MutexGuard<'a, T>);

impl<T> std::ops::Deref for InnerGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> std::ops::DerefMut for InnerGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}

#[cfg(debug_assertions)]
impl<T> Drop for InnerGuard<'_, T> {
    fn drop(&mut self) {
        HELD.with(|held| held.set(held.get() - 1));
    }
}

/// Panics in debug builds when the thread holds an [`InnerMutex`].
pub(crate) fn assert_no_lock_is_held() {
    #[cfg(debug_assertions)]
    HELD.with(|held| assert_eq!(held.get(), 0, "a lock is held while the kernel is asked"));
}

/// A number that any thread changes, each by what it did: exact once they are done.
#[derive(Debug, Default)]
pub(crate) struct Sum(std::sync::atomic::AtomicI64);

impl Sum {
    pub(crate) fn add(&self, n: i64) {
        self.0.fetch_add(n, std::sync::atomic::Ordering::Relaxed);
    }

    pub(crate) fn is_some(&self) -> bool {
        self.0.load(std::sync::atomic::Ordering::Relaxed) > 0
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
