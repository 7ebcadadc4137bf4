//! The vhost-user back end: the requests that a front end may send on its connection.
//!
//! Framing is the `vhost` crate's. Everything here comes from a process that may be hostile; an
//! error ends its connection.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::epoll;
use tmem_device::tmem::num_queues;
use tmem_device::{QueueCorrupt, TmemDevice};
use tmem_protocol::EVENT_QUEUE;
use vhost::VhostUserMemoryRegionBase;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig,
    VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVirtioFeatures,
    VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{
    Error as VhostError, GpuBackend, Result as VhostResult, VhostUserBackendReqHandlerMut,
};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueT;

use crate::log::RateLimitedLog;
use crate::memory::{Account, GuestRam};
use crate::ring::{MAX_QUEUE_SIZE, Ring};
use crate::round::{Round, Stop};
use crate::sigbus::Broken;

/// How long pools stay that existed before a new connection or a restart of the rings, when the driver uses others and
/// does not name them. A driver that goes on with them names them much sooner.
const CLAIM: Duration = Duration::from_secs(600);

/// Where ring `index` is found among the events of a session.
pub(crate) const FIRST_RING_TOKEN: u64 = 16;

/// The state of one connection.
pub(crate) struct Backend {
    device: Arc<TmemDevice>,
    events: Arc<OwnedFd>,
    log: Arc<RateLimitedLog>,
    account: Arc<Account>,
    rings: Vec<Ring>,
    ram: Option<GuestRam>,
    acked: u64,
    /// A ring was inconsistent: nothing is served before the device is reset.
    needs_reset: bool,
}

impl Backend {
    /// A connection to `device`. Its rings go on at `next` (indexed by ring; 0 where absent) unless
    /// the front end says otherwise. `events` is the epoll descriptor that watches the kicks.
    pub(crate) fn new(
        device: Arc<TmemDevice>,
        next: &[u16],
        events: Arc<OwnedFd>,
        log: Arc<RateLimitedLog>,
        account: Arc<Account>,
    ) -> Result<Self, virtio_queue::Error> {
        let rings = (0..num_queues(device.config().request_queues))
            .map(|index| Ring::new(next.get(usize::from(index)).copied().unwrap_or(0)))
            .collect::<Result<_, _>>()?;
        device.hand_over(CLAIM);
        Ok(Self {
            device,
            events,
            log,
            account,
            rings,
            ram: None,
            acked: 0,
            needs_reset: false,
        })
    }

    /// The epoll descriptor that watches the kicks.
    pub(crate) fn events(&self) -> &Arc<OwnedFd> {
        &self.events
    }

    /// Where each ring would go on.
    pub(crate) fn vring_bases(&self) -> Vec<u16> {
        self.rings
            .iter()
            .map(|ring| ring.queue.next_avail())
            .collect()
    }

    /// Counts a kick of ring `index`.
    pub(crate) fn kicked(&self, index: u16) {
        self.device.metrics().count_doorbells(index, 1);
    }

    /// The fault of the guest's memory, if there was one.
    pub(crate) fn broken(&self) -> Option<Broken> {
        self.ram.as_ref().and_then(GuestRam::broken)
    }

    /// Whether all memory that this connection described before could be unmapped.
    pub(crate) fn may_map(&self) -> bool {
        self.account.may_map()
    }

    /// Serves a bounded number of chains of each request ring. Returns how many there were.
    pub(crate) fn serve(&mut self) -> u32 {
        let Some(ram) = self.ram.as_ref().filter(|_| !self.needs_reset) else {
            return 0;
        };
        let broken = || ram.broken().is_some();
        let (chains, result) = Round::serve(&self.device, ram, &mut self.rings, broken);
        if let Err(Stop::Corrupt(index, error)) = result {
            self.fail(index, &error);
        }
        if chains > 0 && self.device.update_pressure() {
            self.deliver_events();
        }
        chains
    }

