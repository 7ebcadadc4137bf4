//! The owners of memory: the domains, the share groups, and domains that were removed and are not freed yet.

use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Weak};

use arc_swap::{ArcSwap, Guard};

use crate::account::ledger::Ledger;
use crate::arena::Arena;
use crate::domain::DomainInner;
use crate::group::Group;
use crate::sync::Mutex;
use crate::wake::Wakes;

/// The owners of a store's memory, the ledger that charges them, and the threads that free what they leave.
#[derive(Debug)]
pub(crate) struct Owners {
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) wakes: Arc<Wakes>,
    list: ArcSwap<OwnerList>,
    /// Domains that were removed and have memory yet.
    pub(crate) leaving: Mutex<Vec<Arc<DomainInner>>>,
}

impl Owners {
    pub(crate) fn new(budget: u64) -> Self {
        Self {
            ledger: Arc::new(Ledger::new(budget)),
            wakes: Arc::default(),
            list: ArcSwap::default(),
            leaving: Mutex::default(),
        }
    }

    /// The contents of the registry, for threads that must not wait for its lock.
    pub(crate) fn list(&self) -> Guard<Arc<OwnerList>> {
        self.list.load()
    }

    /// Called under the registry's lock, when what it holds has changed.
    pub(crate) fn set_list(&self, domains: Vec<Arc<DomainInner>>, groups: Vec<Weak<Group>>) {
        self.list.store(Arc::new(OwnerList {
            domains,
            groups,
            hand: AtomicUsize::new(0),
        }));
    }
}

/// All domains and share groups.
#[derive(Debug, Default)]
pub(crate) struct OwnerList {
    pub(crate) domains: Vec<Arc<DomainInner>>,
    pub(crate) groups: Vec<Weak<Group>>,
    /// Where idle frames were found last.
    pub(crate) hand: AtomicUsize,
}

impl OwnerList {
    pub(crate) fn groups(&self) -> impl Iterator<Item = Arc<Group>> {
        self.groups.iter().filter_map(Weak::upgrade)
    }

    /// The memory of every domain and group.
    pub(crate) fn arenas(&self) -> impl Iterator<Item = Arc<Arena>> {
        let domains = self.domains.iter().map(|domain| Arc::clone(&domain.arena));
        domains.chain(self.groups().map(|group| Arc::clone(&group.pool.arena)))
    }
}
