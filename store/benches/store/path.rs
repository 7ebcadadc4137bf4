//! Time of a store and of a load, against the codec and one cold copy.

use std::hint::black_box;
use std::sync::Barrier;
use std::time::Instant;

use lz4_flex::block::{CompressTable, compress_into_with_table, decompress_into};
use tmem_store::{
    Codec, Dedup, Domain, DomainConfig, ObjectId, PAGE_SIZE, Page, PoolId, PoolSpec, Store,
    StoreConfig, Zstd,
};

use tmem_testkit::corpus::Source;
use tmem_testkit::report::{Report, quantile};

const OBJECT: ObjectId = ObjectId([0, 0, 0]);

fn nanos(since: Instant) -> u32 {
    u32::try_from(since.elapsed().as_nanos()).unwrap_or(u32::MAX)
}

fn new_store() -> Store {
    Store::new(StoreConfig {
        budget: 64 << 30,
        ..StoreConfig::default()
    })
    .expect("store")
}

fn domain(store: &Store, name: &str) -> Domain {
    store
        .add_domain(
            name,
            DomainConfig {
                groups: vec!["group".to_owned()],
                ..DomainConfig::default()
            },
        )
        .expect("domain")
}

/// Codecs alone: nanoseconds and bytes for a page of each source.
pub(crate) fn codecs(sources: &[Source], report: &mut Report) {
    println!("\ncodec            source                        bytes  compress ns  decompress ns");
    for source in sources {
        let pages: Vec<_> = source.pages.iter().take(6000).collect();
        let mut table = CompressTable::small();
        let mut row = |name: &str,
                       compress: &mut dyn FnMut(&Page, &mut [u8]) -> usize,
                       decompress: &mut dyn FnMut(&[u8], &mut Page) -> bool| {
            let mut out = [0u8; 4608];
            let mut back = [0; PAGE_SIZE];
            let (mut down, mut up, mut bytes) = (Vec::new(), Vec::new(), 0);
            for page in &pages {
                let start = Instant::now();
                let len = compress(page, &mut out);
                down.push(nanos(start));
                bytes += len.min(PAGE_SIZE);
                let start = Instant::now();
                assert!(decompress(&out[..len], &mut back));
                up.push(nanos(start));
                assert!(back == **page);
            }
            let (down, up) = (quantile(&mut down, 0.5), quantile(&mut up, 0.5));
            let bytes = bytes as f64 / pages.len() as f64;
            println!(
                "{name:16} {:28} {bytes:6.0}  {down:11.0}  {up:13.0}",
                source.name
            );
            report.put(&format!("codec/{name}/{}/bytes", source.name), bytes);
            report.put(&format!("codec/{name}/{}/compress_ns", source.name), down);
            report.put(&format!("codec/{name}/{}/decompress_ns", source.name), up);
        };
        row(
            "lz4_flex",
            &mut |page, out| compress_into_with_table(page, out, &mut table).expect("fits"),
            &mut |bytes, page| decompress_into(bytes, page).is_ok(),
        );
        let mut state = vec![0u64; 4096];
        row(
            "lz4 (C)",
            &mut |page, out| {
                // SAFETY: the state has the size that LZ4_sizeofState gives, the lengths are true.
                let len = unsafe {
                    LZ4_compress_fast_extState(
                        state.as_mut_ptr().cast(),
                        page.as_ptr().cast(),
                        out.as_mut_ptr().cast(),
                        4096,
                        4608,
                        1,
                    )
                };
                usize::try_from(len).expect("compressed")
            },
            &mut |bytes, page| {
                let len = i32::try_from(bytes.len()).expect("short");
                // SAFETY: the lengths are true.
                let got = unsafe {
                    lz4_sys::LZ4_decompress_safe(
                        bytes.as_ptr().cast(),
                        page.as_mut_ptr().cast(),
                        len,
                        4096,
                    )
                };
                got == 4096
            },
        );
        for level in [-7, -3, -1, 1] {
            let zstd = Zstd { level };
            row(
                &format!("zstd {level}"),
                &mut |page, out| match zstd.compress(page, out) {
                    Some(len) => len,
                    None => {
                        out[..4096].copy_from_slice(page);
                        4096
                    }
                },
                &mut |bytes, page| {
                    if bytes.len() == PAGE_SIZE {
                        page.copy_from_slice(bytes);
                        return true;
                    }
                    zstd.decompress(bytes, page)
                },
            );
        }
    }
}