    /// Answers what the rings hold now, before the end of the service: one turn in any case, more until `deadline`.
    pub(crate) fn finish(&mut self, deadline: Instant) {
        // A full ring is served in this many turns, of a chain at least. Requests that are added meanwhile may stay unanswered.
        for _ in 0..MAX_QUEUE_SIZE {
            if self.broken().is_some() || self.serve() == 0 || Instant::now() >= deadline {
                break;
            }
        }
    }

    /// Writes waiting events to the event ring.
    pub(crate) fn deliver_events(&mut self) {
        let Some(ram) = self.ram.as_ref().filter(|_| !self.needs_reset) else {
            return;
        };
        let Some(ring) = self.rings.first_mut().filter(|ring| ring.is_active()) else {
            return;
        };
        let memory = ram;
        let delivered = self
            .device
            .process_events(memory, &mut ring.queue)
            .and_then(|progress| {
                if progress.chains > 0 {
                    ring.notify(memory).map_err(QueueCorrupt::Ring)?;
                }
                Ok(())
            });
        if let Err(error) = delivered {
            self.fail(EVENT_QUEUE, &error);
        }
    }

    /// Asks the guest to kick for its next chain. Returns whether there is one already, for which it
    /// will not.
    pub(crate) fn arm(&mut self) -> bool {
        self.with_notifications(|queue, memory| queue.enable_notification(memory))
    }

    /// Tells the guest that no kicks are needed for now.
    pub(crate) fn disarm(&mut self) {
        self.with_notifications(|queue, memory| queue.disable_notification(memory).map(|()| false));
    }

    fn with_notifications(
        &mut self,
        mut change: impl FnMut(&mut virtio_queue::Queue, &GuestRam) -> Result<bool, virtio_queue::Error>,
    ) -> bool {
        let Some(ram) = self.ram.as_ref().filter(|_| !self.needs_reset) else {
            return false;
        };
        let mut more = false;
        for (index, ring) in (0u16..).zip(&mut self.rings) {
            if index == EVENT_QUEUE || !ring.is_active() {
                continue;
            }
            match change(&mut ring.queue, ram) {
                Ok(found) => more |= found,
                Err(error) => {
                    self.fail(index, &QueueCorrupt::Ring(error));
                    return false;
                }
            }
        }
        more
    }

    fn fail(&mut self, index: u16, error: &QueueCorrupt) {
        self.log.warn(format_args!(
            "Ring {index} cannot be served, the device needs a reset: {error}"
        ));
        self.needs_reset = true;
        for ring in &self.rings {
            ring.signal_error();
        }
    }

    /// The guest begins anew: its pools are freed.
    fn reset(&mut self) {
        self.device.reset();
        self.device.set_features(self.acked);
        self.needs_reset = false;
    }

    fn stop_ring(&mut self, index: usize) -> VhostResult<u16> {
        let ring = self.rings.get_mut(index).ok_or(VhostError::InvalidParam)?;
        if let Some(kick) = &ring.kick {
            // Not only by closing it: the front end holds the same description open.
            let _ = epoll::delete(&self.events, kick);
        }
        Ok(ring.stop())
    }

    fn ring(&mut self, index: u32) -> VhostResult<&mut Ring> {
        usize::try_from(index)
            .ok()
            .and_then(|index| self.rings.get_mut(index))
            .ok_or(VhostError::InvalidParam)
    }

    fn stop_all(&mut self) {
        for index in 0..self.rings.len() {
            let _ = self.stop_ring(index);
        }
    }
}

fn refused(error: impl std::error::Error + Send + Sync + 'static) -> VhostError {
    VhostError::ReqHandlerError(io::Error::other(error))
}

fn unsupported<T>() -> VhostResult<T> {
    Err(VhostError::InvalidOperation("not offered"))
}

impl VhostUserBackendReqHandlerMut for Backend {
    fn set_owner(&mut self) -> VhostResult<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> VhostResult<()> {
        self.reset_device()
    }

    fn reset_device(&mut self) -> VhostResult<()> {
        for ring in &mut self.rings {
            ring.enabled = false;
        }
        self.stop_all();
        self.acked = 0;
        self.reset();
        Ok(())
    }

