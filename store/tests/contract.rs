//! The contract of the store, rule by rule: design section 3.

use tmem_store::{
    DomainConfig, LoadError, ObjectId, PAGE_SIZE, Page, PoolSpec, Store, StoreConfig, StoreError,
};

const OBJECT: ObjectId = ObjectId([1, 2, 3]);

/// A page that compresses to about `entropy` bytes.
fn page(seed: u64, entropy: usize) -> Page {
    let mut page = [0; PAGE_SIZE];
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for byte in page.iter_mut().take(entropy) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        *byte = (state >> 32) as u8;
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

#[test]
fn an_accepted_page_comes_back_until_it_is_invalidated() {
    let store = store(64 << 20);
    let domain = store
        .add_domain("guest", DomainConfig::default())
        .expect("domain");
    let pool = domain.create_pool(PoolSpec::Persistent).expect("pool");
    for index in 0..5000u32 {
        let page = page(u64::from(index), index as usize % 4200);
        assert_eq!(domain.store(pool, OBJECT, index, &page), Ok(()));
    }
    let mut back = [0; PAGE_SIZE];
    for _ in 0..2 {
        for index in 0..5000u32 {
            assert_eq!(domain.load(pool, OBJECT, index, &mut back), Ok(()));
            assert!(back == page(u64::from(index), index as usize % 4200));
        }
    }
    let stats = store.stats();
    assert_eq!(stats.domains[0].pools[0].pages, 5000);
    assert_eq!(stats.used, stats.domains[0].used);
    for index in 0..2500u32 {
        assert_eq!(domain.invalidate_page(pool, OBJECT, index), Ok(()));
        assert_eq!(
            domain.load(pool, OBJECT, index, &mut back),
            Err(LoadError::NotFound)
        );
    }
    assert_eq!(domain.invalidate_object(pool, OBJECT), Ok(()));
    assert_eq!(
        domain.load(pool, OBJECT, 4000, &mut back),
        Err(LoadError::NotFound)
    );
    assert_eq!(store.stats().domains[0].pools[0].pages, 0);
    domain.destroy_pool(pool).expect("pool");
    domain.remove();
    assert_eq!(store.stats().used, 0);
}

#[test]
fn a_full_store_refuses_and_a_refused_duplicate_leaves_no_old_data() {
    let store = store(1 << 20);
    let domain = store
        .add_domain("guest", DomainConfig::default())
        .expect("domain");
    let pool = domain.create_pool(PoolSpec::Persistent).expect("pool");
    let mut accepted = Vec::new();
    for index in 0..2000u32 {
        let page = page(u64::from(index), 1500);
        if domain.store(pool, OBJECT, index, &page).is_ok() {
            accepted.push(index);
        }
        assert!(store.stats().used <= 1 << 20);
    }
    assert!(
        accepted.len() > 500 && accepted.len() < 700,
        "{}",
        accepted.len()
    );
    let first = accepted[0];
    assert_eq!(
        domain.store(pool, OBJECT, first, &page(9, 4096)),
        Err(StoreError::NoSpace)
    );
    let mut back = [0; PAGE_SIZE];
    assert_eq!(
        domain.load(pool, OBJECT, first, &mut back),
        Err(LoadError::NotFound)
    );
    for index in &accepted[1..] {
        assert_eq!(domain.load(pool, OBJECT, *index, &mut back), Ok(()));
        assert!(back == page(u64::from(*index), 1500));
    }
}
