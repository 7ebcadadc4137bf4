//! Refuses pages before the host has no memory for them: a process that takes the last of it is ended by the kernel, with
//! the pages of all guests.
//!
//! A thread measures the free memory of the host ([`memory_info`]) and grants a part of it. A store takes from the grant
//! without a system call and without a wait, and wakes the thread when half of the grant is taken or the measurement is
//! old. When little is left above the floor, the host is short: ephemeral pages are evicted, step by step, as long as
//! there are any ([`Relief`]). The thread sleeps while no guest stores, nothing can be evicted, and no process waits
//! for memory ([`stalls`]).

pub(crate) mod memory_info;
mod stalls;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use memory_info::{MemoryInfo, Room};
use rustix::event::{EventfdFlags, eventfd};
use tmem_base::Bytes;
use tmem_control::api::Host;
use tmem_store::{Gate, Want};

/// Part of what may be taken that is granted until the next measurement: others take memory too.
const GRANT_PART: u64 = 4;
/// Age at which a measurement says little about now.
const FRESH: Duration = Duration::from_millis(100);
/// Time between two measurements, at least: one takes up to 0.1 ms.
const REST: Duration = Duration::from_millis(1);
/// As above while nothing can be granted, and each store asks for one.
const REST_SHORT: Duration = Duration::from_millis(10);
/// Time between two measurements, at most, while there are ephemeral pages: the host can become short although no guest
/// stores.
const TICK: Duration = Duration::from_secs(1);
/// Announcements after the last refusal, one a [`TICK`]: a guest may note its refusal after the host has memory again.
const ANNOUNCEMENTS: u32 = 2;

/// The guests whose memory the host can have back, and which are told of it.
pub(crate) trait Relief: Send {
    /// Whether there are pages that may vanish.
    fn has_any(&self) -> bool;

    /// Gives some memory back, in bounded time. Whether there is more to be had.
    fn shrink(&self) -> bool;

    /// Says whether the host is short of memory, to all who do not know it. `false` to be called again.
    fn announce(&self, short: bool) -> bool;
}

/// The memory of the host; measured until this is dropped.
pub(crate) struct HostMemory {
    grant: Arc<Grant>,
    memory_info: Arc<MemoryInfo>,
    relief: Arc<Mutex<Option<Box<dyn Relief>>>>,
    thread: Option<JoinHandle<()>>,
}

impl HostMemory {
    /// Measures once, and then in a thread that calls `confine` first.
    ///
    /// # Errors
    /// No thread can be started, or no descriptor is left.
    pub(crate) fn watch(
        memory_info: MemoryInfo,
        confine: impl FnOnce() + Send + 'static,
    ) -> io::Result<Self> {
        let grant = Arc::new(Grant::new()?);
        let memory_info = Arc::new(memory_info);
        let relief = Arc::new(Mutex::new(None));
        let mut meter = Meter {
            grant: Arc::clone(&grant),
            memory_info: Arc::clone(&memory_info),
            relief: Arc::clone(&relief),
            refusing: false,
            bad: 0,
            seen: 0,
            announcements: 0,
        };
        meter.measure();
        tmem_store::tell_of_bad_pages(Some(grant.event.as_fd()));
        let thread = thread::Builder::new().name("tmem-memory".to_owned());
        let thread = thread.spawn(move || {
            confine();
            meter.run();
        })?;
        Ok(Self {
            grant,
            memory_info,
            relief,
            thread: Some(thread),
        })
    }

    /// For the store.
    pub(crate) fn gate(&self) -> Arc<dyn Gate> {
        Arc::clone(&self.grant) as Arc<dyn Gate>
    }

    /// The measured memory.
    pub(crate) fn memory_info(&self) -> &MemoryInfo {
        &self.memory_info
    }

    /// Has memory given back when the host is short, from now on.
    pub(crate) fn relieve(&self, relief: impl Relief + 'static) {
        *lock(&self.relief) = Some(Box::new(relief));
        self.grant.ask();
    }

    /// Ends that: afterwards, nothing of it is in use.
    pub(crate) fn let_be(&self) {
        let relief = lock(&self.relief).take();
        drop(relief);
    }

