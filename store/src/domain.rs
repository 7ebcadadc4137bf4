//! A domain: the pools of one guest, and the operations a guest asks for.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use arc_swap::ArcSwapOption;

use crate::account::ledger::{Account, Short};
use crate::account::quota::Refusal;
use crate::config::{Dedup, DomainChange, DomainConfig, PoolSpec};
use crate::error::{ConfigError, CreatePoolError, LoadError, StoreError, UnknownPool};
use crate::gather;
use crate::page::{Key, ObjectId, Page, PoolId};
use crate::pool::{Pool, PoolParts};
use crate::reap;
use crate::room;
use crate::share::Group;
use crate::space::Space;
use crate::stats::{DomainStats, PoolKind, PoolStats};
use crate::store::StoreInner;
use crate::sync::Mutex;

/// Frames that are given back for a pool that finds no room: more than the tables of an empty one.
const POOL_FRAMES: usize = 64;
/// Times that a pool that finds no room frees something that is dying, and tries again.
const POOL_ATTEMPTS: usize = 64;

/// One guest's part of a store. Clones are handles to the same domain.
#[derive(Clone, Debug)]
pub struct Domain {
    pub(crate) inner: Arc<DomainInner>,
    pub(crate) store: Arc<StoreInner>,
}

#[derive(Debug)]
pub(crate) struct DomainInner {
    pub(crate) name: String,
    pub(crate) account: Arc<Account>,
    pub(crate) space: Arc<Space>,
    frozen: AtomicBool,
    cold: AtomicBool,
    groups: Vec<String>,
    pools: Box<[ArcSwapOption<Joined>]>,
    /// Held while pools are created and destroyed.
    changing: Mutex<Changing>,
    destroyed: Mutex<Destroyed>,
    /// The domain was removed: its memory goes as a whole.
    gone: AtomicBool,
}

/// Pools that the domain no longer has.
#[derive(Debug, Default)]
struct Destroyed {
    /// What the private pools that are gone had counted.
    counted: PoolStats,
    /// Pools that nobody finds any more, whose pages are being freed.
    dying: VecDeque<Arc<Joined>>,
}

/// A pool as a domain knows it.
#[derive(Debug)]
pub(crate) struct Joined {
    pub(crate) id: u32,
    pub(crate) pool: Arc<Pool>,
    /// The domain's number among the members of a shared pool, 0 in its own.
    pub(crate) member: u8,
    /// Kept so that the group lives while it has members.
    group: Option<Arc<Group>>,
}

#[derive(Debug)]
struct Changing {
    /// Times that each place of `pools` was used.
    used: Vec<u32>,
    removed: bool,
}

impl DomainInner {
    pub(crate) fn new(
        name: &str,
        config: &DomainConfig,
        account: Arc<Account>,
        space: Arc<Space>,
    ) -> Self {
        let places = usize::from(config.max_pools);
        Self {
            name: name.to_owned(),
            account,
            space,
            frozen: AtomicBool::new(false),
            cold: AtomicBool::new(config.cold),
            groups: config.groups.clone(),
            pools: (0..places).map(|_| ArcSwapOption::empty()).collect(),
            changing: Mutex::new(Changing {
                used: vec![0; places],
                removed: false,
            }),
            destroyed: Mutex::default(),
            gone: AtomicBool::new(false),
        }
    }

    fn joined(&self, pool: PoolId) -> Option<arc_swap::Guard<Option<Arc<Joined>>>> {
        let guard = self.pools.get(pool.0 as usize & 0xff)?.load();
        guard
            .as_ref()
            .is_some_and(|joined| joined.id == pool.0)
            .then_some(guard)
    }

    /// The pools that the domain has now.
    pub(crate) fn pools(&self) -> impl Iterator<Item = Arc<Joined>> {
        self.pools.iter().filter_map(ArcSwapOption::load_full)
    }

    /// The domain's own pool of this number.
    pub(crate) fn own_pool(&self, number: u8) -> Option<Arc<Joined>> {
        self.pools
            .get(usize::from(number))?
            .load_full()
            .filter(|joined| joined.group.is_none())
    }

    pub(crate) fn is_cold(&self) -> bool {
        self.cold.load(Ordering::Relaxed)
    }

    /// Bytes of slots of ephemeral pages in own pools.
    pub(crate) fn own_freeable(&self) -> u64 {
        self.pools()
            .filter(|joined| joined.pool.kind == PoolKind::Ephemeral)
            .map(|joined| joined.pool.slot_bytes())
            .sum()
    }