    fn get_features(&mut self) -> VhostResult<u64> {
        Ok(self.device.offered_features()
            | 1 << VIRTIO_F_VERSION_1
            | 1 << VIRTIO_RING_F_EVENT_IDX
            | 1 << VIRTIO_RING_F_INDIRECT_DESC
            | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits())
    }

    fn set_features(&mut self, features: u64) -> VhostResult<()> {
        if features & !self.get_features()? != 0 {
            return Err(VhostError::InvalidParam);
        }
        self.acked = features;
        self.device.set_features(features);
        let event_idx = features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0;
        let plain = features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() == 0;
        for ring in &mut self.rings {
            ring.queue.set_event_idx(event_idx);
            // Without protocol features there is no message that would enable a ring.
            ring.enabled |= plain;
        }
        Ok(())
    }

    fn set_mem_table(
        &mut self,
        table: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> VhostResult<Option<Vec<VhostUserMemoryRegionBase>>> {
        if self.broken().is_some() {
            // A new table would hide that the memory is broken.
            return Err(VhostError::InvalidParam);
        }
        self.account.wait_for_turn();
        self.ram = None;
        let ram = GuestRam::map(table, files, &self.account).map_err(refused)?;
        for ring in &mut self.rings {
            if ring.queue.ready() && !ring.queue.is_valid(&ram) {
                return Err(VhostError::InvalidParam);
            }
        }
        self.ram = Some(ram);
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> VhostResult<()> {
        let ring = self.ring(index)?;
        let size = u16::try_from(num)
            .ok()
            .filter(|size| size.is_power_of_two() && *size <= MAX_QUEUE_SIZE)
            .ok_or(VhostError::InvalidParam)?;
        if ring.queue.ready() {
            return Err(VhostError::InvalidOperation("ring is running"));
        }
        ring.queue.set_size(size);
        Ok(())
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> VhostResult<()> {
        let ram = self.ram.as_ref().ok_or(VhostError::InvalidParam)?;
        let at = |user| ram.to_guest(user).ok_or(VhostError::InvalidParam);
        let (descriptor, available, used) = (at(descriptor)?, at(available)?, at(used)?);
        let ring = self.ring(index)?;
        if ring.queue.ready() {
            return Err(VhostError::InvalidOperation("ring is running"));
        }
        ring.set_addresses(descriptor, available, used)
            .map_err(|_| VhostError::InvalidParam)
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> VhostResult<()> {
        let base = u16::try_from(base).map_err(|_| VhostError::InvalidParam)?;
        let ring = self.ring(index)?;
        if ring.queue.ready() {
            return Err(VhostError::InvalidOperation("ring is running"));
        }
        // A driver sets its rings up from 0 after a reset only. Not every front end passes a reset on, and a driver can
        // never free pools that it does not remember. This can only free pools: to use them, a driver needs their ids
        // (`TmemDevice::hand_over`).
        let anew = base == 0 && ring.queue.next_avail() != 0;
        ring.set_next(base);
        if anew {
            for ring in &mut self.rings {
                if !ring.queue.ready() {
                    ring.set_next(0);
                }
            }
            self.reset();
        }
        Ok(())
    }

    fn get_vring_base(&mut self, index: u32) -> VhostResult<VhostUserVringState> {
        let place = usize::try_from(index).map_err(|_| VhostError::InvalidParam)?;
        let next = self.stop_ring(place)?;
        Ok(VhostUserVringState::new(index, next.into()))
    }

    fn set_vring_kick(&mut self, index: u8, file: Option<File>) -> VhostResult<()> {
        // Without a descriptor the front end asks for a back end that polls for ever.
        let kick = file.ok_or(VhostError::InvalidOperation("polled rings are not offered"))?;
        let place = usize::from(index);
        let token = epoll::EventData::new_u64(FIRST_RING_TOKEN + u64::from(index));
        let memory = self.ram.as_ref().ok_or(VhostError::InvalidParam)?;
        let ring = self.rings.get_mut(place).ok_or(VhostError::InvalidParam)?;
        if let Some(old) = ring.kick.take() {
            let _ = epoll::delete(&self.events, &old);
        }
        epoll::add(
            &self.events,
            &kick,
            token,
            epoll::EventFlags::IN | epoll::EventFlags::ET,
        )
        .map_err(|error| refused(io::Error::from(error)))?;
        ring.kick = Some(kick);
        if !ring.queue.ready() {
            if !ring.start(memory) {
                return Err(VhostError::InvalidParam);
            }
            // The guest may have begun anew meanwhile.
            self.device.hand_over(CLAIM);
        }
        Ok(())
    }

    fn set_vring_call(&mut self, index: u8, file: Option<File>) -> VhostResult<()> {
        self.ring(index.into())?
            .set_call(file)
            .map_err(|error| refused(io::Error::from(error)))
    }

    fn set_vring_err(&mut self, index: u8, file: Option<File>) -> VhostResult<()> {
        self.ring(index.into())?
            .set_error(file)
            .map_err(|error| refused(io::Error::from(error)))
    }

    fn get_protocol_features(&mut self) -> VhostResult<VhostUserProtocolFeatures> {
        Ok(VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::RESET_DEVICE)
    }

    fn set_protocol_features(&mut self, _features: u64) -> VhostResult<()> {
        Ok(())
    }

    fn get_queue_num(&mut self) -> VhostResult<u64> {
        u64::try_from(self.rings.len()).map_err(|_| VhostError::InvalidParam)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> VhostResult<()> {
        self.ring(index)?.enabled = enable;
        Ok(())
    }

    fn get_config(
        &mut self,
        offset: u32,
        size: u32,
        _flags: VhostUserConfigFlags,
    ) -> VhostResult<Vec<u8>> {
        // The framing bounds `size` by one message; some front ends read more than there is.
        let size = usize::try_from(size).map_err(|_| VhostError::InvalidParam)?;
        let mut bytes = vec![0; size];
        self.device.read_config(offset.into(), &mut bytes);
        Ok(bytes)
    }

    fn set_config(
        &mut self,
        _offset: u32,
        _bytes: &[u8],
        _flags: VhostUserConfigFlags,
    ) -> VhostResult<()> {
        Err(VhostError::InvalidOperation("nothing in it can be written"))
    }

    fn set_gpu_socket(&mut self, _backend: GpuBackend) -> VhostResult<()> {
        unsupported()
    }

    fn get_shared_object(&mut self, _uuid: VhostUserSharedMsg) -> VhostResult<File> {
        unsupported()
    }

    fn get_inflight_fd(
        &mut self,
        _inflight: &VhostUserInflight,
    ) -> VhostResult<(VhostUserInflight, File)> {
        unsupported()
    }

    fn set_inflight_fd(&mut self, _inflight: &VhostUserInflight, _file: File) -> VhostResult<()> {
        unsupported()
    }

    fn get_max_mem_slots(&mut self) -> VhostResult<u64> {
        unsupported()
    }

    fn add_mem_region(
        &mut self,
        _region: &VhostUserSingleMemoryRegion,
        _file: File,
        _postcopy: Option<bool>,
    ) -> VhostResult<Option<VhostUserMemoryRegionBase>> {
        unsupported()
    }

    fn remove_mem_region(&mut self, _region: &VhostUserSingleMemoryRegion) -> VhostResult<()> {
        unsupported()
    }

    fn set_device_state_fd(
        &mut self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _file: File,
    ) -> VhostResult<Option<File>> {
        unsupported()
    }

    fn check_device_state(&mut self) -> VhostResult<()> {
        unsupported()
    }

    fn get_shmem_config(&mut self) -> VhostResult<VhostUserShMemConfig> {
        unsupported()
    }

    fn set_log_base(&mut self, _log: &VhostUserLog, _file: File) -> VhostResult<()> {
        unsupported()
    }
}
