//! Guest memory with one ring in it, and the device's side of the ring: for tests in which the device is in this process.

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::driver::{Buffer, INDIRECT, Layout, Ring, table};

/// Bytes of guest memory, from address 0 on.
pub const MEMORY: u64 = 4 << 20;
/// Zeros follow each part of the ring, so that a device that reads behind it finds nothing that looks like a chain.
const DESCRIPTORS: u64 = 0x1000;
const AVAILABLE: u64 = 0x9000;
const USED: u64 = 0xb000;
/// Where buffers begin.
const BUFFERS: u64 = 0x10000;

/// Guest memory with one split queue in it. Methods panic outside of the memory.
pub struct Guest {
    pub mem: GuestMemoryMmap,
    /// The device's side.
    pub queue: Queue,
    /// The driver's side.
    pub ring: Ring<GuestMemoryMmap>,
    next_buffer: u64,
}

impl Guest {
    /// A guest whose ring has `size` entries: a power of two, at most 1024.
    pub fn new(size: u16) -> Self {
        let mem = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY as usize)]).unwrap();
        let layout = Layout {
            size,
            descriptors: DESCRIPTORS,
            available: AVAILABLE,
            used: USED,
        };
        let queue = layout.queue();
        assert!(queue.is_valid(&mem));
        Self {
            ring: Ring::new(mem.clone(), layout),
            mem,
            queue,
            next_buffer: BUFFERS,
        }
    }

    /// Guest memory for `len` bytes, filled with 0xee so that what the device wrote shows.
    pub fn alloc(&mut self, len: usize) -> u64 {
        let addr = self.next_buffer;
        self.next_buffer += (len as u64).next_multiple_of(64);
        assert!(
            self.next_buffer <= MEMORY,
            "the test fits into guest memory"
        );
        self.write(addr, &vec![0xee; len]);
        addr
    }

    /// Guest memory that holds `bytes`.
    pub fn put(&mut self, bytes: &[u8]) -> u64 {
        let addr = self.alloc(bytes.len());
        self.write(addr, bytes);
        addr
    }

    pub fn write(&self, addr: u64, bytes: &[u8]) {
        self.mem.write_slice(bytes, GuestAddress(addr)).unwrap();
    }

    pub fn read(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.mem.read_slice(&mut bytes, GuestAddress(addr)).unwrap();
        bytes
    }

    /// As [`Ring::take_descriptor`].
    pub fn take_desc(&mut self) -> u16 {
        self.ring.take_descriptor()
    }

    /// As [`Ring::set_desc`].
    pub fn set_desc(&self, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        self.ring.set_desc(index, addr, len, flags, next);
    }

    /// As [`Ring::offer`].
    pub fn push(&mut self, head: u16) {
        self.ring.offer(head);
    }

    /// As [`Ring::chain`].
    pub fn chain(&mut self, buffers: &[Buffer]) -> u16 {
        self.ring.chain(buffers)
    }

    /// An indirect table of this chain in guest memory: address and bytes.
    pub fn table(&mut self, buffers: &[Buffer]) -> (u64, u32) {
        let bytes = table(buffers);
        (self.put(&bytes), bytes.len() as u32)
    }

    /// Offers a chain that is one indirect descriptor. Returns its head.
    pub fn indirect(&mut self, addr: u64, len: u32) -> u16 {
        let head = self.take_desc();
        self.set_desc(head, addr, len, INDIRECT, 0);
        self.push(head);
        head
    }

    /// Chains that came back since the last call: head and length.
    pub fn used(&mut self) -> Vec<(u16, u32)> {
        std::iter::from_fn(|| self.ring.take_used()).collect()
    }
}
