//! A guest that does anything to its memory and rings, and now and then something sensible.
#![no_main]

use std::collections::HashMap;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use tmem_device::{TmemConfig, TmemDevice};
use tmem_protocol::{Op, PAGE_SIZE, RequestHeader, Status};
use tmem_store::{DomainConfig, Store, StoreConfig};
use tmem_testkit::driver::{Layout, Ring, readable, writable};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use zerocopy::IntoBytes;

const MEMORY: usize = 1 << 20;
const SIZE: u16 = 16;
const RING: Layout = Layout::at(0x1000, SIZE);
/// Requests that the model follows are built here; nothing else is.
const OWN: u64 = 0x80000;

#[derive(Arbitrary, Debug)]
struct Descriptor {
    addr: u32,
    len: u32,
    flags: u8,
    next: u8,
}

#[derive(Arbitrary, Debug)]
enum Action {
    /// Write to the first half of guest memory, the rings included.
    Poke {
        addr: u16,
        high: u8,
        bytes: Vec<u8>,
    },
    /// Any descriptors, made available with any head.
    Chain {
        head: u8,
        descriptors: Vec<(u8, Descriptor)>,
    },
    /// A request whose header may say anything, in well-formed descriptors.
    Request {
        op: u8,
        count: u8,
        pool: u8,
        flip: Option<(u8, u8)>,
        room: u16,
        split: u8,
    },
    /// Another front end connects.
    HandOver,
    /// Well-formed, and compared with a model.
    Store {
        index: u8,
        fill: u8,
    },
    Load {
        index: u8,
    },
    Invalidate {
        index: u8,
    },
    Reset,
}

struct Guest {
    mem: GuestMemoryMmap,
    queue: Queue,
    ring: Ring<GuestMemoryMmap>,
    device: TmemDevice,
    pool: Option<u32>,
    model: HashMap<u32, u8>,
}

impl Guest {
    fn new(features: u64) -> Self {
        let store = Store::new(StoreConfig {
            budget: 8 << 20,
            background: false,
            ..StoreConfig::default()
        })
        .unwrap();
        let domain = store.add_domain("guest", DomainConfig::default()).unwrap();
        let device = TmemDevice::new(
            domain,
            TmemConfig {
                features: u64::MAX,
                max_pools: 4,
                ..TmemConfig::default()
            },
        );
        device.set_features(features);
        let mem = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
        let mut guest = Self {
            ring: Ring::new(mem.clone(), RING),
            mem,
            queue: RING.queue(),
            device,
            pool: None,
            model: HashMap::new(),
        };
        guest.activate();
        guest
    }

    fn activate(&mut self) {
        self.ring.clear();
        self.queue = RING.queue();
        self.queue.set_event_idx(true);
        self.pool = None;
        self.model.clear();
    }

    fn write(&self, addr: u64, bytes: &[u8]) {
        let _ = self.mem.write(bytes, GuestAddress(addr));
    }

    /// Processes; a corrupt ring means a reset. Whether all went well.
    fn kick(&mut self) -> bool {
        let before = self.queue.next_used();
        for _ in 0..4 {
            match self.device.process_requests(1, &self.mem, &mut self.queue) {
                Ok(progress) => {
                    assert!(progress.chains < 2 * u32::from(SIZE));
                    let taken = self.queue.next_used().wrapping_sub(before);
                    assert!(u32::from(taken) >= progress.chains);
                    assert_eq!(self.queue.next_used(), self.queue.next_avail());
                    if !progress.more {
                        let next = self.queue.next_avail();
                        self.ring = Ring::resume(self.mem.clone(), RING, next);
                        return true;
                    }
                }
                Err(_) => break,
            }
        }
        self.device.reset();
        self.device.set_features(u64::MAX);
        self.activate();
        false
    }

    /// Sends a well-formed request; the bytes of the answer.
    fn send(&mut self, request: &[u8], room: usize) -> Option<Vec<u8>> {
        let (from, to) = (OWN, OWN + 0x8000);
        let chain = [readable(from, request.len()), writable(to, room)];
        self.write(from, request);
        self.write(to - 64, &vec![0xaa; room + 128]);
        self.ring.write_chain(0, &chain);
        // What an earlier action left in the ring may still be there, and may write anywhere.
        if !self.kick() {
            return None;
        }
        self.write(from, request);
        self.write(to - 64, &vec![0xaa; room + 128]);
        self.ring.write_chain(0, &chain);
        self.ring.offer(0);
        if !self.kick() {
            return None;
        }
        let mut around = vec![0; room + 128];
        self.mem
            .read_slice(&mut around, GuestAddress(to - 64))
            .unwrap();
        assert!(around[..64].iter().all(|byte| *byte == 0xaa));
        assert!(around[64 + room..].iter().all(|byte| *byte == 0xaa));
        Some(around[64..64 + room].to_vec())
    }

