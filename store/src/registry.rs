//! The contents of a store: its domains by name and its share groups, their limits, and the work of the background
//! threads.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use tmem_base::setting::{Dedup, PoolKind};

use crate::account::allotment::Allotment;
use crate::account::ledger::{Account, Short};
use crate::account::quota::{AllocError, Quota};
use crate::arena::Arena;
use crate::background::{Background, ColdWork, REST, Work};
use crate::codec::codecs::Codecs;
use crate::config::{DomainChange, DomainConfig, Gate, PoolSpec, StoreConfig};
use crate::domain::{DomainInner, PoolRef};
use crate::error::{ConfigError, CreatePoolError};
use crate::gather;
use crate::group::Group;
use crate::memory::{self, can_lock};
use crate::owners::Owners;
use crate::page::PoolId;
use crate::pool::recompress::ColdBuffers;
use crate::pool::{Pool, PoolParts};
use crate::reap;
use crate::reclaim;
use crate::stats::StoreStats;
use crate::sync::Mutex;

/// Frames that are given back for a pool that finds no room: more than the tables of an empty one.
const POOL_FRAMES: usize = 64;
/// Times that a pool that finds no room frees something that is dying, and tries again.
const POOL_ATTEMPTS: usize = 64;

/// The state that all handles of a store share.
#[derive(Debug)]
pub(crate) struct StoreInner {
    pub(crate) owners: Owners,
    codecs: Codecs,
    hasher: hashbrown::DefaultHashBuilder,
    gate: Option<Arc<dyn Gate>>,
    locked: bool,
    registry: Mutex<Registry>,
    background: OnceLock<Background>,
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
    /// Names of domains that are being added.
    adding: BTreeSet<String>,
    /// Bytes of reserves that memory is being gathered for.
    promised: u64,
}

impl Registry {
    /// Sum of the reserves, of all domains but one.
    fn reserved(&self, but: Option<&Arc<Account>>) -> u64 {
        self.domains
            .values()
            .filter(|domain| but.is_none_or(|but| !Arc::ptr_eq(but, &domain.account)))
            .map(|domain| domain.account.reserve())
            .fold(self.promised, u64::saturating_add)
    }

    /// Whether it is this domain that has its name.
    fn has(&self, domain: &Arc<DomainInner>) -> bool {
        let found = self.domains.get(&domain.name);
        found.is_some_and(|found| Arc::ptr_eq(found, domain))
    }

    /// Tells the owners of a change.
    fn publish(&self, owners: &Owners) {
        let domains = self.domains.values().cloned().collect();
        let groups = self.groups.values().cloned().collect();
        owners.set_list(domains, groups);
    }

    fn groups(&self) -> impl Iterator<Item = Arc<Group>> {
        self.groups.values().filter_map(Weak::upgrade)
    }
}

impl StoreInner {
    /// See [`crate::Store::new`].
    pub(crate) fn new(config: StoreConfig) -> Result<Arc<Self>, ConfigError> {
        if config.budget == 0 {
            return Err(ConfigError::NoBudget);
        }
        if config.locked {
            // Extents double in size, and address space counts.
            can_lock(config.budget.saturating_mul(2)).map_err(ConfigError::Lock)?;
        }
        memory::learn_page_sizes();
        let inner = Arc::new(Self {
            owners: Owners::new(config.budget),
            codecs: config.codecs.clone(),
            hasher: hashbrown::DefaultHashBuilder::default(),
            gate: config.gate.clone(),
            locked: config.locked,
            registry: Mutex::default(),
            background: OnceLock::new(),
            cold_sleeps: AtomicBool::new(true),
            sweeping: Mutex::default(),
        });
        if config.background {
            let wakes = Arc::clone(&inner.owners.wakes);
            let work = background(&Arc::downgrade(&inner));
            let background = Background::start(wakes, &config, work).map_err(ConfigError::Host)?;
            let _ = inner.background.set(background);
        }
        Ok(inner)
    }

