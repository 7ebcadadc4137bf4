//! The lock protocol under the shuttle checker: `RUSTFLAGS="--cfg shuttle" cargo test -p tmem-store
//! --test interleavings`. Threads meet on the same keys, slots and bytes; each run takes another order of
//! every lock.
#![cfg(shuttle)]

use shuttle::thread;
use tmem_store::{
    Dedup, Domain, DomainConfig, LoadError, ObjectId, PAGE_SIZE, Page, PoolId, PoolSpec, Store,
    StoreConfig,
};

const OBJECT: ObjectId = ObjectId([7, 0, 0]);

fn page(seed: u8) -> Page {
    std::array::from_fn(|at| seed ^ (at / 64) as u8)
}

fn store(budget: u64) -> (Store, Domain) {
    let store = Store::new(StoreConfig {
        budget,
        background: false,
        ..StoreConfig::default()
    })
    .expect("store");
    let domain = store
        .add_domain("guest", DomainConfig::default())
        .expect("domain");
    (store, domain)
}

fn loads_one_of(domain: &Domain, pool: PoolId, index: u32, seeds: &[u8]) {
    let mut back = [0; PAGE_SIZE];
    match domain.load(pool, OBJECT, index, &mut back) {
        Ok(()) => assert!(seeds.iter().any(|seed| back == page(*seed))),
        Err(error) => assert_eq!(error, LoadError::NotFound),
    }
}

#[test]
fn a_load_sees_one_of_the_pages_that_were_stored_and_the_last_one_stays() {
    shuttle::check_random(
        || {
            let (store, domain) = store(16 << 20);
            let pool = domain.create_pool(PoolSpec::Persistent).expect("room");
            let threads: Vec<_> = (1..3u8)
                .map(|seed| {
                    let domain = domain.clone();
                    thread::spawn(move || {
                        domain.store(pool, OBJECT, 1, &page(seed)).expect("room");
                        loads_one_of(&domain, pool, 1, &[1, 2]);
                        domain.store(pool, OBJECT, 2, &page(seed)).expect("room");
                        domain.invalidate_page(pool, OBJECT, 2).expect("pool");
                    })
                })
                .collect();
            let compactor = {
                let store = store.clone();
                thread::spawn(move || {
                    store.maintain();
                    store.sweep_cold();
                })
            };
            for thread in threads {
                thread.join().expect("no panic");
            }
            compactor.join().expect("no panic");
            let mut back = [0; PAGE_SIZE];
            assert_eq!(domain.load(pool, OBJECT, 1, &mut back), Ok(()));
            assert!(back == page(1) || back == page(2));
            domain.remove();
            assert_eq!(store.stats().used, 0);
        },
        3000,
    );
}

#[test]
fn stores_of_the_same_bytes_share_and_let_go_of_them_in_any_order() {
    shuttle::check_random(
        || {
            let (store, domain) = store(16 << 20);
            let pool = domain
                .create_pool_with(PoolSpec::Ephemeral, Dedup::On)
                .expect("room");
            let threads: Vec<_> = (0..3u32)
                .map(|index| {
                    let domain = domain.clone();
                    thread::spawn(move || {
                        domain.store(pool, OBJECT, index, &page(9)).expect("room");
                        loads_one_of(&domain, pool, (index + 1) % 3, &[9]);
                        domain.flush(64);
                    })
                })
                .collect();
            for thread in threads {
                thread.join().expect("no panic");
            }
            domain.flush(u64::MAX);
            assert_eq!(domain.freeable(), 0);
            domain.remove();
            assert_eq!(store.stats().used, 0);
        },
        3000,
    );
}

#[test]
fn a_pool_that_goes_while_pages_come_leaves_nothing() {
    shuttle::check_random(
        || {
            let (store, domain) = store(16 << 20);
            let pool = domain.create_pool(PoolSpec::Persistent).expect("room");
            let writer = {
                let domain = domain.clone();
                thread::spawn(move || {
                    for index in 0..3 {
                        let _ = domain.store(pool, OBJECT, index, &page(3));
                    }
                })
            };
            domain.remove();
            writer.join().expect("no panic");
            assert_eq!(
                domain.load(pool, OBJECT, 0, &mut [0; PAGE_SIZE]),
                Err(LoadError::NoPool)
            );
            assert_eq!(store.stats().domains.len(), 0);
        },
        3000,
    );
}
