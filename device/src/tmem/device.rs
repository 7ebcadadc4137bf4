//! The device: features, configuration space, events, reset.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tmem_protocol::{
    Config, Event, EventType, FIRST_REQUEST_QUEUE, MAX_BATCH, PAGE_SIZE, Pressure, feature,
};
use tmem_store::{Dedup, Domain};
use virtio_queue::{DescriptorChain, QueueT};
use vm_memory::GuestMemory;
use zerocopy::IntoBytes;

use super::events::{Events, HostState};
use super::execute::Execution;
use super::metrics::{QueueMetrics, TmemMetrics};
use super::pool_table::PoolTable;
use super::pressure::PressureWatch;
use super::request::Malformed;
use crate::chain;
use crate::queue::{self, Progress, QueueCorrupt, Used, used_len};

/// Entries that one call for a doorbell serves before its caller looks after other things, such as a reset that waits for
/// the queue. The last chain may go beyond it. A full queue of single pages takes one call.
const ROUND: u32 = 256;

/// The store queues of a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreQueues {
    /// How many of the request queues, the last ones, are for stores. Fewer than all; with 0 the device does not offer
    /// [`feature::STORE_QUEUES`], and what is shown of both is zero.
    pub count: u16,
    /// How many entries the device would like at most in one store, 1 to [`MAX_BATCH`]. A hint for the driver.
    pub batch: u16,
}

impl StoreQueues {
    /// The nearest that a device with that many request queues can have.
    fn within(self, request_queues: u16) -> Self {
        match self.count.min(request_queues.saturating_sub(1)) {
            0 => Self::default(),
            count => Self {
                count,
                batch: self.batch.clamp(1, MAX_BATCH),
            },
        }
    }

    fn features(self) -> u64 {
        match self.count {
            0 => 0,
            _ => feature::bit(feature::STORE_QUEUES),
        }
    }
}

/// How a device is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TmemConfig {
    /// Number of request queues, at least 1, those for stores included.
    pub request_queues: u16,
    /// Those of them that are for stores.
    pub stores: StoreQueues,
    /// Feature bits to offer; those that this version does not know are not. [`feature::STORE_QUEUES`] is as
    /// [`Self::stores`] says, whatever it is here.
    pub features: u64,
    /// Most pools at one time. The domain may have a limit of its own, which should not be lower.
    pub max_pools: u32,
    /// Size which the host suggests for the guest's swap disk, in bytes; with 0 the guest decides.
    pub swap_bytes: u64,
    /// The most that the pages of this guest may use, in bytes; 0 is no limit. Only shown to the
    /// guest: the store enforces its own.
    pub limit_bytes: u64,
    /// When its pools keep one copy of pages with the same bytes. A share group has the choice of the
    /// member that joined first.
    pub dedup: Dedup,
}

impl Default for TmemConfig {
    fn default() -> Self {
        Self {
            request_queues: 1,
            stores: StoreQueues::default(),
            features: feature::bit(feature::EVENTS),
            max_pools: 32,
            swap_bytes: 0,
            limit_bytes: 0,
            dedup: Dedup::Auto,
        }
    }
}

/// One virtio-tmem device. Its queues can be served by several threads at once, each queue by one
/// at a time.
#[derive(Debug)]
pub struct TmemDevice {
    config: TmemConfig,
    features: AtomicU64,
    pools: PoolTable,
    events: Events,
    pressure: PressureWatch,
    metrics: TmemMetrics,
}

impl TmemDevice {
    /// A device for the guest whose pages `domain` holds.
    #[must_use]
    pub fn new(domain: Domain, config: TmemConfig) -> Self {
        let request_queues = config.request_queues.max(1);
        let stores = config.stores.within(request_queues);
        let others = feature::ALL & !feature::bit(feature::STORE_QUEUES);
        let config = TmemConfig {
            request_queues,
            stores,
            features: config.features & others | stores.features(),
            ..config
        };
        Self {
            config,
            features: AtomicU64::new(0),
            pools: PoolTable::new(domain, config.max_pools, config.dedup),
            events: Events::new(HostState {
                limit_bytes: config.limit_bytes,
                ..HostState::default()
            }),
            pressure: PressureWatch::default(),
            metrics: TmemMetrics::new(config.request_queues),
        }
    }

    /// What it was made with, where that was out of range the nearest to it.
    #[must_use]
    pub fn config(&self) -> &TmemConfig {
        &self.config
    }

