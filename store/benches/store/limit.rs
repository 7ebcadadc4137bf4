//! Stores where memory is used up: after pages were freed at random, beside a neighbour that wastes memory, and
//! with many guests.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tmem_store::{
    Domain, DomainConfig, ObjectId, PAGE_SIZE, Page, PoolId, PoolSpec, Store, StoreConfig,
    StoreError,
};

use crate::latency::Times;
use tmem_testkit::report::{Report, quantile};

const OBJECT: ObjectId = ObjectId([0, 0, 0]);
const GROUP: &str = "files";
const MIB: u64 = 1 << 20;
/// Stores of a measurement.
const STORES: u32 = 4000;

/// What a store is filled with.
#[derive(Clone, Copy)]
pub(crate) struct Size {
    pub(crate) name: &'static str,
    bytes: u64,
    /// Bytes of a page that do not compress.
    entropy: (usize, usize),
}

pub(crate) const SMALL: Size = Size {
    name: "64m",
    bytes: 64 * MIB,
    entropy: (200, 1700),
};
pub(crate) const ONE: Size = Size {
    name: "1g",
    bytes: 1024 * MIB,
    entropy: (200, 1700),
};
pub(crate) const FOUR: Size = Size {
    name: "4g",
    bytes: 4096 * MIB,
    entropy: (200, 1700),
};
/// As many pages as 16 GiB have of the others, each in about 250 bytes.
pub(crate) const SIXTEEN: Size = Size {
    name: "16g",
    bytes: 4200 * MIB,
    entropy: (160, 230),
};

fn random_page(rng: &mut StdRng, entropy: usize) -> Page {
    let mut page = [0; PAGE_SIZE];
    rng.fill(&mut page[..entropy]);
    page
}

struct Guest {
    domain: Domain,
    pool: PoolId,
    pages: u32,
}

fn guest(store: &Store, name: &str, limit: u64, spec: PoolSpec<'_>) -> Guest {
    let config = DomainConfig {
        limit,
        groups: vec![GROUP.to_owned()],
        ..DomainConfig::default()
    };
    let domain = store.add_domain(name, config).expect("domain");
    let pool = domain.create_pool(spec).expect("pool");
    Guest {
        domain,
        pool,
        pages: 0,
    }
}

fn new_store(budget: u64) -> Store {
    Store::new(StoreConfig {
        budget,
        ..StoreConfig::default()
    })
    .expect("store")
}

impl Guest {
    /// Stores pages until so many are refused in a row, or `most` are there.
    fn fill(&mut self, rng: &mut StdRng, (least, most_entropy): (usize, usize), most: u32) {
        let mut refused = 0;
        while refused < 200 && self.pages < most {
            let entropy = rng.random_range(least..most_entropy);
            let page = random_page(rng, entropy);
            match self.domain.store(self.pool, OBJECT, self.pages, &page) {
                Ok(()) => {
                    self.pages += 1;
                    refused = 0;
                }
                Err(_) => refused += 1,
            }
        }
    }

    fn drop_one(&self, rng: &mut StdRng) {
        let index = rng.random_range(0..self.pages);
        self.domain
            .invalidate_page(self.pool, OBJECT, index)
            .expect("pool");
    }

    /// Stores raw pages to an object of their own, after `before` each.
    fn stores(&self, object: u64, rng: &mut StdRng, mut before: impl FnMut(&mut StdRng)) -> Stores {
        let mut stores = Stores::default();
        for index in 0..STORES {
            before(rng);
            self.store_one(object, index, rng, &mut stores);
        }
        stores
    }

    fn store_one(&self, object: u64, index: u32, rng: &mut StdRng, stores: &mut Stores) {
        let page = random_page(rng, PAGE_SIZE);
        let object = ObjectId([object, 0, 0]);
        let store = || self.domain.store(self.pool, object, index, &page);
        match stores.times.take(store) {
            Ok(()) => stores.accepted += 1,
            Err(error) => assert_eq!(error, StoreError::NoSpace),
        }
    }

