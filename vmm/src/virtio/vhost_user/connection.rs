//! All messages to the service. Everything it answers may be wrong; framing and lengths are the `vhost` crate's.
//!
//! A call here may wait for ever for a service that does not answer. The thread that makes it has no other work, and
//! [`shutdown`] from another thread ends the wait. (Time limits of the socket would not: the crate tries again.)

use std::io::{self, Read};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::OnceLock;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tmem_protocol::{Config, EVENT_QUEUE, PAGE_SIZE, feature};
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;
use zerocopy::FromBytes;

/// Most request queues that are taken from a service: one for loads and one for stores for each of 64 processors.
const MAX_REQUEST_QUEUES: u16 = 128;
/// Bytes of the configuration space.
pub(super) const CONFIG_BYTES: usize = size_of::<Config>();
/// Bytes that a service may still send after we closed our side.
const MAX_DRAINED: usize = 64 << 10;

/// Why an exchange failed.
#[derive(Debug)]
pub(super) enum Fault {
    /// In the named step.
    Failed(&'static str, vhost::Error),
    /// It answered, and cannot be used.
    Unsuitable(String),
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Failed(step, error) => write!(f, "it failed in {step}: {error}"),
            Self::Unsuitable(what) => f.write_str(what),
        }
    }
}

fn failed(step: &'static str) -> impl Fn(vhost::Error) -> Fault {
    move |source| Fault::Failed(step, source)
}

/// One ring as the driver set it up. Its addresses were checked against guest memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ring {
    pub(super) index: u16,
    pub(super) size: u16,
    pub(super) descriptors: u64,
    pub(super) available: u64,
    pub(super) used: u64,
}

/// The eventfds of a device; they are the same for every connection.
#[derive(Debug)]
pub(super) struct Eventfds {
    /// By queue; set once the number of queues is known. Never read here, and written by KVM only: the service, which
    /// has them too, could make either wait.
    pub(super) kicks: OnceLock<Vec<EventFd>>,
    /// One for all rings.
    pub(super) call: EventFd,
    /// One for all rings.
    pub(super) error: EventFd,
}

/// Connects without waiting: a service whose backlog is full is `WouldBlock`.
pub(super) fn connect(path: &Path) -> io::Result<UnixStream> {
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket: OwnedFd =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &address)?;
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// Ends every wait on a connection.
pub(super) fn shutdown(socket: &UnixStream) {
    // Fails only when it is over already.
    let _ = socket.shutdown(Shutdown::Both);
}

/// A connection whose handshake is done.
pub(super) struct Connection {
    frontend: Frontend,
    socket: UnixStream,
    /// Feature bits of device and transport.
    pub(super) features: u64,
    pub(super) config: [u8; CONFIG_BYTES],
    pub(super) request_queues: u16,
    protocol: VhostUserProtocolFeatures,
    has_memory: bool,
}

impl Connection {
    /// The handshake, the same at the start and after a service came back.
    pub(super) fn new(socket: UnixStream) -> Result<Self, Fault> {
        let lost = |step| move |error: io::Error| Fault::Failed(step, vhost::Error::IOError(error));
        let stream = socket.try_clone().map_err(lost("connecting"))?;
        let mut frontend = Frontend::from_stream(stream, u64::from(MAX_REQUEST_QUEUES) + 1);
        let features = frontend.get_features().map_err(failed("GET_FEATURES"))?;
        if features & 1 << VIRTIO_F_VERSION_1 == 0 {
            return Err(Fault::Unsuitable("it offers no VERSION_1".to_owned()));
        }
        if features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() == 0 {
            return Err(Fault::Unsuitable(
                "it offers no protocol features".to_owned(),
            ));
        }
        frontend.set_owner().map_err(failed("SET_OWNER"))?;
        let offered = frontend
            .get_protocol_features()
            .map_err(failed("GET_PROTOCOL_FEATURES"))?;
        if !offered.contains(VhostUserProtocolFeatures::CONFIG) {
            return Err(Fault::Unsuitable(
                "it offers no configuration space".to_owned(),
            ));
        }
        // In-band notifications would make a message of each kick.
        let protocol = offered
            & (VhostUserProtocolFeatures::CONFIG
                | VhostUserProtocolFeatures::MQ
                | VhostUserProtocolFeatures::REPLY_ACK
                | VhostUserProtocolFeatures::RESET_DEVICE);
        frontend
            .set_protocol_features(protocol)
            .map_err(failed("SET_PROTOCOL_FEATURES"))?;
        if protocol.contains(VhostUserProtocolFeatures::REPLY_ACK) {
            frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        }
        let rings = if protocol.contains(VhostUserProtocolFeatures::MQ) {
            frontend.get_queue_num().map_err(failed("GET_QUEUE_NUM"))?
        } else {
            u64::from(MAX_REQUEST_QUEUES) + 1
        };
        let (config, request_queues) = read_config(&mut frontend, features)?;
        if u64::from(request_queues) + 1 > rings {
            return Err(Fault::Unsuitable(format!(
                "it speaks of {request_queues} request queues and has {rings} queues in all"
            )));
        }
        Ok(Self {
            frontend,
            socket,
            features,
            config,
            request_queues,
            protocol,
            has_memory: false,
        })
    }

