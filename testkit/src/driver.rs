//! The driver's side of a split ring in guest memory.

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

pub const MEMORY: u64 = 4 << 20;
const DESC: u64 = 0x1000;
pub const AVAIL: u64 = 0x9000;
pub const USED: u64 = 0xb000;
const DATA: u64 = 0x10000;

/// One descriptor of a chain.
#[derive(Clone, Copy, Debug)]
pub struct Buffer {
    pub addr: u64,
    pub len: u32,
    pub write: bool,
}

pub fn readable(addr: u64, len: usize) -> Buffer {
    Buffer {
        addr,
        len: len as u32,
        write: false,
    }
}

pub fn writable(addr: u64, len: usize) -> Buffer {
    Buffer {
        addr,
        len: len as u32,
        write: true,
    }
}

/// Guest memory with one split queue in it.
pub struct Guest {
    pub mem: GuestMemoryMmap,
    pub queue: Queue,
    size: u16,
    next_desc: u16,
    next_data: u64,
    avail: u16,
    seen_used: u16,
}

impl Guest {
    pub fn new(size: u16) -> Self {
        let mem = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY as usize)]).unwrap();
        let mut queue = Queue::new(size).unwrap();
        queue.set_size(size);
        queue.set_desc_table_address(Some(DESC as u32), Some(0));
        queue.set_avail_ring_address(Some(AVAIL as u32), Some(0));
        queue.set_used_ring_address(Some(USED as u32), Some(0));
        queue.set_ready(true);
        assert!(queue.is_valid(&mem));
        Self {
            mem,
            queue,
            size,
            next_desc: 0,
            next_data: DATA,
            avail: 0,
            seen_used: 0,
        }
    }

    /// Guest memory for `len` bytes, filled with 0xee so that what the device wrote shows.
    pub fn alloc(&mut self, len: usize) -> u64 {
        let addr = self.next_data;
        self.next_data += (len as u64).next_multiple_of(64);
        assert!(self.next_data <= MEMORY, "the test fits into guest memory");
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

    fn descriptor_bytes(addr: u64, len: u32, flags: u16, next: u16) -> Vec<u8> {
        let mut bytes = addr.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        bytes
    }

    pub fn set_desc(&self, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let bytes = Self::descriptor_bytes(addr, len, flags, next);
        self.write(DESC + u64::from(index) * 16, &bytes);
    }

    /// Makes `head` available.
    pub fn push(&mut self, head: u16) {
        let place = AVAIL + 4 + u64::from(self.avail % self.size) * 2;
        self.write(place, &head.to_le_bytes());
        self.set_avail(self.avail.wrapping_add(1));
    }

    pub fn set_avail(&mut self, index: u16) {
        self.avail = index;
        self.write(AVAIL + 2, &index.to_le_bytes());
    }

    pub fn avail_event(&self) -> u16 {
        let bytes = self.read(USED + 4 + u64::from(self.size) * 8, 2);
        u16::from_le_bytes(bytes.try_into().unwrap())
    }

    pub fn take_desc(&mut self) -> u16 {
        let index = self.next_desc;
        self.next_desc = (index + 1) % self.size;
        index
    }

    /// Writes a chain and makes it available.
    pub fn chain(&mut self, buffers: &[Buffer]) -> u16 {
        let indices: Vec<u16> = buffers.iter().map(|_| self.take_desc()).collect();
        for (place, buffer) in buffers.iter().enumerate() {
            let next = indices.get(place + 1).copied();
            let flags = if buffer.write { WRITE } else { 0 } | next.map_or(0, |_| NEXT);
            self.set_desc(
                indices[place],
                buffer.addr,
                buffer.len,
                flags,
                next.unwrap_or(0),
            );
        }
        self.push(indices[0]);
        indices[0]
    }

    /// An indirect table of this chain in guest memory: address and length.
    pub fn table(&mut self, buffers: &[Buffer]) -> (u64, u32) {
        let mut bytes = Vec::new();
        for (place, buffer) in buffers.iter().enumerate() {
            let last = place + 1 == buffers.len();
            let flags = if buffer.write { WRITE } else { 0 } | if last { 0 } else { NEXT };
            bytes.extend(Self::descriptor_bytes(
                buffer.addr,
                buffer.len,
                flags,
                place as u16 + 1,
            ));
        }
        (self.put(&bytes), bytes.len() as u32)
    }

    /// Makes a chain available that is one indirect descriptor.
    pub fn indirect(&mut self, addr: u64, len: u32) -> u16 {
        let head = self.take_desc();
        self.set_desc(head, addr, len, INDIRECT, 0);
        self.push(head);
        head
    }

    /// Chains that came back since the last call: head and length.
    pub fn used(&mut self) -> Vec<(u16, u32)> {
        let index = u16::from_le_bytes(self.read(USED + 2, 2).try_into().unwrap());
        let mut used = Vec::new();
        while self.seen_used != index {
            let place = USED + 4 + u64::from(self.seen_used % self.size) * 8;
            let id = u32::from_le_bytes(self.read(place, 4).try_into().unwrap());
            let len = u32::from_le_bytes(self.read(place + 4, 4).try_into().unwrap());
            used.push((id as u16, len));
            self.seen_used = self.seen_used.wrapping_add(1);
        }
        used
    }
}
