//! The background threads. `tmem-background` frees what was destroyed, compacts and gives memory back, in bounded
//! steps; `tmem-prefault` gets memory for size classes that are growing, so that stores do not wait for the kernel;
//! `tmem-cold` runs the cold tier, with the lowest priority and no more than a share of a processor. This module
//! decides when each of them works and sleeps; their work is passed in as closures.
//!
//! All sleep without a deadline when there is nothing to do, so an idle guest costs no CPU.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::config::StoreConfig;
use crate::wake::Wakes;

/// Time between being asked and looking, and between two looks.
pub(crate) const REST: Duration = Duration::from_millis(50);
/// Time between two passes that prefault: stores of a fast guest use up a few frames of a class meanwhile.
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

/// The work of the threads. After the store was dropped there is none.
pub(crate) struct Work {
    /// Frees what was cut loose, compacts, and gives back what a trim plan allows. Returns whether another plan may find more.
    pub(crate) compact: Box<dyn FnMut() -> bool + Send>,
    /// Prefaults for those who asked. Returns whether any did.
    pub(crate) prefault: Box<dyn FnMut() -> bool + Send>,
    pub(crate) cold: ColdWork,
}

/// The work of the thread of the cold tier.
pub(crate) struct ColdWork {
    /// Whether there is nothing to do, as far as is known.
    pub(crate) sleeps: Box<dyn FnMut() -> bool + Send>,
    /// Whether a domain has a cold tier.
    pub(crate) is_on: Box<dyn FnMut() -> bool + Send>,
    /// One sweep, which calls its argument with the pages that it tried since the last call; `false` from that ends the
    /// sweep. Returns whether another sweep will find something to do, `None` after the store was dropped.
    pub(crate) sweep: Box<Sweep>,
}

type Sweep = dyn FnMut(&mut dyn FnMut(usize) -> bool) -> Option<bool> + Send;

/// The threads; dropping it ends them.
#[derive(Debug)]
pub(crate) struct Background {
    wakes: Arc<Wakes>,
    threads: Vec<JoinHandle<()>>,
}

impl Background {
    pub(crate) fn start(
        wakes: Arc<Wakes>,
        config: &StoreConfig,
        work: Work,
    ) -> std::io::Result<Self> {
        // A page is cold at its third sweep without a touch.
        let sweep = (config.cold_after / 2).max(Duration::from_millis(1));
        let mut background = Self {
            wakes,
            threads: Vec::new(),
        };
        background.spawn(config, "tmem-background", move |wakes| {
            run(work.compact, wakes)
        })?;
        background.spawn(config, COLD, move |wakes| run_cold(work.cold, wakes, sweep))?;
        // On one processor no thread could populate frames while another one stores.
        if std::thread::available_parallelism().is_ok_and(|processors| processors.get() > 1) {
            background.spawn(config, "tmem-prefault", move |wakes| {
                prefault(work.prefault, wakes);
            })?;
        }
        Ok(background)
    }

    fn spawn(
        &mut self,
        config: &StoreConfig,
        name: &str,
        run: impl FnOnce(&Wakes) + Send + 'static,
    ) -> std::io::Result<()> {
        let first = config.background_start;
        let wakes = Arc::clone(&self.wakes);
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                if let Some(first) = first {
                    first();
                }
                run(&wakes);
            })?;
        self.threads.push(thread);
        Ok(())
    }
}

impl Background {
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

impl Drop for Background {
    fn drop(&mut self) {
        self.wakes.background.stop();
        self.wakes.prefault.stop();
        self.wakes.cold.stop();
        for thread in self.threads.drain(..) {
            // The last handle to the store may be the one that a thread itself holds for a step.
            if thread.thread().id() != std::thread::current().id() {
                let _ = thread.join();
            }
        }
    }
}

fn run(mut compact: impl FnMut() -> bool, wakes: &Wakes) {
    let wake = &wakes.background;
    let mut more = false;
    loop {
        wakes.ring();
        if !more {
            wake.listen();
            more = compact();
            wakes.ring();
            if !more && !wake.sleep(None) {
                return;
            }
        }
        // Waking this thread costs the caller as much as a store, and populating a frame again costs more. So free
        // frames are kept for a moment for the next store.
        if !wake.rest(REST) {
            return;
        }
        more = compact();
    }
}

/// Runs the cold tier: a sweep in `sweep` while pages are on their way, none while there are not.
fn run_cold(mut work: ColdWork, wakes: &Wakes, sweep: Duration) {
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
                if (work.sleeps)() && !wake.sleep(None) || !wake.rest(REST) {
                    return;
                }
            }
        }
        // Not before there is something to do: the kernel may have the last thread of a process give its memory back, and
        // on a busy host one of the lowest priority takes many seconds for that.
        if !lowest && (work.is_on)() {
            lowest = true;
            wakes.cold_is_lowest.store(true, Ordering::Relaxed);
            // On Linux this is the calling thread only.
            let _ = rustix::process::setpriority_process(None, COLD_NICE);
        }
        let mut tried = 0;
        let mut pause = |pages| {
            tried += pages;
            if tried < COLD_PAGES {
                std::thread::yield_now();
                true
            } else {
                tried = 0;
                wake.rest(COLD_REST)
            }
        };
        let Some(coming) = (work.sweep)(&mut pause) else {
            return;
        };
        next = coming.then(|| Instant::now() + sweep);
    }
}

/// Prefaults: often while there are requests, not at all when there were none for a while.
fn prefault(mut prefault: impl FnMut() -> bool, wakes: &Wakes) {
    let wake = &wakes.prefault;
    let mut fill = || {
        let filled = prefault();
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
