//! Store queues with threads and without, behind the registers of the transport.

use std::os::unix::thread::JoinHandleExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use tmem_device::{StoreQueues, TmemConfig};
use tmem_protocol::{Config, Op, PAGE_SIZE, Pressure, Status, feature};
use tmem_store::{DomainConfig, Gate, Store, StoreConfig, Want};
use tmem_testkit::driver::{Layout, Ring, readable, writable};
use tmem_testkit::request::{Answer, batch_request, header, store_request};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use zerocopy::FromBytes;

use super::*;
use crate::stop::StopFlag;
use crate::virtio::Interrupt;
use crate::virtio::mmio::MmioTransport;

const SIZE: u16 = 64;
/// Each chain has a slot of this size: request, then answer.
const SLOT: u64 = 0x4000;
const BUFFERS: u64 = 0x10_0000;
const VERSION_1: u64 = 1 << 32;
const EVENT_IDX: u64 = 1 << 29;

const NEEDS_RESET: u32 = 64;

/// A driver behind the registers: queue 0 for events, then a load queue and a store queue for each vCPU.
struct Rig {
    transport: MmioTransport,
    tmem: Arc<Tmem>,
    stop: StopFlag,
    mem: GuestMemoryMmap,
    rings: Vec<Ring<GuestMemoryMmap>>,
}

impl Rig {
    fn new(cpus: u16, threads: u16) -> Self {
        Self::gated(cpus, threads, None)
    }

