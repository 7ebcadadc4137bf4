//! The device over a real file, driven through its queue.

use std::time::{Duration, Instant};

use virtio_bindings::virtio_blk::{VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::*;
use crate::stop::StopFlag;
use crate::virtio::Interrupt;

const DESC: u64 = 0x1000;
const AVAIL: u64 = 0x2000;
const USED: u64 = 0x3000;
const DATA: u64 = 0x4000;

struct Rig {
    file: tempfile::NamedTempFile,
    block: Block,
    queues: Arc<Queues>,
    sent: u16,
}

impl Rig {
    fn new() -> Self {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let block = Block::new(FileDisk::open(file.path(), false).unwrap(), "disk0").unwrap();
        let mem = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 16)]).unwrap();
        let interrupt = Arc::new(Interrupt::new().unwrap());
        let queues = Queues::new(
            mem,
            &block.queue_sizes(),
            interrupt,
            StopFlag::new().unwrap(),
        );
        let queues = Arc::new(queues.unwrap());
        {
            let mut queue = queues.lock(0).unwrap();
            queue.try_set_size(16).unwrap();
            queue.set_desc_table_address(Some(0x1000), Some(0));
            queue.set_avail_ring_address(Some(0x2000), Some(0));
            queue.set_used_ring_address(Some(0x3000), Some(0));
            queue.set_ready(true);
        }
        block.activate(0, &queues);
        Self {
            file,
            block,
            queues,
            sent: 0,
        }
    }

    fn put<T: vm_memory::ByteValued>(&self, value: T, at: u64) {
        self.queues
            .mem()
            .write_obj(value, GuestAddress(at))
            .unwrap();
    }

    fn ring(&mut self, head: u16) {
        self.put(head, AVAIL + 4 + u64::from(self.sent % 16) * 2);
        self.sent += 1;
        self.put(self.sent, AVAIL + 2);
        self.block.doorbell(0).unwrap().write(1).unwrap();
    }

    /// Sends header, data and status; returns the status once it is used.
    fn request(&mut self, kind: u32, sector: u64, len: u32, writable: bool) -> u8 {
        self.put(kind, DATA);
        self.put(sector, DATA + 8);
        self.put(0xeeu8, DATA + 16);
        let data_flags = if writable { 3u16 } else { 1 };
        for (index, (address, len, flags, next)) in (0u64..).zip([
            (DATA, 16u32, 1u16, 1u16),
            (DATA + 0x1000, len, data_flags, 2),
            (DATA + 16, 1, 2, 0),
        ]) {
            self.put(address, DESC + index * 16);
            self.put(len, DESC + index * 16 + 8);
            self.put(flags, DESC + index * 16 + 12);
            self.put(next, DESC + index * 16 + 14);
        }
        self.ring(0);
        self.wait(|rig| {
            rig.queues
                .mem()
                .read_obj::<u16>(GuestAddress(USED + 2))
                .unwrap()
                == rig.sent
        });
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
    for index in 0..2u64 {
        rig.put(DATA, DESC + index * 16);
        rig.put(16u32, DESC + index * 16 + 8);
        rig.put(1u16, DESC + index * 16 + 12);
        rig.put(u16::try_from(1 - index).unwrap(), DESC + index * 16 + 14);
    }
    rig.ring(0);
    rig.wait(|rig| {
        rig.queues
            .mem()
            .read_obj::<u16>(GuestAddress(USED + 2))
            .unwrap()
            == 1
    });
    assert!(!rig.queues.interrupt().is_reset_needed());
    rig.put(500u16, AVAIL + 2);
    rig.block.doorbell(0).unwrap().write(1).unwrap();
    rig.wait(|rig| rig.queues.interrupt().is_reset_needed());

    let mut rig = Rig::new();
    rig.ring(16);
    rig.wait(|rig| rig.queues.interrupt().is_reset_needed());
}

#[test]
fn doorbells_before_activation_or_after_reset_do_nothing() {
    let mut rig = Rig::new();
    rig.block.reset();
    rig.ring(0);
    rig.block.notify(0, &rig.queues);
    drop(rig.block);
    assert_eq!(
        rig.queues
            .mem()
            .read_obj::<u16>(GuestAddress(USED + 2))
            .unwrap(),
        0
    );
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
