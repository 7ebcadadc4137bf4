//! A guest and its VMM in one: memory in a memfd, rings in it, a vhost-user front end. It can do
//! what a driver does, and what no driver should.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tmem_protocol::{Entry, Op, RequestHeader, Response, Status};
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use zerocopy::{FromBytes, IntoBytes};

use crate::corpus::page;

/// Entries of every ring.
pub const QUEUE_SIZE: u16 = 64;
/// Bytes of guest memory.
pub const MEMORY: u64 = 4 << 20;
/// Where request buffers begin.
pub const BUFFERS: u64 = 0x10_0000;
const RING: u64 = 0x4000;
const DESCRIPTORS: u64 = 0;
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;
/// Bytes of the slot of one chain: header, entries, a batch of 8 pages, answer.
const SLOT: u64 = 0xa000;
const ANSWER: u64 = 0x9000;

/// How long an answer may take before a test fails.
pub const PATIENCE: Duration = Duration::from_secs(10);

pub struct Ring {
    base: u64,
    next_avail: u16,
    next_used: u16,
    pub kick: EventFd,
    pub call: EventFd,
}

pub struct TestGuest {
    pub frontend: Frontend,
    pub file: File,
    pub memory: GuestMemoryMmap,
    pub rings: Vec<Ring>,
}

/// An answer: the response, the statuses of the entries, and the pages of a load.
#[derive(Debug)]
pub struct Answer {
    pub response: Response,
    pub statuses: Vec<u8>,
    pub pages: Vec<u8>,
}

impl Answer {
    pub fn status(&self) -> Status {
        Status::try_from(self.response.status).expect("a known status")
    }
}

pub fn memfd(len: u64) -> File {
    // SAFETY: a valid name and no flags that need more.
    let fd = unsafe { libc::memfd_create(c"guest".as_ptr(), libc::MFD_CLOEXEC) };
    assert!(fd >= 0, "memfd");
    // SAFETY: just made, and nobody else owns it.
    let file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    file.set_len(len).expect("sized");
    file
}

impl Ring {
    /// Index that the next chain gets.
    pub fn next(&self) -> u16 {
        self.next_avail
    }
}

impl TestGuest {
    /// Connects with memory and features, and without rings.
    pub fn connect(socket: &Path) -> Self {
        Self::connect_with(socket, MEMORY)
    }

    /// As [`Self::connect`], with so many bytes of memory.
    pub fn connect_with(socket: &Path, len: u64) -> Self {
        Self::connect_in(socket, memfd(len), len)
    }

    /// As [`Self::connect_with`], in a file.
    pub fn connect_in(socket: &Path, file: File, len: u64) -> Self {
        let memory = GuestMemoryMmap::from_ranges_with_files([(
            GuestAddress(0),
            usize::try_from(len).expect("64 bit"),
            Some(FileOffset::new(file.try_clone().expect("clones"), 0)),
        )])
        .expect("maps");
        let mut frontend = Frontend::connect(socket, 64).expect("connects");
        frontend.set_owner().expect("owner");
        let features = frontend.get_features().expect("features");
        let protocol = frontend.get_protocol_features().expect("protocol features");
        assert!(protocol.contains(VhostUserProtocolFeatures::CONFIG));
        frontend
            .set_protocol_features(protocol)
            .expect("protocol features");
        frontend.set_features(features).expect("features");
        let guest = Self {
            frontend,
            file,
            memory,
            rings: Vec::new(),
        };
        guest.share_memory();
        guest
    }

    /// Connects as a driver that is ready for requests.
    pub fn boot(socket: &Path) -> Self {
        let mut guest = Self::connect(socket);
        guest.start_rings(0);
        guest
    }

    pub fn user_address(&self) -> u64 {
        let region = self.memory.iter().next().expect("one region");
        region.as_ptr() as u64
    }

    pub fn share_memory(&self) {
        let region = VhostUserMemoryRegionInfo {
            guest_phys_addr: 0,
            memory_size: self.memory.last_addr().0 + 1,
            userspace_addr: self.user_address(),
            mmap_offset: 0,
            mmap_handle: self.file.as_raw_fd(),
        };
        self.frontend
            .set_mem_table(&[region])
            .expect("memory table");
    }

