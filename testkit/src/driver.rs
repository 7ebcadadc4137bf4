//! The driver's side of a split virtqueue: the one writer of rings of all tests, benches and fuzz targets.
//!
//! A [`Ring`] does what a driver does ([`Ring::chain`], [`Ring::offer`], [`Ring::take_used`]), and by its methods
//! `set_...` what no driver should: each writes one field of the ring and checks nothing. Names are those of the
//! virtio specification, version 1.2, section 2.7; indices run from 0 to 65535 and go on at 0.

use std::sync::atomic::{Ordering, fence};

use virtio_queue::{Queue, QueueT};
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryMmap, VolatileSlice};

/// Flag of a descriptor that another one follows.
pub const NEXT: u16 = 1;
/// Flag of a descriptor whose buffer the device writes.
pub const WRITE: u16 = 2;
/// Flag of a descriptor whose buffer is a table of descriptors.
pub const INDIRECT: u16 = 4;

/// Flag of the available ring by which a driver without the event index says that it wants no interrupt.
pub const NO_INTERRUPT: u16 = 1;
/// Flag of the used ring by which the device says to such a driver that it wants no kick.
const NO_NOTIFY: u16 = 1;

const DESCRIPTOR: u64 = 16;
const PAGE: u64 = 4096;

/// Guest memory that a ring lies in. Addresses are those of the guest.
///
/// All methods panic outside of memory; `load` and `store` also at an odd address.
pub trait Memory {
    /// Copies a value to memory.
    fn write<T: ByteValued>(&self, value: T, at: u64);
    /// Copies a value from memory.
    fn read<T: ByteValued>(&self, at: u64) -> T;
    /// Stores at once, after all that was written before.
    fn store(&self, value: u16, at: u64);
    /// Loads at once, before all that is read after.
    fn load(&self, at: u64) -> u16;
}

impl Memory for GuestMemoryMmap {
    fn write<T: ByteValued>(&self, value: T, at: u64) {
        self.write_obj(value, GuestAddress(at)).expect("in memory");
    }

    fn read<T: ByteValued>(&self, at: u64) -> T {
        self.read_obj(GuestAddress(at)).expect("in memory")
    }

    fn store(&self, value: u16, at: u64) {
        Bytes::store(self, value, GuestAddress(at), Ordering::Release).expect("in memory");
    }

    fn load(&self, at: u64) -> u16 {
        Bytes::load(self, GuestAddress(at), Ordering::Acquire).expect("in memory")
    }
}

/// The memory from guest address 0 on, found once: what a bench can afford.
impl Memory for VolatileSlice<'_> {
    fn write<T: ByteValued>(&self, value: T, at: u64) {
        self.write_obj(value, at as usize).expect("in memory");
    }

    fn read<T: ByteValued>(&self, at: u64) -> T {
        self.read_obj(at as usize).expect("in memory")
    }

    fn store(&self, value: u16, at: u64) {
        Bytes::store(self, value, at as usize, Ordering::Release).expect("in memory");
    }

    fn load(&self, at: u64) -> u16 {
        Bytes::load(self, at as usize, Ordering::Acquire).expect("in memory")
    }
}

/// Where the parts of a ring lie in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Entries: a power of two.
    pub size: u16,
    /// Address of the descriptor table.
    pub descriptors: u64,
    /// Address of the available ring.
    pub available: u64,
    /// Address of the used ring.
    pub used: u64,
}

impl Layout {
    /// The three parts in a page each, in this order.
    ///
    /// # Panics
    /// `size` is no power of two, or so large that a part needs more than a page.
    pub const fn at(base: u64, size: u16) -> Self {
        assert!(size.is_power_of_two() && size <= 256);
        Self {
            size,
            descriptors: base,
            available: base + PAGE,
            used: base + 2 * PAGE,
        }
    }

    /// Address of the first page behind the used ring.
    pub const fn end(&self) -> u64 {
        self.used + (6 + 8 * self.size as u64).next_multiple_of(PAGE)
    }

    /// Address of a descriptor. `index` may be one that the table does not have.
    pub const fn descriptor(&self, index: u16) -> u64 {
        self.descriptors + DESCRIPTOR * index as u64
    }

    /// Address of the entry of the available ring for the chain of this index.
    pub const fn avail_entry(&self, index: u16) -> u64 {
        self.available + 4 + 2 * self.slot(index)
    }

    /// Address of the index of the available ring.
    pub const fn avail_index(&self) -> u64 {
        self.available + 2
    }