    /// Bytes of slots of ephemeral pages, and what pages in share groups are charged.
    pub(crate) fn freeable(&self) -> u64 {
        self.own_freeable() + self.account.shared()
    }

    /// Ends all pools; none can be created afterwards.
    pub(crate) fn end(&self) {
        let mut changing = self.changing.lock();
        changing.removed = true;
        self.gone.store(true, Ordering::Relaxed);
        for place in &self.pools {
            self.destroy(place);
        }
    }

    /// Cuts what is in a place loose, without a moment in which its counters are missing.
    fn destroy(&self, place: &ArcSwapOption<Joined>) -> Option<Arc<Joined>> {
        let joined = place.load_full()?;
        joined.cut_loose();
        let mut destroyed = self.destroyed.lock();
        place.store(None);
        destroyed.dying.push_back(Arc::clone(&joined));
        self.dying().fetch_add(1, Ordering::Relaxed);
        Some(joined)
    }

    fn dying(&self) -> &AtomicUsize {
        &self.space.purse().wakes().dying
    }

    /// Frees about `most` pages of what was cut loose. `true` when there was something.
    pub(crate) fn free_some(&self, most: usize) -> bool {
        let next = self.destroyed.lock().dying.front().cloned();
        if let Some(joined) = next {
            self.free(&joined, most);
            return true;
        }
        self.pools().any(|joined| joined.pool.free_loose(most))
    }

    /// Frees about `most` pages of a pool that was cut loose. Returns whether none is left.
    fn free(&self, joined: &Arc<Joined>, most: usize) -> bool {
        if !joined.free(most, self.gone.load(Ordering::Relaxed)) {
            return false;
        }
        let mut destroyed = self.destroyed.lock();
        let found = destroyed
            .dying
            .iter()
            .position(|dying| Arc::ptr_eq(dying, joined));
        if let Some(at) = found {
            destroyed.dying.remove(at);
            joined.count_in(&mut destroyed.counted);
            drop(destroyed);
            self.dying().fetch_sub(1, Ordering::Relaxed);
            if let Some(group) = &joined.group {
                group.forget(joined.member);
            }
        }
        true
    }

    pub(crate) fn stats(&self) -> DomainStats {
        let usage = self.space.usage();
        let (pools, destroyed) = {
            let list = self.destroyed.lock();
            let mut counted = list.counted;
            for dying in &list.dying {
                dying.count_in(&mut counted);
            }
            let mut pools: Vec<_> = self
                .pools()
                .map(|joined| joined.pool.stats(joined.id))
                .collect();
            pools.sort_by_key(|pool| pool.id);
            (pools, counted)
        };
        DomainStats {
            name: self.name.clone(),
            reserve: self.account.reserve(),
            limit: self.account.limit(),
            weight: u32::try_from(self.account.weight()).unwrap_or(u32::MAX),
            frozen: self.frozen.load(Ordering::Relaxed),
            cold: self.is_cold(),
            used: self.account.charged(),
            used_shared: self.account.shared(),
            segment_bytes: usage.frames,
            slot_bytes: usage.slots,
            freeable: self.freeable(),
            pools,
            destroyed,
        }
    }
}

