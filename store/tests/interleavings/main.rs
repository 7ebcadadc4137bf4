//! The lock protocol under the shuttle checker: `RUSTFLAGS="--cfg shuttle" cargo test -p tmem-store
//! --test interleavings`. Threads meet on the same keys, slots and bytes; each run takes another order of
//! every lock.
#![cfg(shuttle)]

mod common;
mod slots;

use common::{OBJECT, cold_page, end, page, raw_page, store};
use shuttle::thread;
use tmem_store::{
    Dedup, Domain, DomainChange, DomainConfig, LoadError, PAGE_SIZE, Page, PoolId, PoolSpec, Store,
};

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
            end(&store, &domain);
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
            end(&store, &domain);
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
            end(&store, &domain);
            assert_eq!(
                domain.load(pool, OBJECT, 0, &mut [0; PAGE_SIZE]),
                Err(LoadError::NoPool)
            );
            assert_eq!(store.stats().domains.len(), 0);
        },
        3000,
    );
}

#[test]
fn a_page_that_is_loaded_and_replaced_while_it_is_swept_keeps_its_bytes() {
    shuttle::check_random(
        || {
            let (store, domain) = store(16 << 20);
            let change = DomainChange {
                cold: Some(true),
                ..DomainChange::default()
            };
            domain.set(change).expect("within the budget");
            let pool = domain.create_pool(PoolSpec::Persistent).expect("room");
            for index in 0..2 {
                domain
                    .store(pool, OBJECT, index, &cold_page(index as u8))
                    .expect("room");
            }
            // Old enough for the next sweep to take them.
            store.sweep_cold();
            store.sweep_cold();
            let sweeper = {
                let store = store.clone();
                thread::spawn(move || {
                    store.sweep_cold();
                    store.maintain();
                })
            };
            let loader = {
                let domain = domain.clone();
                thread::spawn(move || {
                    for _ in 0..3 {
                        let mut back = [0; PAGE_SIZE];
                        assert_eq!(domain.load(pool, OBJECT, 0, &mut back), Ok(()));
                        assert!(back == cold_page(0), "other bytes came back");
                    }
                })
            };
            domain.store(pool, OBJECT, 1, &cold_page(5)).expect("room");
            loader.join().expect("no panic");
            sweeper.join().expect("no panic");
            for (index, seed) in [(0, 0), (1, 5)] {
                let mut back = [0; PAGE_SIZE];
                assert_eq!(domain.load(pool, OBJECT, index, &mut back), Ok(()));
                assert!(back == cold_page(seed), "other bytes came back");
            }
            end(&store, &domain);
        },
        3000,
    );
}

#[test]
fn a_member_that_leaves_a_group_takes_its_pages_and_no_others() {
    shuttle::check_random(
        || {
            let (store, _) = store(16 << 20);
            let group = PoolSpec::Shared { group: "files" };
            let members = ["a", "b"].map(|name| {
                let config = DomainConfig {
                    groups: vec!["files".to_owned()],
                    ..DomainConfig::default()
                };
                let domain = store.add_domain(name, config).expect("new name");
                let pool = domain.create_pool(group).expect("room");
                (domain, pool)
            });
            let [(a, a_pool), (b, b_pool)] = members;
            // The same bytes under two keys: one record.
            a.store(a_pool, OBJECT, 0, &page(9)).expect("room");
            b.store(b_pool, OBJECT, 1, &page(9)).expect("room");
            let leaver = thread::spawn(move || {
                let _ = a.store(a_pool, OBJECT, 2, &page(9));
                a.remove();
                a
            });
            loads_one_of(&b, b_pool, 0, &[9]);
            b.store(b_pool, OBJECT, 2, &page(3)).expect("room");
            let a = leaver.join().expect("no panic");
            let mut back = [0; PAGE_SIZE];
            assert_eq!(b.load(b_pool, OBJECT, 1, &mut back), Ok(()));
            assert!(back == page(9));
            assert_eq!(
                b.load(b_pool, OBJECT, 0, &mut back),
                Err(LoadError::NotFound)
            );
            loads_one_of(&b, b_pool, 2, &[3]);
            while store.maintain() {}
            assert_eq!(a.freeable(), 0);
            end(&store, &b);
        },
        3000,
    );
}

#[test]
fn stores_at_a_limit_evict_and_never_pass_it() {
    shuttle::check_random(
        || {
            let (store, domain) = store(16 << 20);
            let pool = domain.create_pool(PoolSpec::Ephemeral).expect("room");
            let limit = domain.used() + (24 << 10);
            let change = DomainChange {
                limit: Some(limit),
                ..DomainChange::default()
            };
            domain.set(change).expect("within the budget");
            let threads: Vec<_> = (0..2u32)
                .map(|number| {
                    let domain = domain.clone();
                    thread::spawn(move || {
                        for index in 0..4u32 {
                            let at = number * 4 + index;
                            let raw: Page = std::array::from_fn(|byte| {
                                (byte as u32 * (byte as u32 + at) >> 3) as u8 ^ byte as u8
                            });
                            let _ = domain.store(pool, OBJECT, at, &raw);
                            assert!(domain.used() <= limit, "more than the limit");
                        }
                    })
                })
                .collect();
            for thread in threads {
                thread.join().expect("no panic");
            }
            end(&store, &domain);
        },
        1000,
    );
}

/// A guest whose ephemeral pool is full: any store finds a page to evict.
fn full_cache(pages: u64) -> (Store, Domain, PoolId) {
    let (store, domain) = store(16 << 20);
    let pool = domain.create_pool(PoolSpec::Ephemeral).expect("room");
    // A first page, so that the index is there.
    domain
        .store(pool, OBJECT, 1000, &raw_page(7))
        .expect("room");
    let change = DomainChange {
        limit: Some(domain.used() + (pages << 12)),
        ..DomainChange::default()
    };
    domain.set(change).expect("within the budget");
    (store, domain, pool)
}

