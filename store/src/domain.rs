//! A domain: the pools of one guest.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use arc_swap::ArcSwapOption;
use tmem_base::setting::PoolKind;

use crate::account::ledger::Account;
use crate::arena::Arena;
use crate::config::DomainConfig;
use crate::error::{CreatePoolError, UnknownPool};
use crate::group::Group;
use crate::page::PoolId;
use crate::pool::Pool;
use crate::stats::{DomainStats, PoolStats};
use crate::sync::Mutex;

/// The state of a domain.
#[derive(Debug)]
pub(crate) struct DomainInner {
    pub(crate) name: String,
    pub(crate) account: Arc<Account>,
    pub(crate) arena: Arc<Arena>,
    frozen: AtomicBool,
    cold: AtomicBool,
    groups: Vec<String>,
    pools: Box<[ArcSwapOption<PoolRef>]>,
    /// Held while pools are created and destroyed.
    pools_lock: Mutex<PoolsLock>,
    retired: Mutex<Retired>,
    /// The domain was removed: its memory is freed as a whole.
    gone: AtomicBool,
}

/// Pools that the domain no longer has.
#[derive(Debug, Default)]
struct Retired {
    /// The counters of private pools that were destroyed.
    counted: PoolStats,
    /// Pools that no request finds any more, whose pages are being freed.
    dying: VecDeque<Arc<PoolRef>>,
}

/// A pool as a domain knows it.
#[derive(Debug)]
pub(crate) struct PoolRef {
    pub(crate) id: u32,
    pub(crate) pool: Arc<Pool>,
    /// The domain's index among the members of a shared pool, 0 in its own.
    pub(crate) member: u8,
    /// Kept so that the group lives while it has members.
    group: Option<Arc<Group>>,
}

#[derive(Debug)]
struct PoolsLock {
    /// Times that each cell of `pools` was used.
    used: Vec<u32>,
    removed: bool,
}

impl DomainInner {
    pub(crate) fn new(
        name: &str,
        config: &DomainConfig,
        account: Arc<Account>,
        arena: Arc<Arena>,
    ) -> Self {
        let cells = usize::from(config.max_pools);
        Self {
            name: name.to_owned(),
            account,
            arena,
            frozen: AtomicBool::new(false),
            cold: AtomicBool::new(config.cold),
            groups: config.groups.clone(),
            pools: (0..cells).map(|_| ArcSwapOption::empty()).collect(),
            pools_lock: Mutex::new(PoolsLock {
                used: vec![0; cells],
                removed: false,
            }),
            retired: Mutex::default(),
            gone: AtomicBool::new(false),
        }
    }

    pub(crate) fn pool_ref(&self, pool: PoolId) -> Option<arc_swap::Guard<Option<Arc<PoolRef>>>> {
        let guard = self.pools.get(pool.0 as usize & 0xff)?.load();
        guard
            .as_ref()
            .is_some_and(|pool_ref| pool_ref.id == pool.0)
            .then_some(guard)
    }

    /// Puts a pool in a free cell. `make` gets the id and the index that it has there.
    pub(crate) fn add_pool(
        &self,
        make: impl FnOnce(u32, u8) -> Result<PoolRef, CreatePoolError>,
    ) -> Result<PoolId, CreatePoolError> {
        let mut lock = self.pools_lock.lock();
        if lock.removed {
            return Err(CreatePoolError::Removed);
        }
        let cell = self
            .pools
            .iter()
            .position(|cell| cell.load().is_none())
            .ok_or(CreatePoolError::TooMany)?;
        let pool_index = u8::try_from(cell).map_err(|_| CreatePoolError::TooMany)?;
        let id = lock.used[cell] << 8 | u32::from(pool_index);
        self.pools[cell].store(Some(Arc::new(make(id, pool_index)?)));
        lock.used[cell] = (lock.used[cell] + 1) & 0x00ff_ffff;
        Ok(PoolId(id))
    }

    /// Whether the operator listed the share group.
    pub(crate) fn may_join(&self, group: &str) -> bool {
        self.groups.iter().any(|listed| listed == group)
    }

    /// Destroys a pool and frees about `most` of its pages. Returns whether none is left.
    pub(crate) fn destroy_pool(&self, pool: PoolId, most: usize) -> Result<bool, UnknownPool> {
        let retired = {
            let _lock = self.pools_lock.lock();
            drop(self.pool_ref(pool).ok_or(UnknownPool)?);
            let cell = self.pools.get(pool.0 as usize & 0xff);
            cell.and_then(|cell| self.destroy(cell))
        };
        Ok(retired.is_none_or(|pool_ref| self.free(&pool_ref, most)))
    }

    /// The pools that the domain has now.
    pub(crate) fn pools(&self) -> impl Iterator<Item = Arc<PoolRef>> {
        self.pools.iter().filter_map(ArcSwapOption::load_full)
    }

    /// The domain's own pool of this index.
    pub(crate) fn own_pool(&self, pool_index: u8) -> Option<Arc<PoolRef>> {
        self.pools
            .get(usize::from(pool_index))?
            .load_full()
            .filter(|pool_ref| pool_ref.group.is_none())
    }

    pub(crate) fn is_cold(&self) -> bool {
        self.cold.load(Ordering::Relaxed)
    }

