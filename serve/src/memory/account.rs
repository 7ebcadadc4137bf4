//! Accounting for the memory of one guest's front end: the limits, and the use so far.
//!
//! A page that is not in the page cache is charged to the control group of the process that touches it first. Such
//! pages are counted here, and granted as the pages of the store are: by the operator's allowance and by the memory
//! that the host has left.

use std::fs::File;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tmem_control::api::MemoryBacking;
use tmem_store::{Gate, Want};

use crate::config::{GuestConfig, MAX_GUEST_BYTES};
use crate::handle::ThreadHandle;
use crate::sigbus;

use super::backing::page_size;
use super::files;
use super::pace::Pace;

/// Pages that are granted at a time, so that one more page seldom needs another grant.
const BATCH: u64 = 16;

/// Files of former tables that are tracked one by one. The pages in further files count until their guest is removed.
const FILES: usize = 64;

/// Pages of a guest that may use the same part of the host's floor as empty pools: a guest that starts needs its rings,
/// and a running guest its swap, however full the host is.
const DEEP: u64 = 256;

/// How long a page is waited for on a host that has no memory left. A refusal is an I/O error in the guest, and a driver
/// waits longer than this.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(5);

/// The account of one guest.
#[derive(Debug)]
pub(crate) struct Account {
    /// Most bytes that its table may describe.
    most: AtomicU64,
    /// Most bytes of it that are touched here first, as long as they are charged to this process.
    first_touch: AtomicU64,
    backing: MemoryBacking,
    gate: Option<Arc<dyn Gate>>,
    /// Ends a wait.
    handle: Option<Arc<ThreadHandle>>,
    /// The host had no page in all of [`PATIENCE`], and none since: later requests do not wait.
    tired: AtomicBool,
    /// Bytes granted to the table that is mapped.
    held: AtomicU64,
    /// Pages made for tables before it. Locked by the guest's thread only.
    former: Mutex<Former>,
    /// The time that tables took. Locked by the guest's thread only.
    pace: Mutex<Pace>,
    /// Bytes granted so far, those of earlier connections included.
    pub(super) touched: AtomicU64,
    /// Accesses that were refused for want of such bytes.
    pub(super) refused: AtomicU64,
    /// Bytes that its table describes now.
    pub(super) described: AtomicU64,
    /// Mappings that could not be undone.
    pub(super) stuck: AtomicU64,
    /// Tables that had to wait.
    waits: AtomicU64,
    /// Panics of its thread.
    panics: AtomicU64,
}

/// Pages that were made in files of former tables, connections before included: they are charged here until the file is
/// deleted, even if only other processes have it.
#[derive(Debug, Default)]
struct Former {
    /// Whether a file is deleted, and bytes in it.
    files: Vec<(Arc<AtomicBool>, u64)>,
    /// Bytes in files whose deletion is not reported.
    others: u64,
}

impl Former {
    fn bytes(&self) -> u64 {
        let bytes = self.files.iter().map(|(_, bytes)| *bytes);
        bytes.fold(self.others, u64::saturating_add)
    }

    fn add(&mut self, file: &File, bytes: u64) {
        let watched = files::watch().and_then(|watch| watch.file(file).ok());
        let Some(gone) = watched else {
            self.others = self.others.saturating_add(bytes);
            return;
        };
        let known = self
            .files
            .iter_mut()
            .find(|(known, _)| Arc::ptr_eq(known, &gone));
        if let Some((_, known)) = known {
            *known = known.saturating_add(bytes);
        } else if self.files.len() < FILES {
            self.files.push((gone, bytes));
        } else {
            self.others = self.others.saturating_add(bytes);
        }
    }

    fn look(&mut self) {
        if let Some(watch) = files::watch().filter(|_| !self.files.is_empty()) {
            watch.look();
            self.files.retain(|(gone, _)| !gone.load(Relaxed));
        }
    }
}

/// The values of an account.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryReport {
    /// Bytes that the front end describes now.
    pub described: u64,
    /// Bytes that were granted to touch memory of front ends before they did, page tables included.
    pub touched: u64,
    /// Accesses that were refused such bytes.
    pub refused: u64,
    /// Mappings that could not be undone.
    pub stuck: u64,
    /// Tables that were mapped later than they came, because there were many.
    pub waits: u64,
    /// Panics of the guest's thread.
    pub panics: u64,
}

