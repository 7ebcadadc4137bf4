//! A host that is short of memory: ephemeral pages go first, and a page that must stay is refused last.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tmem_store::{
    Domain, DomainConfig, Gate, LoadError, ObjectId, PAGE_SIZE, PoolId, PoolSpec, Store,
    StoreConfig, StoreError, Want,
};
use tmem_testkit::corpus;

const OBJECT: ObjectId = ObjectId([1, 2, 3]);
const MIB: u64 = 1 << 20;

/// A host with so many bytes.
#[derive(Debug, Default)]
struct Host {
    left: AtomicU64,
    short: AtomicBool,
}

impl Gate for Host {
    fn allow(&self, bytes: u64, _want: Want) -> bool {
        let take = |left: u64| left.checked_sub(bytes);
        let order = Ordering::Relaxed;
        self.left.fetch_update(order, order, take).is_ok()
    }

    fn is_short(&self) -> bool {
        self.short.load(Ordering::Relaxed)
    }

    fn returned(&self, bytes: u64) {
        self.left.fetch_add(bytes, Ordering::Relaxed);
    }
}

fn store(bytes: u64) -> (Arc<Host>, Store) {
    let host = Arc::new(Host {
        left: AtomicU64::new(bytes),
        ..Host::default()
    });
    let store = Store::new(StoreConfig {
        budget: 1 << 30,
        background: false,
        gate: Some(Arc::clone(&host) as Arc<dyn Gate>),
        ..StoreConfig::default()
    });
    (host, store.expect("a store"))
}

fn guest(store: &Store, name: &str, spec: PoolSpec<'_>) -> (Domain, PoolId) {
    let domain = store.add_domain(name, DomainConfig::default());
    let domain = domain.expect("a domain");
    let pool = domain.create_pool(spec).expect("a pool");
    (domain, pool)
}

fn page(seed: u32) -> [u8; PAGE_SIZE] {
    corpus::page(seed.into())
}

/// Stores pages until one is refused; how many were not.
fn fill((domain, pool): &(Domain, PoolId), most: u32) -> (u32, Option<StoreError>) {
    for index in 0..most {
        if let Err(error) = domain.store(*pool, OBJECT, index, &page(index)) {
            return (index, Some(error));
        }
    }
    (most, None)
}

fn kept((domain, pool): &(Domain, PoolId), pages: u32) -> u32 {
    let mut found = 0;
    for index in 0..pages {
        let mut back = [0; PAGE_SIZE];
        match domain.load(*pool, OBJECT, index, &mut back) {
            Ok(()) => {
                assert_eq!(back, page(index));
                found += 1;
            }
            Err(error) => assert_eq!(error, LoadError::NotFound),
        }
    }
    found
}

#[test]
fn a_page_that_must_stay_takes_the_memory_of_ephemeral_ones_when_the_host_has_none() {
    let (_host, store) = store(8 * MIB);
    let cache = guest(&store, "cache", PoolSpec::Ephemeral);
    let swap = guest(&store, "swap", PoolSpec::Persistent);
    let (cached, refused) = fill(&cache, 10_000);
    // An ephemeral store makes room for itself at most; there is no refusal that another guest could notice.
    assert!(cached > 1500, "{cached}, {refused:?}");
    let (accepted, refused) = fill(&swap, 10_000);
    assert_eq!(refused, Some(StoreError::NoMemory));
    assert!(accepted > 1500, "{accepted} of 8 MiB");
    assert_eq!(kept(&swap, accepted), accepted);
    assert!(kept(&cache, 10_000) < 200, "ephemeral pages went first");
    let stats = store.stats();
    let swap = stats.domains.iter().find(|domain| domain.name == "swap");
    let pool = swap.expect("is there").pools[0];
    assert_eq!((pool.refused_no_memory, pool.refused_no_space), (1, 0));
}

#[test]
fn no_page_that_may_vanish_is_taken_while_the_host_is_short() {
    let (host, store) = store(64 * MIB);
    let cache = guest(&store, "cache", PoolSpec::Ephemeral);
    let swap = guest(&store, "swap", PoolSpec::Persistent);
    host.short.store(true, Ordering::Relaxed);
    assert_eq!(fill(&cache, 10), (0, Some(StoreError::NoMemory)));
    assert_eq!(fill(&swap, 10), (10, None));
    host.short.store(false, Ordering::Relaxed);
    assert_eq!(fill(&cache, 10), (10, None));
}

#[test]
fn a_store_shrinks_in_steps_until_the_host_has_what_ephemeral_pages_took() {
    let (host, store) = store(64 * MIB);
    let cache = guest(&store, "cache", PoolSpec::Ephemeral);
    let swap = guest(&store, "swap", PoolSpec::Persistent);
    assert_eq!(fill(&swap, 1000), (1000, None));
    assert_eq!(fill(&cache, 4000), (4000, None));
    assert!(store.is_freeable());
    let before = host.left.load(Ordering::Relaxed);
    let cached = cache.0.freeable();
    assert!(store.shrink());
    let step = cached - cache.0.freeable();
    assert!((1..=4 * MIB).contains(&step), "a step is bounded: {step}");
    while store.shrink() {}
    let returned = host.left.load(Ordering::Relaxed) - before;
    assert!(returned > 15 * MIB, "{returned}");
    assert!(!store.is_freeable());
    assert_eq!(kept(&swap, 1000), 1000);
}

#[test]
fn a_guest_within_its_reserve_is_the_last_to_lose_ephemeral_pages_to_the_host() {
    let (_host, store) = store(64 * MIB);
    let modest = guest(&store, "modest", PoolSpec::Ephemeral);
    modest
        .0
        .set(tmem_store::DomainChange {
            reserve: Some(16 * MIB),
            ..Default::default()
        })
        .expect("fits");
    let greedy = guest(&store, "greedy", PoolSpec::Ephemeral);
    assert_eq!(fill(&modest, 2000), (2000, None));
    assert_eq!(fill(&greedy, 600), (600, None));
    while greedy.0.freeable() > 0 {
        assert!(store.shrink());
    }
    assert_eq!(kept(&modest, 2000), 2000);
}
