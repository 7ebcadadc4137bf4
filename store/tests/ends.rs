//! The end of pools, objects, members and domains of any size: their pages are not found any more, and are freed in
//! bounded steps while all others go on.

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use common::store;
use tmem_store::{
    Codec, Codecs, Domain, DomainChange, DomainConfig, LoadError, Lz4, ObjectId, PAGE_SIZE, Page,
    PoolId, PoolSpec, Store, StoreConfig,
};
use tmem_testkit::corpus::compressible;

const MIB: u64 = 1 << 20;
/// Pages enough that ending them takes many steps.
const MANY: u32 = 20_000;

fn page(seed: u32, entropy: usize) -> Page {
    compressible(seed.into(), entropy)
}

fn object(number: u64) -> ObjectId {
    ObjectId([number, 2, 3])
}

fn guest(store: &Store, name: &str) -> Domain {
    let config = DomainConfig {
        groups: vec!["files".to_owned()],
        ..DomainConfig::default()
    };
    store.add_domain(name, config).expect("new name")
}

/// Stores `count` pages until one is refused. Returns how many were not.
fn fill(domain: &Domain, pool: PoolId, object: ObjectId, count: u32, entropy: usize) -> u32 {
    (0..count)
        .find(|index| {
            let page = page(*index, entropy);
            domain.store(pool, object, *index, &page).is_err()
        })
        .unwrap_or(count)
}

fn pages(domain: &Domain) -> u64 {
    domain.stats().pools.iter().map(|pool| pool.pages).sum()
}

/// Steps until there is nothing to do.
fn maintain(store: &Store) -> u32 {
    let mut steps = 0;
    while store.maintain() {
        steps += 1;
    }
    steps
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < end, "{what}: not in a minute");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_large_pool_is_gone_at_once_and_charged_until_it_is_freed_in_steps() {
    let store = store(64 * MIB);
    let guest = guest(&store, "guest");
    let empty = store.stats().used;
    let pool = guest.create_pool(PoolSpec::Persistent).expect("room");
    assert_eq!(fill(&guest, pool, object(1), MANY, 100), MANY);
    let used = guest.used();
    guest.destroy_pool(pool).expect("pool");
    let loaded = guest.load(pool, object(1), 0, &mut [0; PAGE_SIZE]);
    assert_eq!(loaded, Err(LoadError::NoPool));
    assert!(guest.stats().pools.is_empty());
    assert!(
        guest.used() > used * 9 / 10,
        "one request freed {} of {used} bytes",
        used - guest.used()
    );
    let other = guest.create_pool(PoolSpec::Persistent).expect("room");
    assert_eq!(fill(&guest, other, object(1), 100, 900), 100);
    assert!(maintain(&store) > 10);
    let mut back = [0; PAGE_SIZE];
    for index in 0..100 {
        assert_eq!(guest.load(other, object(1), index, &mut back), Ok(()));
        assert!(back == page(index, 900));
    }
    guest.destroy_pool(other).expect("pool");
    maintain(&store);
    assert_eq!(store.stats().used, empty);
    assert_eq!(guest.stats().destroyed.stores, u64::from(MANY) + 100);
}

#[test]
fn a_large_object_is_gone_at_once_and_what_is_stored_to_it_afterwards_stays() {
    for (kind, entropy) in [(PoolSpec::Persistent, 0), (PoolSpec::Ephemeral, 100)] {
        let store = store(64 * MIB);
        let guest = guest(&store, "guest");
        let pool = guest.create_pool(kind).expect("room");
        let (gone, kept) = (object(1), object(2));
        assert_eq!(fill(&guest, pool, gone, MANY, entropy), MANY);
        assert_eq!(fill(&guest, pool, kept, 10, 300), 10);
        guest.invalidate_object(pool, gone).expect("pool");
        assert!(
            pages(&guest) > u64::from(MANY) * 9 / 10,
            "one request freed {} pages",
            u64::from(MANY) - pages(&guest)
        );
        let mut back = [0; PAGE_SIZE];
        for index in 0..MANY {
            let loaded = guest.load(pool, gone, index, &mut back);
            assert_eq!(loaded, Err(LoadError::NotFound));
        }
        // Under keys that were used, and under a new one.
        let again = [0, 63, 64, MANY - 1, MANY + 5];
        for index in again {
            let stored = guest.store(pool, gone, index, &page(index + 7, 500));
            assert_eq!(stored, Ok(()));
        }
        maintain(&store);
        assert_eq!(pages(&guest), 15);
        for index in again {
            assert_eq!(guest.load(pool, gone, index, &mut back), Ok(()));
            assert!(back == page(index + 7, 500));
        }
        for index in 0..10 {
            assert_eq!(guest.load(pool, kept, index, &mut back), Ok(()));
        }
        guest.invalidate_object(pool, gone).expect("pool");
        guest.invalidate_object(pool, kept).expect("pool");
        guest.remove();
        maintain(&store);
        assert_eq!(store.stats().used, 0);
    }
}

