//! The store against plain maps: random operations of several threads, with memory refused and codecs
//! failing, checked by the rules of design section 3.
//!
//! Each thread owns its keys, so that its own maps say exactly what a load may return; all threads share pools,
//! segments, locks, limits and the budget. `TMEM_MODEL_OPS` sets the number of operations.

#![expect(clippy::cast_possible_truncation, reason = "small numbers")]

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tmem_store::{
    Codec, Codecs, Dedup, Domain, DomainChange, DomainConfig, Gate, LoadError, ObjectId, PAGE_SIZE,
    Page, PoolId, PoolSpec, Store, StoreConfig, StoreError, Want,
};

const THREADS: u64 = 4;
const BUDGET: u64 = 10 << 20;
const OBJECTS: u64 = 4;
const INDEXES: u32 = 220;

/// The page that a seed stands for. Seeds below 16 are pages that repeat a word.
fn page(seed: u64) -> Page {
    let mut page = [0; PAGE_SIZE];
    let (words, _) = page.as_chunks_mut::<8>();
    let step = if seed < 16 { 0 } else { 0x9e37_79b9_7f4a_7c15 };
    let mut word = seed;
    for place in words {
        *place = word.to_le_bytes();
        word = word.wrapping_add(step);
    }
    page
}

/// Keeps a page as its seed, padded to a length that depends on it; fails now and then, and gives other
/// threads a chance between two steps of the store.
#[derive(Debug)]
struct Toy {
    calls: AtomicU64,
    longest: usize,
}

impl Codec for Toy {
    fn compress(&self, page: &Page, out: &mut [u8]) -> Option<usize> {
        let call = self.calls.fetch_add(1, Ordering::Relaxed);
        if call.is_multiple_of(13) {
            std::thread::yield_now();
        }
        if call.is_multiple_of(97) {
            return None;
        }
        let seed = u64::from_le_bytes(*page.first_chunk()?);
        let len = 9 + (seed as usize).wrapping_mul(2_654_435_761) % self.longest;
        out[..len].fill(seed as u8);
        out[..8].copy_from_slice(&seed.to_le_bytes());
        Some(len)
    }

    fn decompress(&self, bytes: &[u8], out: &mut Page) -> bool {
        let Some(seed) = bytes.first_chunk() else {
            return false;
        };
        let seed = u64::from_le_bytes(*seed);
        *out = page(seed);
        bytes[8..].iter().all(|byte| *byte == seed as u8)
    }
}

/// Refuses memory now and then while it is told to.
#[derive(Debug, Default)]
struct Miser {
    mean: AtomicBool,
    calls: AtomicU64,
}

impl Gate for Miser {
    fn allow(&self, _bytes: u64, _want: Want) -> bool {
        let call = self.calls.fetch_add(1, Ordering::Relaxed);
        if call.is_multiple_of(31) {
            std::thread::yield_now();
        }
        !self.mean.load(Ordering::Relaxed) || !call.is_multiple_of(53)
    }
}

/// A pool and what a plain map says of the thread's keys in it.
struct Known {
    pool: PoolId,
    kind: Kind,
    pages: HashMap<(u64, u32), u64>,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Persistent,
    Ephemeral,
    Shared,
}

struct Thread {
    number: u64,
    rng: StdRng,
    domain: Domain,
    /// A neighbour in the same share group, and its id of the shared pool.
    peer: Domain,
    peer_pool: PoolId,
    known: Vec<Known>,
}

impl Thread {
    fn object(&self, number: u64) -> ObjectId {
        ObjectId([self.number, number, 0])
    }

