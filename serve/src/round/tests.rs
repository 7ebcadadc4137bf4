//! The order in which rings are served, on real rings of a guest that is in this process.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering::Relaxed};
use std::sync::{Mutex, OnceLock};

use tmem_device::{StoreQueues, TmemConfig};
use tmem_protocol::{Op, PAGE_SIZE};
use tmem_store::{DomainConfig, Gate, Store, StoreConfig, Want};
use tmem_testkit::driver::{Layout, Ring as Driver, readable, writable};
use tmem_testkit::request::{batch_request, store_request};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::*;

/// Entries of a ring: room for [`CHAINS`] of two descriptors.
const SIZE: u16 = 128;
const CHAINS: u16 = 64;
const EVENTS: usize = 0;
const LOADS: usize = 1;
const STORES: [usize; 2] = [2, 3];
/// Where the requests of a ring begin; each has so many bytes.
const REQUESTS: u64 = 0x10_0000;
const REQUEST: u64 = 0x1_1000;
const ANSWER: u64 = 0xe0_0000;
const LOAD: u64 = 0xf0_0000;
const LOADED: u64 = 0xf1_0000;

type GuestRing = Driver<GuestMemoryMmap>;

fn layout(ring: usize) -> Layout {
    Layout::at(0x4000 * (1 + u64::try_from(ring).unwrap()), SIZE)
}

/// Offers a load each time that the store asks for memory, which is in the middle of a chain of a store ring.
#[derive(Default)]
struct Arrival {
    driver: OnceLock<Mutex<GuestRing>>,
    /// Chains of the first store ring that had been served when the last load came.
    at: AtomicU16,
}

impl std::fmt::Debug for Arrival {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Arrival")
    }
}

impl Gate for Arrival {
    fn allow(&self, _bytes: u64, _want: Want) -> bool {
        if let Some(driver) = self.driver.get() {
            let mut driver = driver.lock().unwrap();
            if driver.is_done() {
                driver.offer(0);
                let served = layout(STORES[0]).used_index();
                let served = driver.memory().read_obj(GuestAddress(served)).unwrap();
                self.at.store(u16::from_le(served), Relaxed);
            }
        }
        true
    }
}

struct Rig {
    device: TmemDevice,
    memory: GuestMemoryMmap,
    rings: Vec<Ring>,
    drivers: Vec<GuestRing>,
    arrival: Arc<Arrival>,
    pool: u32,
}

impl Rig {
    fn new() -> Self {
        let arrival = Arc::new(Arrival::default());
        let store = Store::new(StoreConfig {
            budget: 64 << 20,
            // Threads would ask for memory at times of their own.
            background: false,
            gate: Some(Arc::clone(&arrival) as Arc<dyn Gate>),
            ..StoreConfig::default()
        })
        .unwrap();
        let domain = store.add_domain("guest", DomainConfig::default()).unwrap();
        let config = TmemConfig {
            request_queues: 3,
            stores: StoreQueues {
                count: 2,
                batch: 16,
            },
            ..TmemConfig::default()
        };
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 16 << 20)]).unwrap();
        let ring = |ring| {
            let layout = layout(ring);
            let mut ring = Ring::new(0).unwrap();
            ring.queue = layout.queue();
            ring.enabled = ring.start(&memory);
            assert!(ring.is_active());
            ring
        };
        let driver = |ring| Driver::new(memory.clone(), layout(ring));
        let mut rig = Self {
            device: TmemDevice::new(domain, config),
            rings: (EVENTS..=3).map(ring).collect(),
            drivers: (EVENTS..=3).map(driver).collect(),
            memory,
            arrival,
            pool: 0,
        };
        let create = tmem_testkit::request::header(Op::CreatePool as u16, 0, 0, [0; 3]);
        rig.write(LOAD, &create);
        rig.drivers[LOADS].write_chain(0, &[readable(LOAD, 32), writable(LOADED, 8)]);
        rig.drivers[LOADS].offer(0);
        rig.round();
        let pool = rig.memory.read_obj::<u32>(GuestAddress(LOADED + 4));
        rig.pool = u32::from_le(pool.unwrap());
        let load = batch_request(Op::Load, rig.pool, &[0]);
        rig.write(LOAD, &load);
        let chain = [readable(LOAD, load.len()), writable(LOADED, 9 + PAGE_SIZE)];
        rig.drivers[LOADS].write_chain(0, &chain);
        rig
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(at)).unwrap();
    }

    fn round(&mut self) -> u32 {
        let broken = || false;
        let (chains, result) = Round::serve(&self.device, &self.memory, &mut self.rings, broken);
        result.unwrap();
        chains
    }

    /// Offers chains that store so many pages each in a store ring.
    fn fill(&mut self, ring: usize, pages: u32) {
        for chain in 0..CHAINS {
            let number = u64::try_from(ring - STORES[0]).unwrap() * 64 + u64::from(chain);
            let first = u32::try_from(number).unwrap() * pages;
            let pages: Vec<_> = (first..first + pages)
                .map(|index| (index, tmem_testkit::corpus::page(index.into()).to_vec()))
                .collect();
            let request = store_request(self.pool, &pages);
            let at = REQUESTS + number * REQUEST;
            self.write(at, &request);
            let buffers = [
                readable(at, request.len()),
                writable(ANSWER, 8 + pages.len()),
            ];
            self.drivers[ring].write_chain(chain * 2, &buffers);
            self.drivers[ring].offer(chain * 2);
        }
    }

    fn used(&self, ring: usize) -> u16 {
        self.drivers[ring].used_index()
    }
}