impl Joined {
    /// Adds what the pool counted, if it is the domain's own.
    fn count_in(&self, sums: &mut PoolStats) {
        if self.group.is_none() {
            sums.count_in(&self.pool.stats(self.id));
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

impl Domain {
    /// Wakes the background threads that `act` asked for.
    fn ringing<R>(&self, act: impl FnOnce() -> R) -> R {
        let result = act();
        self.store.owners.wakes.ring();
        result
    }

    /// Name given by the operator.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Creates a pool.
    ///
    /// # Errors
    /// When the domain may not have it, or has no space for it.
    pub fn create_pool(&self, spec: PoolSpec<'_>) -> Result<PoolId, CreatePoolError> {
        self.create_pool_with(spec, Dedup::Default)
    }

    /// Creates a pool with a choice of deduplication. A share group has one for all: that of the
    /// member who joined first.
    ///
    /// # Errors
    /// When the domain may not have it, or has no space for it.
    pub fn create_pool_with(
        &self,
        spec: PoolSpec<'_>,
        dedup: Dedup,
    ) -> Result<PoolId, CreatePoolError> {
        self.ringing(|| {
            for _ in 0..POOL_ATTEMPTS {
                match self.try_create_pool(spec, dedup) {
                    // Pools that the domain had before may be in the way.
                    Err(CreatePoolError::NoSpace | CreatePoolError::TooMany)
                        if reap::free_for(&self.store.owners, &self.inner, Short::Budget) => {}
                    other => return other,
                }
            }
            self.try_create_pool(spec, dedup)
        })
    }

    fn try_create_pool(&self, spec: PoolSpec<'_>, dedup: Dedup) -> Result<PoolId, CreatePoolError> {
        let mut changing = self.inner.changing.lock();
        if changing.removed {
            return Err(CreatePoolError::Removed);
        }
        let place = self
            .inner
            .pools
            .iter()
            .position(|place| place.load().is_none())
            .ok_or(CreatePoolError::TooMany)?;
        let number = u8::try_from(place).map_err(|_| CreatePoolError::TooMany)?;
        let id = changing.used[place] << 8 | u32::from(number);
        let kind = match spec {
            PoolSpec::Persistent => PoolKind::Persistent,
            PoolSpec::Ephemeral => PoolKind::Ephemeral,
            PoolSpec::Shared { group } => {
                let joined = self.join(id, group, dedup)?;
                self.inner.pools[place].store(Some(Arc::new(joined)));
                changing.used[place] = (changing.used[place] + 1) & 0x00ff_ffff;
                return Ok(PoolId(id));
            }
        };
        let new = || {
            Pool::new(PoolParts {
                kind,
                number,
                space: Arc::clone(&self.inner.space),
                codecs: self.store.codecs.clone(),
                hasher: self.store.hasher.clone(),
                dedup,
            })
        };
        let pool = match new() {
            // Frames that hold nothing, as those of a reserve that is kept, are not to keep a guest from its pool.
            Err(Refusal::Short(_)) if self.inner.space.trim(POOL_FRAMES) > 0 => new(),
            made => made,
        };
        let pool = pool.map_err(refused)?;
        self.inner.pools[place].store(Some(Arc::new(Joined {
            id,
            pool: Arc::new(pool),
            member: 0,
            group: None,
        })));
        changing.used[place] = (changing.used[place] + 1) & 0x00ff_ffff;
        Ok(PoolId(id))
    }

    fn join(&self, id: u32, name: &str, dedup: Dedup) -> Result<Joined, CreatePoolError> {
        if !self.inner.groups.iter().any(|group| group == name) {
            return Err(CreatePoolError::Denied);
        }
        let (group, member) = self.store.join_group(name, &self.inner, dedup)?;
        Ok(Joined {
            id,
            pool: Arc::clone(&group.pool),
            member,
            group: Some(group),
        })
    }

    /// Destroys a pool with its pages. Of a shared pool, the domain's own pages go. Nobody finds them when this
    /// returns; if they are many, they are charged until a background thread (or [`crate::Store::maintain`]), or a
    /// store that needs the room, has freed them.
    ///
    /// # Errors
    /// When there is no such pool.
    pub fn destroy_pool(&self, pool: PoolId) -> Result<(), UnknownPool> {
        let destroyed = {
            let _changing = self.inner.changing.lock();
            drop(self.inner.joined(pool).ok_or(UnknownPool)?);
            let place = self.inner.pools.get(pool.0 as usize & 0xff);
            place.and_then(|place| self.inner.destroy(place))
        };
        if destroyed.is_some_and(|joined| !self.inner.free(&joined, reap::STEP)) {
            self.store.owners.wakes.upkeep.ask_soon();
        }
        self.store.owners.wakes.ring();
        Ok(())
    }

    /// Stores a page, in place of what was under the key.
    ///
    /// # Errors
    /// When the page is refused; then nothing is under the key.
    pub fn store(
        &self,
        pool: PoolId,
        object: ObjectId,
        index: u32,
        page: &Page,
    ) -> Result<(), StoreError> {
        let joined = self.inner.joined(pool).ok_or(StoreError::NoPool)?;
        let Some(joined) = joined.as_deref() else {
            return Err(StoreError::NoPool);
        };
        let key = Key { object, index };
        let refuse = |error| {
            self.ringing(|| joined.pool.refuse(key, error));
            Err(error)
        };
        if self.inner.frozen.load(Ordering::Relaxed) {
            return refuse(StoreError::Frozen);
        }
        // What may vanish is the first to be done without.
        if joined.pool.kind != PoolKind::Persistent && self.store.is_host_short() {
            return refuse(StoreError::NoMemory);
        }
        let stored = self.ringing(|| {
            joined.pool.with_encoded(page, |encoded| {
                room::place(&self.store.owners, &self.inner, joined, key, encoded)
            })
        });
        match stored {
            Ok(()) => {
                if self.inner.is_cold() {
                    self.store.wake_for_cold();
                }
                Ok(())
            }
            Err(StoreError::NoPool) => Err(StoreError::NoPool),
            Err(error) => refuse(error),
        }
    }

    /// Loads a page.
    ///
    /// # Errors
    /// When no page is under the key, or its bytes are damaged.
    pub fn load(
        &self,
        pool: PoolId,
        object: ObjectId,
        index: u32,
        page: &mut Page,
    ) -> Result<(), LoadError> {
        let joined = self.inner.joined(pool).ok_or(LoadError::NoPool)?;
        let Some(joined) = joined.as_deref() else {
            return Err(LoadError::NoPool);
        };
        self.ringing(|| joined.pool.load(Key { object, index }, page))
    }

    /// Removes a page. Nothing to remove is no error.
    ///
    /// # Errors
    /// When there is no such pool.
    pub fn invalidate_page(
        &self,
        pool: PoolId,
        object: ObjectId,
        index: u32,
    ) -> Result<(), UnknownPool> {
        let joined = self.inner.joined(pool).ok_or(UnknownPool)?;
        if let Some(joined) = joined.as_deref() {
            self.ringing(|| joined.pool.invalidate_page(Key { object, index }));
        }
        Ok(())
    }

    /// Removes all pages of an object. Nothing to remove is no error. Nobody finds one when this returns; if they are
    /// many, they are freed later, as in [`Domain::destroy_pool`].
    ///
    /// # Errors
    /// When there is no such pool.
    pub fn invalidate_object(&self, pool: PoolId, object: ObjectId) -> Result<(), UnknownPool> {
        let joined = self.inner.joined(pool).ok_or(UnknownPool)?;
        if let Some(joined) = joined.as_deref() {
            self.ringing(|| joined.pool.invalidate_object(object));
        }
        Ok(())
    }

    /// Changes what the domain may take. A limit below what it uses evicts ephemeral pages at once;
    /// persistent pages are kept and new ones refused.
    ///
    /// # Errors
    /// When the reserve can not be kept, or the values make no sense together. Nothing is changed.
    pub fn set(&self, change: DomainChange) -> Result<(), ConfigError> {
        self.ringing(|| self.store.configure(&self.inner, change))?;
        if let Some(cold) = change.cold {
            self.inner.cold.store(cold, Ordering::Relaxed);
            self.store.wake_for_cold();
        }
        Ok(())
    }

    /// Has the domain's reserve kept from the host, and takes a part of it now, at most a quarter of a MiB. `true` when there is
    /// more to take.
    ///
    /// # Errors
    /// The host has no memory for it, or others have the budget.
    pub fn populate_reserve(&self) -> Result<bool, StoreError> {
        self.ringing(|| self.inner.space.populate_reserve())
            .map_err(|refusal| match refusal {
                Refusal::NoMemory | Refusal::Frames | Refusal::Short(Short::Host) => {
                    StoreError::NoMemory
                }
                Refusal::Short(_) => StoreError::NoSpace,
            })
    }

    /// Refuses new pages from now on.
    pub fn freeze(&self) {
        self.inner.frozen.store(true, Ordering::Relaxed);
    }

    /// Accepts new pages again.
    pub fn thaw(&self) {
        self.inner.frozen.store(false, Ordering::Relaxed);
    }

    /// Evicts ephemeral pages of at least `bytes` bytes of slots, or all. Returns the bytes evicted.
    pub fn flush(&self, bytes: u64) -> u64 {
        self.ringing(|| gather::flush(&self.inner, bytes))
    }

    /// Bytes that [`Domain::flush`] can evict.
    #[must_use]
    pub fn freeable(&self) -> u64 {
        self.inner.freeable()
    }

    /// Bytes charged to the domain now; what [`Self::stats`] calls `used`, without the rest.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.inner.account.charged()
    }

    /// Most bytes the domain may use; `u64::MAX` for none.
    #[must_use]
    pub fn limit(&self) -> u64 {
        self.inner.account.limit()
    }

    /// Counters of this domain.
    #[must_use]
    pub fn stats(&self) -> DomainStats {
        self.inner.stats()
    }

    /// Ends the domain: its private pools go, and its pages in shared ones. Its name and its reserve are free when this
    /// returns; the memory of many pages is given back later, as in [`Domain::destroy_pool`]. Idempotent.
    pub fn remove(&self) {
        self.ringing(|| self.store.remove(&self.inner));
    }
}

pub(crate) fn refused(refusal: Refusal) -> CreatePoolError {
    match refusal {
        Refusal::Short(Short::Host) | Refusal::NoMemory | Refusal::Frames => {
            CreatePoolError::NoMemory
        }
        Refusal::Short(_) => CreatePoolError::NoSpace,
    }
}