    fn gated(cpus: u16, threads: u16, gate: Option<Arc<dyn Gate>>) -> Self {
        let store = Store::new(StoreConfig {
            budget: 64 << 20,
            gate,
            ..StoreConfig::default()
        })
        .unwrap();
        let limit = DomainConfig {
            limit: 2 << 20,
            ..DomainConfig::default()
        };
        let domain = store.add_domain("guest", limit).unwrap();
        let config = TmemConfig {
            request_queues: 2 * cpus,
            stores: StoreQueues {
                count: cpus,
                batch: 16,
            },
            max_pools: 200,
            ..TmemConfig::default()
        };
        let device = Arc::new(TmemDevice::new(domain, config));
        let tmem = Arc::new(Tmem::new(device, threads).unwrap());
        let mem = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 8 << 20)]).unwrap();
        let stop = StopFlag::new().unwrap();
        let transport = MmioTransport::new(
            Arc::clone(&tmem) as Arc<dyn VirtioDevice>,
            mem.clone(),
            Arc::new(Interrupt::new().unwrap()),
            stop.clone(),
        )
        .unwrap();
        let mut rig = Self {
            transport,
            tmem,
            stop,
            mem,
            rings: Vec::new(),
        };
        rig.set_up(VERSION_1 | feature::bit(feature::EVENTS));
        rig
    }

    fn write(&self, register: u64, value: u32) {
        self.transport.write(register, &value.to_le_bytes());
    }

    fn read(&self, register: u64) -> u32 {
        let mut data = [0; 4];
        self.transport.read(register, &mut data);
        u32::from_le_bytes(data)
    }

    fn status(&self) -> u32 {
        self.read(0x70)
    }

    /// Sets features and rings up; the device may not serve them yet.
    fn set_up(&mut self, features: u64) {
        for status in [1, 3] {
            self.write(0x70, status);
        }
        for word in [0, 1] {
            self.write(0x24, word);
            let bits = (features >> (32 * word)) & 0xffff_ffff;
            self.write(0x20, u32::try_from(bits).unwrap());
        }
        self.write(0x70, 11);
        assert_eq!(self.status(), 11, "the features are offered");
        let queues = u16::try_from(self.tmem.queue_sizes().len()).unwrap();
        self.rings.clear();
        for queue in 0..queues {
            let size = if queue == 0 { 16 } else { SIZE };
            let layout = Layout::at(0x4000 * (1 + u64::from(queue)), size);
            let mut ring = Ring::new(self.mem.clone(), layout);
            ring.clear();
            self.rings.push(ring);
            self.write(0x30, queue.into());
            self.write(0x38, size.into());
            for (register, address) in [
                (0x80, layout.descriptors),
                (0x90, layout.available),
                (0xa0, layout.used),
            ] {
                self.write(register, u32::try_from(address).unwrap());
                self.write(register + 4, 0);
            }
            self.write(0x44, 1);
        }
    }

    /// The driver is ready.
    fn start(mut self) -> Self {
        self.activate();
        self
    }

    fn activate(&mut self) {
        self.write(0x70, 15);
        assert_eq!(self.status(), 15);
    }

    fn reset(&self) {
        self.write(0x70, 0);
    }

    fn slot(queue: u16, slot: u16) -> u64 {
        BUFFERS + SLOT * (u64::from(queue) * u64::from(SIZE) + u64::from(slot))
    }

    /// Offers a request in a slot of a queue, without a doorbell.
    fn offer(&mut self, queue: u16, slot: u16, request: &[u8], room: usize) {
        let from = Self::slot(queue, slot);
        let to = from + 0x2800;
        self.mem.write_slice(request, GuestAddress(from)).unwrap();
        let ring = &mut self.rings[usize::from(queue)];
        let head = slot * 2 % SIZE;
        ring.write_chain(head, &[readable(from, request.len()), writable(to, room)]);
        ring.offer(head);
    }

    /// Rings as a vCPU does: the eventfd where there is one, for which KVM would do it.
    fn ring(&self, queue: u16) {
        match self.tmem.doorbell(queue) {
            Some(doorbell) => doorbell.write(1).unwrap(),
            None => self.write(0x50, queue.into()),
        }
    }

    fn is_done(&self, queue: u16) -> bool {
        self.rings[usize::from(queue)].is_done()
    }

    fn answer(&self, queue: u16, slot: u16, len: usize) -> Answer {
        let mut bytes = vec![0; len];
        let at = GuestAddress(Self::slot(queue, slot) + 0x2800);
        self.mem.read_slice(&mut bytes, at).unwrap();
        Answer::parse(&bytes)
    }

    /// A request and its answer.
    fn send(&mut self, queue: u16, request: &[u8], room: usize) -> Answer {
        self.offer(queue, 0, request, room);
        self.ring(queue);
        eventually("answered", || self.is_done(queue));
        self.answer(queue, 0, room)
    }

    fn create_pool(&mut self) -> u32 {
        let answer = self.send(1, &create_pool(), 8);
        assert_eq!(answer.status, Status::Ok);
        answer.pool
    }

    fn load(&mut self, pool: u32, index: u32) -> Answer {
        let request = batch_request(Op::Load, pool, &[index]);
        self.send(1, &request, 9 + PAGE_SIZE)
    }
}

fn create_pool() -> Vec<u8> {
    header(Op::CreatePool as u16, 0, 0, [0; 3])
}

fn page(seed: u32) -> Vec<u8> {
    tmem_testkit::corpus::page(seed.into()).to_vec()
}

fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::yield_now();
    }
}

/// Asks the test before the store gets memory, which is in the middle of a request.
#[derive(Debug, Default)]
struct Door {
    state: Mutex<DoorState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct DoorState {
    closed: bool,
    waiting: bool,
}

impl Door {
    fn set(&self, closed: bool) {
        self.state.lock().unwrap().closed = closed;
        self.changed.notify_all();
    }

    fn somebody_waits(&self) -> bool {
        self.state.lock().unwrap().waiting
    }
}

/// Opens the door when a test fails, too: else nothing that waits at it would end.
struct Opens<'a>(&'a Door);

impl Drop for Opens<'_> {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

impl Gate for Door {
    fn allow(&self, _bytes: u64, _want: Want) -> bool {
        let mut state = self.state.lock().unwrap();
        state.waiting = state.closed;
        while state.closed {
            state = self.changed.wait(state).unwrap();
        }
        state.waiting = false;
        true
    }
}

