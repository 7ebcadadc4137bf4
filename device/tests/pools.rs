//! Pool ids: who may use a pool after the queues changed hands.
#![allow(missing_docs, clippy::cast_possible_truncation)]

mod common;

use std::collections::HashSet;
use std::time::Duration;

use common::*;
use tmem_protocol::{Op, Status};

const LONG: Duration = Duration::from_secs(3600);

fn is_loaded(rig: &mut Rig, pool: u32) -> Status {
    rig.load(pool, &[3]).statuses[0]
}

/// Pages of the guest at the host.
fn pages(rig: &Rig) -> u64 {
    let stats = rig.domain.stats();
    stats.pools.iter().map(|pool| pool.pages).sum()
}

fn with_page() -> (Rig, u32) {
    let mut rig = Rig::new();
    let pool = rig.create_pool();
    assert_eq!(rig.store(pool, &[(3, page(1))]).statuses, [Status::Ok]);
    (rig, pool)
}

#[test]
fn ids_of_pools_cannot_be_guessed_from_others() {
    let mut rig = Rig::new();
    let ids: Vec<u32> = (0..16).map(|_| rig.create_pool()).collect();
    for (place, id) in ids.iter().enumerate() {
        assert_eq!(*id as usize & 0xff, place);
    }
    let apart: HashSet<u32> = ids.iter().map(|id| id >> 8).collect();
    // Two of them may be the same by chance.
    assert!(apart.len() >= 15, "{ids:x?}");
    let other = Rig::new().create_pool();
    assert_ne!(other, ids[0], "of another device");
    rig.device.reset();
    rig.device.set_features(rig.device.offered_features());
    assert_ne!(rig.create_pool(), ids[0], "after a reset");
}

#[test]
fn a_driver_that_names_its_pool_goes_on_after_the_queues_changed_hands() {
    let (mut rig, pool) = with_page();
    let second = rig.create_pool();
    rig.store(second, &[(3, page(2))]);
    rig.device.hand_over(LONG);
    assert_eq!(is_loaded(&mut rig, pool), Status::Ok);
    // It has shown who it is: a mistake costs nothing.
    assert_eq!(is_loaded(&mut rig, pool ^ 0x100), Status::NoPool);
    assert_eq!(is_loaded(&mut rig, second), Status::Ok);
}

#[test]
fn a_driver_that_names_no_pool_of_before_frees_them() {
    for op in [Op::Load, Op::InvalidateObject, Op::DestroyPool] {
        let (mut rig, pool) = with_page();
        rig.device.hand_over(LONG);
        let guess = pool ^ 0x8000_0000;
        let status = match op {
            Op::Load => is_loaded(&mut rig, guess),
            op => {
                let object = if op == Op::DestroyPool {
                    [0; 3]
                } else {
                    OBJECT
                };
                rig.send(&header(op as u16, 0, guess, object), 8).status
            }
        };
        assert_eq!(status, Status::NoPool, "{op:?}");
        assert_eq!(pages(&rig), 0, "{op:?}");
        assert_eq!(is_loaded(&mut rig, pool), Status::NoPool, "{op:?}");
    }
}

#[test]
fn new_pools_are_no_guess_and_show_nothing() {
    let (mut rig, pool) = with_page();
    rig.device.hand_over(LONG);
    let mine = rig.create_pool();
    assert_eq!(is_loaded(&mut rig, mine), Status::NotFound);
    assert_eq!(pages(&rig), 1);
    // A second stranger has nothing of the first, who showed nothing.
    rig.device.hand_over(LONG);
    assert_eq!(is_loaded(&mut rig, mine), Status::NotFound);
    assert_eq!(is_loaded(&mut rig, pool ^ 0x100), Status::NoPool);
    assert_eq!(pages(&rig), 0);
    assert_eq!(is_loaded(&mut rig, mine), Status::NotFound);
}

#[test]
fn a_driver_that_created_a_pool_first_has_those_of_before_too() {
    let (mut rig, pool) = with_page();
    rig.device.hand_over(LONG);
    let second = rig.create_pool();
    rig.store(second, &[(3, page(2))]);
    rig.device.hand_over(LONG);
    assert_eq!(is_loaded(&mut rig, second), Status::Ok);
    assert_eq!(is_loaded(&mut rig, pool), Status::Ok);
    rig.device.hand_over(LONG);
    assert_eq!(is_loaded(&mut rig, pool), Status::Ok);
    // Both are of one driver now.
    assert_eq!(is_loaded(&mut rig, 0x0100_0000), Status::NoPool);
    assert_eq!(is_loaded(&mut rig, second), Status::Ok);
}

#[test]
fn pools_of_before_that_nobody_names_go_after_a_while() {
    let (mut rig, _) = with_page();
    rig.device.hand_over(Duration::ZERO);
    let mine = rig.create_pool();
    assert_eq!(pages(&rig), 1);
    assert_eq!(is_loaded(&mut rig, mine), Status::NotFound);
    assert_eq!(pages(&rig), 0);
    assert_eq!(is_loaded(&mut rig, mine), Status::NotFound);
}