    /// Indices of the store queues, the last of the request queues.
    #[must_use]
    pub fn store_queues(&self) -> Range<u16> {
        let end = FIRST_REQUEST_QUEUE.saturating_add(self.config.request_queues);
        end.saturating_sub(self.config.stores.count)..end
    }

    /// The device feature bits to offer; those of the transport are not among them.
    #[must_use]
    pub fn offered_features(&self) -> u64 {
        self.config.features
    }

    /// Sets what the driver accepted. Bits that were not offered are ignored.
    pub fn set_features(&self, acked: u64) {
        self.features.store(acked & self.config.features, Relaxed);
    }

    /// Reads the configuration space. Bytes beyond its end read as zero.
    pub fn read_config(&self, offset: u64, data: &mut [u8]) {
        let state = self.events.state();
        let config = Config {
            page_size: u32::try_from(PAGE_SIZE).unwrap_or_default().into(),
            num_request_queues: self.config.request_queues.into(),
            max_batch: MAX_BATCH.into(),
            max_pools: self.config.max_pools.into(),
            pressure: (state.pressure as u32).into(),
            limit_bytes: state.limit_bytes.into(),
            swap_bytes: self.config.swap_bytes.into(),
            num_store_queues: self.config.stores.count.into(),
            store_batch: self.config.stores.batch.into(),
            reserved: 0.into(),
        };
        data.fill(0);
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        let bytes = config.as_bytes().get(offset..).unwrap_or_default();
        for (to, from) in data.iter_mut().zip(bytes) {
            *to = *from;
        }
    }

    /// Destroys the pools which the driver created and forgets what was negotiated. The caller makes
    /// sure that no queue is being served.
    pub fn reset(&self) {
        self.features.store(0, Relaxed);
        self.events.clear();
        self.pools.clear();
        self.metrics.resets.fetch_add(1, Relaxed);
    }

    /// The queues may belong to another driver from now on, as when a front end connects again. The driver can use the
    /// pools that exist now only after it named one of them by its id. A request that names a pool that does not exist
    /// comes from another driver, and frees them. They are also freed `patience` after the driver began to use pools
    /// that it created since.
    pub fn hand_over(&self, patience: Duration) {
        self.pools.hand_over(patience);
    }

    /// The counters.
    #[must_use]
    pub fn metrics(&self) -> &TmemMetrics {
        &self.metrics
    }

    /// Serves request queue `queue_index` after its doorbell rang, and arms the doorbell again. A call serves 256 entries,
    /// and as many chains as twice the size of the queue, at most; then [`Progress::more`] is set. The caller asks the queue whether the guest wants an interrupt.
    ///
    /// # Errors
    /// The ring is inconsistent: the caller sets DEVICE_NEEDS_RESET and does not call again before
    /// the reset.
    pub fn process_requests<M: GuestMemory, Q: QueueT>(
        &self,
        queue_index: u16,
        mem: &M,
        queue: &mut Q,
    ) -> Result<Progress, QueueCorrupt> {
        let metrics = self.metrics.queue(queue_index);
        let progress = queue::drain(mem, queue, ROUND, |chain| self.serve(mem, chain, metrics))
            .inspect_err(|_| {
                metrics.queue_faults.fetch_add(1, Relaxed);
            })?;
        metrics.pages_per_doorbell.record(progress.pages.into());
        Ok(progress)
    }

    /// Serves chains of request queue `queue_index` until they had `limit` entries ([`Progress::work`]; the last chain
    /// may go beyond it), or until `urgent`, asked between two chains, says that another queue cannot wait. Leaves
    /// notifications as they are: for a thread that polls. [`Progress::more`] is never set.
    ///
    /// # Errors
    /// As [`Self::process_requests`].
    pub fn poll_requests<M: GuestMemory, Q: QueueT>(
        &self,
        queue_index: u16,
        mem: &M,
        queue: &mut Q,
        limit: u32,
        urgent: impl FnMut() -> bool,
    ) -> Result<Progress, QueueCorrupt> {
        let metrics = self.metrics.queue(queue_index);
        let serve = |chain: DescriptorChain<&M>| self.serve(mem, chain, metrics);
        queue::poll(mem, queue, limit, serve, urgent).inspect_err(|_| {
            metrics.queue_faults.fetch_add(1, Relaxed);
        })
    }

    /// Notes an event for the guest and what the configuration space shows from now on. An event of
    /// the same type that still waits for a buffer is replaced. The caller then calls
    /// [`Self::process_events`] and tells the guest that the configuration changed.
    pub fn post_event(&self, event_type: EventType, state: HostState) {
        self.events.post(event_type, state);
        self.metrics.events_posted.fetch_add(1, Relaxed);
    }