#[test]
fn a_machine_has_a_load_queue_and_a_store_queue_for_each_vcpu() {
    for threads in [0, 1, 2] {
        let rig = Rig::new(2, threads);
        assert_eq!(rig.tmem.queue_sizes(), [16, 256, 256, 256, 256]);
        let mut config = [0; size_of::<Config>()];
        rig.transport.read(0x100, &mut config);
        let config = Config::read_from_bytes(&config).unwrap();
        let queues = (
            config.num_request_queues.get(),
            config.num_store_queues.get(),
        );
        assert_eq!(queues, (4, 2));
        let with_thread = (0..5).filter(|queue| rig.tmem.doorbell(*queue).is_some());
        let expected: &[u16] = if threads == 0 { &[] } else { &[3, 4] };
        assert_eq!(with_thread.collect::<Vec<_>>(), expected);
    }
}

#[test]
fn a_thread_serves_a_store_queue_whose_doorbell_rang() {
    let mut rig = Rig::new(1, 1).start();
    let pool = rig.create_pool();
    for index in 0..20 {
        let request = store_request(pool, &[(index, page(index)), (index + 100, page(7))]);
        let answer = rig.send(2, &request, 10);
        assert_eq!(answer.statuses, [Status::Ok; 2]);
        assert_eq!(rig.load(pool, index).pages, page(index));
    }
    // Another queue than its own works as well.
    let request = batch_request(Op::Load, pool, &[107]);
    assert_eq!(rig.send(2, &request, 9 + PAGE_SIZE).pages, page(7));
    let metrics = rig.tmem.device.metrics().snapshot();
    assert_eq!((metrics.pages_stored, metrics.pages_loaded), (40, 21));
    // Each is counted, if only before the thread sleeps.
    let doorbells = || rig.tmem.device.metrics().snapshot().doorbells;
    eventually("counted", || doorbells() == 42);
}

#[test]
fn without_threads_a_store_is_answered_when_the_write_to_the_doorbell_returns() {
    let mut rig = Rig::new(1, 0).start();
    let pool = rig.create_pool();
    rig.offer(2, 0, &store_request(pool, &[(1, page(1))]), 9);
    rig.ring(2);
    assert!(rig.is_done(2));
    assert_eq!(rig.load(pool, 1).pages, page(1));
}

#[test]
fn no_store_is_lost_however_seldom_the_guest_kicks() {
    for features in [0, EVENT_IDX] {
        let mut rig = Rig::new(1, 1);
        rig.reset();
        rig.set_up(VERSION_1 | features);
        rig.activate();
        let pool = rig.create_pool();
        let request = batch_request(Op::InvalidatePage, pool, &[1]);
        for round in 0..3000u32 {
            // Before, while and after the thread goes to sleep.
            let pause = Instant::now();
            while pause.elapsed() < Duration::from_micros((round % 128).into()) {
                std::hint::spin_loop();
            }
            rig.offer(2, 0, &request, 9);
            let wants_kick = match features {
                0 => rig.rings[2].wants_kicks(),
                _ => rig.rings[2].wants_kick(),
            };
            if wants_kick {
                rig.ring(2);
            }
            eventually("answered", || rig.is_done(2));
        }
    }
}

#[test]
fn a_thread_interrupts_a_guest_that_wants_it_and_no_other() {
    let mut rig = Rig::new(1, 1).start();
    let pool = rig.create_pool();
    for (flags, status) in [(1, 0), (0, 1), (1, 0)] {
        rig.write(0x64, 3);
        rig.rings[2].set_avail_flags(flags);
        rig.send(2, &store_request(pool, &[(1, page(1))]), 9);
        // It follows the answer.
        let expected = || rig.read(0x60) == status;
        eventually("interrupted", expected);
        // The lock of the queue: the thread is done with the chain.
        drop(rig.transport.queues().lock(2));
        assert!(expected(), "flags {flags}");
    }
}