    fn run(&mut self, store: &Store, operations: u64) {
        for _ in 0..operations {
            let at = self.rng.random_range(0..self.known.len());
            let object = self.rng.random_range(0..OBJECTS);
            let index = self.rng.random_range(0..INDEXES) * if object == 3 { 100_003 } else { 1 };
            match self.rng.random_range(0..1000) {
                0..420 => self.store(at, object, index),
                420..820 => self.load(at, object, index),
                820..960 => self.invalidate(at, object, index),
                960..975 => self.invalidate_object(at, object),
                975..978 => self.recreate(at),
                978..981 => {
                    store.prefault();
                    store.maintain();
                }
                981..982 => {
                    store.sweep_cold();
                }
                982..986 => self.flush(),
                986..990 => self.domain.freeze(),
                990..995 => self.domain.thaw(),
                _ => self.change_limit(),
            }
            if self.rng.random_range(0..64) == 0 {
                assert!(store.stats().used <= BUDGET, "more used than the budget");
            }
        }
        self.domain.thaw();
    }

    fn store(&mut self, at: usize, object: u64, index: u32) {
        // Few seeds, so that pages are the same and are stored again under other keys.
        let seed = self.rng.random_range(0..600u64);
        let id = self.object(object);
        let known = &mut self.known[at];
        let through_peer = known.kind == Kind::Shared && seed.is_multiple_of(2);
        let stored = if through_peer {
            self.peer.store(self.peer_pool, id, index, &page(seed))
        } else {
            self.domain.store(known.pool, id, index, &page(seed))
        };
        match stored {
            Ok(()) => {
                known.pages.insert((object, index), seed);
            }
            // Rule 2: whatever the reason, the old data is dropped.
            Err(StoreError::NoPool) => panic!("the pool is there"),
            Err(_) => {
                known.pages.remove(&(object, index));
            }
        }
    }

    fn load(&mut self, at: usize, object: u64, index: u32) {
        let id = self.object(object);
        let known = &mut self.known[at];
        let mut back = [0; PAGE_SIZE];
        let through_peer = known.kind == Kind::Shared && index.is_multiple_of(2);
        let loaded = if through_peer {
            self.peer.load(self.peer_pool, id, index, &mut back)
        } else {
            self.domain.load(known.pool, id, index, &mut back)
        };
        let expected = known.pages.get(&(object, index)).copied();
        match (loaded, expected) {
            (Ok(()), Some(seed)) => assert!(back == page(seed), "other bytes came back"),
            (Ok(()), None) => panic!("a page came back that is not there"),
            (Err(LoadError::NotFound), None) => {}
            (Err(LoadError::NotFound), Some(_)) => {
                assert!(known.kind != Kind::Persistent, "a persistent page is lost");
                known.pages.remove(&(object, index));
            }
            (Err(error), _) => panic!("{error}"),
        }
        if known.kind == Kind::Ephemeral {
            known.pages.remove(&(object, index));
        }
    }

    fn invalidate(&mut self, at: usize, object: u64, index: u32) {
        let id = self.object(object);
        let known = &mut self.known[at];
        assert_eq!(self.domain.invalidate_page(known.pool, id, index), Ok(()));
        known.pages.remove(&(object, index));
    }

    fn invalidate_object(&mut self, at: usize, object: u64) {
        let id = self.object(object);
        let known = &mut self.known[at];
        assert_eq!(self.domain.invalidate_object(known.pool, id), Ok(()));
        known.pages.retain(|(other, _), _| *other != object);
    }

    /// A private pool goes and another comes.
    fn recreate(&mut self, at: usize) {
        let known = &mut self.known[at];
        let spec = match known.kind {
            Kind::Persistent => PoolSpec::Persistent,
            Kind::Ephemeral => PoolSpec::Ephemeral,
            Kind::Shared => return,
        };
        assert_eq!(self.domain.destroy_pool(known.pool), Ok(()));
        assert!(self.domain.destroy_pool(known.pool).is_err());
        assert_eq!(
            self.domain
                .load(known.pool, ObjectId::default(), 0, &mut [0; PAGE_SIZE]),
            Err(LoadError::NoPool)
        );
        known.pages.clear();
        let dedup = if self.rng.random() {
            Dedup::On
        } else {
            Dedup::Off
        };
        loop {
            if let Ok(pool) = self.domain.create_pool_with(spec, dedup) {
                self.known[at].pool = pool;
                return;
            }
            self.domain.flush(1 << 20);
            if at != 0 {
                let object = self.rng.random_range(0..OBJECTS);
                self.invalidate_object(0, object);
            }
        }
    }

