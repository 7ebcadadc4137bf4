//! Requests through the ring of the service, against the same requests served inline.
//!
//! Inline is what `tmem run` does in the exit of a doorbell, without the exit: the same device code on
//! a ring of the same layout in the same guest memory, called by the thread that made the request. In
//! both cases the time goes from the first byte of the request to the status of its last page. The
//! sides take turns; a ratio is the median of those of all rounds.

use std::hint::{black_box, spin_loop};
use std::time::{Duration, Instant};

use tmem_device::{TmemConfig, TmemDevice};
use tmem_protocol::Op;
use tmem_store::{Domain, DomainConfig, ObjectId, Page, PoolSpec, Store, StoreConfig};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::scale::Scale;
use crate::service::{Served, pinned};
use crate::wakeup;
use tmem_testkit::driver::{Layout, Ring};
use tmem_testkit::frontend::{QUEUE_SIZE, TestGuest};
use tmem_testkit::lane::{Lane, PAGE};
use tmem_testkit::report::{Report, median, quantile};

const MEMORY: u64 = 64 << 20;
/// The ring of the device in this process, behind those of the guest.
const INLINE: Layout = Layout::at(0xc000, QUEUE_SIZE);
/// Pages of the guest that it stores, and frames that it loads them to: more than a processor's own cache.
const SOURCE: u64 = 16 << 20;
const TARGET: u64 = 32 << 20;
const BATCH: usize = 8;
/// How long the worker has slept when it is kicked, where it sleeps.
const PAUSE: Duration = Duration::from_micros(100);

/// The device in this process.
pub(crate) struct Inline {
    device: TmemDevice,
    pub(crate) domain: Domain,
    queue: Queue,
    _store: Store,
}

impl Inline {
    fn new() -> Self {
        let store = Store::new(StoreConfig {
            budget: 2 << 30,
            ..StoreConfig::default()
        })
        .expect("store");
        let domain = store
            .add_domain("inline", DomainConfig::default())
            .expect("domain");
        let mut queue = INLINE.queue();
        queue.set_event_idx(true);
        Self {
            device: TmemDevice::new(domain.clone(), TmemConfig::default()),
            domain,
            queue,
            _store: store,
        }
    }

    fn ring(&mut self, memory: &GuestMemoryMmap) {
        let served = self
            .device
            .process_requests(1, memory, &mut self.queue)
            .expect("a sound ring");
        assert_eq!(served.chains, 1);
        black_box(self.queue.needs_notification(memory).expect("a sound ring"));
    }
}

/// When the client kicks the service.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kick {
    /// When the device asks for it, as virtio says: not while its worker still spins.
    Wanted,
    /// For each request.
    Always,
    /// For each request, which is made only after the worker has gone to sleep.
    Asleep,
}

/// What one turn consists of.
pub(crate) struct Turn<'a> {
    pub(crate) op: Op,
    pub(crate) batch: usize,
    pub(crate) requests: usize,
    /// The guest reads what it loaded, in the time that counts.
    pub(crate) read: bool,
    pub(crate) pages: &'a [Page],
}

impl Turn<'_> {
    /// The first page of each request.
    pub(crate) fn firsts(&self) -> impl Iterator<Item = usize> {
        let (batch, slots) = (self.batch, self.pages.len() / self.batch);
        (0..self.requests).map(move |request| request * 7 % slots * batch)
    }

    /// Makes the requests, and lets `exchange` get the answer of each. Returns the median time of one in
    /// nanoseconds, which a process that gets in between does not change.
    fn run(&self, lane: &mut Lane<'_>, mut exchange: impl FnMut(&mut Lane<'_>, bool)) -> f64 {
        let mut spent = Vec::with_capacity(self.requests);
        let mut page = [0; PAGE as usize];
        for first in self.firsts() {
            let frames = if self.op == Op::Load { TARGET } else { SOURCE };
            let frame = frames + PAGE * first as u64;
            let indices = first as u32..(first + self.batch) as u32;
            let began = Instant::now();
            let wanted = lane.submit(self.op, indices, frame);
            exchange(lane, wanted);
            lane.take();
            if self.read {
                lane.read_page(frame, &mut page);
            }
            spent.push(began.elapsed().as_nanos() as u32);
        }
        quantile(&mut spent, 0.5)
    }
}

