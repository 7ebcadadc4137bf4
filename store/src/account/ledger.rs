//! Who uses how many bytes of the budget, and who may take more.
//!
//! One lock guards all amounts, and it is the innermost of the crate. It is taken when a frame or a piece of index is
//! allocated or freed, not for each page, and held for a few additions.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::allotment::Allotment;
use crate::sync::{Counter, InnerMutex, Sum};

/// The bytes of one domain, or of one share group (which reserves nothing and has no limit).
/// Written under the ledger's lock, read by anybody.
#[derive(Debug, Default)]
pub(crate) struct Account {
    /// Bytes of own frames and own metadata.
    used: Counter,
    /// The cost of the pages in share groups, as if this domain had them alone.
    shared: Counter,
    reserve: Counter,
    limit: Counter,
    weight: Counter,
    /// Shards of private pools, and of shared ones, with pages of the domain that may be evicted.
    evictable: [AtomicU64; 2],
}

/// Whose pool an ephemeral page is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PageOf {
    Private = 0,
    Shared = 1,
}

impl Account {
    /// Whether the domain has pages that may be evicted.
    pub(crate) fn has_evictable(&self, pages: PageOf) -> bool {
        self.evictable[pages as usize].load(Ordering::Relaxed) > 0
    }

    pub(crate) fn used(&self) -> u64 {
        self.used.get()
    }

    pub(crate) fn shared(&self) -> u64 {
        self.shared.get()
    }

    pub(crate) fn reserve(&self) -> u64 {
        self.reserve.get()
    }

    pub(crate) fn limit(&self) -> u64 {
        self.limit.get()
    }

    pub(crate) fn weight(&self) -> u64 {
        self.weight.get()
    }

    /// The limits of the domain.
    pub(crate) fn allotment(&self) -> Allotment {
        Allotment {
            reserve: self.reserve(),
            limit: self.limit(),
            weight: u32::try_from(self.weight()).unwrap_or(u32::MAX),
        }
    }

    /// All bytes that count against the limit.
    pub(crate) fn charged(&self) -> u64 {
        self.used() + self.shared()
    }

    fn over(&self, used: u64) -> u64 {
        used.saturating_sub(self.reserve())
    }
}

/// Why bytes were not granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Short {
    /// The domain is at its limit.
    Limit,
    /// The budget has no more unreserved memory.
    Budget,
    /// The host has no memory to spare.
    Host,
}

/// The amounts that no domain owns.
#[derive(Debug)]
pub(crate) struct Ledger {
    budget: u64,
    used: Counter,
    state: InnerMutex<State>,
    /// Changes after which a charge may be granted that was refused before.
    changes: Counter,
    /// Shards with pages that may be evicted, of all pools.
    evictable: Sum,
    /// Owners with frames to give back.
    pub(crate) owners_with_idle: Sum,
    /// A store was refused for want of budget: memory that compaction can free is needed now.
    shortage: AtomicBool,
}

#[derive(Debug)]
struct State {
    /// The budget less all reserves and less the use of each domain beyond its reserve.
    unreserved: u64,
    /// The part of it that no domain may take, because it is gathered for reserves.
    promised: u64,
}

impl Ledger {
    pub(crate) fn new(budget: u64) -> Self {
        Self {
            budget,
            used: Counter::default(),
            state: InnerMutex::new(State {
                unreserved: budget,
                promised: 0,
            }),
            changes: Counter::default(),
            evictable: Sum::default(),
            owners_with_idle: Sum::default(),
            shortage: AtomicBool::new(false),
        }
    }

    pub(crate) fn budget(&self) -> u64 {
        self.budget
    }

    pub(crate) fn used(&self) -> u64 {
        self.used.get()
    }

    /// An account without a domain behind it: that of a share group.
    pub(crate) fn open_group(&self) -> Account {
        let account = Account::default();
        account.limit.set(u64::MAX);
        account
    }

    /// Changes what a domain may take. Refuses a reserve that the unreserved memory does not hold
    /// now: reserved bytes are there from the moment they are promised.
    pub(crate) fn configure(&self, account: &Account, allotment: Allotment) -> Result<(), Short> {
        let Allotment {
            reserve,
            limit,
            weight,
        } = allotment;
        let mut state = self.state.lock();
        let used = account.used();
        let held = account.reserve() + account.over(used);
        let wanted = reserve.max(used);
        state.unreserved = (state.unreserved + held)
            .checked_sub(wanted)
            .ok_or(Short::Budget)?;
        account.reserve.set(reserve);
        account.limit.set(limit);
        account.weight.set(u64::from(weight));
        self.changes.add(1);
        Ok(())
    }

    /// Grows with whatever may make a charge succeed that was refused before.
    pub(crate) fn changes(&self) -> u64 {
        self.changes.get()
    }

    /// Whether these bytes would be granted now.
    pub(crate) fn has_room(&self, account: &Account, bytes: u64) -> bool {
        let state = self.state.lock();
        let used = account.used();
        let wanted = used.saturating_add(bytes);
        wanted.saturating_add(account.shared()) <= account.limit()
            && account.over(wanted) - account.over(used)
                <= state.unreserved.saturating_sub(state.promised)
    }