    /// See [`crate::Store::add_domain`].
    pub(crate) fn add_domain(
        &self,
        name: &str,
        config: &DomainConfig,
    ) -> Result<Arc<DomainInner>, ConfigError> {
        let account = Arc::new(Account::default());
        let allotment = Allotment::from(config);
        {
            let mut registry = self.registry.lock();
            if registry.domains.contains_key(name) || registry.adding.contains(name) {
                return Err(ConfigError::NameTaken);
            }
            self.check(&registry, &account, allotment)?;
            registry.promised += config.reserve;
            registry.adding.insert(name.to_owned());
        }
        let arena = Arena::new(name, self.quota(Arc::clone(&account)))
            .map_err(ConfigError::Host)
            .and_then(|arena| gather::grant(&self.owners, &account, allotment).map(|()| arena));
        let mut registry = self.registry.lock();
        registry.promised -= config.reserve;
        registry.adding.remove(name);
        let domain = Arc::new(DomainInner::new(name, config, account, Arc::new(arena?)));
        registry
            .domains
            .insert(name.to_owned(), Arc::clone(&domain));
        registry.publish(&self.owners);
        Ok(domain)
    }

    pub(crate) fn domain(&self, name: &str) -> Option<Arc<DomainInner>> {
        self.registry.lock().domains.get(name).cloned()
    }

    fn quota(&self, account: Arc<Account>) -> Quota {
        Quota::new(
            Arc::clone(&self.owners.ledger),
            account,
            self.gate.clone(),
            Arc::clone(&self.owners.wakes),
        )
        .locked(self.locked)
    }

    /// Whether the host is too short of memory for pages that may vanish.
    pub(crate) fn is_host_short(&self) -> bool {
        self.gate.as_ref().is_some_and(|gate| gate.is_short())
    }

    /// Whether an account may have this.
    fn check(
        &self,
        registry: &Registry,
        account: &Arc<Account>,
        allotment: Allotment,
    ) -> Result<(), ConfigError> {
        let reserved = registry.reserved(Some(account));
        allotment.check(reserved, self.owners.ledger.budget())
    }

    pub(crate) fn configure(
        &self,
        domain: &Arc<DomainInner>,
        change: DomainChange,
    ) -> Result<(), ConfigError> {
        let account = &domain.account;
        let (allotment, more) = {
            let mut registry = self.registry.lock();
            if !registry.has(domain) {
                return Err(ConfigError::Removed);
            }
            let allotment = account.allotment().changed(change);
            self.check(&registry, account, allotment)?;
            let more = allotment.reserve.saturating_sub(account.reserve());
            registry.promised += more;
            (allotment, more)
        };
        let granted = gather::grant(&self.owners, account, allotment);
        {
            let mut registry = self.registry.lock();
            registry.promised -= more;
            if !registry.has(domain) {
                // It was removed meanwhile, and what it may have with it.
                let _ = self.owners.ledger.configure(account, Allotment::NONE);
            }
        }
        granted?;
        gather::shrink_to_limit(domain);
        Ok(())
    }

    /// See [`crate::Domain::create_pool_with`].
    pub(crate) fn create_pool(
        &self,
        domain: &Arc<DomainInner>,
        spec: PoolSpec<'_>,
        dedup: Dedup,
    ) -> Result<PoolId, CreatePoolError> {
        for _ in 0..POOL_ATTEMPTS {
            match self.try_create_pool(domain, spec, dedup) {
                // Pools that the domain had before may be in the way.
                Err(CreatePoolError::NoSpace | CreatePoolError::TooMany)
                    if reap::free_for(&self.owners, domain, Short::Budget) => {}
                other => return other,
            }
        }
        self.try_create_pool(domain, spec, dedup)
    }