    /// Address of the field in which the driver says for which chain it wants an interrupt.
    pub const fn used_event(&self) -> u64 {
        self.available + 4 + 2 * self.size as u64
    }

    /// Address of the entry of the used ring for the chain of this index.
    pub const fn used_entry(&self, index: u16) -> u64 {
        self.used + 4 + 8 * self.slot(index)
    }

    /// Address of the index of the used ring.
    pub const fn used_index(&self) -> u64 {
        self.used + 2
    }

    /// Address of the field in which the device says for which chain it wants a kick.
    pub const fn avail_event(&self) -> u64 {
        self.used + 4 + 8 * self.size as u64
    }

    const fn slot(&self, index: u16) -> u64 {
        (index & (self.size - 1)) as u64
    }

    /// The device's side of the ring, ready at index 0.
    ///
    /// # Panics
    /// An address is not aligned, or beyond 4 GiB.
    pub fn queue(&self) -> Queue {
        let low = |at: u64| Some(u32::try_from(at).expect("below 4 GiB"));
        let mut queue = Queue::new(self.size).expect("a valid size");
        queue.set_desc_table_address(low(self.descriptors), None);
        queue.set_avail_ring_address(low(self.available), None);
        queue.set_used_ring_address(low(self.used), None);
        let set = [queue.desc_table(), queue.avail_ring(), queue.used_ring()];
        assert_eq!(set, [self.descriptors, self.available, self.used]);
        queue.set_ready(true);
        queue
    }
}

/// One buffer of a chain: guest address, bytes, and whether the device writes it.
#[derive(Clone, Copy, Debug)]
pub struct Buffer {
    pub addr: u64,
    pub len: u32,
    pub write: bool,
}

impl Buffer {
    const fn flags(&self, has_next: bool) -> u16 {
        (if self.write { WRITE } else { 0 }) | (if has_next { NEXT } else { 0 })
    }
}

/// A buffer that the device reads. `len` is below 4 GiB.
pub const fn readable(addr: u64, len: usize) -> Buffer {
    Buffer {
        addr,
        len: len as u32,
        write: false,
    }
}

/// A buffer that the device writes. `len` is below 4 GiB.
pub const fn writable(addr: u64, len: usize) -> Buffer {
    Buffer {
        addr,
        len: len as u32,
        write: true,
    }
}

/// A descriptor as it is in memory.
pub const fn descriptor(addr: u64, len: u32, flags: u16, next: u16) -> [u64; 2] {
    let rest = len as u64 | (flags as u64) << 32 | (next as u64) << 48;
    [addr.to_le(), rest.to_le()]
}

/// The bytes of an indirect table of this chain.
pub fn table(buffers: &[Buffer]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (index, buffer) in (1u16..).zip(buffers) {
        let flags = buffer.flags(usize::from(index) < buffers.len());
        let words = descriptor(buffer.addr, buffer.len, flags, index);
        bytes.extend(words.map(u64::to_ne_bytes).as_flattened());
    }
    bytes
}

/// The driver's side of a split virtqueue. A clone drives the same ring.
#[derive(Clone, Debug)]
pub struct Ring<M> {
    memory: M,
    layout: Layout,
    /// Index of the chain that is offered next.
    next_avail: u16,
    /// Index of the chain that is taken from the used ring next.
    next_used: u16,
    /// The descriptor that [`Self::take_descriptor`] gives next.
    next_descriptor: u16,
}

impl<M: Memory> Ring<M> {
    /// A ring in whose place memory is zero.
    pub fn new(memory: M, layout: Layout) -> Self {
        Self::resume(memory, layout, 0)
    }

    /// A ring of whose chains all before `next` are used and taken.
    pub fn resume(memory: M, layout: Layout, next: u16) -> Self {
        Self {
            memory,
            layout,
            next_avail: next,
            next_used: next,
            next_descriptor: 0,
        }
    }

    pub fn memory(&self) -> &M {
        &self.memory
    }

    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Index of the chain that is offered next.
    pub fn next(&self) -> u16 {
        self.next_avail
    }

    /// Writes zeros to all of the ring, which begins anew.
    pub fn clear(&mut self) {
        let Layout {
            size,
            descriptors,
            available,
            used,
        } = self.layout;
        let size = u64::from(size);
        for (at, words) in [
            (descriptors, 8 * size),
            (available, 3 + size),
            (used, 3 + 4 * size),
        ] {
            for word in 0..words {
                self.memory.write(0u16, at + 2 * word);
            }
        }
        (self.next_avail, self.next_used, self.next_descriptor) = (0, 0, 0);
    }