    /// Leaves so many bytes of the host's memory alone; `None` for a part of what it has.
    pub(crate) fn leave(&self, reserve: Option<u64>) {
        self.memory_info.leave(reserve);
        self.grant.ask();
    }

    /// The values that the gate uses now. `None` where the memory of the host is not known.
    pub(crate) fn report(&self) -> Option<Host> {
        let (_, room) = self.memory_info.least(Room::spare)?;
        Some(Host {
            limit: room.limit,
            available: room.available,
            floor: room.floor,
            stalled: room.stalled,
            short: self.grant.is_short(),
            refusals: self.grant.refusals.load(Ordering::Relaxed),
            bad_pages: tmem_store::bad_pages(),
        })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Only ever replaced as a whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for HostMemory {
    fn drop(&mut self) {
        tmem_store::tell_of_bad_pages(None);
        self.grant.stop.store(true, Ordering::Relaxed);
        self.grant.wake();
        if let Some(thread) = self.thread.take() {
            // A panic in it has been logged.
            let _ = thread.join();
        }
    }
}

/// Bytes that may be taken until the next measurement.
#[derive(Debug)]
struct Grant {
    left: AtomicU64,
    /// The same for empty pools, which may use part of the floor: a guest without memory for its pools has no tmem
    /// until its next boot.
    left_for_pools: AtomicU64,
    /// Below this, it is time to measure.
    low: AtomicU64,
    /// Milliseconds from `begin` to the last measurement.
    measured: AtomicU64,
    begin: Instant,
    /// Pages that may vanish are not taken.
    short: AtomicBool,
    refusals: AtomicU64,
    /// A measurement was asked for and has not begun.
    asked: AtomicBool,
    stop: AtomicBool,
    /// Wakes the thread.
    event: OwnedFd,
}

impl Grant {
    fn new() -> io::Result<Self> {
        Ok(Self {
            left: AtomicU64::new(0),
            left_for_pools: AtomicU64::new(0),
            low: AtomicU64::new(0),
            measured: AtomicU64::new(0),
            begin: Instant::now(),
            short: AtomicBool::new(false),
            refusals: AtomicU64::new(0),
            asked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            event: eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?,
        })
    }

    fn now(&self) -> u64 {
        u64::try_from(self.begin.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Grants a part of what may be taken: bytes for pages, and for empty pools.
    fn renew(&self, pages: u64, pools: u64) {
        let granted = pages / GRANT_PART;
        self.low.store(granted / 2, Ordering::Relaxed);
        self.left.store(granted, Ordering::Relaxed);
        self.left_for_pools
            .store(pools / GRANT_PART, Ordering::Relaxed);
        self.measured.store(self.now(), Ordering::Relaxed);
    }

    /// Asks for a measurement, once until it begins.
    fn ask(&self) {
        if !self.asked.load(Ordering::Relaxed) && !self.asked.swap(true, Ordering::AcqRel) {
            self.wake();
        }
    }

    fn wake(&self) {
        // Full is readable as well.
        let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
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
        if taken.is_err() {
            self.refusals.fetch_add(1, Ordering::Relaxed);
        }
        if taken.is_err() || left < low || old {
            self.ask();
        }
        taken.is_ok()
    }

    fn is_short(&self) -> bool {
        self.short.load(Ordering::Relaxed)
    }

    fn returned(&self, bytes: u64) {
        // Returned memory can be granted again at once: a store that freed memory does not wait for a measurement.
        let _ = self
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                left.checked_add(bytes)
            });
    }
}

/// Measures, and says when memory runs out and when it is back.
struct Meter {
    grant: Arc<Grant>,
    memory_info: Arc<MemoryInfo>,
    relief: Arc<Mutex<Option<Box<dyn Relief>>>>,
    /// Pages are refused.
    refusing: bool,
    /// Bad pages that the log has.
    bad: u64,
    /// Refusals when it was announced last.
    seen: u64,
    /// Announcements that are still to come.
    announcements: u32,
}

impl Meter {
    fn run(&mut self) {
        let mut next = None;
        while !self.grant.stop.load(Ordering::Relaxed) {
            self.memory_info.wait(self.grant.event.as_fd(), next);
            self.grant.asked.store(false, Ordering::Release);
            let refusing = self.measure();
            self.say_what_is_bad();
            next = self.relieve();
            let busy = next == Some(Duration::ZERO);
            thread::sleep(if refusing && !busy { REST_SHORT } else { REST });
        }
    }

    /// Gives memory back while the host is short, and announces it. Returns when to measure again, if no thread asks
    /// before.
    fn relieve(&mut self) -> Option<Duration> {
        let relief = lock(&self.relief);
        let relief = relief.as_ref()?;
        let short = self.grant.is_short();
        let more = short && relief.shrink();
        let refusals = self.grant.refusals.load(Ordering::Relaxed);
        if short || refusals != self.seen {
            self.announcements = ANNOUNCEMENTS;
        }
        self.seen = refusals;
        if self.announcements > 0 && relief.announce(short) && !short {
            self.announcements -= 1;
        }
        if more {
            Some(Duration::ZERO)
        } else if short || self.announcements > 0 || relief.has_any() {
            Some(TICK)
        } else {
            None
        }
    }

    fn say_what_is_bad(&mut self) {
        let bad = tmem_store::bad_pages();
        if bad != self.bad {
            log::error!(
                "{bad} pages of host memory are bad so far: what guests had on them is lost, and a load of it is an I/O error"
            );
            self.bad = bad;
        }
    }

    /// Grants what may be taken; where nothing says how much that is, all of it. Whether nothing may be.
    fn measure(&mut self) -> bool {
        let (mut least, mut is_short, mut is_enough) = (None::<(&str, Room)>, false, true);
        for (name, room) in self.memory_info.rooms() {
            is_short |= room.is_short();
            is_enough &= room.is_enough();
            if least.is_none_or(|(_, least)| room.spare() < least.spare()) {
                least = Some((name, room));
            }
        }
        let Some((name, room)) = least else {
            self.grant.renew(u64::MAX, u64::MAX);
            return false;
        };
        let pages = room.spare();
        self.grant.renew(pages, room.spare_for_pools());
        if is_short || is_enough {
            self.grant.short.store(is_short, Ordering::Relaxed);
        }
        if !self.refusing && pages == 0 {
            self.refusing = true;
            log::warn!(
                "{name} has {} left of {}: pages that need more are refused",
                Bytes(room.available),
                Bytes(room.limit)
            );
        } else if self.refusing && pages > room.floor / 4 {
            self.refusing = false;
            log::warn!("{name} has {} left again", Bytes(room.available));
        }
        pages == 0
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    const MIB: u64 = 1 << 20;

    /// A machine with so much available of its 256 MiB.
    fn machine(dir: &tempfile::TempDir, available: u64) -> MemoryInfo {
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
        MemoryInfo::open_in(&path, "", dir.path())
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

    /// So many pieces of memory that can be had back, and what was said.
    #[derive(Clone, Default)]
    struct Cache(Arc<(AtomicU64, Mutex<Vec<bool>>)>);

    impl Relief for Cache {
        fn has_any(&self) -> bool {
            self.0.0.load(Ordering::Relaxed) > 0
        }

        fn shrink(&self) -> bool {
            let less = |left: u64| left.checked_sub(1);
            let order = Ordering::Relaxed;
            self.0.0.fetch_update(order, order, less).is_ok()
        }

        fn announce(&self, short: bool) -> bool {
            let mut said = lock(&self.0.1);
            if said.last() != Some(&short) {
                said.push(short);
            }
            true
        }
    }

    impl Cache {
        fn of(pieces: u64) -> Self {
            let cache = Self::default();
            cache.0.0.store(pieces, Ordering::Relaxed);
            cache
        }

        fn left(&self) -> u64 {
            self.0.0.load(Ordering::Relaxed)
        }

        fn said(&self) -> Vec<bool> {
            lock(&self.0.1).clone()
        }
    }

    #[test]
    fn a_host_that_becomes_short_while_nobody_stores_gets_back_what_may_vanish() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let memory = HostMemory::watch(machine(&dir, 48 * MIB), || ()).expect("starts");
        let cache = Cache::of(100);
        let measured = || memory.grant.measured.load(Ordering::Relaxed);
        thread::sleep(REST_SHORT);
        let before = measured();
        memory.relieve(cache.clone());
        // The requested measurement is done; from here on no thread asks.
        eventually("measured", || measured() > before);
        thread::sleep(3 * REST_SHORT);
        // Above the floor of 8 MiB, and not by half of it: pages that must stay are still taken.
        machine(&dir, 11 * MIB);
        eventually("given back", || cache.left() == 0);
        let gate = memory.gate();
        assert!(gate.is_short());
        assert!(gate.allow(4096, Want::Pages));
        eventually("said", || cache.said() == [true]);
        // Not before there is a whole floor above the floor.
        machine(&dir, 15 * MIB);
        thread::sleep(3 * REST_SHORT);
        gate.allow(1, Want::Pages);
        assert!(gate.is_short());
        machine(&dir, 16 * MIB);
        eventually("enough", || {
            gate.allow(1, Want::Pages);
            !gate.is_short()
        });
        eventually("said", || cache.said() == [true, false]);
        memory.let_be();
        assert_eq!(Arc::strong_count(&cache.0), 1, "nothing of it is in use");
    }

    #[test]
    fn what_may_vanish_stays_while_the_host_has_enough() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let memory = HostMemory::watch(machine(&dir, 48 * MIB), || ()).expect("starts");
        let cache = Cache::of(1);
        memory.relieve(cache.clone());
        let measured = || memory.grant.measured.load(Ordering::Relaxed);
        let before = measured();
        // Twice, without anybody who stores.
        eventually("measured", || measured() > before + 1500);
        assert_eq!(cache.left(), 1);
        assert_eq!(cache.said(), [] as [bool; 0]);
    }

    #[test]
    fn processes_that_wait_for_memory_make_a_host_with_little_short_and_no_other() {
        for (available, short) in [(20 * MIB, true), (40 * MIB, false)] {
            let dir = tempfile::tempdir().expect("temporary folder");
            let mut memory_info = machine(&dir, available);
            let (stalls, fires) = stalls::tests::pair();
            memory_info.watch(Some(stalls));
            let memory = HostMemory::watch(memory_info, || ()).expect("starts");
            let cache = Cache::of(1);
            memory.relieve(cache.clone());
            assert!(!memory.gate().is_short());
            stalls::tests::urgent(&fires);
            let report = || memory.report().expect("is watched");
            eventually("fires", || report().stalled);
            assert_eq!(report().floor, 16 * MIB);
            if short {
                eventually("short", || report().short);
                eventually("given back", || cache.left() == 0);
            } else {
                let measured = || memory.grant.measured.load(Ordering::Relaxed);
                let before = measured();
                eventually("measured", || measured() > before + 500);
                assert!(!report().short);
            }
        }
    }

    #[test]
    fn a_floor_that_the_operator_changes_holds_at_once() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let memory = HostMemory::watch(machine(&dir, 48 * MIB), || ()).expect("starts");
        let gate = memory.gate();
        assert!(gate.allow(4096, Want::Pages));
        memory.leave(Some(64 * MIB));
        eventually("refused", || !gate.allow(4096, Want::Pages));
        let report = memory.report().expect("is watched");
        assert_eq!(report.floor, 64 * MIB);
        assert!(report.refusals > 0);
        memory.leave(None);
        eventually("granted", || gate.allow(4096, Want::Pages));
    }

    #[test]
    fn who_gives_memory_back_can_have_it_without_a_measurement() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let memory = HostMemory::watch(machine(&dir, 8 * MIB), || ()).expect("starts");
        let gate = memory.gate();
        eventually("taken", || {
            gate.returned(8192);
            gate.allow(8192, Want::Pages)
        });
    }

    #[test]
    fn without_figures_everything_is_granted() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let memory_info = MemoryInfo::open_in(&dir.path().join("none"), "", dir.path());
        let memory = HostMemory::watch(memory_info, || ()).expect("starts");
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
