//! The handles that callers hold: a store, and the domains in it. Each operation of an operator or a guest begins here.

use std::sync::Arc;
use std::time::Duration;

use tmem_base::setting::{Dedup, PoolKind};

use crate::account::ledger::Short;
use crate::account::quota::AllocError;
use crate::config::{DomainChange, DomainConfig, PoolSpec, StoreConfig};
use crate::domain::DomainInner;
use crate::error::{ConfigError, CreatePoolError, LoadError, StoreError, UnknownPool};
use crate::gather;
use crate::page::{Key, ObjectId, Page, PoolId};
use crate::reap;
use crate::reclaim;
use crate::registry::StoreInner;
use crate::stats::{DomainStats, StoreStats};

/// Pages of many guests under one budget. Clones are handles to the same store.
#[derive(Clone, Debug)]
pub struct Store {
    pub(crate) inner: Arc<StoreInner>,
}

/// One guest's part of a store. Clones are handles to the same domain.
#[derive(Clone, Debug)]
pub struct Domain {
    pub(crate) inner: Arc<DomainInner>,
    pub(crate) store: Arc<StoreInner>,
}

impl Store {
    /// An empty store.
    ///
    /// # Errors
    /// When the budget is zero, or the host refuses a thread, or memory is to be locked and may not be.
    pub fn new(config: StoreConfig) -> Result<Self, ConfigError> {
        StoreInner::new(config).map(|inner| Self { inner })
    }

    /// One bounded step of what the background thread does, for a store that has none: it frees what was destroyed,
    /// invalidated or removed, and compacts. `true` when there is more to do.
    pub fn maintain(&self) -> bool {
        let freed = reap::step(&self.inner.owners);
        let more = reclaim::compact_step(&self.inner.owners, reclaim::Pace::Fast);
        self.inner.owners.wakes.ring();
        more || freed
    }

    /// Prefaults for size classes that are growing, which another thread of the background does all the time.
    /// `true` when there were such.
    pub fn prefault(&self) -> bool {
        self.inner.prefault()
    }

    /// One bounded step for a host that is short of memory: evicts some ephemeral pages, and gives frames that hold nothing
    /// back to the kernel. `true` when there is more to be had.
    pub fn shrink(&self) -> bool {
        let owners = &self.inner.owners;
        let evicted = reclaim::evict_for_host(&owners.list().domains);
        let more = reclaim::compact_step(owners, reclaim::Pace::Fast);
        self.inner.owners.wakes.ring();
        more || evicted
    }

    /// Whether there are ephemeral pages, which [`Self::shrink`] evicts.
    #[must_use]
    pub fn is_freeable(&self) -> bool {
        let list = self.inner.owners.list();
        list.domains.iter().any(|domain| domain.freeable() > 0)
    }

    /// One sweep of the cold tier, which a background thread does twice in
    /// [`StoreConfig::cold_after`]: pages age, and those that are old are compressed harder. `true` when
    /// another sweep will find something to do.
    pub fn sweep_cold(&self) -> bool {
        let coming = self.inner.sweep_cold(|_| true);
        self.inner.owners.wakes.ring();
        coming
    }

    /// Prepares for the end of the process, for at most about `patience`. The kernel frees the memory on the last
    /// thread that ends, so that thread should not be the one of the lowest priority.
    pub fn prepare_exit(&self, patience: Duration) {
        self.inner.prepare_exit(patience);
    }

    /// Adds a domain.
    ///
    /// # Errors
    /// When the name is taken, or the reserve can not be kept.
    pub fn add_domain(&self, name: &str, config: DomainConfig) -> Result<Domain, ConfigError> {
        let domain = self.inner.add_domain(name, &config)?;
        self.inner.owners.wakes.ring();
        Ok(self.handle(domain))
    }

    fn handle(&self, domain: Arc<DomainInner>) -> Domain {
        Domain {
            inner: domain,
            store: Arc::clone(&self.inner),
        }
    }

    /// The domain of this name.
    #[must_use]
    pub fn domain(&self, name: &str) -> Option<Domain> {
        self.inner.domain(name).map(|domain| self.handle(domain))
    }