unsafe extern "C" {
    fn LZ4_compress_fast_extState(
        state: *mut core::ffi::c_void,
        source: *const core::ffi::c_char,
        dest: *mut core::ffi::c_char,
        source_size: i32,
        dest_capacity: i32,
        acceleration: i32,
    ) -> i32;
}

/// The bare codec, with what it compressed kept in one arena.
struct Bare {
    table: CompressTable,
    arena: Vec<u8>,
    places: Vec<(usize, usize)>,
}

/// An empty list whose memory is already touched, so that no page fault happens during the measurement.
fn touched<T: Copy + Default>(len: usize) -> Vec<T> {
    let mut list = vec![T::default(); len];
    // The allocator may hand out zeroes that the kernel has not made yet.
    for item in &mut list {
        *black_box(item) = T::default();
    }
    list.clear();
    list
}

/// One page after the other: the bare codec and the store take turns to go first, each on its own copy
/// of the page, so that both find it cold.
fn measure(pages: &[Page], object: ObjectId, (domain, pool): (&Domain, PoolId)) -> [(f64, f64); 2] {
    let for_bare = pages.to_vec();
    let for_store = pages.to_vec();
    let mut bare = Bare {
        table: CompressTable::small(),
        arena: touched(pages.len() * 4200),
        places: touched(pages.len()),
    };
    let mut bounce = [0; PAGE_SIZE];
    let mut out = [0u8; 4608];
    let (mut bare_times, mut store_times) = (touched(pages.len()), touched(pages.len()));
    for index in 0..pages.len() {
        let mut one = |bare: &mut Bare| {
            let start = Instant::now();
            bounce.copy_from_slice(&for_bare[index]);
            black_box(&mut bounce);
            let len = compress_into_with_table(&bounce, &mut out, &mut bare.table).expect("fits");
            bare_times.push(nanos(start));
            let at = bare.arena.len();
            bare.arena.extend_from_slice(&out[..len]);
            bare.places.push((at, len));
        };
        if index % 2 == 0 {
            one(&mut bare);
        }
        let mut copy = [0; PAGE_SIZE];
        let start = Instant::now();
        copy.copy_from_slice(&for_store[index]);
        black_box(&mut copy);
        let stored = domain.store(pool, object, index as u32, &copy);
        store_times.push(nanos(start));
        assert_eq!(stored, Ok(()));
        if index % 2 == 1 {
            one(&mut bare);
        }
    }
    let stores = (
        quantile(&mut bare_times, 0.5),
        quantile(&mut store_times, 0.5),
    );

    let mut bare_out = for_bare;
    let mut store_out = for_store;
    bare_times.clear();
    store_times.clear();
    for index in 0..pages.len() {
        let mut one = |bare: &Bare| {
            let (at, len) = bare.places[index];
            let start = Instant::now();
            decompress_into(&bare.arena[at..at + len], &mut bounce).expect("valid");
            bare_out[index].copy_from_slice(&bounce);
            bare_times.push(nanos(start));
        };
        if index % 2 == 0 {
            one(&bare);
        }
        let mut copy = [0; PAGE_SIZE];
        black_box(&mut copy);
        let start = Instant::now();
        let loaded = domain.load(pool, object, index as u32, &mut copy);
        store_out[index].copy_from_slice(&copy);
        store_times.push(nanos(start));
        assert_eq!(loaded, Ok(()));
        if index % 2 == 1 {
            one(&bare);
        }
    }
    assert!(store_out == pages);
    let loads = (
        quantile(&mut bare_times, 0.5),
        quantile(&mut store_times, 0.5),
    );
    [stores, loads]
}

pub(crate) fn store_and_load(pages: &[Page], report: &mut Report) {
    let store = new_store();
    let domain = domain(&store, "one");
    let pool = domain.create_pool(PoolSpec::Persistent).expect("pool");
    println!();
    // Once to warm up, once on new keys, once over existing pages.
    measure(
        &pages[..pages.len() / 4],
        ObjectId([9, 0, 0]),
        (&domain, pool),
    );
    let [stores, loads] = measure(pages, OBJECT, (&domain, pool));
    let [again, _] = measure(pages, OBJECT, (&domain, pool));
    report.put("bare_store_ns", stores.0);
    report.put("store_ns", stores.1);
    report.put("bare_load_ns", loads.0);
    report.put("load_ns", loads.1);
    println!(
        "bare codec and cold copy: store {} ns, load {} ns; the store: {} ns, {} ns",
        stores.0, loads.0, stores.1, loads.1
    );
    report.goal("store_ratio_p50", stores.1 / stores.0, "<= 1.10");
    report.goal("overwrite_ratio_p50", again.1 / again.0, "");
    report.goal("load_ratio_p50", loads.1 / loads.0, "<= 1.15");
}