impl Default for Account {
    fn default() -> Self {
        Self {
            most: AtomicU64::new(MAX_GUEST_BYTES),
            first_touch: AtomicU64::new(u64::MAX),
            backing: MemoryBacking::default(),
            gate: None,
            handle: None,
            tired: AtomicBool::new(false),
            held: AtomicU64::new(0),
            former: Mutex::default(),
            pace: Mutex::new(Pace::new(Instant::now())),
            touched: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            described: AtomicU64::new(0),
            stuck: AtomicU64::new(0),
            waits: AtomicU64::new(0),
            panics: AtomicU64::new(0),
        }
    }
}

impl Account {
    pub(crate) fn new(
        config: &GuestConfig,
        gate: Option<Arc<dyn Gate>>,
        handle: Arc<ThreadHandle>,
    ) -> Self {
        let account = Self {
            backing: config.memory_backing,
            gate,
            handle: Some(handle),
            ..Self::default()
        };
        account.set(config.memory, config.first_touch);
        account
    }

    /// Changes what the operator grants: from the next table on, and from the next grant.
    pub(crate) fn set(&self, most: Option<u64>, first_touch: Option<u64>) {
        self.most.store(most.unwrap_or(MAX_GUEST_BYTES), Relaxed);
        self.first_touch
            .store(first_touch.unwrap_or(u64::MAX), Relaxed);
    }

    pub(super) fn most(&self) -> u64 {
        self.most.load(Relaxed)
    }

    pub(super) fn backing(&self) -> MemoryBacking {
        self.backing
    }

    /// Whether the guest may have memory mapped: not when some could not be unmapped.
    pub(crate) fn may_map(&self) -> bool {
        self.stuck.load(Relaxed) == 0
    }

    pub(crate) fn count_panic(&self) {
        self.panics.fetch_add(1, Relaxed);
    }

    pub(crate) fn report(&self) -> MemoryReport {
        MemoryReport {
            described: self.described.load(Relaxed),
            touched: self.touched.load(Relaxed),
            refused: self.refused.load(Relaxed),
            stuck: self.stuck.load(Relaxed),
            waits: self.waits.load(Relaxed),
            panics: self.panics.load(Relaxed),
        }
    }

    /// A connection begins.
    pub(crate) fn begin(&self) {
        self.held.store(0, Relaxed);
        self.tired.store(false, Relaxed);
        sigbus::set_allowed(0);
        self.former().look();
    }