    /// Hands over memory and rings and starts them. When it returns, the service has taken all of it.
    pub(super) fn start(
        &mut self,
        features: u64,
        mem: &GuestMemoryMmap,
        rings: &[Ring],
        eventfds: &Eventfds,
    ) -> Result<(), Fault> {
        if features & !self.features != 0 {
            return Err(Fault::Unsuitable(format!(
                "it does not offer {:#x} of the features that the driver uses",
                features & !self.features
            )));
        }
        if let Some(ring) = rings
            .iter()
            .find(|ring| ring.index > EVENT_QUEUE + self.request_queues)
        {
            return Err(Fault::Unsuitable(format!("it has no queue {}", ring.index)));
        }
        self.frontend
            .set_features(features | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits())
            .map_err(failed("SET_FEATURES"))?;
        if !self.has_memory {
            let regions = mem
                .iter()
                .map(VhostUserMemoryRegionInfo::from_guest_region)
                .collect::<Result<Vec<_>, _>>()
                .map_err(failed("SET_MEM_TABLE"))?;
            self.frontend
                .set_mem_table(&regions)
                .map_err(failed("SET_MEM_TABLE"))?;
            self.has_memory = true;
        }
        for ring in rings {
            self.start_ring(mem, ring, eventfds)?;
        }
        for ring in rings {
            self.frontend
                .set_vring_enable(usize::from(ring.index), true)
                .map_err(failed("SET_VRING_ENABLE"))?;
        }
        self.barrier()
    }

    fn start_ring(
        &mut self,
        mem: &GuestMemoryMmap,
        ring: &Ring,
        eventfds: &Eventfds,
    ) -> Result<(), Fault> {
        let frontend = &self.frontend;
        let index = usize::from(ring.index);
        let host = |address| {
            mem.get_host_address(GuestAddress(address))
                .map(|pointer| pointer as u64)
                .map_err(|_| Fault::Unsuitable("a ring lies outside of memory".to_owned()))
        };
        let Some(kick) = eventfds.kicks.get().and_then(|kicks| kicks.get(index)) else {
            return Err(Fault::Unsuitable(format!("there is no queue {index}")));
        };
        let addresses = VringConfigData {
            queue_max_size: ring.size,
            queue_size: ring.size,
            flags: 0,
            desc_table_addr: host(ring.descriptors)?,
            used_ring_addr: host(ring.used)?,
            avail_ring_addr: host(ring.available)?,
            log_addr: None,
        };
        frontend
            .set_vring_num(index, ring.size)
            .map_err(failed("SET_VRING_NUM"))?;
        frontend
            .set_vring_addr(index, &addresses)
            .map_err(failed("SET_VRING_ADDR"))?;
        // A driver that has just become ready begins at 0. It tells the service that it is not the one before.
        frontend
            .set_vring_base(index, 0)
            .map_err(failed("SET_VRING_BASE"))?;
        frontend
            .set_vring_call(index, &eventfds.call)
            .map_err(failed("SET_VRING_CALL"))?;
        frontend
            .set_vring_err(index, &eventfds.error)
            .map_err(failed("SET_VRING_ERR"))?;
        frontend
            .set_vring_kick(index, kick)
            .map_err(failed("SET_VRING_KICK"))
    }

    /// Stops the rings and resets the device. When it returns, the service does not touch the guest's memory before
    /// the next [`start`](Self::start).
    pub(super) fn stop(&mut self, rings: &[Ring]) -> Result<(), Fault> {
        for ring in rings {
            self.frontend
                .get_vring_base(usize::from(ring.index))
                .map_err(failed("GET_VRING_BASE"))?;
        }
        if self
            .protocol
            .contains(VhostUserProtocolFeatures::RESET_DEVICE)
        {
            self.frontend
                .reset_device()
                .map_err(failed("RESET_DEVICE"))?;
        }
        self.barrier()
    }

    /// Messages are handled in order: an answer to the last one says that those before it were taken. Acknowledgments
    /// would say it too, where they are offered.
    fn barrier(&mut self) -> Result<(), Fault> {
        let now = self
            .frontend
            .get_features()
            .map_err(failed("GET_FEATURES"))?;
        if now & self.features != self.features {
            return Err(Fault::Unsuitable("it took features back".to_owned()));
        }
        Ok(())
    }

    /// Closes our sending side and waits until the service has closed its own: only then does it have no access to the
    /// guest's memory any more.
    pub(super) fn close(self) {
        let _ = self.socket.shutdown(Shutdown::Write);
        let _ = io::copy(
            &mut (&self.socket).take(u64::try_from(MAX_DRAINED).unwrap_or(u64::MAX)),
            &mut io::sink(),
        );
    }
}

fn read_config(frontend: &mut Frontend, features: u64) -> Result<([u8; CONFIG_BYTES], u16), Fault> {
    let size = u32::try_from(CONFIG_BYTES).unwrap_or(u32::MAX);
    let (_, bytes) = frontend
        .get_config(0, size, VhostUserConfigFlags::empty(), &[0; CONFIG_BYTES])
        .map_err(failed("GET_CONFIG"))?;
    let unsuitable = |what: String| Err(Fault::Unsuitable(what));
    let (Ok(config), Ok(raw)) = (
        Config::read_from_bytes(&bytes),
        <[u8; CONFIG_BYTES]>::try_from(bytes.as_slice()),
    ) else {
        return unsuitable("its configuration space is too short".to_owned());
    };
    if usize::try_from(config.page_size.get()) != Ok(PAGE_SIZE) {
        return unsuitable(format!("its pages have {} bytes", config.page_size.get()));
    }
    let queues = config.num_request_queues.get();
    if !(1..=MAX_REQUEST_QUEUES).contains(&queues) {
        return unsuitable(format!("it has {queues} request queues"));
    }
    if config.max_batch.get() == 0 {
        return unsuitable("it takes no page in a request".to_owned());
    }
    let stores = config.num_store_queues.get();
    if features & feature::bit(feature::STORE_QUEUES) != 0 && !(1..queues).contains(&stores) {
        return unsuitable(format!(
            "{stores} of its {queues} request queues are for stores"
        ));
    }
    Ok((raw, queues))
}
