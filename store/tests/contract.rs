//! The contract of the store, rule by rule: design section 3.

#![expect(clippy::cast_possible_truncation, reason = "small numbers")]

mod common;

use std::time::Duration;

use common::store;
use tmem_store::{
    ConfigError, CreatePoolError, Dedup, Domain, DomainChange, DomainConfig, LoadError, ObjectId,
    PAGE_SIZE, PoolId, PoolSpec, Store, StoreConfig, StoreError,
};
use tmem_testkit::corpus::compressible as page;

const OBJECT: ObjectId = ObjectId([1, 2, 3]);

#[test]
fn an_accepted_page_comes_back_until_it_is_invalidated() {
    let store = store(64 << 20);
    let domain = store
        .add_domain("guest", DomainConfig::default())
        .expect("domain");
    let pool = domain.create_pool(PoolSpec::Persistent).expect("pool");
    for index in 0..5000u32 {
        let page = page(u64::from(index), index as usize % 4200);
        assert_eq!(domain.store(pool, OBJECT, index, &page), Ok(()));
    }
    let mut back = [0; PAGE_SIZE];
    for _ in 0..2 {
        for index in 0..5000u32 {
            assert_eq!(domain.load(pool, OBJECT, index, &mut back), Ok(()));
            assert!(back == page(u64::from(index), index as usize % 4200));
        }
    }
    let stats = store.stats();
    assert_eq!(stats.domains[0].pools[0].pages, 5000);
    assert_eq!(stats.used, stats.domains[0].used);
    for index in 0..2500u32 {
        assert_eq!(domain.invalidate_page(pool, OBJECT, index), Ok(()));
        assert_eq!(
            domain.load(pool, OBJECT, index, &mut back),
            Err(LoadError::NotFound)
        );
    }
    assert_eq!(domain.invalidate_object(pool, OBJECT), Ok(()));
    assert_eq!(
        domain.load(pool, OBJECT, 4000, &mut back),
        Err(LoadError::NotFound)
    );
    while store.maintain() {}
    assert_eq!(store.stats().domains[0].pools[0].pages, 0);
    domain.destroy_pool(pool).expect("pool");
    domain.remove();
    assert_eq!(store.stats().used, 0);
}

#[test]
fn a_full_store_refuses_and_a_refused_duplicate_leaves_no_old_data() {
    let store = store(1 << 20);
    let domain = store
        .add_domain("guest", DomainConfig::default())
        .expect("domain");
    let pool = domain.create_pool(PoolSpec::Persistent).expect("pool");
    let mut accepted = Vec::new();
    for index in 0..2000u32 {
        let page = page(u64::from(index), 1500);
        if domain.store(pool, OBJECT, index, &page).is_ok() {
            accepted.push(index);
        }
        assert!(store.stats().used <= 1 << 20);
    }
    assert!(
        accepted.len() > 500 && accepted.len() < 700,
        "{}",
        accepted.len()
    );
    let first = accepted[0];
    assert_eq!(
        domain.store(pool, OBJECT, first, &page(9, 4096)),
        Err(StoreError::NoSpace)
    );
    let mut back = [0; PAGE_SIZE];
    assert_eq!(
        domain.load(pool, OBJECT, first, &mut back),
        Err(LoadError::NotFound)
    );
    for index in &accepted[1..] {
        assert_eq!(domain.load(pool, OBJECT, *index, &mut back), Ok(()));
        assert!(back == page(u64::from(*index), 1500));
    }
}

const MIB: u64 = 1 << 20;

fn domain(store: &Store, name: &str, config: DomainConfig) -> Domain {
    store.add_domain(name, config).expect("domain")
}

fn member(store: &Store, name: &str) -> Domain {
    let config = DomainConfig {
        groups: vec!["image".to_owned()],
        ..DomainConfig::default()
    };
    domain(store, name, config)
}

/// Stores pages of about `entropy` bytes until one is refused, at most `most`. Returns how many.
fn fill(domain: &Domain, pool: PoolId, most: u32, entropy: usize) -> u32 {
    (0..most)
        .find(|index| {
            domain
                .store(pool, OBJECT, *index, &page(u64::from(*index), entropy))
                .is_err()
        })
        .unwrap_or(most)
}

/// How many of the pages that [`fill`] stored are there; those that are must be right.
fn present(domain: &Domain, pool: PoolId, most: u32, entropy: usize) -> u32 {
    let mut back = [0; PAGE_SIZE];
    (0..most)
        .filter(|index| {
            let loaded = domain.load(pool, OBJECT, *index, &mut back).is_ok();
            assert!(!loaded || back == page(u64::from(*index), entropy));
            loaded
        })
        .count() as u32
}