pub(crate) fn dedup(pages: &[Page], report: &mut Report) {
    let store = new_store();
    let domain = domain(&store, "one");
    let group = PoolSpec::Shared { group: "group" };
    let pool = domain.create_pool_with(group, Dedup::On).expect("pool");
    let [stores, loads] = measure(pages, OBJECT, (&domain, pool));
    report.goal("dedup_store_ratio_p50", stores.1 / stores.0, "<= 1.20");
    report.goal("dedup_load_ratio_p50", loads.1 / loads.0, "<= 1.15");
    let [stores, _] = measure(pages, ObjectId([1, 0, 0]), (&domain, pool));
    report.goal("dedup_duplicate_store_ratio_p50", stores.1 / stores.0, "");
    let saved = store.stats().saved as f64;
    report.goal(
        "dedup_saved_percent",
        100.0 * saved / (saved + store.stats().used as f64),
        "",
    );
}

/// Pages per second of so many threads, each with `pages` pages of its own.
fn rate(threads: usize, pages: usize, work: impl Fn(usize) + Sync) -> f64 {
    let barrier = Barrier::new(threads);
    let (barrier, work) = (&barrier, &work);
    let spans: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads)
            .map(|number| {
                scope.spawn(move || {
                    barrier.wait();
                    let start = Instant::now();
                    work(number);
                    (start, Instant::now())
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("no panic"))
            .collect()
    });
    let start = spans.iter().map(|span| span.0).min().expect("a thread");
    let end = spans.iter().map(|span| span.1).max().expect("a thread");
    (pages * threads) as f64 / (end - start).as_secs_f64()
}

/// Threads that store every page and load half of them.
fn of_the_store(domains: &[(Domain, PoolId)], pages: &[Page], round: u64) -> f64 {
    let object = |number: usize| ObjectId([number as u64 + 1, round, 0]);
    let rate = rate(domains.len(), pages.len(), |number| {
        let (domain, pool) = &domains[number];
        let object = object(number);
        let mut back = [0; PAGE_SIZE];
        for (index, page) in pages.iter().enumerate() {
            domain
                .store(*pool, object, index as u32, page)
                .expect("room");
            if index % 2 == 1 {
                domain
                    .load(*pool, object, index as u32 / 2, &mut back)
                    .expect("there");
            }
        }
    });
    for (number, (domain, pool)) in domains.iter().enumerate() {
        domain
            .invalidate_object(*pool, object(number))
            .expect("pool");
    }
    rate
}

/// Threads that do the same with the codec alone: what the machine allows.
fn of_the_codec(threads: usize, pages: &[Page]) -> f64 {
    rate(threads, pages.len(), |_| {
        let mut table = CompressTable::small();
        let mut out = [0u8; 4608];
        let mut back = [0; PAGE_SIZE];
        for (index, page) in pages.iter().enumerate() {
            let len = compress_into_with_table(page, &mut out, &mut table).expect("fits");
            if index % 2 == 1 {
                decompress_into(&out[..len], &mut back).expect("valid");
            }
            black_box((&mut out, &mut back));
        }
    })
}

pub(crate) fn scaling(pages: &[Page], rounds: usize, report: &mut Report) {
    let pages = &pages[..pages.len().min(2_000)];
    let store = new_store();
    let pools: Vec<_> = ["one", "two"]
        .map(|name| {
            let domain = domain(&store, name);
            let pool = domain.create_pool(PoolSpec::Persistent).expect("pool");
            (domain, pool)
        })
        .into();
    let same = vec![pools[0].clone(), pools[0].clone()];
    let mut rates: [Vec<f64>; 5] = Default::default();
    of_the_store(&pools, pages, 0);
    for round in 0..rounds as u64 * 8 {
        let now = [
            of_the_store(&pools[..1], pages, round),
            of_the_store(&pools, pages, round),
            of_the_store(&same, pages, round),
            of_the_codec(1, pages),
            of_the_codec(2, pages),
        ];
        for (rates, rate) in rates.iter_mut().zip(now) {
            rates.push(rate);
        }
    }
    // The best round of each: other processes on the machine only ever take away.
    let [alone, two_domains, one_domain, codec, two_codecs] =
        rates.map(|rates| rates.into_iter().fold(0.0, f64::max));
    report.put("pages_per_second", alone);
    report.goal("scaling_two_domains", two_domains / alone, ">= 1.8");
    report.goal("scaling_one_domain", one_domain / alone, ">= 1.6");
    report.goal("scaling_codec", two_codecs / codec, "");
}