#[test]
fn no_store_to_an_ephemeral_pool_is_refused_while_another_evicts() {
    shuttle::check_random(
        || {
            let (store, domain, pool) = full_cache(3);
            let threads: Vec<_> = (0..2u32)
                .map(|number| {
                    let domain = domain.clone();
                    thread::spawn(move || {
                        for index in 0..4u32 {
                            let at = number * 4 + index;
                            let stored = domain.store(pool, OBJECT, at, &raw_page(at));
                            assert_eq!(stored, Ok(()), "page {at}");
                        }
                    })
                })
                .collect();
            for thread in threads {
                thread.join().expect("no panic");
            }
            domain.remove();
            assert_eq!(store.stats().used, 0);
        },
        1000,
    );
}

#[test]
fn two_that_evict_at_once_both_find_pages_that_are_there() {
    shuttle::check_random(
        || {
            let (store, domain) = store(16 << 20);
            let pool = domain.create_pool(PoolSpec::Ephemeral).expect("room");
            // Most of them in one shard, and more than one thread takes at once.
            for index in 0..70 {
                let stored = domain.store(pool, OBJECT, index, &raw_page(index));
                stored.expect("room");
            }
            let threads: Vec<_> = (0..2)
                .map(|_| {
                    let domain = domain.clone();
                    thread::spawn(move || assert!(domain.flush(1) > 0, "nothing was found"))
                })
                .collect();
            for thread in threads {
                thread.join().expect("no panic");
            }
            domain.remove();
            assert_eq!(store.stats().used, 0);
        },
        300,
    );
}

/// Pages enough that ending them is more than one step.
const MANY: u32 = 160;

fn zero_pages(domain: &Domain, pool: PoolId) {
    for index in 0..MANY {
        domain
            .store(pool, OBJECT, index, &[0; PAGE_SIZE])
            .expect("room");
    }
}

#[test]
fn pages_that_come_while_their_object_is_freed_stay_and_those_before_are_gone() {
    shuttle::check_random(
        || {
            let (store, domain) = store(16 << 20);
            let pool = domain.create_pool(PoolSpec::Persistent).expect("room");
            zero_pages(&domain, pool);
            domain.invalidate_object(pool, OBJECT).expect("pool");
            let reaper = {
                let store = store.clone();
                thread::spawn(move || while store.maintain() {})
            };
            let writer = {
                let domain = domain.clone();
                thread::spawn(move || {
                    for index in [0, 70, MANY - 1] {
                        domain.store(pool, OBJECT, index, &page(5)).expect("room");
                    }
                    domain.invalidate_page(pool, OBJECT, 70).expect("pool");
                })
            };
            let mut back = [0; PAGE_SIZE];
            for index in [1, 71, MANY - 2] {
                assert_eq!(
                    domain.load(pool, OBJECT, index, &mut back),
                    Err(LoadError::NotFound)
                );
            }
            writer.join().expect("no panic");
            reaper.join().expect("no panic");
            for index in 0..MANY {
                let loaded = domain.load(pool, OBJECT, index, &mut back);
                assert_eq!(loaded.is_ok(), index == 0 || index == MANY - 1);
                assert!(loaded.is_err() || back == page(5));
            }
            end(&store, &domain);
        },
        500,
    );
}

#[test]
fn a_pool_that_is_freed_by_two_at_once_is_freed_once() {
    shuttle::check_random(
        || {
            let (store, domain) = store(16 << 20);
            let other = domain.create_pool(PoolSpec::Persistent).expect("room");
            domain.store(other, OBJECT, 0, &page(1)).expect("room");
            let pool = domain.create_pool(PoolSpec::Persistent).expect("room");
            zero_pages(&domain, pool);
            domain.store(pool, OBJECT, 1000, &page(2)).expect("room");
            domain.destroy_pool(pool).expect("pool");
            let reaper = {
                let store = store.clone();
                thread::spawn(move || while store.maintain() {})
            };
            let again = domain.create_pool(PoolSpec::Persistent).expect("room");
            domain.store(again, OBJECT, 0, &page(3)).expect("room");
            while store.maintain() {}
            loads_one_of(&domain, again, 0, &[3]);
            loads_one_of(&domain, other, 0, &[1]);
            domain.remove();
            reaper.join().expect("no panic");
            end(&store, &domain);
        },
        300,
    );
}

#[test]
fn a_store_that_meets_its_member_leaving_leaves_no_page_and_no_charge() {
    shuttle::check_random(
        || {
            let (store, _) = store(16 << 20);
            let [a, b] = ["a", "b"].map(|name| {
                let config = DomainConfig {
                    groups: vec!["files".to_owned()],
                    ..DomainConfig::default()
                };
                store.add_domain(name, config).expect("new name")
            });
            let group = PoolSpec::Shared { group: "files" };
            let b_pool = b.create_pool(group).expect("room");
            let a_pool = a.create_pool(group).expect("room");
            let writer = {
                let a = a.clone();
                thread::spawn(move || {
                    let _ = a.store(a_pool, OBJECT, 0, &page(9));
                })
            };
            a.destroy_pool(a_pool).expect("pool");
            let mut back = [0; PAGE_SIZE];
            assert_eq!(
                b.load(b_pool, OBJECT, 0, &mut back),
                Err(LoadError::NotFound),
                "a page of a member that left"
            );
            writer.join().expect("no panic");
            while store.maintain() {}
            assert_eq!(
                a.freeable(),
                0,
                "charged for a page of a group that it left"
            );
            a.remove();
            end(&store, &b);
        },
        3000,
    );
}