#[test]
fn a_private_ephemeral_load_takes_the_page_and_a_shared_or_persistent_one_leaves_it() {
    let store = store(64 * MIB);
    let guest = member(&store, "guest");
    let shared = PoolSpec::Shared { group: "image" };
    for (spec, times) in [
        (PoolSpec::Persistent, 2),
        (PoolSpec::Ephemeral, 1),
        (shared, 2),
    ] {
        let pool = guest.create_pool(spec).expect("pool");
        assert_eq!(fill(&guest, pool, 100, 900), 100);
        let found: u32 = (0..2).map(|_| present(&guest, pool, 100, 900)).sum();
        assert_eq!(found, 100 * times);
    }
}

#[test]
fn only_an_authorised_domain_joins_a_group_and_a_refusal_is_an_error() {
    let store = store(64 * MIB);
    let outsider = domain(&store, "outsider", DomainConfig::default());
    let refused = outsider.create_pool(PoolSpec::Shared { group: "image" });
    assert!(matches!(refused, Err(CreatePoolError::Denied)));
    assert!(outsider.stats().pools.is_empty());
}

#[test]
fn what_one_member_stores_or_invalidates_every_member_sees() {
    let store = store(64 * MIB);
    let (a, b) = (member(&store, "a"), member(&store, "b"));
    let join = |domain: &Domain| {
        let pool = PoolSpec::Shared { group: "image" };
        domain.create_pool(pool).expect("authorised")
    };
    let (in_a, in_b) = (join(&a), join(&b));
    let mut back = [0; PAGE_SIZE];
    a.store(in_a, OBJECT, 1, &page(1, 700)).expect("room");
    assert_eq!(b.load(in_b, OBJECT, 1, &mut back), Ok(()));
    assert!(back == page(1, 700));
    b.store(in_b, OBJECT, 1, &page(2, 700)).expect("room");
    assert_eq!(a.load(in_a, OBJECT, 1, &mut back), Ok(()));
    assert!(back == page(2, 700));
    a.invalidate_page(in_a, OBJECT, 1).expect("pool");
    assert_eq!(b.load(in_b, OBJECT, 1, &mut back), Err(LoadError::NotFound));
    // The pool stays while it has members, and a member's pages go with it.
    a.store(in_a, OBJECT, 5, &page(5, 700)).expect("room");
    b.store(in_b, OBJECT, 6, &page(6, 700)).expect("room");
    a.remove();
    assert_eq!(b.load(in_b, OBJECT, 5, &mut back), Err(LoadError::NotFound));
    assert_eq!(b.load(in_b, OBJECT, 6, &mut back), Ok(()));
    b.remove();
    assert_eq!(store.stats().used, 0);
}

#[test]
fn a_frozen_domain_takes_no_page_and_a_refused_duplicate_is_gone() {
    let store = store(64 * MIB);
    let guest = domain(&store, "guest", DomainConfig::default());
    let pool = guest.create_pool(PoolSpec::Persistent).expect("pool");
    assert_eq!(fill(&guest, pool, 10, 900), 10);
    guest.freeze();
    let mut back = [0; PAGE_SIZE];
    assert_eq!(
        guest.store(pool, OBJECT, 3, &page(9, 9)),
        Err(StoreError::Frozen)
    );
    assert_eq!(
        guest.store(pool, OBJECT, 30, &page(9, 9)),
        Err(StoreError::Frozen)
    );
    assert_eq!(
        guest.load(pool, OBJECT, 3, &mut back),
        Err(LoadError::NotFound)
    );
    assert_eq!(guest.load(pool, OBJECT, 4, &mut back), Ok(()));
    assert_eq!(guest.invalidate_page(pool, OBJECT, 4), Ok(()));
    assert_eq!(guest.invalidate_page(pool, OBJECT, 4), Ok(()));
    assert_eq!(
        guest.load(pool, OBJECT, 4, &mut back),
        Err(LoadError::NotFound)
    );
    guest.thaw();
    assert_eq!(guest.store(pool, OBJECT, 3, &page(9, 9)), Ok(()));
    assert_eq!(store.stats().domains[0].pools[0].refused_frozen, 2);
}