    /// Ends a domain, as [`Domain::remove`] does.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn remove_domain(&self, name: &str) -> Result<(), ConfigError> {
        self.domain(name)
            .ok_or(ConfigError::UnknownDomain)?
            .remove();
        Ok(())
    }

    /// Counters of everything, taken while everything runs on: each is true at some moment of the call.
    #[must_use]
    pub fn stats(&self) -> StoreStats {
        self.inner.stats()
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
        self.create_pool_with(spec, Dedup::Auto)
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
        self.ringing(|| self.store.create_pool(&self.inner, spec, dedup))
    }

    /// Destroys a pool with its pages. Of a shared pool, only the domain's own pages are destroyed. When this returns,
    /// no load finds them; if they are many, they are charged until a background thread (or
    /// [`crate::Store::maintain`]), or a store that needs memory, has freed them.
    ///
    /// # Errors
    /// When there is no such pool.
    pub fn destroy_pool(&self, pool: PoolId) -> Result<(), UnknownPool> {
        if !self.inner.destroy_pool(pool, reap::STEP)? {
            self.store.owners.wakes.background.ask_soon();
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
        let pool_ref = self.inner.pool_ref(pool).ok_or(StoreError::NoPool)?;
        let Some(pool_ref) = pool_ref.as_deref() else {
            return Err(StoreError::NoPool);
        };
        let key = Key { object, index };
        let refuse = |error| {
            self.ringing(|| pool_ref.pool.refuse(key, error));
            Err(error)
        };
        if self.inner.is_frozen() {
            return refuse(StoreError::Frozen);
        }
        // What may vanish is the first to be done without.
        if pool_ref.pool.kind != PoolKind::Persistent && self.store.is_host_short() {
            return refuse(StoreError::NoMemory);
        }
        let stored = self.ringing(|| {
            pool_ref.pool.with_encoded(page, |encoded| {
                reclaim::put(&self.store.owners, &self.inner, pool_ref, key, encoded)
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
        let pool_ref = self.inner.pool_ref(pool).ok_or(LoadError::NoPool)?;
        let Some(pool_ref) = pool_ref.as_deref() else {
            return Err(LoadError::NoPool);
        };
        self.ringing(|| pool_ref.pool.load(Key { object, index }, page))
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
        let pool_ref = self.inner.pool_ref(pool).ok_or(UnknownPool)?;
        if let Some(pool_ref) = pool_ref.as_deref() {
            self.ringing(|| pool_ref.pool.invalidate_page(Key { object, index }));
        }
        Ok(())
    }

    /// Removes all pages of an object. Nothing to remove is no error. Nobody finds one when this returns; if they are
    /// many, they are freed later, as in [`Domain::destroy_pool`].
    ///
    /// # Errors
    /// When there is no such pool.
    pub fn invalidate_object(&self, pool: PoolId, object: ObjectId) -> Result<(), UnknownPool> {
        let pool_ref = self.inner.pool_ref(pool).ok_or(UnknownPool)?;
        if let Some(pool_ref) = pool_ref.as_deref() {
            self.ringing(|| pool_ref.pool.invalidate_object(object));
        }
        Ok(())
    }

    /// Changes what the domain may take. A limit below what it uses evicts ephemeral pages at once;
    /// persistent pages are kept and new ones refused.
    ///
    /// # Errors
    /// When the reserve cannot be kept, or the values are inconsistent. Nothing is changed.
    pub fn set(&self, change: DomainChange) -> Result<(), ConfigError> {
        self.ringing(|| self.store.configure(&self.inner, change))?;
        if let Some(cold) = change.cold {
            self.inner.set_cold(cold);
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
        self.ringing(|| self.inner.arena.populate_reserve())
            .map_err(|error| match error {
                AllocError::NoMemory | AllocError::Frames | AllocError::Short(Short::Host) => {
                    StoreError::NoMemory
                }
                AllocError::Short(_) => StoreError::NoSpace,
            })
    }

    /// Refuses new pages from now on.
    pub fn freeze(&self) {
        self.inner.set_frozen(true);
    }

    /// Accepts new pages again.
    pub fn thaw(&self) {
        self.inner.set_frozen(false);
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

    /// Ends the domain: its private pools and its pages in shared ones are destroyed. Its name and its reserve are free
    /// when this returns; the memory of many pages is given back later, as in [`Domain::destroy_pool`]. Idempotent.
    pub fn remove(&self) {
        self.ringing(|| self.store.remove(&self.inner));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::PoolSpec;
    use crate::page::ObjectId;

    #[test]
    fn each_step_drops_what_was_buried() {
        let store = Store::new(StoreConfig {
            background: false,
            ..StoreConfig::default()
        })
        .expect("store");
        let spent = Arc::new(());
        store.inner.owners.wakes.bury(Arc::clone(&spent));
        assert_eq!(Arc::strong_count(&spent), 2);
        // The background looks only now and then, and takes such steps as long as guests keep it busy.
        assert!(reap::step(&store.inner.owners));
        assert_eq!(Arc::strong_count(&spent), 1);
        assert!(!reap::step(&store.inner.owners));
    }

    #[test]
    fn a_page_that_comes_behind_the_back_of_a_sweep_plans_the_next_one() {
        let store = Store::new(StoreConfig {
            background: false,
            ..StoreConfig::default()
        })
        .expect("store");
        let config = DomainConfig {
            cold: true,
            ..DomainConfig::default()
        };
        let guest = store.add_domain("guest", config).expect("fits");
        let pool = guest.create_pool(PoolSpec::Persistent).expect("room");
        let object = ObjectId::default();
        guest.store(pool, object, 0, &[0; 4096]).expect("room");
        // Into the chunk that it has just looked at, where there was nothing to demote.
        let page = std::array::from_fn(|at| (at / 7) as u8);
        let coming = store.inner.sweep_cold(|_| {
            guest.store(pool, object, 1, &page).expect("room");
            true
        });
        assert!(!coming, "it saw the page");
        assert!(!store.inner.cold_sleeps(), "nobody will look at the page");
    }
}