#[test]
fn a_thread_with_two_queues_gives_each_its_turn() {
    let mut rig = Rig::new(2, 1);
    // Before the driver is ready nothing is served, whoever rings.
    for slot in 0..30 {
        rig.offer(3, slot, &create_pool(), 8);
    }
    rig.offer(4, 0, &create_pool(), 8);
    rig.ring(3);
    rig.activate();
    eventually("answered", || rig.is_done(3) && rig.is_done(4));
    // The low bits of its id say how many pools there were before.
    let pool = rig.answer(4, 0, 8).pool;
    assert_eq!(pool & 0xff, TURN_OF_CHAINS, "a turn of the other queue");
    assert_eq!(rig.answer(3, 29, 8).pool & 0xff, 30);
}

/// Chains without entries in a turn.
const TURN_OF_CHAINS: u32 = 8;

#[test]
fn a_reset_waits_until_the_thread_is_out_of_the_ring_and_then_it_stays_out() {
    let door = Arc::new(Door::default());
    let gate: Arc<dyn Gate> = Arc::clone(&door) as _;
    let mut rig = Rig::gated(1, 1, Some(gate)).start();
    let pool = rig.create_pool();
    door.set(true);
    // More than one turn: the rest stays where it is.
    for slot in 0..30 {
        rig.offer(
            2,
            slot,
            &store_request(pool, &[(slot.into(), page(slot.into()))]),
            9,
        );
    }
    rig.ring(2);
    eventually("the thread is in a request", || door.somebody_waits());
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _opens = Opens(&door);
        let vcpu = scope.spawn(|| {
            rig.reset();
            is_over.store(true, Ordering::SeqCst);
        });
        eventually("the reset has begun", || {
            rig.transport.queues().is_stopping()
        });
        let waits = !is_over.load(Ordering::SeqCst) && door.somebody_waits();
        door.set(false);
        assert!(waits, "the thread still has pages of the guest");
        vcpu.join().unwrap();
    });
    assert_eq!(rig.status(), 0);
    let used = rig.rings[2].used_index();
    assert!((1..=8).contains(&used), "{used} chains in the turn");
    // A ring that is set up again and not released yet is not served.
    rig.set_up(VERSION_1);
    for slot in 0..30 {
        rig.offer(2, slot, &create_pool(), 8);
    }
    rig.ring(2);
    let Rig {
        transport,
        tmem,
        rings,
        ..
    } = rig;
    drop(transport);
    drop(Arc::into_inner(tmem).expect("the last"));
    assert_eq!(rings[2].used_index(), 0);
}

#[test]
fn a_thread_that_missed_a_reset_does_not_serve_what_is_set_up_after_it() {
    let mut rig = Rig::new(1, 1).start();
    let epoch = rig.tmem.threads.epoch();
    rig.reset();
    rig.set_up(VERSION_1);
    rig.offer(2, 0, &create_pool(), 8);
    let queues = rig.transport.queues();
    assert!(!rig.tmem.threads.serve_since(epoch, queues));
    assert!(!rig.is_done(2));
    assert!(
        rig.tmem
            .threads
            .serve_since(rig.tmem.threads.epoch(), queues)
    );
}

#[test]
fn a_corrupt_store_queue_needs_a_reset_and_works_after_it() {
    let mut rig = Rig::new(1, 1).start();
    rig.rings[2].set_avail_index(500);
    rig.ring(2);
    eventually("broken", || rig.status() & NEEDS_RESET != 0);
    assert_eq!(rig.read(0x60) & 2, 2, "the configuration interrupt");
    assert_eq!(rig.tmem.device.metrics().snapshot().queue_faults, 1);
    for _ in 0..3 {
        rig.reset();
        rig.set_up(VERSION_1);
        rig.activate();
        let pool = rig.create_pool();
        let answer = rig.send(2, &store_request(pool, &[(1, page(1))]), 9);
        assert_eq!(answer.statuses, [Status::Ok]);
    }
}

