//! The store: its domains and share groups.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use arc_swap::ArcSwap;

use crate::codec::Codecs;
use crate::config::{Dedup, DomainChange, DomainConfig, Gate, StoreConfig};
use crate::domain::{Domain, DomainInner, refused};
use crate::error::{ConfigError, CreatePoolError};
use crate::ledger::{Account, Ledger};
use crate::memory::{self, can_lock};
use crate::pool::{ColdBuffers, Pool, PoolParts};
use crate::room::{self, Everybody};
use crate::share::Group;
use crate::space::{Purse, Space};
use crate::stats::{PoolKind, StoreStats};
use crate::sync::Mutex;
use crate::upkeep::{Upkeep, Wakes};

/// Pages of many guests under one budget. Clones are handles to the same store.
#[derive(Clone, Debug)]
pub struct Store {
    pub(crate) inner: Arc<StoreInner>,
}

#[derive(Debug)]
pub(crate) struct StoreInner {
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) codecs: Codecs,
    pub(crate) hasher: hashbrown::DefaultHashBuilder,
    gate: Option<Arc<dyn Gate>>,
    locked: bool,
    registry: Mutex<Registry>,
    /// What the registry holds, for those who must not wait for its lock.
    pub(crate) everybody: ArcSwap<Everybody>,
    pub(crate) wakes: Arc<Wakes>,
    upkeep: OnceLock<Upkeep>,
    /// No sweep is planned.
    cold_sleeps: AtomicBool,
    /// Held by the one who sweeps.
    sweeping: Mutex<Box<ColdBuffers>>,
}

/// Domains and groups by name. Its lock is the outermost of the crate.
#[derive(Debug, Default)]
struct Registry {
    domains: BTreeMap<String, Arc<DomainInner>>,
    groups: HashMap<String, Weak<Group>>,
}

impl Registry {
    /// Sum of the reserves, of all domains but one.
    fn reserved(&self, but: Option<&Arc<Account>>) -> u64 {
        self.domains
            .values()
            .filter(|domain| but.is_none_or(|but| !Arc::ptr_eq(but, &domain.account)))
            .map(|domain| domain.account.reserve())
            .fold(0, u64::saturating_add)
    }

    fn everybody(&self) -> Arc<Everybody> {
        let domains = self.domains.values().cloned().collect();
        let groups = self.groups.values().cloned().collect();
        Arc::new(Everybody::new(domains, groups))
    }

    fn groups(&self) -> impl Iterator<Item = Arc<Group>> {
        self.groups.values().filter_map(Weak::upgrade)
    }
}

impl Store {
    /// An empty store.
    ///
    /// # Errors
    /// When the budget is zero, or the host refuses a thread, or memory is to be locked and may not be.
    pub fn new(config: StoreConfig) -> Result<Self, ConfigError> {
        if config.budget == 0 {
            return Err(ConfigError::NoBudget);
        }
        if config.locked {
            // Extents double in size, and address space counts.
            can_lock(config.budget.saturating_mul(2)).map_err(ConfigError::Lock)?;
        }
        memory::learn_page_sizes();
        let wakes = Arc::new(Wakes::default());
        let inner = Arc::new(StoreInner {
            ledger: Arc::new(Ledger::new(config.budget)),
            codecs: config.codecs.clone(),
            hasher: hashbrown::DefaultHashBuilder::default(),
            gate: config.gate.clone(),
            locked: config.locked,
            registry: Mutex::default(),
            everybody: ArcSwap::default(),
            wakes: Arc::clone(&wakes),
            upkeep: OnceLock::new(),
            cold_sleeps: AtomicBool::new(true),
            sweeping: Mutex::default(),
        });
        if config.background {
            let upkeep = Upkeep::start(&Arc::downgrade(&inner), wakes, &config)
                .map_err(ConfigError::Host)?;
            let _ = inner.upkeep.set(upkeep);
        }
        Ok(Self { inner })
    }

    /// One bounded step of what the background thread does, for a store that has none. `true` when
    /// there is more to do.
    pub fn maintain(&self) -> bool {
        self.inner.compact_step(room::Pace::Fast)
    }

    /// Gets frames ahead for size classes that are growing, which another thread of the background does all the time.
    /// `true` when there were such.
    pub fn fill_ahead(&self) -> bool {
        self.inner.fill_ahead()
    }

    /// One bounded step for a host that is short of memory: evicts some ephemeral pages, and gives frames that hold nothing
    /// back to the kernel. `true` when there is more to be had.
    pub fn shrink(&self) -> bool {
        let (domains, groups) = self.inner.everybody();
        let evicted = room::evict_for_host(&domains);
        room::compact_step(&self.inner.ledger, &domains, &groups, room::Pace::Fast) || evicted
    }

