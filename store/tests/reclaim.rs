//! Stores when no memory is left: the memory that they free before they are refused, and the memory that they must not
//! take.

mod common;

use common::store;
use tmem_store::{
    Domain, DomainConfig, ObjectId, PAGE_SIZE, Page, PoolId, PoolSpec, Store, StoreError,
};
use tmem_testkit::corpus::compressible;

const OBJECT: ObjectId = ObjectId([1, 2, 3]);
const OTHER: ObjectId = ObjectId([2, 2, 3]);
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

fn page(seed: u32, entropy: usize) -> Page {
    compressible(seed.into(), entropy)
}

fn guest(store: &Store, name: &str, limit: u64, spec: PoolSpec<'_>) -> (Domain, PoolId) {
    let config = DomainConfig {
        limit,
        ..DomainConfig::default()
    };
    let domain = store.add_domain(name, config).expect("domain");
    let pool = domain.create_pool(spec).expect("pool");
    (domain, pool)
}

/// Stores pages of about `entropy` bytes until one is refused. Returns how many.
fn fill(domain: &Domain, pool: PoolId, object: ObjectId, entropy: usize) -> u32 {
    (0..)
        .find(|index| {
            let stored = domain.store(pool, object, *index, &page(*index, entropy));
            assert!(matches!(stored, Ok(()) | Err(StoreError::NoSpace)));
            stored.is_err()
        })
        .expect("an end")
}

fn moved(domain: &Domain) -> u64 {
    domain.stats().pools.iter().map(|pool| pool.moved).sum()
}

/// A guest at its limit frees one of eight pages, some in every frame: moving slots can free an eighth of the memory,
/// and no frame is idle before.
#[test]
fn a_store_wins_all_that_moving_slots_can_win_before_it_is_refused() {
    for (budget, limit) in [(64 * MIB, 4 * MIB), (4 * MIB, u64::MAX)] {
        for entropy in [100, 400, 1200] {
            let store = store(budget);
            let (domain, pool) = guest(&store, "guest", limit, PoolSpec::Persistent);
            let pages = fill(&domain, pool, OBJECT, entropy);
            let freed: Vec<_> = (0..pages).filter(|index| index % 8 == 3).collect();
            for index in &freed {
                domain.invalidate_page(pool, OBJECT, *index).expect("pool");
            }
            let slots = freed.len() as u64 * (entropy as u64 + 20);
            // A page of 4 KiB at a time, each in a frame of its own.
            let mut accepted = 0;
            let mut most = 0;
            for index in 0.. {
                let before = moved(&domain);
                let stored = domain.store(pool, OTHER, index, &page(index, PAGE_SIZE));
                most = most.max(moved(&domain) - before);
                if stored.is_err() {
                    break;
                }
                accepted += 1;
            }
            let frames = slots / (4 * KIB);
            assert!(
                accepted >= frames * 8 / 10,
                "{accepted} pages in the place of {frames} frames, {entropy} bytes a slot"
            );
            // The index of the new pages may want a frame, too.
            assert!(most <= 2 * 65, "one store moved {most} pages");
            for index in (0..pages).filter(|index| index % 8 != 3) {
                let mut back = [0; PAGE_SIZE];
                assert_eq!(domain.load(pool, OBJECT, index, &mut back), Ok(()));
                assert!(back == page(index, entropy));
            }
        }
    }
}

#[test]
fn a_store_short_of_budget_moves_no_page_of_another_guest_and_the_background_wins_what_that_wastes()
{
    let store = store(8 * MIB);
    let (victim, pool) = guest(&store, "victim", u64::MAX, PoolSpec::Persistent);
    let (neighbour, other) = guest(&store, "neighbour", u64::MAX, PoolSpec::Persistent);
    let pages = fill(&neighbour, other, OBJECT, 400);
    for index in (0..pages).filter(|index| index % 8 == 3) {
        let gone = neighbour.invalidate_page(other, OBJECT, index);
        gone.expect("pool");
    }
    // What was idle goes; then nothing but compaction could help.
    let accepted = fill(&victim, pool, OTHER, PAGE_SIZE);
    for index in 0..200 {
        let stored = victim.store(pool, OTHER, 10_000 + index, &page(index, PAGE_SIZE));
        assert_eq!(stored, Err(StoreError::NoSpace));
    }
    assert_eq!(moved(&neighbour), 0, "pages of the neighbour were moved");
    while store.maintain() {}
    assert!(moved(&neighbour) > 0);
    let more = fill(&victim, pool, OBJECT, PAGE_SIZE);
    assert!(more > 100, "{more} pages after {accepted}");
    for index in (0..pages).filter(|index| index % 8 != 3) {
        let mut back = [0; PAGE_SIZE];
        assert_eq!(neighbour.load(other, OBJECT, index, &mut back), Ok(()));
        assert!(back == page(index, 400));
    }
}

/// The waste is below what the background would move slots for on its own.
#[test]
fn after_a_refusal_the_background_wins_even_what_it_would_leave() {
    let store = store(32 * MIB);
    let (victim, pool) = guest(&store, "victim", u64::MAX, PoolSpec::Persistent);
    let (neighbour, other) = guest(&store, "neighbour", u64::MAX, PoolSpec::Persistent);
    let pages = fill(&neighbour, other, OBJECT, 1000);
    while store.maintain() {}
    for index in (0..pages).filter(|index| index % 150 == 3) {
        let gone = neighbour.invalidate_page(other, OBJECT, index);
        gone.expect("pool");
    }
    while store.maintain() {}
    assert_eq!(moved(&neighbour), 0, "so little is left alone");
    fill(&victim, pool, OTHER, PAGE_SIZE);
    while store.maintain() {}
    assert!(moved(&neighbour) > 0);
    let more = fill(&victim, pool, OBJECT, PAGE_SIZE);
    assert!(more > 20, "{more} pages");
}

#[test]
fn a_page_refused_for_want_of_budget_is_taken_once_others_freed_some() {
    let store = store(4 * MIB);
    let (full, pool) = guest(&store, "full", u64::MAX, PoolSpec::Persistent);
    let (other, others) = guest(&store, "other", u64::MAX, PoolSpec::Persistent);
    let pages = fill(&other, others, OBJECT, PAGE_SIZE);
    let refused = |index| {
        full.store(pool, OBJECT, index, &page(index, PAGE_SIZE))
            .is_err()
    };
    for index in 0..50 {
        assert!(refused(index));
    }
    // Raw pages: each leaves a frame that is idle at once.
    for index in 0..pages / 2 {
        other.invalidate_page(others, OBJECT, index).expect("pool");
    }
    for index in 0..pages / 2 - 8 {
        assert!(!refused(index), "page {index} of {pages}");
    }
}