    /// Starts event ring and one request ring where `base` says.
    pub fn start_rings(&mut self, base: u16) {
        for index in 0..2usize {
            let at = RING * (1 + index as u64);
            let ring = Ring {
                base: at,
                next_avail: base,
                next_used: base,
                kick: EventFd::new(EFD_NONBLOCK).expect("eventfd"),
                call: EventFd::new(EFD_NONBLOCK).expect("eventfd"),
            };
            if base == 0 {
                let zeros = vec![0u8; usize::try_from(RING).expect("small")];
                self.memory
                    .write_slice(&zeros, GuestAddress(at))
                    .expect("in memory");
            }
            // What is in memory agrees with the place where the ring goes on.
            self.write(base, at + AVAILABLE + 2);
            let user = self.user_address() + at;
            let front = &mut self.frontend;
            front.set_vring_num(index, QUEUE_SIZE).expect("size");
            front.set_vring_base(index, base).expect("base");
            front
                .set_vring_addr(
                    index,
                    &VringConfigData {
                        queue_max_size: QUEUE_SIZE,
                        queue_size: QUEUE_SIZE,
                        flags: 0,
                        desc_table_addr: user + DESCRIPTORS,
                        used_ring_addr: user + USED,
                        avail_ring_addr: user + AVAILABLE,
                        log_addr: None,
                    },
                )
                .expect("addresses");
            front.set_vring_call(index, &ring.call).expect("call");
            front.set_vring_kick(index, &ring.kick).expect("kick");
            front.set_vring_enable(index, true).expect("enabled");
            self.rings.push(ring);
        }
    }

    pub fn config(&mut self) -> tmem_protocol::Config {
        let size = u32::try_from(size_of::<tmem_protocol::Config>()).expect("small");
        let empty = vec![0u8; size as usize];
        let (_, bytes) = self
            .frontend
            .get_config(0, size, VhostUserConfigFlags::empty(), &empty)
            .expect("config");
        tmem_protocol::Config::read_from_bytes(&bytes).expect("whole")
    }

    fn write<T: vm_memory::ByteValued>(&self, value: T, at: u64) {
        self.memory
            .write_obj(value, GuestAddress(at))
            .expect("in memory");
    }

    pub fn descriptor(
        &self,
        ring: usize,
        index: u16,
        address: u64,
        len: u32,
        flags: u16,
        next: u16,
    ) {
        let at = self.rings[ring].base + DESCRIPTORS + 16 * u64::from(index);
        self.write(address, at);
        self.write(len, at + 8);
        self.write(flags, at + 12);
        self.write(next, at + 14);
    }

    /// Offers the chain that begins at descriptor `head`.
    pub fn offer(&mut self, ring: usize, head: u16) {
        let (base, next) = (self.rings[ring].base, self.rings[ring].next_avail);
        let slot = u64::from(next % QUEUE_SIZE);
        self.write(head, base + AVAILABLE + 4 + 2 * slot);
        let next = next.wrapping_add(1);
        self.rings[ring].next_avail = next;
        self.set_available(ring, next);
    }

    pub fn set_available(&self, ring: usize, index: u16) {
        let at = GuestAddress(self.rings[ring].base + AVAILABLE + 2);
        self.memory
            .store(index, at, Ordering::Release)
            .expect("in memory");
    }

    /// Sets the flag by which a ring without the event index says whether its guest wants interrupts.
    pub fn set_no_interrupt(&self, ring: usize, set: bool) {
        let at = GuestAddress(self.rings[ring].base + AVAILABLE);
        self.memory
            .store(u16::from(set), at, Ordering::SeqCst)
            .expect("in memory");
    }

    /// After a restart: what was offered up to `next` still is.
    pub fn resume(&mut self, ring: usize, next: u16) {
        self.rings[ring].next_avail = next;
        self.set_available(ring, next);
    }

    pub fn kick(&self, ring: usize) {
        self.rings[ring].kick.write(1).expect("kicks");
    }

    /// Offers as many stores as there are slots, without a kick.
    pub fn submit_stores(&mut self, pool: u32) {
        for slot in 0..16 {
            let bytes = page(slot.into());
            self.submit(slot, Op::Store, pool, [0; 3], &[slot.into()], &bytes);
        }
    }

    /// Places a request in slot `slot` and offers it, without a kick.
    pub fn submit(
        &mut self,
        slot: u16,
        op: Op,
        pool: u32,
        object: [u64; 3],
        indices: &[u32],
        data: &[u8],
    ) {
        self.place(slot, op, pool, object, indices, data);
        self.offer(1, slot * 2);
    }

    fn place(&self, slot: u16, op: Op, pool: u32, object: [u64; 3], indices: &[u32], data: &[u8]) {
        let header = RequestHeader {
            op: (op as u16).into(),
            count: u16::try_from(indices.len()).expect("small").into(),
            pool: pool.into(),
            object: object.map(Into::into),
        };
        let mut readable = header.as_bytes().to_vec();
        for index in indices {
            let entry = Entry {
                index: (*index).into(),
                reserved: 0.into(),
            };
            readable.extend_from_slice(entry.as_bytes());
        }
        readable.extend_from_slice(data);
        let loads = if op == Op::Load {
            indices.len() * 4096
        } else {
            0
        };
        let writable = u32::try_from(size_of::<Response>() + indices.len() + loads).expect("small");
        let at = BUFFERS + SLOT * 2 * u64::from(slot);
        self.memory
            .write_slice(&readable, GuestAddress(at))
            .expect("in memory");
        let len = u32::try_from(readable.len()).expect("small");
        let head = slot * 2;
        self.descriptor(1, head, at, len, 1, head + 1);
        self.descriptor(1, head + 1, at + ANSWER, writable, 2, 0);
    }