    /// Counts a shard that has pages to evict from now on, or has none any more: those of an account, unless the domain
    /// is gone.
    pub(crate) fn count_evictable(&self, account: Option<&Account>, pages: PageOf, some: bool) {
        self.evictable.add(if some { 1 } else { -1 });
        let Some(count) = account.map(|account| &account.evictable[pages as usize]) else {
            return;
        };
        if some {
            count.fetch_add(1, Ordering::Relaxed);
        } else {
            count.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Whether anybody has pages that may be evicted.
    pub(crate) fn has_evictable(&self) -> bool {
        self.evictable.is_some()
    }

    /// A store was refused for want of budget. Returns whether that is news.
    pub(crate) fn report_shortage(&self) -> bool {
        !self.shortage.load(Ordering::Relaxed) && !self.shortage.swap(true, Ordering::Relaxed)
    }

    /// Whether a store was refused since this was asked the last time.
    pub(crate) fn take_shortage(&self) -> bool {
        self.shortage.swap(false, Ordering::Relaxed)
    }

    /// Keeps bytes for a reserve, as they become free: no domain takes them beyond its own reserve.
    pub(crate) fn promise(&self, bytes: u64) {
        self.state.lock().promised += bytes;
    }

    /// Ends a promise, whether it was kept or not.
    pub(crate) fn withdraw(&self, bytes: u64) {
        self.state.lock().promised -= bytes;
        self.changes.add(1);
    }

    /// Whether memory is being gathered for a reserve.
    pub(crate) fn has_promised(&self) -> bool {
        self.state.lock().promised > 0
    }

    /// Takes bytes for frames or metadata of the account.
    pub(crate) fn charge(&self, account: &Account, bytes: u64) -> Result<(), Short> {
        let mut state = self.state.lock();
        let used = account.used();
        let wanted = used.saturating_add(bytes);
        if wanted.saturating_add(account.shared()) > account.limit() {
            return Err(Short::Limit);
        }
        let beyond = account.over(wanted) - account.over(used);
        if beyond > 0 {
            let free = state.unreserved.saturating_sub(state.promised);
            if beyond > free {
                return Err(Short::Budget);
            }
            state.unreserved -= beyond;
        }
        account.used.set(wanted);
        self.used.add(bytes);
        Ok(())
    }

    /// Gives bytes back.
    pub(crate) fn release(&self, account: &Account, bytes: u64) {
        if bytes == 0 {
            return;
        }
        let mut state = self.state.lock();
        let used = account.used();
        debug_assert!(bytes <= used, "more bytes given back than taken");
        let left = used.saturating_sub(bytes);
        state.unreserved += account.over(used) - account.over(left);
        account.used.set(left);
        self.used.sub(used - left);
        self.changes.add(1);
    }

    /// Counts a page of a share group against its domain's limit.
    pub(crate) fn charge_shared(&self, account: &Account, bytes: u64) -> Result<(), Short> {
        let _state = self.state.lock();
        if account.charged().saturating_add(bytes) > account.limit() {
            return Err(Short::Limit);
        }
        account.shared.add(bytes);
        Ok(())
    }

    /// Takes a page of a share group off its domain's account.
    pub(crate) fn release_shared(&self, account: &Account, bytes: u64) {
        let _state = self.state.lock();
        debug_assert!(bytes <= account.shared());
        account.shared.set(account.shared().saturating_sub(bytes));
        self.changes.add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(ledger: &Ledger, reserve: u64, limit: u64) -> Account {
        let account = Account::default();
        ledger
            .configure(&account, Allotment::of(reserve, limit))
            .expect("reserve fits");
        account
    }

    #[test]
    fn nobody_takes_what_another_reserved() {
        let ledger = Ledger::new(100);
        let a = open(&ledger, 60, u64::MAX);
        let b = open(&ledger, 0, u64::MAX);
        assert_eq!(ledger.charge(&b, 41), Err(Short::Budget));
        assert_eq!(ledger.charge(&b, 40), Ok(()));
        assert_eq!(ledger.charge(&a, 60), Ok(()));
        assert_eq!(ledger.charge(&a, 1), Err(Short::Budget));
        ledger.release(&b, 10);
        assert_eq!(ledger.charge(&a, 10), Ok(()));
        assert_eq!(ledger.used(), 100);
        ledger.release(&a, 70);
        assert_eq!(ledger.charge(&b, 11), Err(Short::Budget));
        assert_eq!(ledger.charge(&b, 10), Ok(()));
    }

    #[test]
    fn a_limit_counts_shared_pages_too() {
        let ledger = Ledger::new(100);
        let a = open(&ledger, 0, 50);
        assert_eq!(ledger.charge_shared(&a, 20), Ok(()));
        assert_eq!(ledger.charge(&a, 31), Err(Short::Limit));
        assert_eq!(ledger.charge(&a, 30), Ok(()));
        assert_eq!(ledger.charge_shared(&a, 1), Err(Short::Limit));
        ledger.release_shared(&a, 20);
        assert_eq!(a.charged(), 30);
        assert_eq!(ledger.used(), 30);
    }

    #[test]
    fn a_reserve_is_refused_when_others_use_the_memory() {
        let ledger = Ledger::new(100);
        let a = open(&ledger, 0, u64::MAX);
        let b = open(&ledger, 10, u64::MAX);
        ledger.charge(&a, 50).expect("fits");
        assert_eq!(
            ledger.configure(&b, Allotment::of(51, u64::MAX)),
            Err(Short::Budget)
        );
        assert_eq!(ledger.configure(&b, Allotment::of(50, u64::MAX)), Ok(()));
        assert_eq!(ledger.charge(&a, 1), Err(Short::Budget));
        assert_eq!(ledger.configure(&b, Allotment::of(0, u64::MAX)), Ok(()));
        assert_eq!(ledger.charge(&a, 50), Ok(()));
    }
}