    /// The descriptor that follows those that were taken, at the end of the table the first. That its chain was used
    /// is for the caller to know.
    pub fn take_descriptor(&mut self) -> u16 {
        let index = self.next_descriptor;
        self.next_descriptor = self.behind(index);
        index
    }

    /// Writes a chain to the descriptors that follow those that were taken, and offers it. Returns its head.
    pub fn chain(&mut self, buffers: &[Buffer]) -> u16 {
        let head = self.next_descriptor;
        for _ in buffers {
            self.take_descriptor();
        }
        self.write_chain(head, buffers);
        self.offer(head);
        head
    }

    /// Writes a chain to the descriptors from `head` on, and does not offer it.
    pub fn write_chain(&self, head: u16, buffers: &[Buffer]) {
        let mut index = head;
        for (before, buffer) in buffers.iter().enumerate() {
            let flags = buffer.flags(before + 1 < buffers.len());
            let next = self.behind(index);
            self.set_desc(index, buffer.addr, buffer.len, flags, next);
            index = next;
        }
    }

    fn behind(&self, index: u16) -> u16 {
        (index + 1) & (self.layout.size - 1)
    }

    /// Makes the chain available that begins at descriptor `head`, which may be any.
    #[inline]
    pub fn offer(&mut self, head: u16) {
        self.set_avail_entry(self.next_avail, head);
        self.set_avail_index(self.next_avail.wrapping_add(1));
    }

    /// Whether the device wants a kick for the chain that was offered last. A driver that offers several before it asks
    /// may miss that it wants one for an earlier one.
    #[inline]
    pub fn wants_kick(&self) -> bool {
        // What was offered is seen, or else what the device wants is: section 2.7.13.4.
        fence(Ordering::SeqCst);
        self.avail_event() == self.next_avail.wrapping_sub(1)
    }

    /// Whether the device wants kicks: for a driver without the event index, by the flag of the used ring.
    #[inline]
    pub fn wants_kicks(&self) -> bool {
        fence(Ordering::SeqCst);
        self.memory.load(self.layout.used) & NO_NOTIFY == 0
    }

    /// Whether the device will want a kick for the chain that is offered next.
    #[inline]
    pub fn is_armed(&self) -> bool {
        self.avail_event() == self.next_avail
    }

    /// Whether the device has used every chain that was offered.
    #[inline]
    pub fn is_done(&self) -> bool {
        self.used_index() == self.next_avail
    }

    /// The next chain that the device has used: its head, and the bytes that the device says it wrote.
    pub fn take_used(&mut self) -> Option<(u16, u32)> {
        if self.next_used == self.used_index() {
            return None;
        }
        let at = self.layout.used_entry(self.next_used);
        let [id, len] = self.memory.read::<[u32; 2]>(at).map(u32::from_le);
        self.next_used = self.next_used.wrapping_add(1);
        Some((id as u16, len))
    }

    #[inline]
    pub fn used_index(&self) -> u16 {
        u16::from_le(self.memory.load(self.layout.used_index()))
    }

    /// Index of the chain for which the device wants a kick.
    #[inline]
    pub fn avail_event(&self) -> u16 {
        u16::from_le(self.memory.load(self.layout.avail_event()))
    }

    /// Writes a descriptor. `index` may be one that the table does not have.
    #[inline]
    pub fn set_desc(&self, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let words = descriptor(addr, len, flags, next);
        self.memory.write(words, self.layout.descriptor(index));
    }

    /// Writes the head of the chain of this index, and does not make it available.
    #[inline]
    pub fn set_avail_entry(&self, index: u16, head: u16) {
        self.memory
            .write(head.to_le(), self.layout.avail_entry(index));
    }

    /// Makes all chains before `index` available, whatever it is. The next one gets this index.
    #[inline]
    pub fn set_avail_index(&mut self, index: u16) {
        self.next_avail = index;
        self.memory.store(index.to_le(), self.layout.avail_index());
    }

    /// Writes the flags of the available ring.
    pub fn set_avail_flags(&self, flags: u16) {
        self.memory.store(flags.to_le(), self.layout.available);
    }

    /// Asks for an interrupt when the chain of this index is used.
    #[inline]
    pub fn set_used_event(&self, index: u16) {
        self.memory.write(index.to_le(), self.layout.used_event());
    }
}
