//! What no driver can be faster than, on the host's side of the guest.

use std::hint::{black_box, spin_loop};
use std::path::Path;
use std::time::{Duration, Instant};

use tmem_protocol::Op;
use tmem_store::{Codec as _, Lz4};
use tmem_testkit::frontend::TestGuest;
use tmem_testkit::lane::{Lane, PAGE};
use tmem_testkit::report::{median, quantile};
use vm_memory::{Bytes, GuestAddress};

/// Passes over all pages.
const PASSES: usize = 5;
/// Memory of the ideal client, and where the pages are that it stores, and the frames that it loads them to.
const MEMORY: u64 = 64 << 20;
const SOURCE: u64 = 16 << 20;
const TARGET: u64 = 32 << 20;
/// Pages of a batch.
const BATCH: u32 = 8;
/// How long the service has slept when it is kicked.
const PAUSE: Duration = Duration::from_micros(100);

/// What the pages themselves cost, ns a page.
pub(crate) struct Codec {
    pub(crate) compress: f64,
    pub(crate) decompress: f64,
    pub(crate) copy: f64,
    /// Bytes that the codec leaves, for one of the page.
    pub(crate) compressed: f64,
}

/// The service's codec and a copy, over the pages that the guest wrote.
pub(crate) fn codec(pages: &[[u8; 4096]]) -> Codec {
    let mut out = [0; 4608];
    let mut page = [0; 4096];
    let packed: Vec<Vec<u8>> = pages
        .iter()
        .map(|page| match Lz4.compress(page, &mut out) {
            Some(len) => out[..len].to_vec(),
            None => page.to_vec(),
        })
        .collect();
    let bytes: usize = packed.iter().map(Vec::len).sum();
    let compress = passes(pages.len(), |at| {
        black_box(Lz4.compress(&pages[at], &mut out));
    });
    let decompress = passes(pages.len(), |at| {
        black_box(packed[at].len() == 4096 || Lz4.decompress(&packed[at], &mut page));
    });
    let copy = passes(pages.len(), |at| {
        page.copy_from_slice(black_box(&pages[at]));
        black_box(&page);
    });
    Codec {
        compress,
        decompress,
        copy,
        compressed: bytes as f64 / (pages.len() * 4096) as f64,
    }
}

/// Nanoseconds of one of `count`: the fastest of the passes over each, on average. So what other processes do to some
/// of them does not count.
fn passes(count: usize, mut one: impl FnMut(usize)) -> f64 {
    let mut fastest = vec![u128::MAX; count];
    for _ in 0..PASSES {
        for (at, fastest) in fastest.iter_mut().enumerate() {
            let began = Instant::now();
            one(at);
            *fastest = began.elapsed().as_nanos().min(*fastest);
        }
    }
    fastest.iter().sum::<u128>() as f64 / count as f64
}

/// What requests cost a client of the service that does nothing else, ns a request.
pub(crate) struct Ideal {
    pub(crate) store: f64,
    pub(crate) load: f64,
    /// Of eight pages.
    pub(crate) store8: f64,
    pub(crate) load8: f64,
    /// A load that finds the service asleep, less one that finds it awake: a kick, and the way to its thread.
    pub(crate) wakeup: f64,
}

/// The ideal client: the ring in its memory, one request after the other, the answer polled for.
pub(crate) fn ideal(socket: &Path, pages: &[[u8; 4096]], requests: u32) -> Ideal {
    let mut guest = TestGuest::connect_with(socket, MEMORY);
    guest.start_rings(0);
    let pool = guest.create_pool();
    for (page, at) in pages.iter().zip((SOURCE..TARGET).step_by(PAGE as usize)) {
        let written = guest.memory.write_slice(page, GuestAddress(at));
        written.expect("inside of its memory");
    }
    let count = pages.len() as u32;
    let mut lane = Lane::of(&guest, pool);
    let mut run = |op, batch, requests| one_by_one(&guest, &mut lane, op, batch, count, requests);
    // Every page is there, and every frame has been touched.
    run(Op::Store, BATCH, count / BATCH);
    run(Op::Load, BATCH, count / BATCH);
    let [store, load] = [Op::Store, Op::Load].map(|op| run(op, 1, requests));
    let [store8, load8] = [Op::Store, Op::Load].map(|op| run(op, BATCH, requests / BATCH));
    let mut asleep: Vec<f64> = (0..requests / BATCH)
        .map(|_| {
            while !lane.is_armed() {
                spin_loop();
            }
            // The service is about to sleep now.
            let until = Instant::now() + PAUSE;
            while Instant::now() < until {
                spin_loop();
            }
            one_by_one(&guest, &mut lane, Op::Load, 1, count, 1)
        })
        .collect();
    Ideal {
        store,
        load,
        store8,
        load8,
        wakeup: median(&mut asleep) - load,
    }
}

/// The median of so many requests.
fn one_by_one(
    guest: &TestGuest,
    lane: &mut Lane<'_>,
    op: Op,
    batch: u32,
    pages: u32,
    requests: u32,
) -> f64 {
    let slots = pages / batch;
    let mut took: Vec<u32> = (0..requests)
        .map(|request| {
            let first = request.wrapping_mul(7) % slots * batch;
            let frames = if op == Op::Load { TARGET } else { SOURCE };
            let frame = frames + PAGE * u64::from(first);
            let began = Instant::now();
            if lane.submit(op, first..first + batch, frame) {
                guest.kick(1);
            }
            while !lane.is_done() {
                spin_loop();
            }
            lane.take();
            began.elapsed().as_nanos() as u32
        })
        .collect();
    quantile(&mut took, 0.5)
}