    /// What a refusal costs against one by a fresh store, in turn.
    fn refusal_ratio(&self, object: u64, name: &str, fresh: &Guest, rng: &mut StdRng) -> f64 {
        let [mut own, mut others] = [Stores::default(), Stores::default()];
        for index in 0..STORES {
            self.store_one(object, index, rng, &mut own);
            fresh.store_one(object, index, rng, &mut others);
        }
        let [_, _, own, _] = row(name, &mut own);
        own / quantile(&mut others.times.cpu, 0.5)
    }
}

/// Times of stores, and how many were accepted.
#[derive(Default)]
struct Stores {
    times: Times,
    accepted: u32,
}

fn row(name: &str, Stores { times, accepted }: &mut Stores) -> [f64; 4] {
    let of = |samples: &mut Vec<u32>| [0.5, 0.99, 1.0].map(|part| quantile(samples, part));
    let [p50, p99, max] = of(&mut times.wall);
    let [p50_cpu, p99_cpu, max_cpu] = of(&mut times.cpu);
    println!(
        "  {name:40} {p50:9.0} {p99:9.0} {max:10.0}   {p50_cpu:9.0} {p99_cpu:9.0} {max_cpu:10.0}  {accepted:6}"
    );
    [p50, p99, p50_cpu, p99_cpu]
}

/// Measures with stores of these sizes.
pub(crate) fn full(sizes: &[Size], report: &mut Report) {
    println!(
        "\nstore at a limit, ns: wall and CPU           p50       p99        max         p50       p99        max  accepted"
    );
    let mut rng = StdRng::seed_from_u64(4);
    let store = new_store(MIB);
    let mut fresh = guest(&store, "guest", u64::MAX, PoolSpec::Persistent);
    fresh.fill(&mut rng, (PAGE_SIZE - 1, PAGE_SIZE), u32::MAX);
    row(
        "refused by a fresh store",
        &mut fresh.stores(1, &mut rng, |_| ()),
    );
    for size in sizes {
        for kind in ["limit", "ephemeral"] {
            full_guest(*size, kind, &fresh, &mut rng, report);
        }
        beside_a_neighbour(*size, &fresh, &mut rng, report);
        for spec in [PoolSpec::Ephemeral, PoolSpec::Shared { group: GROUP }] {
            beside_a_cache(*size, spec, &mut rng, report);
        }
    }
    for guests in [1, 64, 100] {
        many(guests, &fresh, &mut rng, report);
    }
}

fn full_guest(size: Size, kind: &str, fresh: &Guest, rng: &mut StdRng, report: &mut Report) {
    let store = new_store(64 << 30);
    let ephemeral = kind == "ephemeral";
    let spec = if ephemeral {
        PoolSpec::Ephemeral
    } else {
        PoolSpec::Persistent
    };
    let mut guest = guest(&store, "guest", size.bytes, spec);
    // Of an ephemeral pool no page is refused.
    let bytes = size.entropy.1.div_ceil(64) as u64 * 64;
    let most = if ephemeral {
        u32::try_from(size.bytes / bytes * 3 / 2).expect("fits")
    } else {
        u32::MAX
    };
    guest.fill(rng, size.entropy, most);
    let name = format!("{kind}_{}", size.name);
    let key = |what: &str| format!("{name}_{what}");
    if !ephemeral {
        let ratio = guest.refusal_ratio(1, &key("dense"), fresh, rng);
        report.goal(&key("refusal_ratio"), ratio, "<= 2");
    }
    for _ in 0..u64::from(guest.pages) * 8 / 1000 {
        guest.drop_one(rng);
    }
    let mut freed = guest.stores(2, rng, |_| ());
    let [p50, p99, p50_cpu, p99_cpu] = row(&key("freed"), &mut freed);
    report.goal(&key("p99_over_p50"), p99 / p50, "<= 20");
    report.goal(&key("p99_over_p50_cpu"), p99_cpu / p50_cpu, "<= 20");
    report.put(&key("freed_p50_ns"), p50);
    let mut churn = guest.stores(3, rng, |rng| guest.drop_one(rng));
    let [p50, p99, p50_cpu, p99_cpu] = row(&key("churn"), &mut churn);
    report.goal(&key("churn_p99_over_p50"), p99 / p50, "<= 20");
    report.goal(&key("churn_p99_over_p50_cpu"), p99_cpu / p50_cpu, "<= 20");
    if !ephemeral {
        // Some pages went that no store has got yet: not enough for a frame.
        let ratio = guest.refusal_ratio(4, &key("refused_after_churn"), fresh, rng);
        report.goal(&key("churned_refusal_ratio"), ratio, "<= 2");
    }
}

