//! How the background threads are woken and ended, and the work that is left to them.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::sync::{InnerMutex, assert_no_lock_is_held};

/// How a thread is woken and ended. Shared with every arena.
#[derive(Debug, Default)]
pub(crate) struct Wake {
    /// The thread looks for work, or was asked to: asking again costs nothing.
    asked: AtomicBool,
    /// It was asked and is yet to be woken, which is a call of the kernel.
    owed: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    asked: bool,
    stop: bool,
}

impl Wake {
    /// Asks the thread to look for work. Cheap when it was asked already. The caller holds no lock that others wait for.
    pub(crate) fn ask(&self) {
        self.ask_soon();
        self.ring();
    }

    /// As [`Wake::ask`], for a caller that holds a lock: [`Wakes::ring`] wakes the thread afterwards.
    pub(crate) fn ask_soon(&self) {
        // What there is to do was written before; `listen` has the other fence.
        fence(Ordering::SeqCst);
        if !self.asked.load(Ordering::Relaxed) && !self.asked.swap(true, Ordering::AcqRel) {
            self.owed.store(true, Ordering::Release);
        }
    }

    pub(crate) fn ring(&self) {
        if self.owed.load(Ordering::Relaxed) && self.owed.swap(false, Ordering::AcqRel) {
            assert_no_lock_is_held();
            self.state
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .asked = true;
            self.changed.notify_one();
        }
    }

    pub(crate) fn stop(&self) {
        self.state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .stop = true;
        self.changed.notify_one();
    }

    /// Sleeps until asked, or until the deadline. `false` when the thread is to end.
    pub(crate) fn sleep(&self, deadline: Option<Instant>) -> bool {
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

    /// A request from now on wakes the thread. The thread finds earlier requests if it checks for them after this call.
    pub(crate) fn listen(&self) {
        self.asked.store(false, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    /// Pauses. `false` when the thread is to end.
    pub(crate) fn rest(&self, time: Duration) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (state, _) = self
            .changed
            .wait_timeout_while(state, time, |state| !state.stop)
            .unwrap_or_else(PoisonError::into_inner);
        !state.stop
    }
}

/// What the threads are woken with, and what they look at first.
#[derive(Debug, Default)]
pub(crate) struct Wakes {
    /// For when there is something to free, to compact or to give back.
    pub(crate) background: Wake,
    /// For when a size class wants frames prefaulted.
    pub(crate) prefault: Wake,
    /// For when there are pages to demote.
    pub(crate) cold: Wake,
    /// Pools, shards and domains with pages that were cut loose and are yet to be freed.
    pub(crate) dying: AtomicUsize,
    graveyard: InnerMutex<Graveyard>,
    /// The thread of the cold tier has the lowest priority.
    pub(crate) cold_is_lowest: AtomicBool,
}

impl Wakes {
    /// Wakes those that were asked while a lock was held. A thread that held a lock calls this when it holds none any
    /// more.
    pub(crate) fn ring(&self) {
        self.background.ring();
        self.prefault.ring();
    }

    /// Takes large values that a lock holder must not drop itself.
    pub(crate) fn bury(&self, spent: impl Send + 'static) {
        let mut graveyard = self.graveyard.lock();
        if graveyard.0.try_reserve(1).is_ok() {
            graveyard.0.push(Box::new(spent));
            drop(graveyard);
            self.background.ask_soon();
        }
    }

    /// Drops what was buried. `true` when there was something.
    pub(crate) fn clear_graveyard(&self) -> bool {
        let buried = std::mem::take(&mut self.graveyard.lock().0);
        !buried.is_empty()
    }
}

/// Values that are not needed any more.
#[derive(Default)]
struct Graveyard(Vec<Box<dyn Send>>);

impl std::fmt::Debug for Graveyard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} things", self.0.len())
    }
}