/// Both sides.
pub(crate) struct Bench<'a> {
    guest: &'a TestGuest,
    remote: Lane<'a>,
    lane: Lane<'a>,
    pub(crate) inline: Inline,
}

/// Nanoseconds a request: medians of the rounds, and of their ratios.
struct Compared {
    inline: f64,
    remote: f64,
    ratio: f64,
}

impl Bench<'_> {
    /// Median nanoseconds of a request that this process serves.
    pub(crate) fn inline(&mut self, turn: &Turn<'_>) -> f64 {
        let (memory, inline) = (&self.guest.memory, &mut self.inline);
        turn.run(&mut self.lane, |_, _| inline.ring(memory))
    }

    fn remote(&mut self, turn: &Turn<'_>, kick: Kick) -> f64 {
        let guest = self.guest;
        turn.run(&mut self.remote, |lane, wanted| {
            if wanted || kick != Kick::Wanted {
                guest.kick(1);
            }
            while !lane.is_done() {
                spin_loop();
            }
        })
    }

    /// As [`Self::remote`], but each request finds the worker asleep.
    fn remote_asleep(&mut self, turn: &Turn<'_>) -> f64 {
        let one = Turn {
            requests: 1,
            ..*turn
        };
        let mut spent: Vec<_> = (0..turn.requests)
            .map(|_| {
                while !self.remote.is_armed() {
                    spin_loop();
                }
                // It is about to sleep now.
                let asleep = Instant::now() + PAUSE;
                while Instant::now() < asleep {
                    spin_loop();
                }
                self.remote(&one, Kick::Asleep)
            })
            .collect();
        median(&mut spent)
    }

    fn compare(&mut self, turn: &Turn<'_>, rounds: usize, kick: Kick) -> Compared {
        let (mut inline, mut remote, mut ratios) = (vec![], vec![], vec![]);
        for _ in 0..rounds {
            let here = self.inline(turn);
            let there = match kick {
                Kick::Asleep => self.remote_asleep(turn),
                kick => self.remote(turn, kick),
            };
            inline.push(here);
            remote.push(there);
            ratios.push(there / here);
        }
        Compared {
            inline: median(&mut inline),
            remote: median(&mut remote),
            ratio: median(&mut ratios),
        }
    }
}