#[test]
fn a_guest_that_invalidates_without_pause_holds_no_more_than_it_stored_at_a_time() {
    let store = store(256 * MIB);
    let guest = guest(&store, "guest");
    let pool = guest.create_pool(PoolSpec::Persistent).expect("room");
    let mut once = 0;
    // Nobody frees in the background.
    for round in 0..60 {
        // The same object, and another one each time.
        for object in [object(0), object(1000 + round)] {
            assert_eq!(fill(&guest, pool, object, 1500, 0), 1500);
            once = once.max(if round == 0 { guest.used() } else { 0 });
            assert!(guest.used() <= once * 2, "{} after {once}", guest.used());
            guest.invalidate_object(pool, object).expect("pool");
        }
    }
    assert_eq!(store.stats().domains[0].pools[0].stores, 60 * 3000);
    guest.remove();
    maintain(&store);
    assert_eq!(store.stats().used, 0);
}

#[test]
fn a_store_without_room_frees_what_was_destroyed_instead_of_being_refused() {
    // The guest's own pages at its limit, and those of a neighbour at the budget.
    for own in [true, false] {
        let store = store(if own { 64 * MIB } else { 8 * MIB });
        let first = guest(&store, "first");
        if own {
            let change = DomainChange {
                limit: Some(8 * MIB),
                ..DomainChange::default()
            };
            first.set(change).expect("possible");
        }
        let second = if own {
            first.clone()
        } else {
            guest(&store, "second")
        };
        let pool = first.create_pool(PoolSpec::Persistent).expect("room");
        let fits = fill(&first, pool, object(1), 30_000, 1000);
        assert!((5_000..30_000).contains(&fits), "{fits}");
        for way in 0..3 {
            match way {
                0 => first.destroy_pool(pool).expect("pool"),
                1 => {}
                _ => first.remove(),
            }
            if way == 2 && own {
                break;
            }
            let pool = second.create_pool(PoolSpec::Persistent).expect("room");
            // Pages of another size: frames have to be freed, not only slots.
            let again = fill(&second, pool, object(1), 30_000, 2500);
            assert!(
                again > fits * 10 / 29,
                "{again} pages of 2.6 KiB after {fits} of 1.1 KiB ({own}, {way})"
            );
            // Half of it as an object, then the rest with the pool.
            second.invalidate_object(pool, object(1)).expect("pool");
            let again = fill(&second, pool, object(2), 30_000, 1000);
            assert!(again > fits * 19 / 20, "{again} after {fits}");
            second.destroy_pool(pool).expect("pool");
        }
    }
}

#[test]
fn a_member_that_leaves_is_charged_until_its_pages_are_evicted_and_its_number_waits() {
    let store = store(64 * MIB);
    let [a, b, c] = ["a", "b", "c"].map(|name| guest(&store, name));
    let group = PoolSpec::Shared { group: "files" };
    let in_a = a.create_pool(group).expect("room");
    let in_b = b.create_pool(group).expect("room");
    assert_eq!(fill(&b, in_b, object(2), 100, 200), 100);
    let alone = b.stats().used_shared;
    assert_eq!(fill(&a, in_a, object(1), MANY, 200), MANY);
    let before = a.stats().used_shared;
    a.destroy_pool(in_a).expect("pool");
    let mut back = [0; PAGE_SIZE];
    for index in 0..MANY {
        let loaded = b.load(in_b, object(1), index, &mut back);
        assert_eq!(loaded, Err(LoadError::NotFound), "of who left");
    }
    assert!(
        a.stats().used_shared > before * 9 / 10,
        "one request evicted {} of {before} bytes",
        before - a.stats().used_shared
    );
    // Others come, go on and leave meanwhile, and are charged for their own.
    let in_c = c.create_pool(group).expect("room");
    assert_eq!(fill(&c, in_c, object(3), 100, 200), 100);
    assert_eq!(c.stats().used_shared, alone);
    c.destroy_pool(in_c).expect("pool");
    let in_a = a.create_pool(group).expect("room");
    maintain(&store);
    assert_eq!(a.stats().used_shared, 0);
    assert_eq!(b.stats().used_shared, alone);
    assert_eq!(fill(&a, in_a, object(1), 100, 200), 100);
    assert_eq!(a.stats().used_shared, alone);
    assert_eq!(c.stats().used_shared, 0);
    for index in 0..100 {
        for object in [object(1), object(2)] {
            assert_eq!(b.load(in_b, object, index, &mut back), Ok(()));
            assert!(back == page(index, 200));
        }
    }
    a.remove();
    maintain(&store);
    // The eviction history of the members that left is freed, too.
    let held = store.stats().used;
    c.create_pool(group).expect("room");
    c.remove();
    maintain(&store);
    assert_eq!(store.stats().used, held);
    b.remove();
    maintain(&store);
    assert_eq!(store.stats().used, 0);
}

