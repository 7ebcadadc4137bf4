//! Bytes: overhead over the payload, after churn, in the cold tier, and against the resident memory.

use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use tmem_store::{Domain, DomainConfig, ObjectId, Page, PoolId, PoolSpec, Store, StoreConfig};

use tmem_testkit::report::Report;

const OBJECT: ObjectId = ObjectId([0, 0, 0]);

fn filled(pages: &[Page], cold: bool) -> (Store, Domain, PoolId) {
    let store = Store::new(StoreConfig {
        budget: 64 << 30,
        cold_after: Duration::from_millis(400),
        ..StoreConfig::default()
    })
    .expect("store");
    let domain = store
        .add_domain(
            "one",
            DomainConfig {
                cold,
                ..DomainConfig::default()
            },
        )
        .expect("domain");
    let pool = domain.create_pool(PoolSpec::Persistent).expect("pool");
    for (index, page) in pages.iter().enumerate() {
        domain
            .store(pool, OBJECT, index as u32, page)
            .expect("room");
    }
    (store, domain, pool)
}

/// Waits until what the store uses does not change any more.
fn settle(store: &Store) {
    let deadline = Instant::now() + Duration::from_secs(120);
    let (mut last, mut same) = (0, 0);
    while same < 8 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(150));
        let used = store.stats().used;
        same = if used == last { same + 1 } else { 0 };
        last = used;
    }
}

fn overhead(store: &Store) -> f64 {
    let stats = store.stats();
    let payload = stats.domains[0].pools[0].bytes_stored as f64;
    100.0 * (stats.used as f64 - payload) / payload
}

pub(crate) fn density(pages: &[Page], report: &mut Report) {
    println!();
    let (store, domain, pool) = filled(pages, false);
    let stats = store.stats();
    let metadata = (stats.domains[0].used - stats.domains[0].segment_bytes) as f64;
    report.put("bytes_per_page", stats.used as f64 / pages.len() as f64);
    report.goal("overhead_percent", overhead(&store), "<= 5");
    report.goal(
        "metadata_bytes_per_page",
        metadata / pages.len() as f64,
        "<= 24",
    );
    let mut order: Vec<u32> = (0..pages.len() as u32).collect();
    order.shuffle(&mut StdRng::seed_from_u64(1));
    for index in &order[..pages.len() / 2] {
        domain.invalidate_page(pool, OBJECT, *index).expect("pool");
    }
    settle(&store);
    report.goal("overhead_after_churn_percent", overhead(&store), "<= 5");
    let mut back = [0; 4096];
    for index in &order[pages.len() / 2..] {
        domain.load(pool, OBJECT, *index, &mut back).expect("there");
        assert!(back == pages[*index as usize]);
    }
}

/// Resident bytes of this process.
pub(crate) fn resident_bytes() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("proc");
    status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|line| line.trim().split(' ').next()?.parse::<f64>().ok())
        .expect("a number")
        * 1024.0
}

/// Gives free heap memory back, so that the next difference starts clean.
pub(crate) fn trim_heap() {
    // SAFETY: no arguments that could be wrong; the allocator keeps all that is in use.
    unsafe {
        libc::malloc_trim(0);
    }
}

pub(crate) fn resident(pages: &[Page], report: &mut Report) {
    drop(filled(&pages[..pages.len() / 8], false));
    // A thread of that store may hold it for a step more.
    let mut before = f64::MAX;
    loop {
        trim_heap();
        let now = resident_bytes();
        if now >= before {
            break;
        }
        before = now;
        std::thread::sleep(Duration::from_millis(100));
    }
    let (store, _domain, _pool) = filled(pages, false);
    let grown = resident_bytes() - before;
    let used = store.stats().used as f64;
    report.goal(
        "rss_error_percent",
        100.0 * (grown - used).abs() / used,
        "<= 3",
    );
}

pub(crate) fn cold(pages: &[Page], report: &mut Report) {
    let (hot, _, _) = filled(pages, false);
    let hot_used = hot.stats().used as f64;
    drop(hot);
    let (store, domain, pool) = filled(pages, true);
    // As the background thread does in its own time.
    for _ in 0..5 {
        store.sweep_cold();
    }
    settle(&store);
    let stats = store.stats();
    report.put(
        "cold_pages_percent",
        100.0 * stats.domains[0].pools[0].cold as f64 / pages.len() as f64,
    );
    report.goal(
        "cold_density_ratio",
        hot_used / stats.used as f64,
        ">= 1.25",
    );
    let mut back = [0; 4096];
    for (index, page) in pages.iter().enumerate() {
        domain
            .load(pool, OBJECT, index as u32, &mut back)
            .expect("there");
        assert!(back == *page);
    }
}