    /// Whether there are ephemeral pages, which [`Self::shrink`] evicts.
    #[must_use]
    pub fn is_freeable(&self) -> bool {
        let (domains, _) = self.inner.everybody();
        domains.iter().any(|domain| domain.freeable() > 0)
    }

    /// One sweep of the cold tier, which the background thread does twice in
    /// [`StoreConfig::cold_after`]: pages age, and those that are old are compressed harder. `true` when
    /// another sweep will find something to do.
    pub fn sweep_cold(&self) -> bool {
        self.inner.sweep_cold(|| true)
    }

    /// Adds a domain.
    ///
    /// # Errors
    /// When the name is taken, or the reserve can not be kept.
    pub fn add_domain(&self, name: &str, config: DomainConfig) -> Result<Domain, ConfigError> {
        let mut registry = self.inner.registry.lock();
        if registry.domains.contains_key(name) {
            return Err(ConfigError::NameTaken);
        }
        let account = Arc::new(Account::default());
        self.inner.check(
            &registry,
            &account,
            config.reserve,
            config.limit,
            config.weight,
        )?;
        let space =
            Space::new(name, self.inner.purse(Arc::clone(&account))).map_err(ConfigError::Host)?;
        self.inner.grant(
            &registry,
            &account,
            config.reserve,
            config.limit,
            config.weight,
        )?;
        let domain = Arc::new(DomainInner::new(name, &config, account, Arc::new(space)));
        registry
            .domains
            .insert(name.to_owned(), Arc::clone(&domain));
        self.inner.everybody.store(registry.everybody());
        Ok(Domain {
            inner: domain,
            store: Arc::clone(&self.inner),
        })
    }

    /// The domain of this name.
    #[must_use]
    pub fn domain(&self, name: &str) -> Option<Domain> {
        let registry = self.inner.registry.lock();
        registry.domains.get(name).map(|domain| Domain {
            inner: Arc::clone(domain),
            store: Arc::clone(&self.inner),
        })
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
        let (domains, groups) = {
            let registry = self.inner.registry.lock();
            let domains: Vec<_> = registry.domains.values().cloned().collect();
            let groups: Vec<_> = registry.groups().collect();
            (domains, groups)
        };
        let domains: Vec<_> = domains.iter().map(|domain| domain.stats()).collect();
        let charged: u64 = domains.iter().map(|domain| domain.used_shared).sum();
        let held: u64 = groups.iter().map(|group| group.account.used()).sum();
        StoreStats {
            budget: self.inner.ledger.budget(),
            used: self.inner.ledger.used(),
            saved: charged.saturating_sub(held),
            shared_overhead: held.saturating_sub(charged),
            freeable: domains.iter().map(|domain| domain.freeable).sum(),
            domains,
        }
    }
}

impl StoreInner {
    fn purse(&self, account: Arc<Account>) -> Purse {
        Purse::new(
            Arc::clone(&self.ledger),
            account,
            self.gate.clone(),
            Arc::clone(&self.wakes),
        )
        .locked(self.locked)
    }

    /// Whether the host is too short of memory for pages that may vanish.
    pub(crate) fn is_host_short(&self) -> bool {
        self.gate.as_ref().is_some_and(|gate| gate.is_short())
    }

    /// Whether a configuration makes sense.
    fn check(
        &self,
        registry: &Registry,
        account: &Arc<Account>,
        reserve: u64,
        limit: u64,
        weight: u32,
    ) -> Result<(), ConfigError> {
        if weight == 0 {
            return Err(ConfigError::NoWeight);
        }
        if reserve > limit {
            return Err(ConfigError::ReserveAboveLimit);
        }
        let wanted = registry.reserved(Some(account)).saturating_add(reserve);
        let budget = self.ledger.budget();
        if wanted > budget {
            return Err(ConfigError::ReservesAboveBudget { wanted, budget });
        }
        Ok(())
    }

    /// Gives a domain its reserve, evicting ephemeral pages of others for it.
    fn grant(
        &self,
        registry: &Registry,
        account: &Account,
        reserve: u64,
        limit: u64,
        weight: u32,
    ) -> Result<(), ConfigError> {
        loop {
            match self
                .ledger
                .configure(account, reserve, limit, u64::from(weight))
            {
                Ok(()) => return Ok(()),
                Err(_)
                    if room::reclaim(
                        &registry.domains.values().cloned().collect::<Vec<_>>(),
                        &registry.groups().collect::<Vec<_>>(),
                    ) => {}
                Err(_) => return Err(ConfigError::ReserveInUse),
            }
        }
    }