    fn try_create_pool(
        &self,
        domain: &DomainInner,
        spec: PoolSpec<'_>,
        dedup: Dedup,
    ) -> Result<PoolId, CreatePoolError> {
        domain.add_pool(|id, pool_index| {
            let kind = match spec {
                PoolSpec::Persistent => PoolKind::Persistent,
                PoolSpec::Ephemeral => PoolKind::Ephemeral,
                PoolSpec::Shared { group } => {
                    if !domain.may_join(group) {
                        return Err(CreatePoolError::Denied);
                    }
                    let (group, member) = self.join_group(group, domain, dedup)?;
                    return Ok(PoolRef::shared(id, group, member));
                }
            };
            let new = || {
                Pool::new(PoolParts {
                    kind,
                    pool_index,
                    arena: Arc::clone(&domain.arena),
                    codecs: self.codecs.clone(),
                    hasher: self.hasher.clone(),
                    dedup,
                })
            };
            let pool = match new() {
                // Empty frames, such as those of a populated reserve, must not prevent a guest from creating its pool.
                Err(AllocError::Short(_)) if domain.arena.trim(POOL_FRAMES) > 0 => new(),
                made => made,
            };
            Ok(PoolRef::own(id, pool.map_err(refused)?))
        })
    }

    /// The group of this name, with the domain as a member.
    fn join_group(
        &self,
        name: &str,
        domain: &DomainInner,
        dedup: Dedup,
    ) -> Result<(Arc<Group>, u8), CreatePoolError> {
        let known = {
            let mut registry = self.registry.lock();
            registry.groups.retain(|_, group| group.strong_count() > 0);
            registry.groups.get(name).and_then(Weak::upgrade)
        };
        let group = match known {
            Some(group) => group,
            None => {
                let made = self.make_group(name, dedup)?;
                let mut registry = self.registry.lock();
                let other = registry.groups.get(name).and_then(Weak::upgrade);
                if other.is_none() {
                    registry
                        .groups
                        .insert(name.to_owned(), Arc::downgrade(&made));
                    registry.publish(&self.owners);
                }
                drop(registry);
                // Somebody else may have made it meanwhile.
                other.unwrap_or(made)
            }
        };
        let member = group.join(&domain.account)?;
        Ok((group, member))
    }

    fn make_group(&self, name: &str, dedup: Dedup) -> Result<Arc<Group>, CreatePoolError> {
        let account = Arc::new(self.owners.ledger.open_group());
        let arena = Arena::new(name, self.quota(Arc::clone(&account)))
            .map_err(|_| CreatePoolError::NoMemory)?;
        let pool = Pool::new(PoolParts {
            kind: PoolKind::Shared,
            pool_index: 0,
            arena: Arc::new(arena),
            codecs: self.codecs.clone(),
            hasher: self.hasher.clone(),
            dedup,
        })
        .map_err(refused)?;
        Ok(Arc::new(Group::new(pool, account)))
    }

    pub(crate) fn remove(&self, domain: &Arc<DomainInner>) {
        {
            let mut registry = self.registry.lock();
            if !registry.has(domain) {
                return;
            }
            registry.domains.remove(&domain.name);
            registry.publish(&self.owners);
        }
        // Its reserve is free at once; the memory that it uses is free when it is given back.
        let _ = self
            .owners
            .ledger
            .configure(&domain.account, Allotment::NONE);
        domain.end();
        reap::let_go(&self.owners, domain);
    }

    /// See [`crate::Store::stats`].
    pub(crate) fn stats(&self) -> StoreStats {
        let (domains, groups) = {
            let registry = self.registry.lock();
            let domains: Vec<_> = registry.domains.values().cloned().collect();
            let groups: Vec<_> = registry.groups().collect();
            (domains, groups)
        };
        let domains: Vec<_> = domains.iter().map(|domain| domain.stats()).collect();
        let charged: u64 = domains.iter().map(|domain| domain.used_shared).sum();
        let held: u64 = groups.iter().map(|group| group.account.used()).sum();
        StoreStats {
            budget: self.owners.ledger.budget(),
            used: self.owners.ledger.used(),
            saved: charged.saturating_sub(held),
            shared_overhead: held.saturating_sub(charged),
            freeable: domains.iter().map(|domain| domain.freeable).sum(),
            domains,
        }
    }

    /// See [`crate::Store::prepare_exit`].
    pub(crate) fn prepare_exit(&self, patience: Duration) {
        if let Some(background) = self.background.get() {
            background.end_lowest(patience);
        }
    }

