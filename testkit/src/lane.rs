//! A guest with one request of the tmem device at a time, as lean as a driver is: the floor of benches.

use tmem_protocol::{Entry, MAX_BATCH, Op, RequestHeader, Response, Status};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, VolatileSlice};
use zerocopy::{FromZeros, IntoBytes};

use crate::driver::{Layout, NEXT, Ring, WRITE};
use crate::frontend::TestGuest;

/// Bytes of a page.
pub const PAGE: u64 = 4096;

/// Of the page behind the ring: where the answer is; header and entries are before it.
const ANSWER: u64 = 0x800;

/// A guest with one request at a time, in guest memory of one region from address 0. It allocates nothing, and panics
/// where memory ends.
pub struct Lane<'a> {
    ring: Ring<VolatileSlice<'a>>,
    /// Address of header and entries.
    keys: u64,
    pool: u32,
    /// Entries of the last request.
    count: usize,
}

impl<'a> Lane<'a> {
    /// A lane over the ring of this layout, of whose chains `done` are done already. It needs the page behind the ring
    /// for keys and answers.
    pub fn new(memory: &'a GuestMemoryMmap, layout: Layout, pool: u32, done: u16) -> Self {
        let len = memory.last_addr().0 as usize + 1;
        let memory = memory.get_slice(GuestAddress(0), len);
        Self {
            ring: Ring::resume(memory.expect("one region"), layout, done),
            keys: layout.end(),
            pool,
            count: 0,
        }
    }

    /// A lane over the request ring of a guest, all of whose requests are answered.
    pub fn of(guest: &'a TestGuest, pool: u32) -> Self {
        let ring = &guest.rings[1].driver;
        Self::new(&guest.memory, *ring.layout(), pool, ring.next())
    }

    /// Offers a request for the pages of at most [`MAX_BATCH`] indices, the first at guest address `frame`, the others
    /// behind it. Returns whether the device wants a kick.
    pub fn submit(&mut self, op: Op, indices: std::ops::Range<u32>, frame: u64) -> bool {
        self.count = indices.len();
        let object = match op {
            Op::CreatePool => [0; 3],
            _ => [1, 2, 3],
        };
        let header = RequestHeader {
            op: (op as u16).into(),
            count: (self.count as u16).into(),
            pool: self.pool.into(),
            object: object.map(u64::into),
        };
        self.write(header.as_bytes(), self.keys);
        let mut end = self.keys + size_of::<RequestHeader>() as u64;
        for index in indices {
            let entry = Entry {
                index: index.into(),
                reserved: 0.into(),
            };
            self.write(entry.as_bytes(), end);
            end += size_of::<Entry>() as u64;
        }
        let (keys, keys_len) = (self.keys, (end - self.keys) as u32);
        let answer = self.keys + ANSWER;
        let answer_len = (size_of::<Response>() + self.count) as u32;
        let pages = self.count as u32 * PAGE as u32;
        // One by one: the loop of a chain of any length costs more than the descriptors do.
        let ring = &self.ring;
        ring.set_desc(0, keys, keys_len, NEXT, 1);
        match op {
            Op::Store => {
                ring.set_desc(1, frame, pages, NEXT, 2);
                ring.set_desc(2, answer, answer_len, WRITE, 0);
            }
            Op::Load => {
                ring.set_desc(1, answer, answer_len, WRITE | NEXT, 2);
                ring.set_desc(2, frame, pages, WRITE, 0);
            }
            _ => ring.set_desc(1, answer, answer_len, WRITE, 0),
        }
        self.ring.offer(0);
        self.ring.wants_kick()
    }

    #[inline(always)]
    fn write(&self, bytes: &[u8], at: u64) {
        let memory = self.ring.memory();
        memory.write_slice(bytes, at as usize).expect("in memory");
    }

    #[inline(always)]
    fn read(&self, bytes: &mut [u8], at: u64) {
        let memory = self.ring.memory();
        memory.read_slice(bytes, at as usize).expect("in memory");
    }

    /// Whether the device will want a kick for the next request.
    pub fn is_armed(&self) -> bool {
        self.ring.is_armed()
    }

    /// Asks for an interrupt for the request that is submitted next.
    pub fn want_call(&self) {
        self.ring.set_used_event(self.ring.next());
    }

    /// Reads a page as the program does that needs it.
    pub fn read_page(&self, frame: u64, page: &mut [u8; PAGE as usize]) {
        self.read(page, frame);
        std::hint::black_box(page);
    }

    /// Whether the answer of the last request has come.
    pub fn is_done(&self) -> bool {
        self.ring.is_done()
    }

    /// Takes the answer, which must say that all went well.
    pub fn take(&self) {
        let mut answer = [0u8; size_of::<Response>() + MAX_BATCH as usize];
        let answer = &mut answer[..size_of::<Response>() + self.count];
        self.read(answer, self.keys + ANSWER);
        let ok = u8::from(Status::Ok);
        assert_eq!(answer[0], ok, "request refused");
        let statuses = &answer[size_of::<Response>()..];
        assert!(statuses.iter().all(|status| *status == ok), "{statuses:?}");
    }

    /// As [`Self::take`], of the request that creates the pool of all that follow.
    pub fn take_pool(&mut self) {
        self.take();
        let mut response = Response::new_zeroed();
        self.read(response.as_mut_bytes(), self.keys + ANSWER);
        self.pool = response.pool.get();
    }
}
