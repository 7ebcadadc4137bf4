//! A store to meet in, and pages.

use tmem_store::{Domain, DomainConfig, ObjectId, Page, Store, StoreConfig};

pub(crate) const OBJECT: ObjectId = ObjectId([7, 0, 0]);

pub(crate) fn page(seed: u8) -> Page {
    std::array::from_fn(|at| seed ^ (at / 64) as u8)
}

/// A page that Zstandard makes smaller than LZ4 does, so that the cold tier takes it.
pub(crate) fn cold_page(seed: u8) -> Page {
    let mut state = u32::from(seed) + 1;
    std::array::from_fn(|_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 28) as u8
    })
}

pub(crate) fn store(budget: u64) -> (Store, Domain) {
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

/// Removes the last domain: nothing is charged any more.
pub(crate) fn end(store: &Store, domain: &Domain) {
    domain.remove();
    while store.maintain() {}
    assert_eq!(store.stats().used, 0);
}

/// A page that no codec makes smaller, so that it takes a frame of its own.
pub(crate) fn raw_page(seed: u32) -> Page {
    let mut state = seed + 1;
    std::array::from_fn(|_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    })
}