#[test]
fn ephemeral_pages_go_before_a_persistent_store_is_refused() {
    let store = store(4 * MIB);
    let files = domain(&store, "files", DomainConfig::default());
    let swap = domain(&store, "swap", DomainConfig::default());
    let cache = files.create_pool(PoolSpec::Ephemeral).expect("pool");
    let pages = swap.create_pool(PoolSpec::Persistent).expect("pool");
    assert_eq!(fill(&files, cache, 4000, 1500), 4000);
    let accepted = fill(&swap, pages, 4000, 1500);
    assert!(accepted > 2200, "{accepted} pages of 1.6 KiB in 4 MiB");
    assert_eq!(present(&swap, pages, accepted, 1500), accepted);
    assert_eq!(present(&files, cache, 4000, 1500), 0);
}

#[test]
fn a_reserve_is_there_whatever_others_took() {
    let store = store(8 * MIB);
    let greedy = domain(&store, "greedy", DomainConfig::default());
    let config = DomainConfig {
        reserve: 3 * MIB,
        ..DomainConfig::default()
    };
    let careful = domain(&store, "careful", config.clone());
    let pool = greedy.create_pool(PoolSpec::Persistent).expect("pool");
    let taken = fill(&greedy, pool, 10_000, 1500);
    assert!(greedy.stats().used <= 5 * MIB && taken > 2500);
    let pool = careful.create_pool(PoolSpec::Persistent).expect("pool");
    fill(&careful, pool, 10_000, 1500);
    let used = careful.stats().used;
    assert!(used > 29 * MIB / 10 && used <= 3 * MIB + MIB / 10, "{used}");
    let more = store.add_domain(
        "more",
        DomainConfig {
            reserve: 6 * MIB,
            ..config
        },
    );
    assert!(matches!(more, Err(ConfigError::ReservesAboveBudget { .. })));
    let change = DomainChange {
        reserve: Some(5 * MIB),
        ..DomainChange::default()
    };
    assert!(matches!(
        careful.set(change),
        Err(ConfigError::ReserveInUse)
    ));
}

#[test]
fn ephemeral_memory_is_shared_by_weight() {
    let store = store(8 * MIB);
    let weighted = |name, weight| {
        let config = DomainConfig {
            weight,
            ..DomainConfig::default()
        };
        let domain = domain(&store, name, config);
        let pool = domain.create_pool(PoolSpec::Ephemeral).expect("pool");
        (domain, pool)
    };
    let (light, heavy) = (weighted("light", 100), weighted("heavy", 300));
    for index in 0..12_000u32 {
        for (domain, pool) in [&light, &heavy] {
            let stored = domain.store(*pool, OBJECT, index, &page(u64::from(index), 1200));
            assert_eq!(stored, Ok(()));
        }
    }
    let ratio = heavy.0.stats().used as f64 / light.0.stats().used as f64;
    assert!((2.7..3.3).contains(&ratio), "ratio of use {ratio}");
}

#[test]
fn a_limit_that_shrinks_drops_ephemeral_pages_and_keeps_persistent_ones() {
    let store = store(64 * MIB);
    let guest = domain(&store, "guest", DomainConfig::default());
    let swap = guest.create_pool(PoolSpec::Persistent).expect("pool");
    let cache = guest.create_pool(PoolSpec::Ephemeral).expect("pool");
    assert_eq!(fill(&guest, swap, 1000, 2000), 1000);
    assert_eq!(fill(&guest, cache, 1000, 2000), 1000);
    let change = DomainChange {
        limit: Some(3 * MIB),
        ..DomainChange::default()
    };
    guest.set(change).expect("possible");
    assert!(guest.stats().used <= 3 * MIB);
    assert!(guest.freeable() > 0);
    let change = DomainChange {
        limit: Some(MIB),
        ..DomainChange::default()
    };
    guest.set(change).expect("possible");
    assert_eq!(guest.freeable(), 0);
    assert_eq!(
        guest.store(swap, OBJECT, 5000, &page(1, 2000)),
        Err(StoreError::NoSpace)
    );
    assert_eq!(present(&guest, swap, 1000, 2000), 1000);
}

#[test]
fn flush_frees_what_was_asked_for_and_freeable_says_how_much_there_is() {
    let store = store(64 * MIB);
    let guest = domain(&store, "guest", DomainConfig::default());
    let cache = guest.create_pool(PoolSpec::Ephemeral).expect("pool");
    fill(&guest, cache, 2000, 2000);
    let (freeable, used) = (guest.freeable(), store.stats().used);
    assert!(freeable > 3 * MIB);
    let flushed = guest.flush(MIB);
    assert!((MIB..MIB + MIB / 2).contains(&flushed));
    assert_eq!(guest.freeable(), freeable - flushed);
    assert!(store.stats().used <= used - flushed * 9 / 10);
    assert_eq!(guest.flush(u64::MAX), freeable - flushed);
    assert_eq!(guest.flush(u64::MAX), 0);
}

