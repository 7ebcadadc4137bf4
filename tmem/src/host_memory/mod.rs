//! Refuses pages before the host has no memory for them: a process that takes the last of it is ended by the kernel, with
//! the pages of all guests.
//!
//! A thread measures what the host has ([`figures`]) and grants a part of that; who stores takes from the grant without a
//! system call and without a wait, and wakes the thread when half of it is taken or the measurement is old. While nobody
//! stores, the thread sleeps. What others on the machine take meanwhile is seen by the next measurement.

pub(crate) mod figures;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

use figures::{Figures, Room};
use tmem_store::{Gate, Want};

use crate::stats::Bytes;

/// Part of what may be taken that is granted until the next measurement: others take memory too.
const GRANT_PART: u64 = 4;
/// Age at which a measurement says little about now.
const FRESH: Duration = Duration::from_millis(100);
/// Time between two measurements, at least: one takes up to 0.1 ms.
const REST: Duration = Duration::from_millis(1);
/// As above while nothing can be granted, and each store asks for one.
const REST_SHORT: Duration = Duration::from_millis(10);

/// The memory of the host; measured until this is dropped.
#[derive(Debug)]
pub(crate) struct HostMemory {
    grant: Arc<Grant>,
    thread: Option<JoinHandle<()>>,
}

impl HostMemory {
    /// Measures once, and then in a thread that calls `confine` first.
    ///
    /// # Errors
    /// No thread can be started.
    pub(crate) fn watch(
        figures: Figures,
        confine: impl FnOnce() + Send + 'static,
    ) -> io::Result<Self> {
        let grant = Arc::new(Grant::new());
        let mut meter = Meter::new(figures);
        grant.renew(meter.measure());
        let thread = thread::Builder::new().name("tmem-memory".to_owned());
        let shared = Arc::clone(&grant);
        let thread = thread.spawn(move || {
            confine();
            meter.run(&shared);
        })?;
        // It is the only one to set it.
        let _ = grant.meter.set(thread.thread().clone());
        Ok(Self {
            grant,
            thread: Some(thread),
        })
    }

    /// For the store.
    pub(crate) fn gate(&self) -> Arc<dyn Gate> {
        Arc::clone(&self.grant) as Arc<dyn Gate>
    }
}

impl Drop for HostMemory {
    fn drop(&mut self) {
        self.grant.stop.store(true, Ordering::Relaxed);
        self.grant.wake();
        if let Some(thread) = self.thread.take() {
            // A panic in it has been logged.
            let _ = thread.join();
        }
    }
}

/// Bytes that may be taken for pages, and for empty pools.
#[derive(Clone, Copy, Debug)]
struct Spare {
    pages: u64,
    pools: u64,
}

/// Bytes that may be taken until the next measurement.
#[derive(Debug)]
struct Grant {
    left: AtomicU64,
    /// The same for empty pools, which go deeper: a guest that finds no room for them has no tmem until its next boot.
    left_for_pools: AtomicU64,
    /// Below this, it is time to measure.
    low: AtomicU64,
    /// Milliseconds from `begin` to the last measurement.
    measured: AtomicU64,
    begin: Instant,
    /// A measurement was asked for and has not begun.
    asked: AtomicBool,
    stop: AtomicBool,
    meter: OnceLock<Thread>,
}

impl Grant {
    fn new() -> Self {
        Self {
            left: AtomicU64::new(0),
            left_for_pools: AtomicU64::new(0),
            low: AtomicU64::new(0),
            measured: AtomicU64::new(0),
            begin: Instant::now(),
            asked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            meter: OnceLock::new(),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.begin.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Grants a part of what may be taken.
    fn renew(&self, spare: Spare) {
        let granted = spare.pages / GRANT_PART;
        self.low.store(granted / 2, Ordering::Relaxed);
        self.left.store(granted, Ordering::Relaxed);
        self.left_for_pools
            .store(spare.pools / GRANT_PART, Ordering::Relaxed);
        self.measured.store(self.now(), Ordering::Relaxed);
    }

    /// Asks for a measurement, once until it begins.
    fn ask(&self) {
        if !self.asked.load(Ordering::Relaxed) && !self.asked.swap(true, Ordering::AcqRel) {
            self.wake();
        }
    }

    fn wake(&self) {
        if let Some(meter) = self.meter.get() {
            meter.unpark();
        }
    }
}

impl Gate for Grant {
    fn allow(&self, bytes: u64, want: Want) -> bool {
        let grant = match want {
            Want::Pages => &self.left,
            Want::Pool => &self.left_for_pools,
        };
        let taken = grant.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
            left.checked_sub(bytes)
        });
        let left = taken.map_or(0, |before| before - bytes);
        let old = self
            .now()
            .saturating_sub(self.measured.load(Ordering::Relaxed))
            > u64::try_from(FRESH.as_millis()).unwrap_or(u64::MAX);
        let low = self.low.load(Ordering::Relaxed);
        if taken.is_err() || left < low || old {
            self.ask();
        }
        taken.is_ok()
    }
}

