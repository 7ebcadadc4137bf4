//! The tail: many pages in 64 domains, some full, while indexes grow, pages are evicted and slots move.

use std::time::Instant;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tmem_store::{DomainConfig, ObjectId, PAGE_SIZE, Page, PoolSpec, Store, StoreConfig};

use tmem_testkit::report::{Report, quantile};

const DOMAINS: usize = 64;

/// Times of one kind of operation, in nanoseconds: by the clock on the wall, and of this thread's CPU,
/// which other processes do not lengthen.
#[derive(Default)]
pub(crate) struct Times {
    pub(crate) wall: Vec<u32>,
    pub(crate) cpu: Vec<u32>,
}

impl Times {
    pub(crate) fn take<R>(&mut self, act: impl FnOnce() -> R) -> R {
        let cpu = thread_nanos();
        let wall = Instant::now();
        let result = act();
        self.wall.push(wall.elapsed().as_nanos() as u32);
        self.cpu.push((thread_nanos() - cpu) as u32);
        result
    }
}

fn thread_nanos() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is valid for writing.
    unsafe {
        libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time);
    }
    (time.tv_sec * 1_000_000_000 + time.tv_nsec) as u64
}

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
    let (mut stores, mut loads, mut drops) = (Times::default(), Times::default(), Times::default());
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
        let stored = stores.take(|| domain.store(*pool, object, index, page));
        assert_eq!(stored, Ok(()));
        if turn % 4 == 0 {
            let index = rng.random_range(0..next[number]);
            let _ = loads.take(|| domain.load(*pool, object, index, &mut back));
        }
        if turn % 16 == 0 {
            let index = rng.random_range(0..next[number]);
            drops
                .take(|| domain.invalidate_page(*pool, object, index))
                .expect("pool");
        }
    }
    println!(
        "\nlatency, ns ({count} pages, {DOMAINS} domains)             p50       p99      p999       max"
    );
    let mut worst = [0.0f64; 2];
    for (name, times) in [
        ("store", &mut stores),
        ("load", &mut loads),
        ("invalidate", &mut drops),
    ] {
        for (kind, clock, samples) in [(0, "", &mut times.wall), (1, "_cpu", &mut times.cpu)] {
            let [p50, p99, p999, max] =
                [0.5, 0.99, 0.999, 1.0].map(|fraction| quantile(samples, fraction));
            println!(
                "  {:46} {p50:9.0} {p99:9.0} {p999:9.0} {max:9.0}",
                format!("{name}{clock}")
            );
            report.put(&format!("{name}{clock}_p50_ns"), p50);
            report.put(&format!("{name}{clock}_p999_ns"), p999);
            report.put(&format!("{name}{clock}_max_ns"), max);
            worst[kind] = worst[kind].max(p999 / p50);
        }
    }
    report.goal("p999_over_p50", worst[0], "<= 20");
    report.goal("p999_over_p50_cpu", worst[1], "<= 20");
}