#[test]
fn a_removed_domain_goes_in_steps_and_its_name_and_reserve_are_free_at_once() {
    let store = store(32 * MIB);
    let config = DomainConfig {
        reserve: 30 * MIB,
        ..DomainConfig::default()
    };
    let first = store.add_domain("guest", config.clone()).expect("fits");
    let pool = first.create_pool(PoolSpec::Persistent).expect("room");
    assert_eq!(fill(&first, pool, object(1), MANY, 1000), MANY);
    first.remove();
    let used = store.stats().used;
    assert!(used > 8 * MIB, "one request gave all of it back");
    assert!(store.domain("guest").is_none());
    // Memory for the reserve is gathered from pages that are being freed.
    let second = store.add_domain("guest", config).expect("is free");
    let pool = second.create_pool(PoolSpec::Persistent).expect("room");
    assert_eq!(fill(&second, pool, object(1), MANY, 1000), MANY);
    second.remove();
    maintain(&store);
    assert_eq!(store.stats().used, 0);
}

#[test]
fn others_go_on_while_memory_for_a_reserve_is_gathered() {
    // An operation that comes to an end before anybody else gets a processor shows nothing: once is enough.
    let shown = (0..30).any(|_| {
        let store = store(96 * MIB);
        let [cache, swap, other] = ["cache", "swap", "other"].map(|name| guest(&store, name));
        let pages = cache.create_pool(PoolSpec::Ephemeral).expect("room");
        let pool = swap.create_pool(PoolSpec::Persistent).expect("room");
        assert_eq!(fill(&swap, pool, object(1), 10, 100), 10);
        fill(&cache, pages, object(1), 22_000, 4000);
        let (begun, done) = (&AtomicBool::new(false), &AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let change = DomainChange {
                    reserve: Some(90 * MIB),
                    ..DomainChange::default()
                };
                begun.store(true, Ordering::SeqCst);
                other.set(change).expect("memory can be had");
                done.store(true, Ordering::SeqCst);
            });
            eventually("begins", || begun.load(Ordering::SeqCst));
            let mut rounds = 0;
            while !done.load(Ordering::SeqCst) {
                let stats = store.stats();
                assert!(stats.used <= 96 * MIB);
                assert!(store.domain("swap").is_some());
                assert!(swap.store(pool, object(1), 3, &page(3, 100)).is_ok());
                let during = stats.domains.iter().all(|domain| domain.reserve == 0);
                let evicted = stats
                    .domains
                    .iter()
                    .any(|domain| domain.name == "cache" && domain.pools[0].evictions > 1000);
                // It is at it, and not done after all of this.
                rounds += u32::from(during && evicted && !done.load(Ordering::SeqCst));
            }
            rounds >= 3
        })
    });
    assert!(shown, "everybody waited for the reserve");
}

/// Compresses cold pages when it is told to go on, and never before.
#[derive(Debug, Default)]
struct Slow {
    waits: Mutex<(bool, bool)>,
    changed: Condvar,
}

impl Slow {
    fn go_on(&self) {
        self.waits.lock().expect("no panic").1 = true;
        self.changed.notify_all();
    }

    fn is_waited_for(&self) -> bool {
        self.waits.lock().expect("no panic").0
    }
}

impl Codec for Slow {
    fn compress(&self, _page: &Page, _out: &mut [u8]) -> Option<usize> {
        let mut waits = self.waits.lock().expect("no panic");
        waits.0 = true;
        self.changed.notify_all();
        while !waits.1 {
            waits = self.changed.wait(waits).expect("no panic");
        }
        None
    }

    fn decompress(&self, _bytes: &[u8], _out: &mut Page) -> bool {
        false
    }
}

#[test]
fn memory_is_given_back_and_pools_are_freed_while_the_cold_tier_is_at_work() {
    let slow = Arc::new(Slow::default());
    let store = Store::new(StoreConfig {
        budget: 256 * MIB,
        codecs: Codecs {
            hot: Arc::new(Lz4),
            cold: slow.clone(),
        },
        cold_after: Duration::from_millis(2),
        ..StoreConfig::default()
    })
    .expect("store");
    let cold = guest(&store, "cold");
    cold.set(DomainChange {
        cold: Some(true),
        ..DomainChange::default()
    })
    .expect("possible");
    let pool = cold.create_pool(PoolSpec::Persistent).expect("room");
    assert_eq!(fill(&cold, pool, object(1), 200, 2000), 200);
    eventually("the sweep comes", || slow.is_waited_for());
    let other = guest(&store, "other");
    let used = store.stats().used;
    let pool = other.create_pool(PoolSpec::Persistent).expect("room");
    assert_eq!(fill(&other, pool, object(1), MANY, 1000), MANY);
    other.destroy_pool(pool).expect("pool");
    eventually("memory is given back", || store.stats().used <= used + MIB);
    slow.go_on();
}
