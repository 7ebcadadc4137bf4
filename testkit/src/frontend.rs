//! A guest and its VMM in one: memory in a memfd, rings in it, a vhost-user front end. What no driver should do is done
//! with its parts: the [`Ring`] of a [`Vring`], the memory, the file, the `vhost` front end.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use tmem_protocol::{Op, Response, Status};
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use zerocopy::FromBytes;

use crate::corpus::page;
use crate::driver::{Buffer, Layout, Ring, readable, writable};
use crate::request::object_request;

/// Entries of every ring.
pub const QUEUE_SIZE: u16 = 64;
/// Bytes of guest memory.
pub const MEMORY: u64 = 4 << 20;
/// Where request buffers begin.
pub const BUFFERS: u64 = 0x10_0000;
/// From one ring to the next; a page of it is free for a [`crate::lane::Lane`].
const RING: u64 = 0x4000;
/// Bytes of the slot of one chain: header, entries, a batch of 8 pages, answer.
const SLOT: u64 = 0xa000;
const ANSWER: u64 = 0x9000;

/// How long an answer may take before a test fails.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// A ring, and the descriptors by which both sides tell each other to look into it.
pub struct Vring {
    pub driver: Ring<GuestMemoryMmap>,
    pub kick: EventFd,
    pub call: EventFd,
}

/// A guest and its VMM. All methods panic when the service does not do its part within [`PATIENCE`].
pub struct TestGuest {
    pub frontend: Frontend,
    /// What guest memory is in.
    pub file: File,
    pub memory: GuestMemoryMmap,
    /// The event ring, then one request ring; none before they are started.
    pub rings: Vec<Vring>,
}

/// An answer: the response, the status byte of each entry, and the pages of a load, 4096 bytes each.
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

/// A file of `len` bytes that is in memory only.
pub fn memfd(len: u64) -> File {
    // SAFETY: a valid name and no flags that need more.
    let fd = unsafe { libc::memfd_create(c"guest".as_ptr(), libc::MFD_CLOEXEC) };
    assert!(fd >= 0, "memfd");
    // SAFETY: just made, and nobody else owns it.
    let file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    file.set_len(len).expect("sized");
    file
}

/// Where a ring lies, as a front end tells it: in addresses of a process that has guest memory at `user`.
pub fn vring_config(layout: &Layout, user: u64) -> VringConfigData {
    VringConfigData {
        queue_max_size: layout.size,
        queue_size: layout.size,
        flags: 0,
        desc_table_addr: user + layout.descriptors,
        used_ring_addr: user + layout.used,
        avail_ring_addr: user + layout.available,
        log_addr: None,
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
            let layout = Layout::at(RING * (1 + index as u64), QUEUE_SIZE);
            let mut driver = Ring::resume(self.memory.clone(), layout, base);
            if base == 0 {
                driver.clear();
            }
            // What is in memory agrees with the place where the ring goes on.
            driver.set_avail_index(base);
            let ring = Vring {
                driver,
                kick: EventFd::new(EFD_NONBLOCK).expect("eventfd"),
                call: EventFd::new(EFD_NONBLOCK).expect("eventfd"),
            };
            let places = vring_config(&layout, self.user_address());
            let front = &mut self.frontend;
            front.set_vring_num(index, QUEUE_SIZE).expect("size");
            front.set_vring_base(index, base).expect("base");
            front.set_vring_addr(index, &places).expect("addresses");
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
        let buffers = self.write_request(slot, op, pool, object, indices, data);
        self.offer(slot, &buffers);
    }

    /// Writes a request to memory. Returns the buffers of its chain.
    fn write_request(
        &self,
        slot: u16,
        op: Op,
        pool: u32,
        object: [u64; 3],
        indices: &[u32],
        data: &[u8],
    ) -> [Buffer; 2] {
        let mut bytes = object_request(op, pool, object, indices);
        bytes.extend_from_slice(data);
        let at = BUFFERS + SLOT * 2 * u64::from(slot);
        self.memory
            .write_slice(&bytes, GuestAddress(at))
            .expect("in memory");
        let loads = if op == Op::Load { indices.len() } else { 0 };
        let answer = size_of::<Response>() + indices.len() + loads * 4096;
        [readable(at, bytes.len()), writable(at + ANSWER, answer)]
    }

    /// Offers the chain of a slot.
    fn offer(&mut self, slot: u16, buffers: &[Buffer]) {
        let ring = &mut self.rings[1].driver;
        ring.write_chain(slot * 2, buffers);
        ring.offer(slot * 2);
    }

    /// Waits until every request that was submitted is answered, polling.
    pub fn wait(&self) {
        let deadline = Instant::now() + PATIENCE;
        while !self.poll() {
            assert!(Instant::now() < deadline, "no answer in time");
            std::hint::spin_loop();
        }
    }

    /// Whether every request that was submitted is answered.
    pub fn poll(&self) -> bool {
        self.rings[1].driver.is_done()
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
        self.submit_loads_to(pool, &[index], address);
        self.wait();
        Status::try_from(self.answer(0, 1, 0).statuses[0]).expect("a known status")
    }

    /// Offers a request that loads pages, all to the same address, without a wait for the answer.
    pub fn submit_loads_to(&mut self, pool: u32, indices: &[u32], address: u64) {
        let [request, _] = self.write_request(0, Op::Load, pool, [1, 2, 3], indices, &[]);
        let answer = size_of::<Response>() + indices.len();
        let mut buffers = vec![request, writable(BUFFERS + ANSWER, answer)];
        buffers.resize(2 + indices.len(), writable(address, 4096));
        self.offer(0, &buffers);
        self.kick(1);
    }

    /// Touches a page.
    pub fn memory_write(&self, address: u64, byte: u8) {
        self.memory
            .write_obj(byte, GuestAddress(address))
            .expect("in memory");
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