    /// Notes an event if the pressure on the guest changed with what was served: its stores began to
    /// be refused, or there is room again. `true` when there is an event to deliver, as after
    /// [`Self::post_event`]. Costs two loads when nothing changed.
    pub fn update_pressure(&self) -> bool {
        let told = self.pressure.take_told();
        let Some(pressure) = self.pressure.update(|| self.pools.domain().used()) else {
            return told;
        };
        self.post_pressure(pressure);
        true
    }

    /// Notes whether the host is short of memory. `true` when there is an event to deliver, as after
    /// [`Self::post_event`]. A transport that acts only when the guest rings learns of it from
    /// [`Self::update_pressure`].
    pub fn note_host(&self, short: bool) -> bool {
        let Some(pressure) = self.pressure.host(short) else {
            return false;
        };
        self.post_pressure(pressure);
        true
    }

    fn post_pressure(&self, pressure: Pressure) {
        let state = HostState {
            pressure,
            used_bytes: self.pools.domain().used(),
            ..self.events.state()
        };
        self.post_event(EventType::Pressure, state);
    }

    /// Notes that the operator changed the limits of the guest: `limit_bytes` as in [`TmemConfig`]. A guest whose
    /// stores were refused may try again; it gets an event about that, and about the next refusal.
    pub fn post_limits(&self, limit_bytes: u64) {
        let before = self.events.state();
        let lowered =
            limit_bytes != 0 && (before.limit_bytes == 0 || limit_bytes < before.limit_bytes);
        let eased = !lowered && self.pressure.ease();
        let state = HostState {
            pressure: if eased {
                self.pressure.at_ease()
            } else {
                before.pressure
            },
            limit_bytes,
            used_bytes: self.pools.domain().used(),
        };
        if eased {
            self.post_event(EventType::Pressure, state);
        }
        self.post_event(EventType::Limits, state);
    }

    /// Writes waiting events to the buffers of the event queue: after [`Self::post_event`], and when
    /// the doorbell of the event queue rang.
    ///
    /// # Errors
    /// As [`Self::process_requests`].
    pub fn process_events<M: GuestMemory, Q: QueueT>(
        &self,
        mem: &M,
        queue: &mut Q,
    ) -> Result<Progress, QueueCorrupt> {
        let mut total = Progress::default();
        if self.features.load(Relaxed) & feature::bit(feature::EVENTS) == 0 {
            return Ok(total);
        }
        // A buffer that is too small uses up a chain and not the event.
        for _ in 0..queue.size() {
            if !self.events.is_pending() {
                break;
            }
            let deliver = |chain: DescriptorChain<&M>| self.deliver(mem, chain);
            let progress = queue::poll(mem, queue, 1, deliver, || false).inspect_err(|_| {
                self.metrics.queue(0).queue_faults.fetch_add(1, Relaxed);
            })?;
            if progress.chains == 0 {
                break;
            }
            total.chains = total.chains.saturating_add(progress.chains);
        }
        if queue.ready() {
            let more = queue.enable_notification(mem).map_err(QueueCorrupt::Ring)?;
            total.more = more && self.events.is_pending();
        }
        Ok(total)
    }

    fn deliver<M: GuestMemory>(&self, mem: &M, descriptors: DescriptorChain<&M>) -> Used {
        chain::with(mem, descriptors, |chain, _| {
            if chain.fault().is_some() || chain.writable_len() < size_of::<Event>() {
                self.metrics.queue(0).malformed(Malformed::EventBuffer);
                return Used::default();
            }
            let Some((event_type, event)) = self.events.take() else {
                return Used::default();
            };
            if chain.writer().write(mem, event.as_bytes()).is_err() {
                self.events.put_back(event_type);
                return Used::default();
            }
            self.metrics.events_delivered.fetch_add(1, Relaxed);
            Used {
                len: used_len(size_of::<Event>()),
                ..Used::default()
            }
        })
        .unwrap_or_default()
    }

    fn serve<M: GuestMemory>(
        &self,
        mem: &M,
        descriptors: DescriptorChain<&M>,
        metrics: &QueueMetrics,
    ) -> Used {
        metrics.chains.fetch_add(1, Relaxed);
        let used = chain::with(mem, descriptors, |chain, page| {
            let execution = Execution {
                pools: &self.pools,
                features: self.features.load(Relaxed),
                pressure: &self.pressure,
                metrics,
                mem,
                chain,
                page,
            };
            execution.serve()
        });
        used.unwrap_or_default()
    }
}
