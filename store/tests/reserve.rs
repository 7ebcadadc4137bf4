//! A reserve that is taken from the host at once: it is there, it is counted once, and it is kept.

use std::time::{Duration, Instant};

use tmem_store::{Domain, DomainChange, DomainConfig, ObjectId, PoolSpec, Store, StoreConfig};
use tmem_testkit::corpus::page;

const MIB: u64 = 1 << 20;

fn store(background: bool) -> (Store, Domain) {
    let store = Store::new(StoreConfig {
        budget: 64 * MIB,
        background,
        ..StoreConfig::default()
    })
    .expect("a store");
    let domain = store.add_domain(
        "guest",
        DomainConfig {
            reserve: 16 * MIB,
            limit: 16 * MIB,
            ..DomainConfig::default()
        },
    );
    let domain = domain.expect("a domain");
    while domain.populate_reserve().expect("there is memory") {}
    (store, domain)
}

/// Memory of this process behind the files of segments.
fn resident(name: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/self/smaps").expect("proc");
    let mut inside = false;
    let mut bytes = 0;
    for line in text.lines() {
        match line.split_once(':') {
            Some(("Rss", rest)) if inside => {
                let kib: u64 = rest.trim().trim_end_matches(" kB").parse().expect("kB");
                bytes += kib * 1024;
            }
            // The line that begins a mapping has no word before its first colon.
            _ if line.contains("memfd:") || line.contains(' ') && line.contains('-') => {
                inside = line.contains(&format!("memfd:{name}"));
            }
            _ => {}
        }
    }
    bytes
}

#[test]
fn a_reserve_that_is_populated_is_resident_and_counted_once() {
    let (store, domain) = store(false);
    let stats = store.stats();
    assert!(
        stats.used <= 16 * MIB && stats.used > 15 * MIB,
        "{}",
        stats.used
    );
    assert_eq!(domain.used(), stats.used);
    let resident = resident("guest");
    assert!(resident <= 16 * MIB && resident > 15 * MIB, "{resident}");
    assert!(!domain.populate_reserve().expect("is there"), "once");
    assert_eq!(store.stats().used, stats.used);
    domain.remove();
    assert_eq!(store.stats().used, 0);
}

#[test]
fn pages_of_every_size_use_what_is_populated_and_none_is_refused_for_it() {
    let (store, domain) = store(false);
    let pool = domain.create_pool(PoolSpec::Persistent).expect("a pool");
    let object = ObjectId([0; 3]);
    let mut count = 0u32;
    loop {
        // Some compress, some do not: many classes.
        let mut bytes = page(count.into());
        let from = 128 * (count as usize % 32);
        bytes[from..].fill(7);
        if domain.store(pool, object, count, &bytes).is_err() {
            break;
        }
        count += 1;
    }
    let stats = store.stats();
    assert!(stats.used <= 16 * MIB, "{}", stats.used);
    let held = stats.domains[0].slot_bytes;
    assert!(held > 14 * MIB, "{held} bytes in {count} pages");
    // The memory that is kept is no reason to refuse a pool.
    domain.invalidate_object(pool, object).expect("is there");
    assert!(domain.used() > 15 * MIB, "it is kept");
    for _ in 0..31 {
        domain.create_pool(PoolSpec::Persistent).expect("a pool");
    }
}

#[test]
fn the_background_keeps_a_populated_reserve_and_gives_back_what_was_lowered() {
    let (store, domain) = store(true);
    let pool = domain.create_pool(PoolSpec::Persistent).expect("a pool");
    for index in 0..3000 {
        let stored = domain.store(pool, ObjectId([0; 3]), index, &page(index.into()));
        stored.expect("fits");
    }
    domain
        .invalidate_object(pool, ObjectId([0; 3]))
        .expect("is there");
    // As often as the background trims in a second. A step for a host that is short of memory must
    // not take the reserve either.
    for _ in 0..20 {
        store.shrink();
        std::thread::sleep(Duration::from_millis(50));
    }
    let used = store.stats().used;
    assert!(used > 15 * MIB, "{used}");
    let lower = DomainChange {
        reserve: Some(MIB),
        ..DomainChange::default()
    };
    domain.set(lower).expect("less");
    let deadline = Instant::now() + Duration::from_secs(60);
    while store.stats().used > 2 * MIB {
        assert!(Instant::now() < deadline, "{}", store.stats().used);
        store.shrink();
        std::thread::sleep(Duration::from_millis(5));
    }
}