    /// Whether an answer has come that was not taken.
    pub fn is_answered(&self) -> bool {
        self.used(1) != self.rings[1].next_used
    }

    /// Whether every buffer that was offered is used.
    pub fn is_used(&self, ring: usize) -> bool {
        self.used(ring) == self.rings[ring].next_avail
    }

    fn used(&self, ring: usize) -> u16 {
        let at = GuestAddress(self.rings[ring].base + USED + 2);
        self.memory.load(at, Ordering::Acquire).expect("in memory")
    }

    /// Waits until every request that was submitted is answered, polling.
    pub fn wait(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while !self.poll() {
            assert!(Instant::now() < deadline, "no answer in time");
            std::hint::spin_loop();
        }
    }

    /// Takes the answers that are there. Returns whether none is missing.
    pub fn poll(&mut self) -> bool {
        self.rings[1].next_used = self.used(1);
        self.is_used(1)
    }

    pub fn answer(&self, slot: u16, count: usize, pages: usize) -> Answer {
        let at = BUFFERS + SLOT * 2 * u64::from(slot) + ANSWER;
        let mut bytes = vec![0u8; size_of::<Response>() + count + pages * 4096];
        self.memory
            .read_slice(&mut bytes, GuestAddress(at))
            .expect("in memory");
        let (response, rest) = bytes.split_at(size_of::<Response>());
        let (statuses, pages) = rest.split_at(count);
        Answer {
            response: Response::read_from_bytes(response).expect("whole"),
            statuses: statuses.to_vec(),
            pages: pages.to_vec(),
        }
    }

    /// One request from kick to answer.
    pub fn request(
        &mut self,
        op: Op,
        pool: u32,
        object: [u64; 3],
        indices: &[u32],
        data: &[u8],
    ) -> Answer {
        self.submit(0, op, pool, object, indices, data);
        self.kick(1);
        self.wait();
        let pages = if op == Op::Load { indices.len() } else { 0 };
        self.answer(0, indices.len(), pages)
    }

    /// Loads a page to an address that it need not have touched.
    pub fn load_to(&mut self, pool: u32, index: u32, address: u64) -> Status {
        self.place_loads_to(pool, &[index], address);
        self.wait();
        Status::try_from(self.answer(0, 1, 0).statuses[0]).expect("a known status")
    }

    /// Offers a request that loads pages, all to the same address, without a wait for the answer.
    pub fn place_loads_to(&mut self, pool: u32, indices: &[u32], address: u64) {
        self.place(0, Op::Load, pool, [1, 2, 3], indices, &[]);
        let answer = u32::try_from(size_of::<Response>() + indices.len()).expect("small");
        let at = BUFFERS + ANSWER;
        self.descriptor(1, 1, at, answer, 3, 2);
        let last = 1 + u16::try_from(indices.len()).expect("small");
        for index in 2..=last {
            let flags = if index == last { 2 } else { 3 };
            self.descriptor(1, index, address, 4096, flags, index + 1);
        }
        self.offer(1, 0);
        self.kick(1);
    }

    /// Touches a page.
    pub fn memory_write(&self, address: u64, byte: u8) {
        self.write(byte, address);
    }

    pub fn create_pool(&mut self) -> u32 {
        let answer = self.request(Op::CreatePool, 0, [0; 3], &[], &[]);
        assert_eq!(answer.status(), Status::Ok);
        answer.response.pool.get()
    }

    /// Joins a share group.
    pub fn join(&mut self, group: &str) -> Result<u32, Status> {
        let mut name = [0u8; 24];
        name[..group.len()].copy_from_slice(group.as_bytes());
        let mut words = name
            .chunks_exact(8)
            .map(|word| u64::from_le_bytes(word.try_into().expect("8 bytes")));
        let object = std::array::from_fn(|_| words.next().expect("3 words"));
        // Ephemeral and shared.
        let answer = self.request(Op::CreatePool, 0x3, object, &[], &[]);
        match answer.status() {
            Status::Ok => Ok(answer.response.pool.get()),
            status => Err(status),
        }
    }

    pub fn store(&mut self, pool: u32, index: u32, page: &[u8; 4096]) -> Status {
        let answer = self.request(Op::Store, pool, [1, 2, 3], &[index], page);
        Status::try_from(answer.statuses[0]).expect("a known status")
    }

    pub fn load(&mut self, pool: u32, index: u32) -> Result<[u8; 4096], Status> {
        let answer = self.request(Op::Load, pool, [1, 2, 3], &[index], &[]);
        match Status::try_from(answer.statuses[0]).expect("a known status") {
            Status::Ok => Ok(answer.pages.try_into().expect("one page")),
            status => Err(status),
        }
    }
}

/// Waits for a condition of the other side.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
