//! The device over a real file, driven through its queue.

use std::time::{Duration, Instant};

use tmem_testkit::driver::{Layout, NEXT, Ring, readable, writable};
use virtio_bindings::virtio_blk::{VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::*;
use crate::stop::StopFlag;
use crate::virtio::Interrupt;

const RING: Layout = Layout::at(0x1000, 16);
const DATA: u64 = 0x4000;

struct Rig {
    file: tempfile::NamedTempFile,
    block: Block,
    queues: Arc<Queues>,
    ring: Ring<GuestMemoryMmap>,
}

impl Rig {
    fn new() -> Self {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let block = Block::new(FileDisk::open(file.path(), false).unwrap(), "disk0").unwrap();
        let mem = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 16)]).unwrap();
        let interrupt = Arc::new(Interrupt::new().unwrap());
        let queues = Queues::new(
            mem.clone(),
            &block.queue_sizes(),
            interrupt,
            StopFlag::new().unwrap(),
        );
        let queues = Arc::new(queues.unwrap());
        *queues.lock(0).unwrap() = RING.queue();
        block.activate(0, &queues);
        Self {
            file,
            block,
            queues,
            ring: Ring::new(mem, RING),
        }
    }

    fn put<T: vm_memory::ByteValued>(&self, value: T, at: u64) {
        self.queues
            .mem()
            .write_obj(value, GuestAddress(at))
            .unwrap();
    }

    fn offer(&mut self, head: u16) {
        self.ring.offer(head);
        self.block.doorbell(0).unwrap().write(1).unwrap();
    }

    /// Sends header, data and status; returns the status once it is used.
    fn request(&mut self, kind: u32, sector: u64, len: u32, from_disk: bool) -> u8 {
        self.put(kind, DATA);
        self.put(sector, DATA + 8);
        self.put(0xeeu8, DATA + 16);
        let data = if from_disk { writable } else { readable };
        let chain = [
            readable(DATA, 16),
            data(DATA + 0x1000, len as usize),
            writable(DATA + 16, 1),
        ];
        self.ring.write_chain(0, &chain);
        self.offer(0);
        self.wait(|rig| rig.ring.is_done());
        self.queues.mem().read_obj(GuestAddress(DATA + 16)).unwrap()
    }

    fn wait(&self, done: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !done(self) {
            assert!(Instant::now() < deadline, "the worker does not answer");
            std::thread::yield_now();
        }
    }
}

#[test]
fn what_is_written_is_in_the_file_and_comes_back() {
    let mut rig = Rig::new();
    rig.put([0x5au8; 32], DATA + 0x1000);
    assert_eq!(rig.request(VIRTIO_BLK_T_OUT, 8, 512, false), 0);
    assert!(
        std::fs::read(rig.file.path()).unwrap()[4096..4128]
            .iter()
            .all(|byte| *byte == 0x5a)
    );
    rig.put([0u8; 32], DATA + 0x1000);
    assert_eq!(rig.request(VIRTIO_BLK_T_IN, 8, 512, true), 0);
    assert_eq!(
        rig.queues
            .mem()
            .read_obj::<[u8; 32]>(GuestAddress(DATA + 0x1000))
            .unwrap(),
        [0x5a; 32]
    );
    assert_eq!(
        rig.queues.interrupt().status(),
        1,
        "the driver did not say it wants none"
    );
    assert_eq!(rig.request(VIRTIO_BLK_T_GET_ID, 0, 20, true), 0);
    assert_eq!(
        &rig.queues
            .mem()
            .read_obj::<[u8; 6]>(GuestAddress(DATA + 0x1000))
            .unwrap(),
        b"disk0\0"
    );
}

#[test]
fn a_refused_request_leaves_the_queue_working() {
    let mut rig = Rig::new();
    assert_eq!(rig.request(VIRTIO_BLK_T_IN, 1 << 40, 512, true), 1);
    assert_eq!(rig.request(77, 0, 512, true), 2);
    assert_eq!(rig.request(VIRTIO_BLK_T_IN, 0, 512, true), 0);
    assert!(!rig.queues.interrupt().is_reset_needed());
}

#[test]
fn corrupt_rings_need_a_reset_and_a_chain_that_loops_does_not() {
    let mut rig = Rig::new();
    // A loop of descriptors ends at the size of the queue: it is a bad request.
    for index in 0..2 {
        rig.ring.set_desc(index, DATA, 16, NEXT, 1 - index);
    }
    rig.offer(0);
    rig.wait(|rig| rig.ring.is_done());
    assert!(!rig.queues.interrupt().is_reset_needed());
    rig.ring.set_avail_index(500);
    rig.block.doorbell(0).unwrap().write(1).unwrap();
    rig.wait(|rig| rig.queues.interrupt().is_reset_needed());

    let mut rig = Rig::new();
    rig.offer(16);
    rig.wait(|rig| rig.queues.interrupt().is_reset_needed());
}

#[test]
fn doorbells_before_activation_or_after_reset_do_nothing() {
    let mut rig = Rig::new();
    rig.block.reset();
    rig.offer(0);
    rig.block.notify(0, &rig.queues);
    drop(rig.block);
    assert_eq!(rig.ring.used_index(), 0);
}

#[test]
fn the_configuration_space_tells_the_capacity_and_ends() {
    let rig = Rig::new();
    let mut capacity = [0; 8];
    rig.block.read_config(0, &mut capacity);
    assert_eq!(u64::from_le_bytes(capacity), 2048);
    let mut beyond = [7; 4];
    rig.block.read_config(1000, &mut beyond);
    rig.block.read_config(u64::MAX, &mut beyond);
    assert_eq!(beyond, [0; 4]);
}