    fn flush(&mut self) {
        self.domain.flush(self.rng.random_range(0..200_000));
    }

    fn change_limit(&mut self) {
        let limit = match self.rng.random_range(0..3) {
            0 => u64::MAX,
            1 => 2 << 20,
            _ => 4 << 20,
        };
        let change = DomainChange {
            limit: Some(limit),
            weight: Some(self.rng.random_range(1..5)),
            cold: Some(self.rng.random()),
            ..DomainChange::default()
        };
        self.domain.set(change).expect("within the budget");
    }
}

fn run(operations: u64, background: bool, seed: u64) {
    let miser = Arc::new(Miser::default());
    let toy = |longest| {
        Arc::new(Toy {
            calls: AtomicU64::new(1),
            longest,
        })
    };
    let store = Store::new(StoreConfig {
        budget: BUDGET,
        codecs: Codecs {
            hot: toy(4000),
            cold: toy(1500),
        },
        background,
        background_start: None,
        cold_after: Duration::from_millis(20),
        gate: Some(miser.clone()),
        locked: false,
    })
    .expect("store");
    let domains: Vec<_> = (0..THREADS)
        .map(|number| {
            let config = DomainConfig {
                reserve: if number == 0 { 2 << 20 } else { 0 },
                groups: vec!["files".to_owned()],
                cold: number % 2 == 0,
                ..DomainConfig::default()
            };
            let domain = store
                .add_domain(&format!("d{number}"), config)
                .expect("new");
            let shared = PoolSpec::Shared { group: "files" };
            let pools = [PoolSpec::Persistent, PoolSpec::Ephemeral, shared]
                .map(|spec| domain.create_pool(spec).expect("room"));
            (domain, pools)
        })
        .collect();
    miser.mean.store(true, Ordering::Relaxed);
    std::thread::scope(|scope| {
        for number in 0..THREADS {
            let (domain, pools) = domains[number as usize].clone();
            let (peer, peer_pools) = domains[(number as usize + 1) % domains.len()].clone();
            let store = &store;
            scope.spawn(move || {
                let known = [Kind::Persistent, Kind::Ephemeral, Kind::Shared]
                    .into_iter()
                    .zip(pools)
                    .map(|(kind, pool)| Known {
                        pool,
                        kind,
                        pages: HashMap::new(),
                    })
                    .collect();
                Thread {
                    number,
                    rng: StdRng::seed_from_u64(seed + number),
                    domain,
                    peer,
                    peer_pool: peer_pools[2],
                    known,
                }
                .run(store, operations / THREADS);
            });
        }
    });
    if !background {
        let stats = store.stats();
        let charged: u64 = stats.domains.iter().map(|domain| domain.used).sum();
        assert_eq!(
            charged + stats.shared_overhead - stats.saved,
            stats.used,
            "rule 9: the sizes add up"
        );
    }
    for (domain, _) in &domains {
        domain.remove();
        domain.remove();
    }
    while !background && store.maintain() {}
    // The background thread may be in the middle of giving frames back.
    let deadline = Instant::now() + Duration::from_secs(20);
    while background && store.stats().used > 0 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(store.stats().used, 0, "all that was charged is given back");
}

fn operations() -> u64 {
    std::env::var("TMEM_MODEL_OPS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(1_000_000)
}

#[test]
fn random_operations_of_four_threads_agree_with_a_plain_map() {
    run(operations() / 2, false, 1);
}

#[test]
fn they_agree_while_the_background_thread_compacts_and_cools() {
    run(operations() / 2, true, 100);
}
