//! Latencies of a guest while another one does harm.
//!
//! On two processors: the guest and its worker have one to themselves, alone and in bad company; the
//! other guest and its worker have the other. So what is measured is what guests share in the service
//! (the store, its locks, memory bandwidth), and not how the kernel divides processors. The guest
//! sleeps until it is interrupted, its worker until it is kicked.

use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tmem_protocol::Op;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use crate::scale::Scale;
use crate::service::{Served, pin, pinned};
use tmem_testkit::corpus::page;
use tmem_testkit::driver::{readable, writable};
use tmem_testkit::frontend::{BUFFERS, QUEUE_SIZE, TestGuest};
use tmem_testkit::lane::Lane;
use tmem_testkit::report::median;
use tmem_testkit::report::{Report, quantile};

/// Pages of the guest that behaves.
const PAGES: u32 = 64;

type Harm = fn(&Path, &AtomicBool);

pub(crate) fn measure(scale: &Scale, report: &mut Report) {
    let served = Served::start(&["good".to_owned(), "bad".to_owned()]);
    let mut guest = TestGuest::boot(&served.socket("good"));
    let pool = guest.create_pool();
    for index in 0..PAGES {
        let bytes = page(index.into());
        guest
            .memory
            .write_slice(&bytes, frame(index))
            .expect("inside");
    }
    served.pin("good", 0);
    served.pin("bad", 1);
    let mut lane = Lane::of(&guest, pool);
    let harms: [(&str, Harm); 3] = [
        ("garbage", garbage),
        ("flood", flood),
        ("reconnects", reconnects),
    ];
    println!("\na guest beside one that does harm, p99 in us     alone    beside");
    pinned(0, || {
        work(&guest, &mut lane, scale.neighbour);
        let mut worst = 0.0f64;
        for (name, harm) in harms {
            let (mut alone, mut beside, mut ratios) = (vec![], vec![], vec![]);
            for _ in 0..scale.rounds.min(9) {
                let before = p99(&guest, &mut lane, scale.neighbour);
                let stop = AtomicBool::new(false);
                let during = thread::scope(|scope| {
                    let socket = served.socket("bad");
                    let stop = &stop;
                    scope.spawn(move || {
                        pin(None, 1);
                        harm(&socket, stop);
                    });
                    let during = p99(&guest, &mut lane, scale.neighbour);
                    stop.store(true, Ordering::Relaxed);
                    during
                });
                alone.push(before);
                beside.push(during);
                ratios.push(during / before);
            }
            let ratio = median(&mut ratios);
            println!(
                "  {name:43} {:9.1} {:9.1}",
                median(&mut alone),
                median(&mut beside)
            );
            report.put(&format!("neighbour_p99_{name}_ratio"), ratio);
            worst = worst.max(ratio);
        }
        report.goal("neighbour_p99_ratio", worst, "<= 3");
    });
}

fn frame(index: u32) -> GuestAddress {
    GuestAddress(BUFFERS + 4096 * u64::from(index))
}

/// Stores and loads for `time`; the latency of each request in nanoseconds.
fn work(guest: &TestGuest, lane: &mut Lane<'_>, time: Duration) -> Vec<u32> {
    let mut latencies = Vec::new();
    let end = Instant::now() + time;
    let call = &guest.rings[1].call;
    let calls = Epoll::new().expect("epoll");
    let watch = EpollEvent::new(EventSet::IN, 0);
    calls
        .ctl(ControlOperation::Add, call.as_raw_fd(), watch)
        .expect("an eventfd");
    while Instant::now() < end {
        for op in [Op::Store, Op::Load] {
            let index = latencies.len() as u32 / 2 % PAGES;
            let began = Instant::now();
            lane.want_call();
            if lane.submit(op, index..index + 1, frame(index).0) {
                guest.kick(1);
            }
            while !lane.is_done() {
                // Late interrupts of requests before are harmless.
                let mut events = [EpollEvent::default()];
                calls.wait(-1, &mut events).expect("an eventfd");
                let _ = call.read();
            }
            lane.take();
            latencies.push(began.elapsed().as_nanos() as u32);
        }
    }
    latencies
}

/// In microseconds.
fn p99(guest: &TestGuest, lane: &mut Lane<'_>, time: Duration) -> f64 {
    quantile(&mut work(guest, lane, time), 0.99) / 1000.0
}

/// Requests of random bytes, as fast as they are answered.
fn garbage(socket: &Path, stop: &AtomicBool) {
    let mut guest = TestGuest::boot(socket);
    let mut seed = 1;
    while !stop.load(Ordering::Relaxed) {
        for slot in 0..QUEUE_SIZE / 2 {
            seed += 1;
            let at = BUFFERS + 8192 * u64::from(slot);
            let bytes = guest.memory.write_slice(&page(seed), GuestAddress(at));
            bytes.expect("inside");
            let request = readable(at, 1 + seed as usize % 4096);
            let ring = &mut guest.rings[1].driver;
            ring.chain(&[request, writable(at + 4096, 64)]);
        }
        guest.kick(1);
        guest.wait();
    }
}

/// Stores of pages that do not compress, as fast as they are answered, and ever new ones.
fn flood(socket: &Path, stop: &AtomicBool) {
    let mut guest = TestGuest::boot(socket);
    let pool = guest.create_pool();
    let data: Vec<u8> = (0..8).flat_map(page).collect();
    let mut first = 0u32;
    while !stop.load(Ordering::Relaxed) {
        for slot in 0..16 {
            // It goes round in 256 MiB.
            first = (first + 8) % 65_536;
            let indices: Vec<_> = (first..first + 8).collect();
            guest.submit(slot, Op::Store, pool, [1, 2, 3], &indices, &data);
        }
        guest.kick(1);
        guest.wait();
    }
}

/// Connections that say nothing sensible.
fn reconnects(socket: &Path, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let mut stream = UnixStream::connect(socket).expect("connects");
        // It may be cut off meanwhile.
        let _ = stream.write_all(&page(1));
    }
}
