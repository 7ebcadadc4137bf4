//! The driver's side of one ring, with one request at a time, as lean as a driver is.

use std::sync::atomic::{Ordering, fence};

use tmem_protocol::{Entry, Op, RequestHeader, Response, Status};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, VolatileSlice};
use zerocopy::{FromZeros, IntoBytes};

pub const PAGE: u64 = 4096;
/// Entries of the ring.
pub const SIZE: u16 = 64;

const AVAILABLE: usize = 0x1000;
const USED: usize = 0x2000;
/// Length of a ring; a page for keys and answer follows it.
pub const LEN: u64 = 0x3000;
const ANSWER: usize = LEN as usize + 0x800;

const NEXT: u16 = 1;
const WRITE: u16 = 2;

pub struct Lane<'a> {
    memory: VolatileSlice<'a>,
    base: usize,
    pool: u32,
    next: u16,
    used: u16,
    count: usize,
}

impl<'a> Lane<'a> {
    /// The ring at `base`, of which `done` requests are done already.
    pub fn new(memory: &'a GuestMemoryMmap, base: u64, pool: u32, done: u16) -> Self {
        let len = memory.last_addr().0 as usize + 1;
        let memory = memory.get_slice(GuestAddress(0), len);
        Self {
            memory: memory.expect("one region"),
            base: base as usize,
            pool,
            next: done,
            used: done,
            count: 0,
        }
    }

    fn write<T: vm_memory::ByteValued>(&self, value: T, at: usize) {
        self.memory
            .write_obj(value, self.base + at)
            .expect("inside");
    }

    fn read(&self, at: usize) -> u16 {
        self.memory
            .load(self.base + at, Ordering::Acquire)
            .expect("inside")
    }

    fn descriptor(&self, index: usize, address: u64, len: usize, flags: u16) {
        let words = [
            address,
            len as u64 | u64::from(flags) << 32 | (index as u64 + 1) << 48,
        ];
        self.write(words, 16 * index);
    }

    /// Offers a request for the pages of these indices, the first at guest address `frame`, the others
    /// behind it. Returns whether the device wants a kick.
    pub fn submit(&mut self, op: Op, indices: std::ops::Range<u32>, frame: u64) -> bool {
        self.count = indices.len();
        let object = match op {
            Op::CreatePool => [0; 3],
            _ => [1, 2, 3],
        };
        let keys = self.base + LEN as usize;
        let header = RequestHeader {
            op: (op as u16).into(),
            count: (self.count as u16).into(),
            pool: self.pool.into(),
            object: object.map(u64::into),
        };
        let slice = |bytes: &[u8], at| self.memory.write_slice(bytes, at).expect("inside");
        slice(header.as_bytes(), keys);
        let mut end = keys + size_of::<RequestHeader>();
        for index in indices {
            let entry = Entry {
                index: index.into(),
                reserved: 0.into(),
            };
            slice(entry.as_bytes(), end);
            end += size_of::<Entry>();
        }
        let answer = (self.base + ANSWER) as u64;
        let answer_len = size_of::<Response>() + self.count;
        self.descriptor(0, keys as u64, end - keys, NEXT);
        let pages = self.count * PAGE as usize;
        match op {
            Op::Store => {
                self.descriptor(1, frame, pages, NEXT);
                self.descriptor(2, answer, answer_len, WRITE);
            }
            Op::Load => {
                self.descriptor(1, answer, answer_len, WRITE | NEXT);
                self.descriptor(2, frame, pages, WRITE);
            }
            _ => self.descriptor(1, answer, answer_len, WRITE),
        }
        self.write(0u16, AVAILABLE + 4 + 2 * usize::from(self.next % SIZE));
        self.next = self.next.wrapping_add(1);
        self.memory
            .store(self.next, self.base + AVAILABLE + 2, Ordering::Release)
            .expect("inside");
        fence(Ordering::SeqCst);
        self.wants_kick()
    }

    /// Whether the device sleeps until it is kicked for the last request.
    fn wants_kick(&self) -> bool {
        self.read(USED + 4 + 8 * usize::from(SIZE)) == self.next.wrapping_sub(1)
    }

    /// Whether the device will want a kick for the next request.
    pub fn is_armed(&self) -> bool {
        self.read(USED + 4 + 8 * usize::from(SIZE)) == self.next
    }

    /// Asks for an interrupt for the request that is submitted next.
    pub fn want_call(&self) {
        self.write(self.used, AVAILABLE + 4 + 2 * usize::from(SIZE));
    }

    /// Reads a page as the program does that needs it.
    pub fn read_page(&self, frame: u64, page: &mut [u8; PAGE as usize]) {
        self.memory
            .read_slice(page, frame as usize)
            .expect("inside");
        std::hint::black_box(page);
    }

    pub fn is_done(&self) -> bool {
        self.read(USED + 2) == self.next
    }

    /// Takes the answer, which must say that all went well.
    pub fn take(&mut self) {
        self.used = self.next;
        let mut answer = [0u8; size_of::<Response>() + 8];
        let answer = &mut answer[..size_of::<Response>() + self.count];
        self.memory
            .read_slice(answer, self.base + ANSWER)
            .expect("inside");
        let ok = u8::from(Status::Ok);
        assert_eq!(answer[0], ok, "request refused");
        let statuses = &answer[size_of::<Response>()..];
        assert!(statuses.iter().all(|status| *status == ok), "{statuses:?}");
    }

    /// As [`Self::take`], of the request that creates the pool of all that follow.
    pub fn take_pool(&mut self) {
        self.take();
        let mut response = Response::new_zeroed();
        self.memory
            .read_slice(response.as_mut_bytes(), self.base + ANSWER)
            .expect("inside");
        self.pool = response.pool.get();
    }
}
