//! What a Rust programmer would take instead: a concurrent map of compressed vectors, a cache with a
//! weighted capacity. Bytes of resident memory and nanoseconds for a page, on the same pages.

use std::hint::black_box;
use std::time::Instant;

use lz4_flex::block::{compress, decompress_into};
use serde_json::json;
use tmem_store::{DomainConfig, ObjectId, PAGE_SIZE, Page, PoolSpec, Store, StoreConfig};

use crate::density::{resident_bytes, trim_heap};
use tmem_testkit::report::{Report, quantile};

type Key = ([u64; 3], u32);

struct Row {
    name: &'static str,
    bytes: f64,
    store: f64,
    load: f64,
}

fn row<T>(
    name: &'static str,
    pages: &[Page],
    new: impl FnOnce() -> T,
    mut store: impl FnMut(&T, Key, &Page),
    mut load: impl FnMut(&T, Key, &mut Page),
) -> Row {
    trim_heap();
    let (mut stores, mut loads) = (
        Vec::with_capacity(pages.len()),
        Vec::with_capacity(pages.len()),
    );
    stores.resize(pages.len(), 0u32);
    loads.resize(pages.len(), 0u32);
    let before = resident_bytes();
    let kept = new();
    for (index, page) in pages.iter().enumerate() {
        let start = Instant::now();
        store(&kept, ([0; 3], index as u32), page);
        stores[index] = start.elapsed().as_nanos() as u32;
    }
    let bytes = resident_bytes() - before;
    let mut back = [0; PAGE_SIZE];
    for (index, page) in pages.iter().enumerate() {
        let start = Instant::now();
        load(&kept, ([0; 3], index as u32), &mut back);
        loads[index] = start.elapsed().as_nanos() as u32;
        assert!(back == *page);
    }
    black_box(&kept);
    Row {
        name,
        bytes: bytes / pages.len() as f64,
        store: quantile(&mut stores, 0.5),
        load: quantile(&mut loads, 0.5),
    }
}

pub(crate) fn table(pages: &[Page], report: &mut Report) {
    let rows = [
        row(
            "tmem-store",
            pages,
            || {
                let store = Store::new(StoreConfig {
                    budget: 64 << 30,
                    ..StoreConfig::default()
                })
                .expect("store");
                let domain = store
                    .add_domain("one", DomainConfig::default())
                    .expect("domain");
                let pool = domain.create_pool(PoolSpec::Persistent).expect("pool");
                (store, domain, pool)
            },
            |(_, domain, pool), (object, index), page| {
                domain
                    .store(*pool, ObjectId(object), index, page)
                    .expect("room");
            },
            |(_, domain, pool), (object, index), page| {
                domain
                    .load(*pool, ObjectId(object), index, page)
                    .expect("there");
            },
        ),
        row(
            "dashmap of Vec<u8>",
            pages,
            dashmap::DashMap::<Key, Vec<u8>>::new,
            |map, key, page| {
                let mut bytes = compress(page);
                bytes.shrink_to_fit();
                map.insert(key, bytes);
            },
            |map, key, page| {
                let bytes = map.get(&key).expect("there");
                decompress_into(&bytes, page).expect("valid");
            },
        ),
        row(
            "moka, weighted",
            pages,
            || {
                moka::sync::Cache::<Key, std::sync::Arc<[u8]>>::builder()
                    .weigher(|_, bytes| u32::try_from(bytes.len()).unwrap_or(u32::MAX))
                    .max_capacity(64 << 30)
                    .build()
            },
            |cache, key, page| {
                cache.insert(key, compress(page).into());
            },
            |cache, key, page| {
                let bytes = cache.get(&key).expect("there");
                decompress_into(&bytes, page).expect("valid");
            },
        ),
    ];
    println!("\ninstead                  bytes a page    store ns     load ns");
    let mut values = Vec::new();
    for row in &rows {
        println!(
            "  {:20} {:14.0} {:11.0} {:11.0}",
            row.name, row.bytes, row.store, row.load
        );
        values.push(json!({
            "name": row.name,
            "bytes_per_page": row.bytes.round(),
            "store_ns_p50": row.store,
            "load_ns_p50": row.load,
        }));
    }
    report.value("comparison", values.into());
}