#[test]
fn a_guest_whose_stores_a_thread_refuses_gets_the_event() {
    let mut rig = Rig::new(1, 1).start();
    let pool = rig.create_pool();
    let event = BUFFERS - 0x1000;
    rig.rings[0].write_chain(0, &[writable(event, 24)]);
    rig.rings[0].offer(0);
    let refused = (0..).find(|index| {
        let answer = rig.send(2, &store_request(pool, &[(*index, page(*index))]), 9);
        answer.statuses == [Status::NoSpace]
    });
    assert!(refused.is_some());
    eventually("told", || rig.rings[0].is_done());
    let level: u32 = rig.mem.read_obj(GuestAddress(event + 4)).unwrap();
    assert_eq!(level, Pressure::Full as u32);
    assert_eq!(rig.read(0x60) & 2, 2, "the configuration interrupt");
}

/// The processor time that the first thread has used.
fn processor_time(tmem: &Tmem) -> Duration {
    let thread = tmem.threads.first_thread().as_pthread_t();
    let mut clock = 0;
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the thread is not joined, and the place is ours.
    let found = unsafe { libc::pthread_getcpuclockid(thread, &mut clock) };
    // SAFETY: the place is ours.
    let read = unsafe { libc::clock_gettime(clock, &mut time) };
    assert_eq!((found, read), (0, 0));
    Duration::new(
        u64::try_from(time.tv_sec).unwrap(),
        u32::try_from(time.tv_nsec).unwrap(),
    )
}

#[test]
fn an_idle_thread_uses_no_processor_time() {
    let mut rig = Rig::new(1, 1).start();
    let pool = rig.create_pool();
    rig.send(2, &store_request(pool, &[(1, page(1))]), 9);
    let mut before = processor_time(&rig.tmem);
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        std::thread::sleep(Duration::from_millis(200));
        let now = processor_time(&rig.tmem);
        if now == before {
            break;
        }
        assert!(Instant::now() < deadline, "it never sleeps");
        before = now;
    }
    // And it is there when the next doorbell rings.
    let answer = rig.send(2, &store_request(pool, &[(2, page(2))]), 9);
    assert_eq!(answer.statuses, [Status::Ok]);
}

#[test]
fn a_guest_that_never_stops_storing_keeps_neither_a_reset_nor_the_end_waiting() {
    let mut rig = Rig::new(1, 1).start();
    for again in [true, false] {
        let pool = rig.create_pool();
        let request = batch_request(Op::InvalidatePage, pool, &[1]);
        for slot in 0..32 {
            rig.offer(2, slot, &request, 9);
        }
        rig.ring(2);
        let mut ring = rig.rings[2].clone();
        let done = AtomicBool::new(false);
        let doorbell = rig.tmem.doorbell(2).expect("there is a thread");
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // Always some turns ahead of the thread.
                while !done.load(Ordering::SeqCst) {
                    let ahead = ring.used_index().wrapping_add(40);
                    ring.set_avail_index(ahead);
                    if ring.wants_kicks() {
                        let _ = doorbell.write(1);
                    }
                }
            });
            let served = ring_index(&rig);
            eventually("it is being served", || ring_index(&rig) != served);
            if again {
                rig.reset();
            } else {
                rig.tmem.threads.stop();
            }
            done.store(true, Ordering::SeqCst);
        });
        if again {
            rig.set_up(VERSION_1);
            rig.activate();
        }
    }
}

fn ring_index(rig: &Rig) -> u16 {
    rig.rings[2].used_index()
}

#[derive(Debug)]
struct Trap;

impl Gate for Trap {
    fn allow(&self, _bytes: u64, _want: Want) -> bool {
        // Not the thread of the test, nor those of the store.
        let name = std::thread::current().name().unwrap_or_default().to_owned();
        assert!(!name.starts_with("tmem store"), "on purpose");
        true
    }
}

#[test]
fn a_panic_of_a_store_thread_is_reported_to_the_machine() {
    let mut rig = Rig::gated(1, 1, Some(Arc::new(Trap))).start();
    let pool = rig.create_pool();
    rig.offer(2, 0, &store_request(pool, &[(1, page(1))]), 9);
    rig.ring(2);
    eventually("reported", || rig.stop.failed().is_some());
    assert_eq!(rig.stop.failed(), Some("tmem store 0"));
    assert!(rig.transport.queues().is_stopping());
}