    fn pool(&mut self) -> Option<u32> {
        if self.pool.is_none() {
            let header = header(Op::CreatePool as u16, 0, 0);
            let answer = self.send(header.as_bytes(), 8)?;
            if answer[0] == Status::Ok as u8 {
                self.pool = Some(u32::from_le_bytes(answer[4..8].try_into().unwrap()));
            }
        }
        self.pool
    }

    fn batch(&mut self, op: Op, index: u32, page: &[u8], room: usize) -> Option<Vec<u8>> {
        let pool = self.pool()?;
        let mut request = header(op as u16, 1, pool).as_bytes().to_vec();
        request.extend(index.to_le_bytes());
        request.extend([0; 4]);
        request.extend(page);
        let answer = self.send(&request, 9 + room)?;
        // Requests of other actions may have destroyed the pool.
        if answer[8] == Status::NoPool as u8 {
            self.pool = None;
            self.model.clear();
            return None;
        }
        Some(answer)
    }
}

fn header(op: u16, count: u16, pool: u32) -> RequestHeader {
    RequestHeader {
        op: op.into(),
        count: count.into(),
        pool: pool.into(),
        // The object of the model's pages; other actions use another.
        object: if pool == 0 || count == 0 {
            Default::default()
        } else {
            [1.into(), 2.into(), 3.into()]
        },
    }
}

fuzz_target!(|input: (u8, Vec<Action>)| {
    let (features, actions) = input;
    let mut guest = Guest::new(features.into());
    for action in actions.into_iter().take(64) {
        match action {
            Action::Poke { addr, high, bytes } => {
                guest.write(u64::from(addr) | u64::from(high & 7) << 16, &bytes);
                // Anything may have been asked for in the name of the model's pool.
                guest.model.clear();
                guest.kick();
            }
            Action::Chain { head, descriptors } => {
                for (index, d) in descriptors.into_iter().take(SIZE.into()) {
                    let next = u16::from(d.next % 20);
                    let (index, flags) = (index % SIZE as u8, d.flags % 8);
                    guest
                        .ring
                        .set_desc(index.into(), d.addr.into(), d.len, flags.into(), next);
                }
                guest.ring.offer((head % 17).into());
                guest.kick();
                guest.model.clear();
            }
            Action::Request {
                op,
                count,
                pool,
                flip,
                room,
                split,
            } => {
                // Nobody guesses an id.
                let pool = match guest.pool {
                    Some(own) if pool >= 128 => own,
                    _ => pool.into(),
                };
                let mut bytes = header(op.into(), count.into(), pool).as_bytes().to_vec();
                bytes[8] = 0xff;
                bytes.extend((0..count).flat_map(|index| [index, 0, 0, 0, 0, 0, 0, 0]));
                if op == Op::Store as u8 {
                    bytes.extend(vec![op; usize::from(count) * PAGE_SIZE]);
                }
                bytes.truncate(0x60000);
                let flipped = flip.and_then(|(place, bits)| {
                    let byte = bytes.get_mut(usize::from(place))?;
                    *byte ^= bits;
                    Some(())
                });
                let from = 0x10000;
                guest.write(from, &bytes);
                let first = usize::from(split).min(bytes.len());
                let chain = [
                    readable(from, first),
                    readable(from + first as u64, bytes.len() - first),
                    writable(0x70000, room.into()),
                ];
                guest.ring.write_chain(2, &chain);
                guest.ring.offer(2);
                guest.kick();
                if flipped.is_some() || op == Op::DestroyPool as u8 {
                    guest.model.clear();
                }
            }
            Action::HandOver => guest.device.hand_over(std::time::Duration::from_secs(600)),
            Action::Store { index, fill } => {
                let page = [fill; PAGE_SIZE];
                if let Some(answer) = guest.batch(Op::Store, index.into(), &page, 0) {
                    guest.model.remove(&index.into());
                    if answer[8] == Status::Ok as u8 {
                        guest.model.insert(index.into(), fill);
                    }
                }
            }
            Action::Load { index } => {
                if let Some(answer) = guest.batch(Op::Load, index.into(), &[], PAGE_SIZE)
                    && let Some(fill) = guest.model.get(&index.into())
                {
                    assert_eq!(answer[8], Status::Ok as u8);
                    assert!(answer[9..].iter().all(|byte| byte == fill));
                }
            }
            Action::Invalidate { index } => {
                if let Some(answer) = guest.batch(Op::InvalidatePage, index.into(), &[], 0) {
                    assert_eq!(answer[8], Status::Ok as u8);
                    guest.model.remove(&index.into());
                    if let Some(answer) = guest.batch(Op::Load, index.into(), &[], PAGE_SIZE) {
                        assert_eq!(answer[8], Status::NotFound as u8);
                    }
                }
            }
            Action::Reset => {
                guest.device.reset();
                guest.device.set_features(features.into());
                guest.activate();
            }
        }
    }
});