/// Gives `work` both sides, with these pages in the memory of the guest, on a processor of its own.
pub(crate) fn with(pages: &[Page], work: impl FnOnce(&mut Bench<'_>)) {
    let served = Served::start(&["a".to_owned()]);
    let mut inline = Inline::new();
    let mut guest = TestGuest::connect_with(&served.socket("a"), MEMORY);
    guest.start_rings(0);
    let pool = guest.create_pool();
    served.pin("a", 1);
    for (page, at) in pages.iter().zip((SOURCE..).step_by(PAGE as usize)) {
        let page = guest.memory.write_slice(page, GuestAddress(at));
        page.expect("inside");
    }
    Ring::new(guest.memory.clone(), INLINE).clear();
    let mut lane = Lane::new(&guest.memory, INLINE, 0, 0);
    lane.submit(Op::CreatePool, 0..0, 0);
    inline.ring(&guest.memory);
    lane.take_pool();
    let mut bench = Bench {
        remote: Lane::of(&guest, pool),
        lane,
        inline,
        guest: &guest,
    };
    pinned(0, || work(&mut bench));
}

/// Prints the table and the ratios.
pub(crate) fn rows(bench: &mut Bench<'_>, pages: &[Page], scale: &Scale, report: &mut Report) {
    let turn = |op, batch, requests| Turn {
        op,
        batch,
        requests,
        read: false,
        pages,
    };
    // Every page is there, and every frame has been touched.
    for op in [Op::Store, Op::Load] {
        let all = turn(op, 1, pages.len());
        bench.inline(&all);
        bench.remote(&all, Kick::Wanted);
    }
    let one = |op| turn(op, 1, scale.requests);
    let few = |op, batch| turn(op, batch, scale.requests / BATCH);
    let read = Turn {
        read: true,
        ..one(Op::Load)
    };
    let turns = [
        ("load_polled", "<= 1.35", one(Op::Load), Kick::Wanted),
        ("store_polled", "<= 1.15", one(Op::Store), Kick::Wanted),
        ("load_batch8", "<= 1.7", few(Op::Load, BATCH), Kick::Always),
        // As above, where the kick is needed.
        (
            "load_batch8_asleep",
            "<= 1.7",
            few(Op::Load, BATCH),
            Kick::Asleep,
        ),
        ("load_asleep", "", few(Op::Load, 1), Kick::Asleep),
        ("store_asleep", "", few(Op::Store, 1), Kick::Asleep),
        ("load_polled_read", "", read, Kick::Wanted),
    ];
    println!("\nns a request, medians                  inline   service");
    let found: Vec<_> = turns
        .into_iter()
        .map(|(key, goal, turn, kick)| {
            let found = bench.compare(&turn, scale.rounds, kick);
            println!("  {key:32} {:10.0} {:9.0}", found.inline, found.remote);
            (key, goal, found)
        })
        .collect();
    let bare = bare(bench, pages, scale.rounds);
    println!("  {:32} {:10.0}", "(bare Domain::load)", bare.1);
    println!("  {:32} {:10.0}", "(bare Domain::store)", bare.0);
    report.put("bare_store_ns", bare.0);
    report.put("bare_load_ns", bare.1);
    println!();
    let service = |key| {
        let found = found.iter().find(|(known, ..)| *known == key);
        found.map_or(f64::NAN, |(_, _, found)| found.remote)
    };
    let wakeup = (service("load_asleep") - service("load_polled")) / 1000.0;
    for (key, goal, found) in &found {
        report.put(&format!("{key}_inline_ns"), found.inline);
        report.put(&format!("{key}_service_ns"), found.remote);
        report.goal(&format!("{key}_ratio"), found.ratio, goal);
    }
    report.goal("wakeup_us", wakeup, "");
    report.goal("bare_wakeup_us", wakeup::measure(PAUSE), "");
    report.goal("spin_us", tmem_serve::SPIN.as_secs_f64() * 1e6, "");
}

/// Nanoseconds of [`Domain::store`] and [`Domain::load`] without any device.
fn bare(bench: &Bench<'_>, pages: &[Page], rounds: usize) -> (f64, f64) {
    let domain = &bench.inline.domain;
    let pool = domain.create_pool(PoolSpec::Persistent).expect("pool");
    let object = ObjectId([1, 2, 3]);
    let mut back = [0; PAGE as usize];
    let (mut stores, mut loads) = (vec![], vec![]);
    // The first round finds no page to replace.
    for _ in 0..=rounds.min(5) {
        let began = Instant::now();
        for (index, page) in (0..).zip(pages) {
            domain.store(pool, object, index, page).expect("room");
        }
        stores.push(began.elapsed().as_nanos() as f64 / pages.len() as f64);
        let began = Instant::now();
        for (index, _) in (0..).zip(pages) {
            domain.load(pool, object, index, &mut back).expect("there");
            black_box(&back);
        }
        loads.push(began.elapsed().as_nanos() as f64 / pages.len() as f64);
    }
    domain.destroy_pool(pool).expect("pool");
    (median(&mut stores), median(&mut loads))
}
