//! A tmem device that keeps pages in a map, notes what it is asked for, and answers as a test wants.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::{Context, Result, anyhow};
use tmem_protocol::{
    Config, EVENT_QUEUE, Entry, MAX_BATCH, Op, PAGE_SIZE, RequestHeader, Response, Status, feature,
};
use vhost::vhost_user::{Listener, VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::{VhostUserBackendMut, VhostUserDaemon, VringMutex, VringT};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_queue::{DescriptorChain, QueueT};
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryLoadGuard, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use zerocopy::{FromZeros, IntoBytes};

type Memory = GuestMemoryMmap<()>;

/// The event queue and one request queue.
const QUEUES: usize = 2;
/// Size of the swap disk.
const DISK: u64 = 16 << 20;

/// A request: what for, of how many pages, and the answer to the first of them; none when there is no answer yet.
pub(crate) type Seen = (Op, usize, Option<Status>);

/// How the device answers, and what it was asked for.
pub(crate) struct Script {
    /// The next INVALIDATE_PAGE is neither executed nor answered before [`Device::release`].
    pub(crate) hold: bool,
    /// No request is taken off a ring before [`Device::release`].
    pub(crate) stall: bool,
    /// Pages that are still accepted. One that is given up makes room for another.
    pub(crate) room: usize,
    /// The status of a load.
    pub(crate) loads: Status,
    /// Requests for pages, in the order of the ring.
    pub(crate) seen: Vec<Seen>,
    /// Request queues of the configuration, and how many of them are store queues. More than the one that is served are for
    /// front ends that have no such queues.
    queues: (u16, u16),
    held: Vec<Request>,
    stalled: Vec<VringMutex>,
    pages: HashMap<(u32, u32), Vec<u8>>,
    pools: u32,
    memory: GuestMemoryAtomic<Memory>,
}

/// One chain, taken off its ring.
struct Request {
    ring: VringMutex,
    chain: DescriptorChain<GuestMemoryLoadGuard<Memory>>,
    op: Op,
    pool: u32,
    indices: Vec<u32>,
    data: Vec<u8>,
}

/// A device that serves the first guest which connects to its socket.
pub(crate) struct Device {
    script: Arc<Mutex<Script>>,
}

impl Device {
    /// Listens on `socket`.
    pub(crate) fn listen(socket: &Path) -> Result<Self> {
        Self::listen_with((1, 0), socket)
    }

    /// The same with so many request queues in the configuration, and so many of them for stores. It serves the first.
    pub(crate) fn listen_with(queues: (u16, u16), socket: &Path) -> Result<Self> {
        let mut listener = Listener::new(socket, false).context("cannot listen")?;
        let memory = GuestMemoryAtomic::new(Memory::new());
        let script = Arc::new(Mutex::new(Script {
            hold: false,
            stall: false,
            stalled: Vec::new(),
            room: usize::MAX,
            loads: Status::Ok,
            seen: Vec::new(),
            queues,
            held: Vec::new(),
            pages: HashMap::new(),
            pools: 0,
            memory: memory.clone(),
        }));
        let mut daemon = VhostUserDaemon::new("device".to_owned(), Arc::clone(&script), memory)
            .map_err(|error| anyhow!("{error}"))?;
        thread::spawn(move || {
            // It ends with the guest, which the test notices.
            if let Err(error) = daemon.start(&mut listener).and_then(|()| daemon.wait()) {
                println!("the device's connection: {error}");
            }
        });
        Ok(Self { script })
    }

    /// The script, to read and to change while no request is served.
    pub(crate) fn script(&self) -> MutexGuard<'_, Script> {
        // What a panic of another thread left is shown by the assertions of this one.
        self.script.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Executes and answers what was held, and what waits in a ring.
    pub(crate) fn release(&self) -> Result<()> {
        let mut script = self.script();
        script.stall = false;
        for request in std::mem::take(&mut script.held) {
            script.serve(&request)?;
        }
        for ring in std::mem::take(&mut script.stalled) {
            while script.take(&ring)? {}
        }
        Ok(())
    }
}

impl Request {
    fn take(
        ring: &VringMutex,
        chain: DescriptorChain<GuestMemoryLoadGuard<Memory>>,
    ) -> Result<Self> {
        let memory = chain.memory();
        let mut reader = chain.clone().reader(memory)?;
        let mut header = RequestHeader::new_zeroed();
        reader.read_exact(header.as_mut_bytes())?;
        let mut entries = vec![Entry::new_zeroed(); header.count.get().into()];
        reader.read_exact(entries.as_mut_bytes())?;
        let mut data = Vec::new();
        reader.read_to_end(&mut data)?;
        Ok(Self {
            ring: ring.clone(),
            op: Op::try_from(header.op.get())?,
            pool: header.pool.get(),
            indices: entries.iter().map(|entry| entry.index.get()).collect(),
            data,
            chain,
        })
    }

    fn answer(&self, pool: u32, statuses: &[Status], pages: &[u8]) -> Result<()> {
        let response = Response {
            status: Status::Ok.into(),
            count: u16::try_from(statuses.len())?.into(),
            pool: pool.into(),
            ..Response::default()
        };
        let statuses: Vec<u8> = statuses.iter().map(|status| (*status).into()).collect();
        let mut writer = self.chain.clone().writer(self.chain.memory())?;
        for bytes in [response.as_bytes(), &statuses, pages] {
            writer.write_all(bytes)?;
        }
        let written = u32::try_from(writer.bytes_written())?;
        self.ring.add_used(self.chain.head_index(), written)?;
        // A front end that goes closes its end.
        let _ = self.ring.signal_used_queue();
        Ok(())
    }
}

impl Script {
    /// Whether a request waits for [`Device::release`].
    pub(crate) fn is_stalled(&self) -> bool {
        !self.stalled.is_empty()
    }

    fn serve(&mut self, request: &Request) -> Result<Status> {
        let mut pages = Vec::new();
        let mut statuses = Vec::new();
        let mut data = request.data.chunks(PAGE_SIZE);
        for index in &request.indices {
            let key = (request.pool, *index);
            statuses.push(match request.op {
                Op::Store => self.store(key, data.next().unwrap_or_default()),
                Op::InvalidatePage => {
                    self.give_up(key);
                    Status::Ok
                }
                Op::Load if self.loads != Status::Ok => self.loads,
                Op::Load => match self.pages.get(&key) {
                    Some(data) => {
                        pages.extend_from_slice(data);
                        Status::Ok
                    }
                    None => Status::NotFound,
                },
                _ => Status::Invalid,
            });
        }
        if request.op == Op::CreatePool {
            self.pools += 1;
        }
        request.answer(self.pools, &statuses, &pages)?;
        Ok(statuses.first().copied().unwrap_or(Status::Ok))
    }

    fn store(&mut self, key: (u32, u32), data: &[u8]) -> Status {
        // Of a refused page no old data is left.
        self.give_up(key);
        if self.room == 0 {
            return Status::NoSpace;
        }
        self.room -= 1;
        self.pages.insert(key, data.to_vec());
        Status::Ok
    }

    /// How many pages it has.
    pub(crate) fn held_pages(&self) -> usize {
        self.pages.len()
    }

    fn give_up(&mut self, key: (u32, u32)) {
        if self.pages.remove(&key).is_some() {
            self.room = self.room.saturating_add(1);
        }
    }

    /// Takes the next chain off a ring. Returns whether there was one.
    fn take(&mut self, ring: &VringMutex) -> Result<bool> {
        let memory = self.memory.memory();
        let Some(chain) = ring.get_mut().get_queue_mut().pop_descriptor_chain(memory) else {
            return Ok(false);
        };
        let request = Request::take(ring, chain)?;
        let (op, count) = (request.op, request.indices.len());
        let held = op == Op::InvalidatePage && std::mem::take(&mut self.hold);
        let status = if held {
            self.held.push(request);
            None
        } else {
            Some(self.serve(&request)?)
        };
        if op.has_entries() {
            self.seen.push((op, count, status));
        }
        Ok(true)
    }
}

impl VhostUserBackendMut for Script {
    type Bitmap = ();
    type Vring = VringMutex;

    fn num_queues(&self) -> usize {
        QUEUES
    }

    fn max_queue_size(&self) -> usize {
        256
    }

    fn features(&self) -> u64 {
        let (_, stores) = self.queues;
        let store_queues = u64::from(stores > 0) << feature::STORE_QUEUES;
        let protocol = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        1 << VIRTIO_F_VERSION_1 | protocol | store_queues
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::CONFIG
    }

    fn set_event_idx(&mut self, _enabled: bool) {}

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let (queues, stores) = self.queues;
        let config = Config {
            page_size: u32::try_from(PAGE_SIZE).unwrap_or_default().into(),
            num_request_queues: queues.into(),
            num_store_queues: stores.into(),
            store_batch: if stores > 0 { 8 } else { 0 }.into(),
            max_batch: MAX_BATCH.into(),
            max_pools: 2.into(),
            swap_bytes: DISK.into(),
            ..Config::default()
        };
        let bytes = config.as_bytes().iter().copied();
        let bytes = bytes.chain(std::iter::repeat(0)).skip(offset as usize);
        bytes.take(size as usize).collect()
    }

    fn update_memory(&mut self, memory: GuestMemoryAtomic<Memory>) -> io::Result<()> {
        self.memory = memory;
        Ok(())
    }

    fn handle_event(
        &mut self,
        ring: u16,
        _events: EventSet,
        rings: &[VringMutex],
        _thread: usize,
    ) -> io::Result<()> {
        if ring == EVENT_QUEUE {
            return Ok(());
        }
        let Some(ring) = rings.get(usize::from(ring)) else {
            return Ok(());
        };
        if self.stall {
            self.stalled = vec![ring.clone()];
            return Ok(());
        }
        while self.take(ring).map_err(io::Error::other)? {}
        Ok(())
    }
}
