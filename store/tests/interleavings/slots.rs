//! Slots that are held, read and moved while no lock is held.

use shuttle::thread;
use tmem_store::{Dedup, DomainConfig, ObjectId, PAGE_SIZE, PoolSpec};

use crate::common::{OBJECT, end, raw_page, store};

#[test]
fn prefaulted_frames_meet_stores_and_removals_and_lose_no_page() {
    check_prefaulted_frames(false);
}

#[test]
fn prefaulted_frames_meet_the_end_of_their_domain_and_are_given_back() {
    check_prefaulted_frames(true);
}

fn check_prefaulted_frames(ends: bool) {
    shuttle::check_random(
        move || {
            let (store, domain) = store(16 << 20);
            let pool = domain.create_pool(PoolSpec::Persistent).expect("room");
            let other = ObjectId([8, 0, 0]);
            // Large enough that it asks for frames ahead.
            for index in 0..68 {
                let page = raw_page(index);
                domain.store(pool, other, index, &page).expect("room");
            }
            let filler = {
                let store = store.clone();
                thread::spawn(move || {
                    store.prefault();
                    store.prefault();
                })
            };
            let remover = {
                let (store, domain) = (store.clone(), domain.clone());
                thread::spawn(move || {
                    // The second segment, which is being filled, may become empty.
                    for index in 64..68 {
                        let _ = domain.invalidate_page(pool, other, index);
                    }
                    store.maintain();
                    let _ = domain.invalidate_object(pool, other);
                })
            };
            let stored: Vec<_> = (0..4)
                .map(|index| domain.store(pool, OBJECT, index, &raw_page(index)))
                .collect();
            assert!(stored.iter().all(Result::is_ok));
            if ends {
                domain.remove();
            } else {
                for index in 0..4 {
                    let mut back = [0; PAGE_SIZE];
                    assert_eq!(domain.load(pool, OBJECT, index, &mut back), Ok(()));
                    assert!(back == raw_page(index), "other bytes came back");
                }
            }
            filler.join().expect("no panic");
            remover.join().expect("no panic");
            end(&store, &domain);
        },
        2000,
    );
}

#[test]
fn a_slot_that_waits_for_its_frames_meets_compaction_invalidation_and_the_end() {
    for ends in [false, true] {
        shuttle::check_random(
            move || {
                let (store, domain) = store(16 << 20);
                let pool = domain.create_pool(PoolSpec::Persistent).expect("room");
                let other = ObjectId([8, 0, 0]);
                for index in 0..6 {
                    let page = raw_page(index);
                    domain.store(pool, other, index, &page).expect("room");
                }
                let writers: Vec<_> = (0..2u32)
                    .map(|number| {
                        let domain = domain.clone();
                        thread::spawn(move || {
                            for at in [number, number + 2] {
                                let stored = domain.store(pool, OBJECT, at, &raw_page(at));
                                assert!(stored.is_ok() || ends);
                            }
                        })
                    })
                    .collect();
                let keeper = {
                    let (store, domain) = (store.clone(), domain.clone());
                    thread::spawn(move || {
                        for index in 0..5 {
                            let _ = domain.invalidate_page(pool, other, index);
                        }
                        store.maintain();
                        store.maintain();
                    })
                };
                if ends {
                    domain.remove();
                }
                for thread in writers {
                    thread.join().expect("no panic");
                }
                keeper.join().expect("no panic");
                for index in (0..4).filter(|_| !ends) {
                    let mut back = [0; PAGE_SIZE];
                    assert_eq!(domain.load(pool, OBJECT, index, &mut back), Ok(()));
                    assert!(back == raw_page(index), "other bytes came back");
                }
                domain.remove();
                assert_eq!(store.stats().used, 0);
            },
            1500,
        );
    }
}

/// Slots that loads read meet compaction that moves them, stores that replace their pages, and stores that would take
/// their places.
#[test]
fn a_slot_that_is_read_keeps_its_bytes_and_is_given_back_once() {
    for (shared, dedup) in [
        (false, Dedup::Off),
        (false, Dedup::On),
        (true, Dedup::Off),
        (true, Dedup::On),
    ] {
        // With priorities: one thread stands still for as long as others take for many steps.
        shuttle::check_pct(move || read_while_it_moves(shared, dedup), 800, 3);
    }
}

fn read_while_it_moves(shared: bool, dedup: Dedup) {
    let (store, _) = store(16 << 20);
    let config = DomainConfig {
        groups: vec!["files".to_owned()],
        ..DomainConfig::default()
    };
    let domain = store.add_domain("reading", config).expect("new name");
    let spec = if shared {
        PoolSpec::Shared { group: "files" }
    } else {
        PoolSpec::Persistent
    };
    let pool = domain.create_pool_with(spec, dedup).expect("room");
    let other = ObjectId([8, 0, 0]);
    for index in 0..6 {
        let page = raw_page(100 + index);
        domain.store(pool, other, index, &page).expect("room");
    }
    // The highest slot: the first to be moved.
    domain.store(pool, OBJECT, 0, &raw_page(0)).expect("room");
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let domain = domain.clone();
            thread::spawn(move || {
                let mut back = [0; PAGE_SIZE];
                for _ in 0..2 {
                    assert_eq!(domain.load(pool, OBJECT, 0, &mut back), Ok(()));
                    assert!(back == raw_page(0) || back == raw_page(1), "other bytes");
                }
            })
        })
        .collect();
    let keeper = {
        let (store, domain) = (store.clone(), domain.clone());
        thread::spawn(move || {
            for index in 0..5 {
                domain.invalidate_page(pool, other, index).expect("pool");
            }
            store.maintain();
        })
    };
    let writer = {
        let domain = domain.clone();
        thread::spawn(move || {
            domain.store(pool, OBJECT, 0, &raw_page(1)).expect("room");
            domain.store(pool, OBJECT, 1, &raw_page(2)).expect("room");
        })
    };
    for thread in readers.into_iter().chain([keeper, writer]) {
        thread.join().expect("no panic");
    }
    let stats = domain.stats();
    assert_eq!(stats.pools[0].pages, 3);
    assert_eq!(stats.pools[0].corrupt, 0);
    if !shared {
        assert_eq!(stats.slot_bytes, 3 * PAGE_SIZE as u64, "each slot once");
    }
    end(&store, &domain);
}
