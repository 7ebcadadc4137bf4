//! What one guest may have this process do with the memory of its front end, and what it did.
//!
//! A page that is in nobody's page cache is charged to the control group of who touches it first. That is counted here,
//! and granted as the pages of the store are: by the operator's allowance and by the memory that the host has left.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::{Duration, Instant};

use tmem_store::{Gate, Want};

use crate::config::{GuestConfig, MAX_GUEST_BYTES, MemoryBacking};
use crate::link::Link;
use crate::sigbus;

use super::backing::page_size;

/// Pages that are granted at a time, so that a page more seldom needs more than a look.
const BATCH: u64 = 16;

/// Pages of a connection that are granted as empty pools are, with which a host goes deeper: a guest that starts needs its
/// rings, and one that runs its swap, however full the host is.
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
    /// Most bytes of it that are touched here first, in one connection.
    first_touch: AtomicU64,
    backing: MemoryBacking,
    gate: Option<Arc<dyn Gate>>,
    /// Ends a wait.
    link: Option<Arc<Link>>,
    /// The host had no page in all of [`PATIENCE`], and none since: nobody waits for it again.
    tired: AtomicBool,
    /// Bytes granted to this connection.
    held: AtomicU64,
    /// Bytes granted so far, those of earlier connections included.
    pub(super) touched: AtomicU64,
    /// Accesses that were refused for want of such bytes.
    pub(super) refused: AtomicU64,
    /// Bytes that its table describes now.
    pub(super) described: AtomicU64,
    /// Mappings that could not be undone.
    pub(super) stuck: AtomicU64,
    /// Panics of its thread.
    panics: AtomicU64,
}

/// What an account says.
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
            link: None,
            tired: AtomicBool::new(false),
            held: AtomicU64::new(0),
            touched: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            described: AtomicU64::new(0),
            stuck: AtomicU64::new(0),
            panics: AtomicU64::new(0),
        }
    }
}

impl Account {
    pub(crate) fn new(config: &GuestConfig, gate: Option<Arc<dyn Gate>>, link: Arc<Link>) -> Self {
        let account = Self {
            backing: config.memory_backing,
            gate,
            link: Some(link),
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
            panics: self.panics.load(Relaxed),
        }
    }

    /// A connection begins: what the last one had belongs to files that are its front end's business now.
    pub(crate) fn begin(&self) {
        self.held.store(0, Relaxed);
        self.tired.store(false, Relaxed);
        sigbus::set_allowed(0);
    }

    /// Makes sure that this thread may make `pages` pages.
    pub(super) fn afford(&self, pages: u64) -> bool {
        let missing = pages.saturating_sub(sigbus::allowed());
        missing == 0 || self.grant(missing.max(BATCH)) || (missing < BATCH && self.grant(missing))
    }

    /// As [`Self::afford`], and waits for the host to have them.
    pub(super) fn wait_for(&self, pages: u64) -> bool {
        let begin = Instant::now();
        let stopped = || self.link.as_ref().is_some_and(|link| link.is_stopped());
        while !self.is_over(pages) && !self.tired.load(Relaxed) && !stopped() {
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

    /// Bytes of this connection with so many pages more.
    fn more(&self, pages: u64) -> u64 {
        let bytes = pages.saturating_mul(page_size());
        self.held.load(Relaxed).saturating_add(bytes)
    }

    fn grant(&self, pages: u64) -> bool {
        if self.is_over(pages) {
            return false;
        }
        // No other thread changes what is held.
        let (held, bytes) = (self.more(pages), pages.saturating_mul(page_size()));
        let want = if held <= DEEP.saturating_mul(page_size()) {
            Want::Pool
        } else {
            Want::Pages
        };
        let gate = self.gate.as_ref();
        if gate.is_some_and(|gate| !gate.allow(bytes, want)) {
            return false;
        }
        self.tired.store(false, Relaxed);
        self.held.store(held, Relaxed);
        self.touched.fetch_add(bytes, Relaxed);
        sigbus::set_allowed(sigbus::allowed().saturating_add(pages));
        true
    }
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
