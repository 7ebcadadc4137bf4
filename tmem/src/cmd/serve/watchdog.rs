//! Tells the service manager that the service lives, for as long as it does.
//!
//! A thread proves it: it takes the locks that guests and control clients need, and has the kernel map memory, which is
//! not possible in the whole process while a page fault does not end. The proof itself has no time limit. On a busy
//! machine it is slow; it may take three quarters of the manager's time limit.

use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Proofs in the time after which the manager gives the service up.
const PROOFS: u32 = 4;
/// More than an allocator keeps for later: the kernel is asked for it.
const MAPPED: usize = 64 << 20;

/// The thread; dropping it ends it.
pub(super) struct Watchdog {
    stop: Arc<(Mutex<bool>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    /// Calls `prove` and then `tell`, a few times in `patience`, in a thread that calls `confine` first.
    ///
    /// # Errors
    /// No thread can be started.
    pub(super) fn start(
        patience: Duration,
        confine: impl FnOnce() + Send + 'static,
        prove: impl Fn() + Send + 'static,
        tell: impl Fn() + Send + 'static,
    ) -> io::Result<Self> {
        let stop = Arc::new((Mutex::new(false), Condvar::new()));
        let stopped = Arc::clone(&stop);
        let thread = thread::Builder::new().name("tmem-watchdog".to_owned());
        let thread = thread.spawn(move || {
            confine();
            let (stop, changed) = &*stopped;
            loop {
                let stop = stop.lock().unwrap_or_else(PoisonError::into_inner);
                let (stop, _) = changed
                    .wait_timeout_while(stop, patience / PROOFS, |stop| !*stop)
                    .unwrap_or_else(PoisonError::into_inner);
                if *stop {
                    break;
                }
                drop(stop);
                prove();
                tell();
            }
        })?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        let (stop, changed) = &*self.stop;
        *stop.lock().unwrap_or_else(PoisonError::into_inner) = true;
        changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // A panic in it has been logged.
            let _ = thread.join();
        }
    }
}

/// Returns when memory can be mapped and unmapped.
pub(super) fn prove_memory() {
    drop(std::hint::black_box(Vec::<u8>::with_capacity(MAPPED)));
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_service_that_hangs_is_not_said_to_live_and_one_that_goes_on_is() {
        let lock = Arc::new(Mutex::new(()));
        let told = Arc::new(AtomicUsize::new(0));
        let (proves, counts) = (Arc::clone(&lock), Arc::clone(&told));
        let watchdog = Watchdog::start(
            Duration::from_millis(40),
            || (),
            move || drop(proves.lock()),
            move || {
                counts.fetch_add(1, SeqCst);
            },
        )
        .expect("starts");
        let beyond = |count| {
            let deadline = Instant::now() + Duration::from_secs(60);
            while told.load(SeqCst) <= count {
                assert!(Instant::now() < deadline, "not told");
                thread::sleep(Duration::from_millis(1));
            }
        };
        beyond(3);
        let hangs = lock.lock().expect("not poisoned");
        // One that was on its way.
        thread::sleep(Duration::from_millis(50));
        let before = told.load(SeqCst);
        thread::sleep(Duration::from_millis(400));
        assert_eq!(told.load(SeqCst), before);
        drop(hangs);
        beyond(before + 1);
        drop(watchdog);
        let before = told.load(SeqCst);
        thread::sleep(Duration::from_millis(100));
        assert_eq!(told.load(SeqCst), before, "it has ended");
    }

    #[test]
    fn the_proof_of_memory_asks_the_kernel() {
        let before = std::fs::read_to_string("/proc/self/maps").expect("proc");
        let list = std::hint::black_box(Vec::<u8>::with_capacity(MAPPED));
        let maps = std::fs::read_to_string("/proc/self/maps").expect("proc");
        assert_ne!(maps, before, "a mapping of its own");
        drop(list);
        prove_memory();
    }
}