#[test]
fn a_load_that_comes_while_a_store_ring_is_full_waits_for_one_chain_of_it() {
    for pages in [1, 16] {
        let mut rig = Rig::new();
        rig.fill(STORES[0], pages);
        let arrival = Arc::clone(&rig.arrival);
        let driver = Mutex::new(rig.drivers[LOADS].clone());
        assert!(arrival.driver.set(driver).is_ok());
        let (mut loads, mut last) = (0, rig.used(LOADS));
        while rig.used(STORES[0]) < CHAINS {
            rig.round();
            let done = rig.used(LOADS);
            if done != last {
                // It is answered before the round goes on, after the chain in which it came.
                assert_eq!(done, last + 1);
                let at = arrival.at.load(Relaxed);
                assert_eq!(rig.used(STORES[0]), at + 1, "{pages} pages");
                loads += 1;
                last = done;
            }
            let driver = arrival.driver.get().unwrap().lock().unwrap();
            assert!(driver.is_done(), "a load waits longer");
        }
        assert!(loads >= 1, "{loads} loads came");
    }
}

#[test]
fn a_chain_of_16_pages_is_a_turn_of_its_own() {
    let mut rig = Rig::new();
    for ring in STORES {
        rig.fill(ring, 16);
    }
    for turn in 1..10 {
        assert_eq!(rig.round(), 2);
        assert_eq!(STORES.map(|ring| rig.used(ring)), [turn; 2]);
    }
    rig.drivers[LOADS].offer(0);
    assert_eq!(rig.round(), 3);
    assert!(rig.drivers[LOADS].is_done());
}

#[test]
fn a_turn_of_a_store_ring_without_loads_has_eight_pages() {
    let mut rig = Rig::new();
    rig.fill(STORES[0], 1);
    assert_eq!([rig.round(), rig.round()], [8, 8]);
}

#[test]
fn loads_without_end_do_not_keep_stores_from_their_turn() {
    for pages in [1, 16] {
        let mut rig = Rig::new();
        for ring in STORES {
            rig.fill(ring, pages);
        }
        let before = rig.used(LOADS);
        for turn in 1..=CHAINS {
            // The load ring is never empty.
            let loads = &mut rig.drivers[LOADS];
            while loads.used_index().wrapping_add(SIZE) != loads.next() {
                loads.offer(0);
            }
            rig.round();
            assert_eq!(STORES.map(|ring| rig.used(ring)), [turn; 2]);
            // A turn of loads first, and one after each store ring.
            assert_eq!(rig.used(LOADS).wrapping_sub(before), turn * 3 * 8);
        }
    }
}

#[test]
fn a_round_ends_with_the_ring_that_cannot_be_served_or_broke_the_memory() {
    let mut rig = Rig::new();
    rig.fill(STORES[1], 16);
    rig.drivers[STORES[0]].set_avail_index(500);
    let round = |rig: &mut Rig, broken: bool| {
        Round::serve(&rig.device, &rig.memory, &mut rig.rings, || broken)
    };
    let (chains, result) = round(&mut rig, false);
    assert!(matches!(result, Err(Stop::Corrupt(2, _))), "{result:?}");
    assert_eq!((chains, rig.used(STORES[1])), (0, 0));
    rig.rings[STORES[0]].enabled = false;
    rig.fill(STORES[1], 16);
    let (chains, result) = round(&mut rig, true);
    assert!(matches!(result, Err(Stop::Broken)));
    assert!(chains <= 1, "{chains} chains on broken memory");
}