/// A guest that stores where another has used up the budget, and lets some pages go at random.
fn beside_a_neighbour(size: Size, fresh: &Guest, rng: &mut StdRng, report: &mut Report) {
    let store = new_store(size.bytes);
    let victim = guest(&store, "victim", u64::MAX, PoolSpec::Persistent);
    let mut neighbour = guest(&store, "neighbour", u64::MAX, PoolSpec::Persistent);
    neighbour.fill(rng, size.entropy, u32::MAX);
    for _ in 0..neighbour.pages / 107 {
        neighbour.drop_one(rng);
    }
    let name = format!("neighbour_{}", size.name);
    let mut measured = victim.stores(1, rng, |rng| {
        if rng.random_range(0..4) == 0 {
            neighbour.drop_one(rng);
        }
    });
    let [p50, p99, p50_cpu, p99_cpu] = row(&name, &mut measured);
    let ratio = victim.refusal_ratio(2, &format!("{name}_refused"), fresh, rng);
    report.goal(&format!("{name}_refusal_ratio"), ratio, "<= 2");
    report.goal(&format!("{name}_p99_over_p50"), p99 / p50, "<= 20");
    report.goal(
        &format!("{name}_p99_over_p50_cpu"),
        p99_cpu / p50_cpu,
        "<= 20",
    );
}

/// A guest that stores where the ephemeral pages of two others have used up the budget: some of them are evicted.
fn beside_a_cache(size: Size, spec: PoolSpec<'_>, rng: &mut StdRng, report: &mut Report) {
    let store = new_store(size.bytes);
    let storing = guest(&store, "storing", u64::MAX, PoolSpec::Persistent);
    let bytes = size.entropy.1.div_ceil(64) as u64 * 64;
    let most = u32::try_from(size.bytes / bytes * 3 / 4).expect("fits");
    let mut owners = ["a", "b"].map(|name| guest(&store, name, u64::MAX, spec));
    // Indexes apart, where the pool is one for both.
    owners[1].pages = most;
    owners[0].fill(rng, size.entropy, most);
    owners[1].fill(rng, size.entropy, 2 * most);
    // The oldest pages are not neighbours any more.
    for (owner, first) in owners.iter().zip([0, most]) {
        for _ in 0..most {
            let index = rng.random_range(first..first + most);
            let entropy = rng.random_range(size.entropy.0..size.entropy.1);
            let page = random_page(rng, entropy);
            let stored = owner.domain.store(owner.pool, OBJECT, index, &page);
            stored.expect("others go for it");
        }
    }
    let kind = match spec {
        PoolSpec::Shared { .. } => "group",
        _ => "cache",
    };
    let name = format!("{kind}_{}", size.name);
    let mut measured = storing.stores(1, rng, |_| ());
    assert_eq!(measured.accepted, STORES, "there was something to evict");
    let [p50, p99, p50_cpu, p99_cpu] = row(&name, &mut measured);
    report.goal(&format!("{name}_p99_over_p50"), p99 / p50, "<= 20");
    report.goal(
        &format!("{name}_p99_over_p50_cpu"),
        p99_cpu / p50_cpu,
        "<= 20",
    );
}

/// A refusal where so many guests have used up the budget.
fn many(guests: u32, fresh: &Guest, rng: &mut StdRng, report: &mut Report) {
    let store = new_store(64 * MIB);
    let mut all: Vec<_> = (0..guests)
        .map(|number| {
            guest(
                &store,
                &format!("guest-{number}"),
                u64::MAX,
                PoolSpec::Persistent,
            )
        })
        .collect();
    let share = u32::try_from(64 * MIB).expect("fits") / 4500 / guests;
    for guest in &mut all {
        guest.fill(rng, (PAGE_SIZE - 1, PAGE_SIZE), share);
    }
    all[0].fill(rng, (PAGE_SIZE - 1, PAGE_SIZE), u32::MAX);
    let name = format!("refusal_{guests}_guests");
    let ratio = all[0].refusal_ratio(1, &name, fresh, rng);
    report.goal(&format!("{name}_ratio"), ratio, "<= 2");
}
