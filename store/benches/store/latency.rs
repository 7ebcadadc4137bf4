//! The tail: many pages in 64 domains, some full, while indexes grow, pages are evicted and slots move.

use std::time::Instant;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tmem_store::{DomainConfig, ObjectId, PAGE_SIZE, Page, PoolSpec, Store, StoreConfig};

use crate::{Report, quantile};

const DOMAINS: usize = 64;

pub(crate) fn tail(mix: &[Page], count: usize, report: &mut Report) {
    // Small pages, so that ten million of them fit into a workstation.
    let pages: Vec<&Page> = mix
        .iter()
        .filter(|page| page.iter().filter(|byte| **byte == 0).count() > 2600)
        .collect();
    let pages = if pages.len() < 100 {
        mix.iter().collect()
    } else {
        pages
    };
    let store = Store::new(StoreConfig {
        budget: 64 << 30,
        ..StoreConfig::default()
    })
    .expect("store");
    let mut rng = StdRng::seed_from_u64(3);
    let domains: Vec<_> = (0..DOMAINS)
        .map(|number| {
            let domain = store
                .add_domain(
                    &format!("domain-{number}"),
                    DomainConfig {
                        // The ephemeral domains are full all the time: every store evicts.
                        limit: if number % 2 == 1 { 8 << 20 } else { u64::MAX },
                        ..DomainConfig::default()
                    },
                )
                .expect("domain");
            let spec = if number % 2 == 1 {
                PoolSpec::Ephemeral
            } else {
                PoolSpec::Persistent
            };
            let pool = domain.create_pool(spec).expect("pool");
            (domain, pool)
        })
        .collect();
    let object = ObjectId([0, 0, 0]);
    let mut back = [0; PAGE_SIZE];
    let (mut stores, mut loads, mut drops) = (Vec::new(), Vec::new(), Vec::new());
    // Half of the pages go to one pool, the rest everywhere.
    let mut next = vec![0u32; DOMAINS];
    for turn in 0..count {
        let number = if turn % 2 == 0 {
            0
        } else {
            rng.random_range(1..DOMAINS)
        };
        let (domain, pool) = &domains[number];
        let page = pages[turn % pages.len()];
        let index = next[number];
        next[number] += 1;
        let start = Instant::now();
        let stored = domain.store(*pool, object, index, page);
        stores.push(start.elapsed().as_nanos() as u32);
        assert_eq!(stored, Ok(()));
        if turn % 4 == 0 {
            let index = rng.random_range(0..next[number]);
            let start = Instant::now();
            let _ = domain.load(*pool, object, index, &mut back);
            loads.push(start.elapsed().as_nanos() as u32);
        }
        if turn % 16 == 0 {
            let index = rng.random_range(0..next[number]);
            let start = Instant::now();
            domain.invalidate_page(*pool, object, index).expect("pool");
            drops.push(start.elapsed().as_nanos() as u32);
        }
    }
    println!(
        "\nlatency, ns ({count} pages, {DOMAINS} domains)        p50       p99      p999       max"
    );
    let mut worst: f64 = 0.0;
    for (name, samples) in [
        ("store", &mut stores),
        ("load", &mut loads),
        ("invalidate", &mut drops),
    ] {
        let p50 = quantile(samples, 0.5);
        let p99 = quantile(samples, 0.99);
        let p999 = quantile(samples, 0.999);
        let max = quantile(samples, 1.0);
        println!("  {name:46} {p50:9.0} {p99:9.0} {p999:9.0} {max:9.0}");
        report.put(&format!("{name}_p50_ns"), p50);
        report.put(&format!("{name}_p999_ns"), p999);
        report.put(&format!("{name}_max_ns"), max);
        worst = worst.max(p999 / p50);
    }
    report.goal("p999_over_p50", worst, "<= 20");
}