#[test]
fn pages_of_one_group_share_bytes_and_each_domain_pays_as_if_alone() {
    let store = store(64 * MIB);
    let (a, b) = (member(&store, "a"), member(&store, "b"));
    let pools = [&a, &b].map(|domain| {
        let shared = PoolSpec::Shared { group: "image" };
        (
            domain,
            domain.create_pool_with(shared, Dedup::On).expect("pool"),
        )
    });
    for (number, (domain, pool)) in pools.iter().enumerate() {
        let object = ObjectId([number as u64, 0, 0]);
        for index in 0..500u32 {
            let page = page(u64::from(index), 2000);
            assert_eq!(domain.store(*pool, object, index, &page), Ok(()));
        }
    }
    let stats = store.stats();
    let shared: Vec<_> = stats.domains.iter().map(|d| d.used_shared).collect();
    assert_eq!(
        shared[0], shared[1],
        "the bill does not tell what others have"
    );
    assert!(stats.saved > 8 * MIB / 10, "{}", stats.saved);
    let charged: u64 = stats.domains.iter().map(|d| d.used).sum();
    assert_eq!(charged - stats.saved, stats.used);
    assert_eq!(stats.domains[0].pools[0].deduplicated, 500);
    let mut back = [0; PAGE_SIZE];
    pools[0]
        .0
        .invalidate_object(pools[0].1, ObjectId([0, 0, 0]))
        .expect("pool");
    while store.maintain() {}
    for index in 0..500u32 {
        let loaded = b.load(pools[1].1, ObjectId([1, 0, 0]), index, &mut back);
        assert_eq!(loaded, Ok(()));
        assert!(back == page(u64::from(index), 2000));
    }
    assert_eq!(store.stats().domains[0].used_shared, 0);
}

#[test]
fn the_adaptive_mode_stops_to_look_where_nothing_repeats_and_begins_again_where_it_does() {
    let store = store(256 << 20);
    let domain = member(&store, "a");
    let pools = [Dedup::On, Dedup::Adaptive].map(|dedup| {
        domain
            .create_pool_with(PoolSpec::Ephemeral, dedup)
            .expect("pool")
    });
    let figures = |pool: usize| {
        let stats = domain.stats();
        let found = stats.pools.iter().find(|p| p.id == pools[pool].0);
        let found = found.expect("the pool is there");
        (found.metadata_bytes, found.deduplicated)
    };
    let fill = |indexes: std::ops::Range<u32>, each: u32| {
        for index in indexes {
            for pool in pools {
                let page = page(u64::from(index / each), 100);
                assert_eq!(domain.store(pool, OBJECT, index, &page), Ok(()));
            }
        }
    };
    let grows = |indexes: std::ops::Range<u32>, each: u32| {
        let before = [0, 1].map(figures);
        fill(indexes, each);
        let after = [0, 1].map(figures);
        [0, 1].map(|pool| {
            (
                after[pool].0.saturating_sub(before[pool].0),
                after[pool].1.saturating_sub(before[pool].1),
            )
        })
    };
    // It looks at all pages at first, and gives up when it has seen that they differ.
    fill(0..1000, 1);
    let [(on, _), (adaptive, shared)] = grows(1000..4000, 1);
    assert_eq!(shared, 0);
    assert!(
        adaptive + 3000 * 40 < on,
        "3000 pages cost {adaptive} bytes of index, {on} with all of them in the table"
    );
    // Each page twice: one in 32 is looked at, which is enough to see that it pays.
    fill(1_000_000..1_040_000, 2);
    let [(_, on), (_, adaptive)] = grows(1_040_000..1_042_000, 2);
    assert_eq!((on, adaptive), (1000, 1000));
}