/// Measures, and says when memory runs out and when it is back.
#[derive(Debug)]
struct Meter {
    figures: Figures,
    short: bool,
}

impl Meter {
    fn new(figures: Figures) -> Self {
        Self {
            figures,
            short: false,
        }
    }

    fn run(&mut self, grant: &Grant) {
        while !grant.stop.load(Ordering::Relaxed) {
            if !grant.asked.swap(false, Ordering::AcqRel) {
                thread::park();
                continue;
            }
            let spare = self.measure();
            grant.renew(spare);
            thread::sleep(if spare.pages == 0 { REST_SHORT } else { REST });
        }
    }

    /// What may be taken. Where nothing says how much that is, all of it.
    fn measure(&mut self) -> Spare {
        let spare = |room: Room| (room.spare(), room.spare_for_pools());
        let Some((name, room)) = self.figures.least(spare) else {
            return Spare {
                pages: u64::MAX,
                pools: u64::MAX,
            };
        };
        let (pages, pools) = spare(room);
        if !self.short && pages == 0 {
            self.short = true;
            log::warn!(
                "{name} has {} left of {}: pages that need more are refused",
                Bytes(room.available),
                Bytes(room.limit)
            );
        } else if self.short && pages > room.floor() / 4 {
            self.short = false;
            log::warn!("{name} has {} left again", Bytes(room.available));
        }
        Spare { pages, pools }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    const MIB: u64 = 1 << 20;

    /// A machine with so much available of its 256 MiB.
    fn machine(dir: &tempfile::TempDir, available: u64) -> Figures {
        let path = dir.path().join("meminfo");
        let text = format!(
            "MemTotal: {} kB\nMemAvailable: {} kB\n",
            (256 * MIB) / 1024,
            available / 1024
        );
        let mut options = std::fs::File::options();
        let file = options.write(true).create(true).truncate(false).open(&path);
        // In place and in one piece, as it is read meanwhile.
        file.expect("opens")
            .write_all_at(text.as_bytes(), 0)
            .expect("writes");
        Figures::open_in(&path, "", dir.path())
    }

    fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !condition() {
            assert!(Instant::now() < deadline, "{what}");
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn memory_is_granted_down_to_the_floor_and_again_when_there_is_more() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let memory = HostMemory::watch(machine(&dir, 48 * MIB), || ()).expect("starts");
        let gate = memory.gate();
        // A quarter of the 40 MiB above the floor, and no byte more, as long as it is not measured.
        assert!(!gate.allow(10 * MIB + 1, Want::Pages));
        assert!(gate.allow(10 * MIB, Want::Pages));
        // As the host measures it, that memory is still there.
        eventually("measured again", || gate.allow(MIB, Want::Pages));

        machine(&dir, 8 * MIB);
        eventually("refused", || !gate.allow(4096, Want::Pages));
        thread::sleep(2 * REST_SHORT);
        assert!(
            !gate.allow(1, Want::Pages),
            "nothing is left above the floor"
        );
        assert!(gate.allow(MIB, Want::Pool), "pools go to half of it");
        assert!(!gate.allow(MIB + 1, Want::Pool));

        machine(&dir, 16 * MIB);
        eventually("granted again", || gate.allow(4096, Want::Pages));
    }

    #[test]
    fn without_figures_everything_is_granted() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let figures = Figures::open_in(&dir.path().join("none"), "", dir.path());
        let memory = HostMemory::watch(figures, || ()).expect("starts");
        assert!(memory.gate().allow(1 << 40, Want::Pages));
    }

    #[test]
    fn nothing_is_measured_while_nobody_stores() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let memory = HostMemory::watch(machine(&dir, 128 * MIB), || ()).expect("starts");
        let measured = || memory.grant.measured.load(Ordering::Relaxed);
        let before = measured();
        thread::sleep(3 * FRESH);
        assert_eq!(measured(), before);
        assert!(memory.gate().allow(1, Want::Pages));
        eventually("measured", || measured() > before);
    }
}
