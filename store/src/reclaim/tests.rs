//! What a refusal does, counted in locks: the same, however much memory and however many guests there are.

use crate::sync::locks_taken;
use crate::{
    Domain, DomainConfig, ObjectId, PAGE_SIZE, Page, PoolId, PoolSpec, Store, StoreConfig,
};

const OBJECT: ObjectId = ObjectId([1, 0, 0]);
const OTHER: ObjectId = ObjectId([2, 0, 0]);
const MIB: u64 = 1 << 20;
/// Locks of a store that is refused: those of the shard, the class and the spare segments when it tries to get a slot, and
/// of the ledger for what it then charges and uncharges.
const MOST: u64 = 24;

fn page(seed: u32, entropy: usize) -> Page {
    let mut page = [0; PAGE_SIZE];
    let mut state = seed + 1;
    for byte in page.iter_mut().take(entropy) {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *byte = (state >> 24) as u8;
    }
    page
}

fn store(budget: u64) -> Store {
    Store::new(StoreConfig {
        budget,
        background: false,
        ..StoreConfig::default()
    })
    .expect("store")
}

fn guest(store: &Store, name: &str, limit: u64) -> (Domain, PoolId) {
    let config = DomainConfig {
        limit,
        ..DomainConfig::default()
    };
    let domain = store.add_domain(name, config).expect("domain");
    let pool = domain.create_pool(PoolSpec::Persistent).expect("pool");
    (domain, pool)
}

fn fill((domain, pool): &(Domain, PoolId), entropy: impl Fn(u32) -> usize) -> u32 {
    let full = |index: &u32| {
        let page = page(*index, entropy(*index));
        domain.store(*pool, OBJECT, *index, &page).is_err()
    };
    (0..).find(full).expect("an end")
}

/// Locks that a store takes, and whether it was refused.
fn locks((domain, pool): &(Domain, PoolId), index: u32) -> (u64, bool) {
    let page = page(index, PAGE_SIZE);
    let before = locks_taken();
    let stored = domain.store(*pool, OTHER, index, &page);
    (locks_taken() - before, stored.is_err())
}

/// Pages of many sizes, of which a few were freed at random: no frame is idle, and none can be freed.
#[test]
fn a_refusal_looks_at_the_same_few_locks_however_much_is_stored() {
    for (budget, limit) in [
        (64 * MIB, 2 * MIB),
        (64 * MIB, 16 * MIB),
        (2 * MIB, u64::MAX),
        (16 * MIB, u64::MAX),
    ] {
        let store = store(budget);
        let guest = guest(&store, "guest", limit);
        let pages = fill(&guest, |index| 200 + index as usize * 769 % 1500);
        for index in (0..pages).step_by(120) {
            let (domain, pool) = &guest;
            domain.invalidate_page(*pool, OBJECT, index).expect("pool");
        }
        let mut index = 0;
        while !locks(&guest, index).1 {
            index += 1;
        }
        for index in 0..50 {
            let (locks, refused) = locks(&guest, 100_000 + index);
            assert!(refused);
            assert!(locks <= MOST, "{locks} locks for a refusal");
        }
    }
}

#[test]
fn a_refusal_looks_at_the_same_few_locks_however_many_guests_there_are() {
    for guests in [1, 10, 100] {
        let store = store(24 * MIB);
        let all: Vec<_> = (0..guests)
            .map(|number| guest(&store, &format!("guest-{number}"), u64::MAX))
            .collect();
        for (domain, pool) in &all {
            for index in 0..20 {
                let stored = domain.store(*pool, OTHER, 1000 + index, &page(index, 1000));
                stored.expect("room");
            }
            for index in (0..20).step_by(2) {
                let gone = domain.invalidate_page(*pool, OTHER, 1000 + index);
                gone.expect("pool");
            }
        }
        fill(&all[0], |_| PAGE_SIZE);
        let mut index = 0;
        while !locks(&all[0], index).1 {
            index += 1;
        }
        for index in 0..50 {
            let (locks, refused) = locks(&all[0], 100_000 + index);
            assert!(refused);
            assert!(locks <= MOST, "{locks} locks beside {guests} guests");
        }
    }
}
