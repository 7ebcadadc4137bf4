//! Where the time of a request of 1, 8 and 32 pages goes, in the process that holds the store.
//!
//! Three things take turns on the same pages in the same order: the codec with the copy that every store and load
//! makes, the store with the codec in it, and the device with both in it. What is left of one after the one before is
//! its own.

use std::hint::black_box;
use std::time::Instant;

use tmem_protocol::Op;
use tmem_store::{Codec as _, Lz4, ObjectId, Page, PoolId, PoolSpec};
use tmem_testkit::lane::PAGE;
use tmem_testkit::report::{Report, median, quantile};

use crate::path::{Bench, Turn};
use crate::scale::Scale;

/// Pages of a request.
const BATCHES: [usize; 3] = [1, 8, 32];

/// The pages as the codec leaves them, and where the bare codec and the bare store work.
struct Bare<'a> {
    pages: &'a [Page],
    packed: Vec<Option<Vec<u8>>>,
    pool: PoolId,
    object: ObjectId,
    out: [u8; 4608],
    page: Page,
}

/// Prints the table.
pub(crate) fn rows(bench: &mut Bench<'_>, pages: &[Page], scale: &Scale, report: &mut Report) {
    let mut out = [0; 4608];
    let pack = |page| Lz4.compress(page, &mut out).map(|len| out[..len].to_vec());
    let packed = pages.iter().map(pack).collect();
    let spec = PoolSpec::Persistent;
    let mut bare = Bare {
        pages,
        packed,
        pool: bench.inline.domain.create_pool(spec).expect("pool"),
        object: ObjectId([4, 5, 6]),
        out: [0; 4608],
        page: [0; PAGE as usize],
    };
    println!("\nns a page, medians           codec     store    device       sum");
    for op in [Op::Store, Op::Load] {
        for batch in BATCHES {
            row(bench, &mut bare, (op, batch), scale, report);
        }
    }
    let pool = bench.inline.domain.destroy_pool(bare.pool);
    pool.expect("pool");
}

fn row(
    bench: &mut Bench<'_>,
    bare: &mut Bare<'_>,
    (op, batch): (Op, usize),
    scale: &Scale,
    report: &mut Report,
) {
    let turn = Turn {
        op,
        batch,
        requests: scale.requests / batch,
        read: false,
        pages: bare.pages,
    };
    let mut spent: [Vec<f64>; 3] = Default::default();
    // The first round finds no page to replace.
    for round in 0..=scale.rounds {
        let codec = bare.turn(&turn, Bare::codec);
        let domain = bench.inline.domain.clone();
        let store = bare.turn(&turn, |bare, op, index| {
            if op == Op::Store {
                // The device copies first: the guest may change the page meanwhile.
                bare.page.copy_from_slice(&bare.pages[index]);
                let stored = domain.store(bare.pool, bare.object, index as u32, &bare.page);
                stored.expect("room");
            } else {
                let loaded = domain.load(bare.pool, bare.object, index as u32, &mut bare.page);
                loaded.expect("a page that is there");
            }
            black_box(&bare.page);
        });
        let device = bench.inline(&turn);
        if round > 0 {
            for (list, value) in spent.iter_mut().zip([codec, store, device]) {
                list.push(value / batch as f64);
            }
        }
    }
    let [codec, store, device] = spent.each_mut().map(|list| median(list));
    let name = if op == Op::Store { "store" } else { "load" };
    let (store, device) = (store - codec, device - store);
    println!(
        "  {:20} {codec:9.0} {store:9.0} {device:9.0} {:9.0}",
        format!("{name} {batch} a request"),
        codec + store + device
    );
    for (part, value) in [("codec", codec), ("store", store), ("device", device)] {
        report.put(&format!("{name}{batch}_{part}_ns"), value);
    }
}

impl Bare<'_> {
    /// A copy and the codec.
    fn codec(&mut self, op: Op, index: usize) {
        if op == Op::Store {
            self.page.copy_from_slice(&self.pages[index]);
            black_box(Lz4.compress(black_box(&self.page), &mut self.out));
        } else if let Some(packed) = &self.packed[index] {
            black_box(Lz4.decompress(packed, &mut self.page));
        } else {
            self.page.copy_from_slice(&self.pages[index]);
        }
        black_box(&self.page);
    }

    /// Median time in nanoseconds of as many pages as the turn's requests have, in the same order.
    fn turn(&mut self, turn: &Turn<'_>, mut one: impl FnMut(&mut Self, Op, usize)) -> f64 {
        let mut spent = Vec::with_capacity(turn.requests);
        for first in turn.firsts() {
            let began = Instant::now();
            for index in first..first + turn.batch {
                one(self, turn.op, index);
            }
            spent.push(began.elapsed().as_nanos() as u32);
        }
        quantile(&mut spent, 0.5)
    }
}
