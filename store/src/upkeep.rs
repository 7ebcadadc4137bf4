//! The background thread: compaction, trimming and the cold tier, in bounded steps.
//!
//! It sleeps without a deadline when there is nothing to do, so an idle guest costs no CPU.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::config::StoreConfig;
use crate::store::StoreInner;

/// Time between being asked and looking, and between two looks.
const REST: Duration = Duration::from_millis(50);

/// How the thread is woken and ended. Shared with every space.
#[derive(Debug, Default)]
pub(crate) struct Wake {
    /// The thread looks for work, or was asked to: asking again costs nothing.
    asked: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    asked: bool,
    stop: bool,
}

impl Wake {
    /// Asks the thread to look for work. Cheap when it was asked already.
    pub(crate) fn ask(&self) {
        if !self.asked.load(Ordering::Relaxed) && !self.asked.swap(true, Ordering::AcqRel) {
            self.state
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .asked = true;
            self.changed.notify_one();
        }
    }

    fn stop(&self) {
        self.state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .stop = true;
        self.changed.notify_one();
    }

    /// Sleeps until asked, or until the deadline. `false` when the thread is to end.
    fn sleep(&self, deadline: Option<Instant>) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while !state.asked && !state.stop {
            state = match deadline {
                None => self
                    .changed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        break;
                    }
                    self.changed
                        .wait_timeout(state, left)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                }
            };
        }
        state.asked = false;
        self.asked.store(true, Ordering::Relaxed);
        !state.stop
    }

    /// Whoever asks from now on wakes the thread. What was asked for before is seen by a look after this.
    fn listen(&self) {
        self.asked.store(false, Ordering::SeqCst);
    }

    /// Pauses. `false` when the thread is to end.
    fn rest(&self, time: Duration) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (state, _) = self
            .changed
            .wait_timeout_while(state, time, |state| !state.stop)
            .unwrap_or_else(PoisonError::into_inner);
        !state.stop
    }
}

/// The thread; dropping it ends it.
#[derive(Debug)]
pub(crate) struct Upkeep {
    wake: Arc<Wake>,
    thread: Option<JoinHandle<()>>,
}

impl Upkeep {
    pub(crate) fn start(
        store: Weak<StoreInner>,
        wake: Arc<Wake>,
        config: &StoreConfig,
    ) -> std::io::Result<Self> {
        let waker = Arc::clone(&wake);
        // A page is cold at its third sweep without a touch.
        let sweep = (config.cold_after / 2).max(Duration::from_millis(1));
        let first = config.background_start;
        let thread = std::thread::Builder::new()
            .name("tmem-upkeep".to_owned())
            .spawn(move || {
                if let Some(first) = first {
                    first();
                }
                run(&store, &waker, sweep);
            })?;
        Ok(Self {
            wake,
            thread: Some(thread),
        })
    }
}

impl Drop for Upkeep {
    fn drop(&mut self) {
        self.wake.stop();
        if let Some(thread) = self.thread.take() {
            // The last handle to the store may be the one that the thread itself holds for a step.
            if thread.thread().id() != std::thread::current().id() {
                let _ = thread.join();
            }
        }
    }
}

fn run(store: &Weak<StoreInner>, wake: &Wake, sweep: Duration) {
    let mut next_sweep: Option<Instant> = None;
    while wake.sleep(next_sweep) {
        // To wake this thread costs who asks as much as a store, and to get a frame from the kernel
        // again costs more: what is free is left for a moment to whoever needs it next.
        loop {
            if !wake.rest(REST) {
                return;
            }
            if !compact(store) {
                break;
            }
        }
        wake.listen();
        compact(store);
        let Some(store) = store.upgrade() else {
            return;
        };
        if next_sweep.is_none_or(|at| at <= Instant::now()) {
            // Between chunks: the guests' threads come first.
            let going_on = || {
                std::thread::yield_now();
                Arc::strong_count(&store) > 1
            };
            next_sweep = store.sweep_cold(going_on).then(|| Instant::now() + sweep);
        }
    }
}

/// Compacts and trims as long as there is something to do. Returns whether there was.
fn compact(store: &Weak<StoreInner>) -> bool {
    let Some(store) = store.upgrade() else {
        return false;
    };
    let mut any = false;
    while Arc::strong_count(&store) > 1 && store.compact_step() {
        any = true;
        std::thread::yield_now();
    }
    any
}