    /// Prefaults for those who asked. Returns whether any did.
    pub(crate) fn prefault(&self) -> bool {
        self.owners
            .list()
            .arenas()
            .filter(|arena| arena.prefault())
            .count()
            > 0
    }

    /// Decides what the next steps of [`reclaim::Pace::Slow`] may give back. `true` when another plan may find more.
    pub(crate) fn plan_trim(&self) -> bool {
        self.owners
            .list()
            .arenas()
            .filter(|arena| arena.plan_trim())
            .count()
            > 0
    }

    /// One bounded step of compaction. `true` when there is more to do.
    pub(crate) fn compact_step(&self, pace: reclaim::Pace) -> bool {
        reclaim::compact_step(&self.owners, pace)
    }

    /// Whether a cold tier has nothing to do, as far as is known.
    pub(crate) fn cold_sleeps(&self) -> bool {
        self.cold_sleeps.load(Ordering::Relaxed)
    }

    /// Whether a domain has a cold tier.
    pub(crate) fn has_cold(&self) -> bool {
        self.owners
            .list()
            .domains
            .iter()
            .any(|domain| domain.is_cold())
    }

    /// One sweep of the cold tier. Calls `pause` with the number of pages that were tried since the last call; `false`
    /// from it ends the sweep. `true` when another will find something to do.
    pub(crate) fn sweep_cold(&self, mut pause: impl FnMut(usize) -> bool) -> bool {
        let mut buffers = self.sweeping.lock();
        // Before it looks: a page that comes behind its back plans the next one.
        self.cold_sleeps.store(true, Ordering::SeqCst);
        let mut coming = false;
        for domain in &self.owners.list().domains {
            if domain.is_cold() {
                for pool_ref in domain.pools() {
                    coming |= pool_ref.pool.sweep(&mut buffers, &mut pause);
                }
            }
        }
        if coming {
            self.cold_sleeps.store(false, Ordering::SeqCst);
        }
        coming
    }

    /// A page came to a domain with a cold tier: the next sweep will find something to do.
    pub(crate) fn wake_for_cold(&self) {
        if self.cold_sleeps.load(Ordering::Relaxed)
            && self.cold_sleeps.swap(false, Ordering::Relaxed)
        {
            self.owners.wakes.cold.ask();
        }
    }
}

/// The work of the background threads for a store, as long as there is one.
fn background(store: &Weak<StoreInner>) -> Work {
    let [compacts, fills, sleeps, has_cold, sweeps] = std::array::from_fn(|_| Weak::clone(store));
    Work {
        compact: Box::new(move || compact(&compacts)),
        prefault: Box::new(move || fills.upgrade().is_some_and(|store| store.prefault())),
        cold: ColdWork {
            sleeps: Box::new(move || sleeps.upgrade().is_none_or(|store| store.cold_sleeps())),
            is_on: Box::new(move || has_cold.upgrade().is_some_and(|store| store.has_cold())),
            sweep: Box::new(move |pause| {
                let store = sweeps.upgrade()?;
                let pause = |pages| pause(pages) && Arc::strong_count(&store) > 1;
                Some(store.sweep_cold(pause))
            }),
        },
    }
}

/// Frees what was cut loose, compacts, and gives back what a trim plan allows. Returns whether another plan may find more.
fn compact(store: &Weak<StoreInner>) -> bool {
    let Some(store) = store.upgrade() else {
        return false;
    };
    let mut more = store.plan_trim();
    let mut planned = Instant::now();
    while Arc::strong_count(&store) > 1 {
        let freed = reap::step(&store.owners);
        if !store.compact_step(reclaim::Pace::Slow) && !freed {
            break;
        }
        more = true;
        std::thread::yield_now();
        // With guests that never pause there is always something to move, and what the plan allowed is used up.
        if planned.elapsed() >= REST {
            store.plan_trim();
            planned = Instant::now();
        }
    }
    more
}

fn refused(error: AllocError) -> CreatePoolError {
    match error {
        AllocError::Short(Short::Host) | AllocError::NoMemory | AllocError::Frames => {
            CreatePoolError::NoMemory
        }
        AllocError::Short(_) => CreatePoolError::NoSpace,
    }
}