    pub(crate) fn set_cold(&self, cold: bool) {
        self.cold.store(cold, Ordering::Relaxed);
    }

    /// Whether new pages are refused.
    pub(crate) fn is_frozen(&self) -> bool {
        self.frozen.load(Ordering::Relaxed)
    }

    pub(crate) fn set_frozen(&self, frozen: bool) {
        self.frozen.store(frozen, Ordering::Relaxed);
    }

    /// Bytes of slots of ephemeral pages in own pools.
    pub(crate) fn own_freeable(&self) -> u64 {
        self.pools()
            .filter(|pool_ref| pool_ref.pool.kind == PoolKind::Ephemeral)
            .map(|pool_ref| pool_ref.pool.slot_bytes())
            .sum()
    }

    /// Bytes of slots of ephemeral pages, and what pages in share groups are charged.
    pub(crate) fn freeable(&self) -> u64 {
        self.own_freeable() + self.account.shared()
    }

    /// Ends all pools; none can be created afterwards.
    pub(crate) fn end(&self) {
        let mut lock = self.pools_lock.lock();
        lock.removed = true;
        self.gone.store(true, Ordering::Relaxed);
        for cell in &self.pools {
            self.destroy(cell);
        }
    }

    /// Cuts the pool in a cell loose. Its counters are never missing in between.
    fn destroy(&self, cell: &ArcSwapOption<PoolRef>) -> Option<Arc<PoolRef>> {
        let pool_ref = cell.load_full()?;
        pool_ref.cut_loose();
        let mut retired = self.retired.lock();
        cell.store(None);
        retired.dying.push_back(Arc::clone(&pool_ref));
        self.dying().fetch_add(1, Ordering::Relaxed);
        Some(pool_ref)
    }

    fn dying(&self) -> &AtomicUsize {
        &self.arena.quota().wakes().dying
    }

    /// Frees about `most` pages of what was cut loose. `true` when there was something.
    pub(crate) fn free_some(&self, most: usize) -> bool {
        let next = self.retired.lock().dying.front().cloned();
        if let Some(pool_ref) = next {
            self.free(&pool_ref, most);
            return true;
        }
        self.pools().any(|pool_ref| pool_ref.pool.free_loose(most))
    }

    /// Frees about `most` pages of a pool that was cut loose. Returns whether none is left.
    fn free(&self, pool_ref: &Arc<PoolRef>, most: usize) -> bool {
        if !pool_ref.free(most, self.gone.load(Ordering::Relaxed)) {
            return false;
        }
        let mut retired = self.retired.lock();
        let found = retired
            .dying
            .iter()
            .position(|dying| Arc::ptr_eq(dying, pool_ref));
        if let Some(at) = found {
            retired.dying.remove(at);
            pool_ref.add_events(&mut retired.counted);
            drop(retired);
            self.dying().fetch_sub(1, Ordering::Relaxed);
            if let Some(group) = &pool_ref.group {
                group.forget(pool_ref.member);
            }
        }
        true
    }

    pub(crate) fn stats(&self) -> DomainStats {
        let usage = self.arena.usage();
        let (pools, retired) = {
            let list = self.retired.lock();
            let mut counted = list.counted;
            for dying in &list.dying {
                dying.add_events(&mut counted);
            }
            let mut pools: Vec<_> = self
                .pools()
                .map(|pool_ref| pool_ref.pool.stats(pool_ref.id))
                .collect();
            pools.sort_by_key(|pool| pool.id);
            (pools, counted)
        };
        let allotment = self.account.allotment();
        DomainStats {
            name: self.name.clone(),
            reserve: allotment.reserve,
            limit: allotment.limit,
            weight: allotment.weight,
            frozen: self.frozen.load(Ordering::Relaxed),
            cold: self.is_cold(),
            used: self.account.charged(),
            used_shared: self.account.shared(),
            segment_bytes: usage.frames,
            slot_bytes: usage.slots,
            freeable: self.freeable(),
            pools,
            destroyed: retired,
        }
    }
}

impl PoolRef {
    /// A pool of the domain's own.
    pub(crate) fn own(id: u32, pool: Pool) -> Self {
        Self {
            id,
            pool: Arc::new(pool),
            member: 0,
            group: None,
        }
    }

    /// The pool of a group that the domain joined.
    pub(crate) fn shared(id: u32, group: Arc<Group>, member: u8) -> Self {
        Self {
            id,
            pool: Arc::clone(&group.pool),
            member,
            group: Some(group),
        }
    }

    /// Adds what the pool counted, if it is the domain's own.
    fn add_events(&self, sums: &mut PoolStats) {
        if self.group.is_none() {
            sums.add_events(&self.pool.stats(self.id));
        }
    }

    /// Nobody stores to the pool any more, or finds what this domain stored.
    fn cut_loose(&self) {
        match &self.group {
            Some(group) => group.leave(self.member),
            None => self.pool.kill(),
        }
    }

    /// Frees about `most` pages of it, with `whole` without its slots. Returns whether none is left.
    fn free(&self, most: usize, whole: bool) -> bool {
        match self.group {
            Some(_) => self.pool.evict_member(self.member, most),
            None => self.pool.free_dead(most, whole),
        }
    }
}
