//! Any sequence of operations of two domains and the operator on a small store, against plain maps.
#![no_main]

use std::collections::HashMap;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use tmem_store::{
    Dedup, DomainChange, DomainConfig, LoadError, ObjectId, PAGE_SIZE, PoolSpec, Store, StoreConfig,
};
use tmem_testkit::corpus::compressible;

#[derive(Arbitrary, Debug)]
enum Operation {
    Store { at: Place, seed: u8, noise: u16 },
    Load { at: Place },
    InvalidatePage { at: Place },
    InvalidateObject { at: Place },
    Freeze { domain: bool },
    Thaw { domain: bool },
    Flush { domain: bool, bytes: u32 },
    Limit { domain: bool, bytes: u32 },
    Maintain,
    SweepCold,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
struct Place {
    domain: bool,
    pool: u8,
    object: u8,
    index: u32,
}

fn page(seed: u8, noise: u16) -> [u8; PAGE_SIZE] {
    let noise = usize::from(noise) % 4200;
    let mut page = compressible(seed.into(), noise);
    if let Some(rest) = page.get_mut(noise..) {
        rest.fill(seed);
    }
    page
}

fuzz_target!(|operations: Vec<Operation>| {
    let store = Store::new(StoreConfig {
        budget: 512 << 10,
        background: false,
        ..StoreConfig::default()
    })
    .expect("a budget");
    let group = PoolSpec::Shared { group: "g" };
    let domains = ["a", "b"].map(|name| {
        let config = DomainConfig {
            groups: vec!["g".to_owned()],
            cold: true,
            ..DomainConfig::default()
        };
        let domain = store.add_domain(name, config).expect("new name");
        let pools = [PoolSpec::Persistent, PoolSpec::Ephemeral, group]
            .map(|spec| domain.create_pool_with(spec, Dedup::On).expect("room"));
        (domain, pools)
    });
    let mut model = HashMap::new();
    for operation in operations {
        // The shared pool is one for both.
        let key = |at: Place| {
            let pool = usize::from(at.pool % 3);
            (at.domain && pool != 2, pool, at.object % 4, at.index)
        };
        let target = |at: Place| {
            let (domain, pools) = &domains[usize::from(at.domain)];
            let object = ObjectId([u64::from(at.object % 4), 0, 0]);
            (domain, pools[usize::from(at.pool % 3)], object, at.index)
        };
        match operation {
            Operation::Store { at, seed, noise } => {
                let (domain, pool, object, index) = target(at);
                if domain
                    .store(pool, object, index, &page(seed, noise))
                    .is_ok()
                {
                    model.insert(key(at), (seed, noise));
                } else {
                    model.remove(&key(at));
                }
            }
            Operation::Load { at } => {
                let (domain, pool, object, index) = target(at);
                let mut back = [0; PAGE_SIZE];
                let loaded = domain.load(pool, object, index, &mut back);
                match (loaded, model.get(&key(at))) {
                    (Ok(()), Some((seed, noise))) => assert!(back == page(*seed, *noise)),
                    (Err(LoadError::NotFound), None) => {}
                    (Err(LoadError::NotFound), Some(_)) => assert!(at.pool % 3 != 0, "page lost"),
                    (other, expected) => panic!("{other:?} for {expected:?}"),
                }
                if at.pool % 3 == 1 || loaded.is_err() {
                    model.remove(&key(at));
                }
            }
            Operation::InvalidatePage { at } => {
                let (domain, pool, object, index) = target(at);
                domain.invalidate_page(pool, object, index).expect("pool");
                model.remove(&key(at));
            }
            Operation::InvalidateObject { at } => {
                let (domain, pool, object, _) = target(at);
                domain.invalidate_object(pool, object).expect("pool");
                let gone = key(at);
                model.retain(|k, _| (k.0, k.1, k.2) != (gone.0, gone.1, gone.2));
            }
            Operation::Freeze { domain } => domains[usize::from(domain)].0.freeze(),
            Operation::Thaw { domain } => domains[usize::from(domain)].0.thaw(),
            Operation::Flush { domain, bytes } => {
                domains[usize::from(domain)].0.flush(u64::from(bytes));
            }
            Operation::Limit { domain, bytes } => {
                let change = DomainChange {
                    limit: Some(u64::from(bytes)),
                    ..DomainChange::default()
                };
                domains[usize::from(domain)]
                    .0
                    .set(change)
                    .expect("no reserve");
            }
            Operation::Maintain => {
                store.prefault();
                store.maintain();
            }
            Operation::SweepCold => {
                store.sweep_cold();
            }
        }
        assert!(store.stats().used <= 512 << 10);
    }
    for (domain, _) in &domains {
        domain.remove();
    }
    assert_eq!(store.stats().used, 0);
});
