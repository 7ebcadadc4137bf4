//! A guest that asks the virtio-blk device for anything, over a pool and over a file, compared with a model of the disk.
#![no_main]

use std::collections::HashMap;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use tmem_device::block::Backend;
use tmem_device::{BlockConfig, BlockDevice, FileDisk, PoolDisk};
use tmem_protocol::PAGE_SIZE;
use tmem_store::{DomainConfig, Store, StoreConfig};
use tmem_testkit::driver::{Layout, Ring, readable, writable};
use virtio_queue::Queue;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const MEMORY: usize = 1 << 20;
const PAGES: u64 = 32;
const BYTES: u64 = PAGES * PAGE_SIZE as u64;
const RING: Layout = Layout::at(0x1000, 16);

const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

#[derive(Arbitrary, Debug)]
enum Action {
    Write {
        page: u8,
        count: u8,
        fill: u8,
    },
    Read {
        page: u8,
        count: u8,
    },
    Discard {
        page: u8,
        count: u8,
    },
    WriteZeroes {
        page: u8,
        count: u8,
        flags: u8,
    },
    Freeze(bool),
    /// Any request: its bytes, and any lengths, flags and places of the descriptors.
    Any {
        bytes: Vec<u8>,
        descriptors: [(u32, u32, u8); 4],
        head: u8,
    },
}

struct Guest {
    mem: GuestMemoryMmap,
    queue: Queue,
    ring: Ring<GuestMemoryMmap>,
}

impl Guest {
    fn write(&self, addr: u64, bytes: &[u8]) {
        let _ = self.mem.write(bytes, GuestAddress(addr));
    }

    fn activate(&mut self) {
        self.ring.clear();
        self.queue = RING.queue();
    }

    fn kick(&mut self, device: &BlockDevice<impl Backend>, head: u16) -> bool {
        self.ring.offer(head);
        match device.process_requests(&self.mem, &mut self.queue) {
            Ok(progress) => {
                assert_eq!(progress.chains, 1);
                true
            }
            Err(_) => {
                self.activate();
                false
            }
        }
    }

    /// A well-formed request; status and data.
    fn send(
        &mut self,
        device: &BlockDevice<impl Backend>,
        kind: u32,
        page: u8,
        data: &[u8],
        room: usize,
    ) -> (u8, Vec<u8>) {
        let sector = if kind >= DISCARD {
            0
        } else {
            u64::from(page) * 8
        };
        let mut request = kind.to_le_bytes().to_vec();
        request.extend([0; 4]);
        request.extend(sector.to_le_bytes());
        request.extend(data);
        let (from, to) = (0x10000, 0x80000);
        self.write(from, &request);
        self.write(to, &vec![0xaa; room + 1]);
        let chain = [readable(from, request.len()), writable(to, room + 1)];
        self.ring.write_chain(0, &chain);
        assert!(self.kick(device, 0));
        let mut answer = vec![0; room + 1];
        self.mem.read_slice(&mut answer, GuestAddress(to)).unwrap();
        let status = answer.pop().unwrap();
        assert!(status <= 2);
        (status, answer)
    }
}

fuzz_target!(|input: (bool, Vec<Action>)| {
    let (over_pool, actions) = input;
    if over_pool {
        let store = Store::new(StoreConfig {
            budget: 8 << 20,
            background: false,
            ..StoreConfig::default()
        })
        .unwrap();
        let domain = store.add_domain("guest", DomainConfig::default()).unwrap();
        let freeze = |frozen: bool| match frozen {
            true => domain.freeze(),
            false => domain.thaw(),
        };
        run(
            PoolDisk::new(domain.clone(), BYTES).unwrap(),
            actions,
            true,
            freeze,
        );
    } else {
        run(file(), actions, false, |_| {});
    }
});