#[test]
fn untouched_pages_get_denser_and_a_second_load_brings_them_back() {
    let store = Store::new(StoreConfig {
        budget: 64 * MIB,
        background: false,
        cold_after: Duration::from_millis(1),
        ..StoreConfig::default()
    })
    .expect("store");
    let config = DomainConfig {
        cold: true,
        ..DomainConfig::default()
    };
    let guest = domain(&store, "guest", config);
    let pool = guest.create_pool(PoolSpec::Persistent).expect("pool");
    let text = |index: u32| {
        let mut page = [0; PAGE_SIZE];
        for (at, byte) in page.iter_mut().enumerate() {
            let mixed = (at as u32 + index * 4096).wrapping_mul(0x9e37_79b9);
            *byte =
                b"etaoin shrdlu"[(mixed ^ mixed >> 15).wrapping_mul(0x85eb_ca6b) as usize >> 7 & 7];
        }
        page
    };
    for index in 0..300 {
        guest
            .store(pool, OBJECT, index, &text(index))
            .expect("room");
    }
    let before = guest.stats().pools[0];
    while store.sweep_cold() {}
    while store.sweep_cold() {}
    store.sweep_cold();
    let after = guest.stats().pools[0];
    assert!(after.cold > 200, "{after:?}");
    assert!(after.bytes_stored < before.bytes_stored);
    let mut back = [0; PAGE_SIZE];
    for _ in 0..2 {
        for index in 0..300 {
            assert_eq!(guest.load(pool, OBJECT, index, &mut back), Ok(()));
            assert!(back == text(index));
        }
    }
    let warm = guest.stats().pools[0];
    assert_eq!((warm.cold, warm.promoted), (0, after.cold));
    assert_eq!(warm.bytes_stored, before.bytes_stored);
}

#[test]
fn a_store_that_needs_room_evicts_a_few_pages_at_most_whatever_their_sizes() {
    for (budget, limit) in [(64 * MIB, 4 * MIB), (4 * MIB, u64::MAX)] {
        let store = store(budget);
        let config = DomainConfig {
            limit,
            ..DomainConfig::default()
        };
        let guest = domain(&store, "guest", config);
        let pool = guest.create_pool(PoolSpec::Ephemeral).expect("pool");
        let evictions = || store.stats().domains[0].pools[0].evictions;
        let mut most = 0;
        // Pages of many sizes, in an order that leaves none of them for long.
        for index in 0..12_000u32 {
            let size = 100 + index as usize * 769 % 3800;
            let before = evictions();
            let stored = guest.store(pool, OBJECT, index, &page(u64::from(index), size));
            assert_eq!(stored, Ok(()));
            most = most.max(evictions() - before);
        }
        assert!(evictions() > 5_000);
        assert!(most <= 24, "one store evicted {most} pages");
    }
}

#[test]
fn compaction_gives_the_memory_of_removed_pages_back() {
    let store = store(64 * MIB);
    let guest = domain(&store, "guest", DomainConfig::default());
    let pool = guest.create_pool(PoolSpec::Persistent).expect("pool");
    assert_eq!(fill(&guest, pool, 8000, 1500), 8000);
    for index in (0..8000).filter(|index| index % 8 != 3) {
        guest.invalidate_page(pool, OBJECT, index).expect("pool");
    }
    while store.maintain() {}
    let stats = store.stats();
    let payload = stats.domains[0].pools[0].bytes_stored;
    assert!(
        stats.used < payload * 115 / 100,
        "{} for {payload}",
        stats.used
    );
    assert_eq!(present(&guest, pool, 8000, 1500), 1000);
}

#[test]
fn nothing_of_a_removed_domain_is_left_and_its_name_is_free() {
    let store = store(16 * MIB);
    for _ in 0..3 {
        let guest = domain(&store, "guest", DomainConfig::default());
        assert!(matches!(
            store.add_domain("guest", DomainConfig::default()),
            Err(ConfigError::NameTaken)
        ));
        let pool = guest.create_pool(PoolSpec::Persistent).expect("pool");
        assert_eq!(present(&guest, pool, 1000, 1000), 0);
        assert_eq!(fill(&guest, pool, 1000, 1000), 1000);
        guest.remove();
        assert_eq!(
            guest.store(pool, OBJECT, 0, &page(0, 0)),
            Err(StoreError::NoPool)
        );
        assert_eq!(store.stats().used, 0);
    }
}

#[test]
fn counters_of_a_domain_grow_when_a_pool_is_destroyed() {
    let store = Store::new(StoreConfig {
        budget: 16 << 20,
        ..StoreConfig::default()
    })
    .expect("a store");
    let domain = store
        .add_domain("guest", DomainConfig::default())
        .expect("a domain");
    let stores = || {
        let stats = domain.stats();
        stats.destroyed.stores + stats.pools.iter().map(|pool| pool.stores).sum::<u64>()
    };
    for round in 1..=3 {
        let pool = domain.create_pool(PoolSpec::Persistent).expect("a pool");
        for index in 0..10 {
            domain
                .store(pool, ObjectId([0; 3]), index, &[7; 4096])
                .expect("stored");
        }
        domain.destroy_pool(pool).expect("destroyed");
        assert_eq!(stores(), round * 10);
        assert_eq!(domain.stats().destroyed.pages, 0);
    }
}
