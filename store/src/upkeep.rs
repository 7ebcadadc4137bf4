//! The background threads. `tmem-upkeep` frees what was destroyed, compacts and gives memory back, in bounded steps;
//! `tmem-ahead` gets memory for size classes that are growing, so that stores do not wait for the kernel; `tmem-cold`
//! runs the cold tier, with the lowest priority and no more than a share of a processor.
//!
//! All sleep without a deadline when there is nothing to do, so an idle guest costs no CPU.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::config::StoreConfig;
use crate::reap;
use crate::room::Pace;
use crate::store::StoreInner;
use crate::wake::Wakes;

/// Time between being asked and looking, and between two looks.
const REST: Duration = Duration::from_millis(50);
/// Time between two passes that get frames ahead: stores of a fast guest use up a few frames of a class meanwhile.
const NAP: Duration = Duration::from_micros(300);
/// Passes without a request after which the thread sleeps until it is asked.
const IDLE_PASSES: u32 = 4;
const COLD: &str = "tmem-cold";
/// Priority of the cold tier: the lowest.
const COLD_NICE: i32 = 19;
/// Pages that the cold tier tries before it rests, and how long: at most 12,800 pages a second, which take the codec
/// about half of a processor's time.
const COLD_PAGES: usize = 128;
const COLD_REST: Duration = Duration::from_millis(10);

/// The threads; dropping it ends them.
#[derive(Debug)]
pub(crate) struct Upkeep {
    wakes: Arc<Wakes>,
    threads: Vec<JoinHandle<()>>,
}

impl Upkeep {
    pub(crate) fn start(
        store: &Weak<StoreInner>,
        wakes: Arc<Wakes>,
        config: &StoreConfig,
    ) -> std::io::Result<Self> {
        // A page is cold at its third sweep without a touch.
        let sweep = (config.cold_after / 2).max(Duration::from_millis(1));
        let mut upkeep = Self {
            wakes,
            threads: Vec::new(),
        };
        upkeep.spawn(config, "tmem-upkeep", store, run)?;
        upkeep.spawn(config, COLD, store, move |store, wakes| {
            cool(store, wakes, sweep);
        })?;
        // On one processor nobody could get frames while somebody else stores.
        if std::thread::available_parallelism().is_ok_and(|processors| processors.get() > 1) {
            upkeep.spawn(config, "tmem-ahead", store, fill_ahead)?;
        }
        Ok(upkeep)
    }

    fn spawn(
        &mut self,
        config: &StoreConfig,
        name: &str,
        store: &Weak<StoreInner>,
        run: impl FnOnce(&Weak<StoreInner>, &Wakes) + Send + 'static,
    ) -> std::io::Result<()> {
        let first = config.background_start;
        let (store, wakes) = (Weak::clone(store), Arc::clone(&self.wakes));
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                if let Some(first) = first {
                    first();
                }
                run(&store, &wakes);
            })?;
        self.threads.push(thread);
        Ok(())
    }
}

impl Upkeep {
    /// Ends the thread of the cold tier if it has the lowest priority, and waits for that, no longer than `patience`.
    pub(crate) fn end_lowest(&self, patience: Duration) {
        if !self.wakes.cold_is_lowest.load(Ordering::Relaxed) {
            return;
        }
        self.wakes.cold.stop();
        let cold = |thread: &&JoinHandle<()>| thread.thread().name() == Some(COLD);
        let Some(thread) = self.threads.iter().find(cold) else {
            return;
        };
        let end = Instant::now() + patience;
        while !thread.is_finished() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Upkeep {
    fn drop(&mut self) {
        self.wakes.upkeep.stop();
        self.wakes.ahead.stop();
        self.wakes.cold.stop();
        for thread in self.threads.drain(..) {
            // The last handle to the store may be the one that a thread itself holds for a step.
            if thread.thread().id() != std::thread::current().id() {
                let _ = thread.join();
            }
        }
    }
}

fn run(store: &Weak<StoreInner>, wakes: &Wakes) {
    let wake = &wakes.upkeep;
    let mut more = false;
    loop {
        wakes.ring();
        if !more {
            wake.listen();
            more = compact(store);
            wakes.ring();
            if !more && !wake.sleep(None) {
                return;
            }
        }
        // To wake this thread costs who asks as much as a store, and to get a frame from the kernel
        // again costs more: what is free is left for a moment to whoever needs it next.
        if !wake.rest(REST) {
            return;
        }
        more = compact(store);
    }
}

/// Frees what was cut loose, compacts, and gives back what a look allows. Returns whether another look may find more.
fn compact(store: &Weak<StoreInner>) -> bool {
    let Some(store) = store.upgrade() else {
        return false;
    };
    let mut more = store.look();
    let mut looked = Instant::now();
    while Arc::strong_count(&store) > 1 {
        let freed = reap::step(&store.owners);
        if !store.compact_step(Pace::Slow) && !freed {
            break;
        }
        more = true;
        std::thread::yield_now();
        // With guests that never pause there is always something to move, and what was allowed is used up.
        if looked.elapsed() >= REST {
            store.look();
            looked = Instant::now();
        }
    }
    more
}

/// Runs the cold tier: a sweep in `sweep` while pages are on their way, none while there are not.
fn cool(store: &Weak<StoreInner>, wakes: &Wakes, sweep: Duration) {
    let wake = &wakes.cold;
    let mut next: Option<Instant> = None;
    let mut lowest = false;
    loop {
        wakes.ring();
        wake.listen();
        match next {
            Some(at) => {
                if !wake.rest(at.saturating_duration_since(Instant::now())) {
                    return;
                }
            }
            None => {
                let sleeps = store.upgrade().is_none_or(|store| store.cold_sleeps());
                if sleeps && !wake.sleep(None) || !wake.rest(REST) {
                    return;
                }
            }
        }
        let Some(store) = store.upgrade() else {
            return;
        };
        // Not before there is something to do: the kernel may have the last thread of a process give its memory back, and
        // on a busy host one of the lowest priority takes many seconds for that.
        if !lowest && store.has_cold() {
            lowest = true;
            wakes.cold_is_lowest.store(true, Ordering::Relaxed);
            // On Linux this is the calling thread only.
            let _ = rustix::process::setpriority_process(None, COLD_NICE);
        }
        let mut tried = 0;
        let pause = |pages| {
            tried += pages;
            let goes_on = if tried < COLD_PAGES {
                std::thread::yield_now();
                true
            } else {
                tried = 0;
                wake.rest(COLD_REST)
            };
            goes_on && Arc::strong_count(&store) > 1
        };
        next = store.sweep_cold(pause).then(|| Instant::now() + sweep);
    }
}

/// Gets frames ahead: often while there are requests, not at all when there were none for a while.
fn fill_ahead(store: &Weak<StoreInner>, wakes: &Wakes) {
    let wake = &wakes.ahead;
    let fill = || {
        let filled = store.upgrade().is_some_and(|store| store.fill_ahead());
        wakes.ring();
        filled
    };
    let mut idle = 0;
    loop {
        idle = if fill() { 0 } else { idle + 1 };
        if idle >= IDLE_PASSES {
            wake.listen();
            if !fill() && !wake.sleep(None) {
                return;
            }
            idle = 0;
        } else if !wake.rest(NAP) {
            return;
        }
    }
}