/// A disk over a file of zeroes that is gone with it.
fn file() -> FileDisk {
    let name = format!("tmem-block-requests-{}", std::process::id());
    let path = std::env::temp_dir().join(name);
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(BYTES).unwrap();
    let disk = FileDisk::open(&path, false).unwrap();
    std::fs::remove_file(&path).unwrap();
    disk
}

/// `over_pool`: writes may be refused, and a discarded page is one of zeroes.
fn run(backend: impl Backend, actions: Vec<Action>, over_pool: bool, freeze: impl Fn(bool)) {
    let config = BlockConfig {
        request_queues: 1,
        id: "fuzz".to_owned(),
    };
    let device = BlockDevice::new(backend, &config);
    let mem = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
    let mut guest = Guest {
        ring: Ring::new(mem.clone(), RING),
        mem,
        queue: RING.queue(),
    };
    // What a page holds; absent: unknown, since a request of any kind may have changed it.
    let mut model: HashMap<u64, u8> = (0..PAGES).map(|page| (page, 0)).collect();
    let pages = |page: u8, count: u8| u64::from(page)..u64::from(page) + u64::from(count);
    let on_disk = |page: u8, count: u8| count > 0 && pages(page, count).end <= PAGES;
    for action in actions.into_iter().take(64) {
        match action {
            Action::Write { page, count, fill } => {
                let count = count % 32;
                let data = vec![fill; usize::from(count) * PAGE_SIZE];
                let (status, _) = guest.send(&device, 1, page, &data, 0);
                assert!(status != 0 || on_disk(page, count));
                assert!(status == 0 || over_pool || !on_disk(page, count));
                for page in pages(page, count) {
                    model.remove(&page);
                    if status == 0 {
                        model.insert(page, fill);
                    }
                }
            }
            Action::Read { page, count } => {
                let count = count % 32;
                let room = usize::from(count) * PAGE_SIZE;
                let (status, data) = guest.send(&device, 0, page, &[], room);
                let known = count > 0 && pages(page, count).all(|page| model.contains_key(&page));
                assert!(!known || status == 0);
                if status == 0 {
                    for (page, bytes) in pages(page, count).zip(data.chunks(PAGE_SIZE)) {
                        if let Some(fill) = model.get(&page) {
                            assert!(bytes.iter().all(|byte| byte == fill));
                        }
                    }
                }
            }
            Action::Discard { page, count } => {
                let range = range(page, count, 0);
                let (status, _) = guest.send(&device, DISCARD, 0, &range, 0);
                assert_eq!(status == 0, on_disk(page, count));
                if status == 0 {
                    for page in pages(page, count) {
                        model.remove(&page);
                        if over_pool {
                            model.insert(page, 0);
                        }
                    }
                }
            }
            Action::WriteZeroes { page, count, flags } => {
                let range = range(page, count, flags.into());
                let (status, _) = guest.send(&device, WRITE_ZEROES, 0, &range, 0);
                assert_eq!(status == 0, flags < 2 && on_disk(page, count));
                if status == 0 {
                    model.extend(pages(page, count).map(|page| (page, 0)));
                }
            }
            Action::Freeze(frozen) => freeze(frozen),
            Action::Any {
                bytes,
                descriptors,
                head,
            } => {
                guest.write(0x10000, &bytes);
                for (index, (addr, len, flags)) in (0..).zip(descriptors) {
                    // Not into the rings, so that the model's requests are not disturbed.
                    let addr = 0x10000 + u64::from(addr);
                    let (flags, next) = ((flags & 7).into(), (flags >> 3).into());
                    guest.ring.set_desc(index, addr, len, flags, next);
                }
                guest.kick(&device, (head % 17).into());
                model.clear();
            }
        }
    }
}

/// A range of pages as a discard or write-zeroes request has it.
fn range(page: u8, count: u8, flags: u32) -> Vec<u8> {
    let mut range = (u64::from(page) * 8).to_le_bytes().to_vec();
    range.extend((u32::from(count) * 8).to_le_bytes());
    range.extend(flags.to_le_bytes());
    range
}