    pub(crate) fn configure(
        &self,
        domain: &Arc<DomainInner>,
        change: DomainChange,
    ) -> Result<(), ConfigError> {
        let account = &domain.account;
        {
            let registry = self.registry.lock();
            let found = registry.domains.get(&domain.name);
            if !found.is_some_and(|found| Arc::ptr_eq(found, domain)) {
                return Err(ConfigError::Removed);
            }
            let reserve = change.reserve.unwrap_or(account.reserve());
            let limit = change.limit.unwrap_or(account.limit());
            let weight = match change.weight {
                Some(weight) => weight,
                None => u32::try_from(account.weight()).unwrap_or(u32::MAX),
            };
            self.check(&registry, account, reserve, limit, weight)?;
            self.grant(&registry, account, reserve, limit, weight)?;
        }
        self.shrink_to_limit(domain);
        Ok(())
    }

    /// The group of this name, with the domain as a member.
    pub(crate) fn join_group(
        &self,
        name: &str,
        domain: &DomainInner,
        dedup: Dedup,
    ) -> Result<(Arc<Group>, u8), CreatePoolError> {
        let mut registry = self.registry.lock();
        registry.groups.retain(|_, group| group.strong_count() > 0);
        let group = match registry.groups.get(name).and_then(Weak::upgrade) {
            Some(group) => group,
            None => {
                let account = Arc::new(self.ledger.open_group());
                let space = Space::new(name, self.purse(Arc::clone(&account)))
                    .map_err(|_| CreatePoolError::NoMemory)?;
                let pool = Pool::new(PoolParts {
                    kind: PoolKind::Shared,
                    number: 0,
                    space: Arc::new(space),
                    codecs: self.codecs.clone(),
                    hasher: self.hasher.clone(),
                    dedup,
                })
                .map_err(refused)?;
                let group = Arc::new(Group::new(pool, account));
                registry
                    .groups
                    .insert(name.to_owned(), Arc::downgrade(&group));
                self.everybody.store(registry.everybody());
                group
            }
        };
        let member = group.join(&domain.account)?;
        Ok((group, member))
    }

    pub(crate) fn remove(&self, domain: &Arc<DomainInner>) {
        {
            let mut registry = self.registry.lock();
            let found = registry.domains.get(&domain.name);
            if !found.is_some_and(|found| Arc::ptr_eq(found, domain)) {
                return;
            }
            registry.domains.remove(&domain.name);
            self.everybody.store(registry.everybody());
        }
        domain.end();
        domain.space.end();
        while domain.space.trim(usize::MAX) > 0 {}
        let _ = self.ledger.configure(&domain.account, 0, 0, 1);
    }

    /// All domains and share groups.
    pub(crate) fn everybody(&self) -> (Vec<Arc<DomainInner>>, Vec<Arc<Group>>) {
        let registry = self.registry.lock();
        (
            registry.domains.values().cloned().collect(),
            registry.groups().collect(),
        )
    }

    /// The memory of every domain and group.
    fn spaces(&self) -> impl Iterator<Item = Arc<Space>> {
        let (domains, groups) = self.everybody();
        let domains = domains.into_iter().map(|domain| Arc::clone(&domain.space));
        domains.chain(
            groups
                .into_iter()
                .map(|group| Arc::clone(&group.pool.space)),
        )
    }

    /// Gets frames ahead for those who asked. Returns whether any did.
    pub(crate) fn fill_ahead(&self) -> bool {
        self.spaces().filter(|space| space.fill_ahead()).count() > 0
    }

    /// Decides what the next steps of [`room::Pace::Slow`] may give back. `true` when another look may find more.
    pub(crate) fn look(&self) -> bool {
        self.spaces().filter(|space| space.look()).count() > 0
    }

    /// One bounded step of compaction. `true` when there is more to do.
    pub(crate) fn compact_step(&self, pace: room::Pace) -> bool {
        let (domains, groups) = self.everybody();
        room::compact_step(&self.ledger, &domains, &groups, pace)
    }

    /// Whether a cold tier has nothing to do, as far as is known.
    pub(crate) fn cold_sleeps(&self) -> bool {
        self.cold_sleeps.load(Ordering::Relaxed)
    }

    /// One sweep of the cold tier. `true` when another will find something to do.
    pub(crate) fn sweep_cold(&self, mut pause: impl FnMut() -> bool) -> bool {
        self.cold_sleeps.store(false, Ordering::Relaxed);
        let mut buffers = self.sweeping.lock();
        let mut coming = false;
        for domain in self.everybody().0 {
            if domain.is_cold() {
                for joined in domain.pools() {
                    coming |= joined.pool.sweep(&mut buffers, &mut pause);
                }
            }
        }
        self.cold_sleeps.store(!coming, Ordering::Relaxed);
        coming
    }

    /// A page comes to a domain with a cold tier: the next sweep will find something to do.
    pub(crate) fn wake_for_cold(&self) {
        if self.cold_sleeps.load(Ordering::Relaxed)
            && self.cold_sleeps.swap(false, Ordering::Relaxed)
        {
            self.wakes.upkeep.ask();
        }
    }
}