    /// A table is unmapped: its page tables and what it did not use are given back. So many pages were made in its files.
    pub(super) fn settle<'a>(&self, made: impl Iterator<Item = (&'a File, u64)>) {
        let mut former = self.former();
        for (file, pages) in made.filter(|(_, pages)| *pages > 0) {
            former.look();
            former.add(file, pages.saturating_mul(page_size()));
        }
        drop(former);
        self.held.store(0, Relaxed);
        sigbus::set_allowed(0);
    }

    /// Waits until the guest may have memory mapped again, or is stopped.
    pub(crate) fn wait_for_turn(&self) {
        let mut waits = false;
        while !self.is_stopped() {
            let left = self.pace().wait(Instant::now());
            if left.is_zero() {
                return;
            }
            if !std::mem::replace(&mut waits, true) {
                self.waits.fetch_add(1, Relaxed);
            }
            std::thread::sleep(left.min(PAUSE));
        }
    }

    /// Notes the processor time of mapping or unmapping, since `began` of this thread.
    pub(super) fn spend_since(&self, began: Duration) {
        let spent = processor_time().saturating_sub(began);
        self.pace().spend(spent, Instant::now());
    }

    fn is_stopped(&self) -> bool {
        self.handle
            .as_ref()
            .is_some_and(|handle| handle.is_stopped())
    }

    fn former(&self) -> MutexGuard<'_, Former> {
        // Each change leaves it whole.
        self.former.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pace(&self) -> MutexGuard<'_, Pace> {
        // As above.
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes sure that this thread may make `pages` pages.
    pub(super) fn afford(&self, pages: u64) -> bool {
        let missing = pages.saturating_sub(sigbus::allowed());
        missing == 0 || self.grant(missing.max(BATCH)) || (missing < BATCH && self.grant(missing))
    }

    /// As [`Self::afford`], and waits for the host to have them.
    pub(super) fn wait_for(&self, pages: u64) -> bool {
        let begin = Instant::now();
        while !self.is_over(pages) && !self.tired.load(Relaxed) && !self.is_stopped() {
            if begin.elapsed() >= PATIENCE {
                self.tired.store(true, Relaxed);
                break;
            }
            std::thread::sleep(PAUSE);
            if self.afford(pages) {
                return true;
            }
        }
        false
    }

    /// Whether so many pages are more than the operator allows.
    fn is_over(&self, pages: u64) -> bool {
        self.more(pages) > self.first_touch.load(Relaxed)
    }

    /// Bytes that are charged for this guest, with so many pages more.
    fn more(&self, pages: u64) -> u64 {
        let mut former = self.former();
        former.look();
        let bytes = pages.saturating_mul(page_size());
        let bytes = bytes.saturating_add(former.bytes());
        self.held.load(Relaxed).saturating_add(bytes)
    }

    fn grant(&self, pages: u64) -> bool {
        let charged = self.more(pages);
        if charged > self.first_touch.load(Relaxed) {
            return false;
        }
        let bytes = pages.saturating_mul(page_size());
        let want = if charged <= DEEP.saturating_mul(page_size()) {
            Want::Pool
        } else {
            Want::Pages
        };
        let gate = self.gate.as_ref();
        if gate.is_some_and(|gate| !gate.allow(bytes, want)) {
            return false;
        }
        self.tired.store(false, Relaxed);
        self.held.fetch_add(bytes, Relaxed);
        self.touched.fetch_add(bytes, Relaxed);
        sigbus::set_allowed(sigbus::allowed().saturating_add(pages));
        true
    }
}

/// Of this thread so far.
pub(super) fn processor_time() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: writes one `timespec`. It is zero where the clock is missing.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    let nanoseconds = u32::try_from(time.tv_nsec).unwrap_or(0);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), nanoseconds)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Grants so many bytes.
    #[derive(Debug)]
    struct Host(Mutex<u64>);

    impl Gate for Host {
        fn allow(&self, bytes: u64, _: Want) -> bool {
            let mut left = self.0.lock().expect("whole");
            let rest = left.checked_sub(bytes);
            *left = rest.unwrap_or(*left);
            rest.is_some()
        }
    }

    fn account(first_touch: u64, host: u64) -> Account {
        let account = Account {
            gate: Some(Arc::new(Host(Mutex::new(host * page_size())))),
            ..Account::default()
        };
        account.set(None, Some(first_touch * page_size()));
        account.begin();
        account
    }

    #[test]
    fn pages_are_granted_up_to_the_allowance_and_to_what_the_host_has() {
        for (first_touch, host) in [(20, 1000), (1000, 20)] {
            let account = account(first_touch, host);
            assert!(account.afford(1));
            assert_eq!(sigbus::allowed(), BATCH);
            assert!(account.afford(20), "less than a batch is left");
            assert!(!account.afford(21));
            sigbus::take_allowed(20);
            assert!(!account.afford(1), "what is used is not granted twice");
            assert_eq!(account.report().touched, 20 * page_size());
        }
    }

    #[test]
    fn a_host_is_waited_for_and_the_allowance_is_not() {
        let account = account(1000, 0);
        assert!(!account.afford(1));
        let host = Arc::new(Host(Mutex::new(0)));
        let account = Account {
            gate: Some(Arc::clone(&host) as Arc<dyn Gate>),
            ..account
        };
        std::thread::scope(|scope| {
            scope.spawn(|| *host.0.lock().expect("whole") = page_size());
            assert!(account.wait_for(1));
        });
        account.set(None, Some(0));
        let begin = Instant::now();
        sigbus::take_allowed(1);
        assert!(!account.wait_for(1));
        assert!(begin.elapsed() < PATIENCE);
    }
}
