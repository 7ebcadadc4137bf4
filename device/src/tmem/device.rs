//! The device: features, configuration space, requests, events, reset.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use tmem_protocol::{
    Config, Entry, Event, EventType, MAX_BATCH, PAGE_SIZE, Pressure, RequestHeader, Response,
    Status, feature,
};
use tmem_store::{
    CreatePoolError, Dedup, Domain, LoadError, ObjectId, PoolId, PoolSpec, StoreError,
};
use virtio_queue::{DescriptorChain, QueueT};
use vm_memory::GuestMemory;
use zerocopy::{FromZeros, IntoBytes};

use super::events::{Events, HostState};
use super::metrics::{QueueMetrics, TmemMetrics};
use super::pools::{Orphans, Pools};
use super::pressure::PressureWatch;
use super::request::{self, Answer, Batch, Malformed, PoolKind, Refusal, Request};
use crate::chain::{self, Chain};
use crate::queue::{self, Progress, QueueCorrupt, Served};

/// A pool that no domain has: its place is beyond the last one.
const NO_POOL: PoolId = PoolId(u32::MAX);

/// How a device is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TmemConfig {
    /// Number of request queues, at least 1: one for each vCPU.
    pub request_queues: u16,
    /// Feature bits to offer; those that this version does not know are not.
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
            features: feature::bit(feature::EVENTS),
            max_pools: 32,
            swap_bytes: 0,
            limit_bytes: 0,
            dedup: Dedup::Default,
        }
    }
}

/// One virtio-tmem device. Its queues can be served by several threads at once, each queue by one
/// at a time.
#[derive(Debug)]
pub struct TmemDevice {
    domain: Domain,
    config: TmemConfig,
    features: AtomicU64,
    pools: Pools,
    events: Events,
    pressure: PressureWatch,
    metrics: TmemMetrics,
}

impl TmemDevice {
    /// A device for the guest whose pages `domain` holds.
    #[must_use]
    pub fn new(domain: Domain, config: TmemConfig) -> Self {
        let config = TmemConfig {
            request_queues: config.request_queues.max(1),
            features: config.features & feature::ALL,
            ..config
        };
        Self {
            domain,
            config,
            features: AtomicU64::new(0),
            pools: Pools::new(),
            events: Events::new(HostState {
                limit_bytes: config.limit_bytes,
                ..HostState::default()
            }),
            pressure: PressureWatch::default(),
            metrics: TmemMetrics::new(config.request_queues),
        }
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

    /// Reads the configuration space. What lies beyond its end reads as zero.
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
        let pools = self.pools.take();
        self.destroy(pools);
        self.metrics.resets.fetch_add(1, Relaxed);
    }

    /// Says that the queues may be somebody else's from now on, as when a front end connects again. Only who names a
    /// pool by its id can use it then: the first request that names one that does not exist is a stranger's and frees
    /// those of before. They also go `patience` after the driver began to use pools that it created since.
    pub fn hand_over(&self, patience: Duration) {
        self.pools.hand_over(patience);
    }

    fn destroy(&self, pools: Orphans) {
        for pool in pools.0 {
            // The operator may have removed the domain before.
            let _ = self.domain.destroy_pool(pool);
        }
    }

    /// The pool of this id, or one that no domain has.
    fn pool(&self, id: u32) -> PoolId {
        let (pool, orphans) = self.pools.find(id);
        self.destroy(orphans);
        pool.unwrap_or(NO_POOL)
    }

    /// The counters.
    #[must_use]
    pub fn metrics(&self) -> &TmemMetrics {
        &self.metrics
    }

    /// Serves request queue `queue_index` after its doorbell rang, and arms the doorbell again. The
    /// caller then asks the queue whether the guest wants an interrupt.
    ///
    /// # Errors
    /// The ring makes no sense: the caller sets DEVICE_NEEDS_RESET and does not call again before
    /// the reset.
    pub fn process_requests<M: GuestMemory, Q: QueueT>(
        &self,
        queue_index: u16,
        mem: &M,
        queue: &mut Q,
    ) -> Result<Progress, QueueCorrupt> {
        let metrics = self.metrics.queue(queue_index);
        let progress = queue::drain(mem, queue, |chain| self.serve(mem, chain, metrics))
            .inspect_err(|_| {
                metrics.queue_faults.fetch_add(1, Relaxed);
            })?;
        metrics.pages_per_doorbell.record(progress.pages.into());
        Ok(progress)
    }

    /// Serves at most `limit` chains of request queue `queue_index` and leaves notifications as they
    /// are: for a thread that polls. [`Progress::more`] is never set.
    ///
    /// # Errors
    /// As [`Self::process_requests`].
    pub fn poll_requests<M: GuestMemory, Q: QueueT>(
        &self,
        queue_index: u16,
        mem: &M,
        queue: &mut Q,
        limit: u16,
    ) -> Result<Progress, QueueCorrupt> {
        let metrics = self.metrics.queue(queue_index);
        queue::poll(mem, queue, limit, |chain| self.serve(mem, chain, metrics)).inspect_err(|_| {
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
        let Some(pressure) = self.pressure.update(|| self.domain.used()) else {
            return told;
        };
        self.post_pressure(pressure);
        true
    }

    /// Notes whether the host is short of memory. `true` when the guest is to hear of it, as after [`Self::post_event`];
    /// a transport that only looks when the guest rings is told by [`Self::update_pressure`].
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
            used_bytes: self.domain.used(),
            ..self.events.state()
        };
        self.post_event(EventType::Pressure, state);
    }

    /// Notes that the operator changed what the guest may have: `limit_bytes` as in [`TmemConfig`]. A
    /// guest whose stores were refused may try again; it hears so, and of the next refusal.
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
            used_bytes: self.domain.used(),
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
            let progress = queue::poll(mem, queue, 1, |chain| self.deliver(mem, chain))
                .inspect_err(|_| {
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

    fn deliver<M: GuestMemory>(&self, mem: &M, descriptors: DescriptorChain<&M>) -> Served {
        chain::with(mem, descriptors, |chain, _| {
            if chain.fault().is_some() || chain.writable_len() < size_of::<Event>() {
                self.metrics.queue(0).malformed(Malformed::EventBuffer);
                return Served::default();
            }
            let Some((event_type, event)) = self.events.take() else {
                return Served::default();
            };
            if chain.writer().write(mem, event.as_bytes()).is_err() {
                self.events.put_back(event_type);
                return Served::default();
            }
            self.metrics.events_delivered.fetch_add(1, Relaxed);
            Served {
                len: used_len(size_of::<Event>()),
                pages: 0,
            }
        })
        .unwrap_or_default()
    }

    fn serve<M: GuestMemory>(
        &self,
        mem: &M,
        descriptors: DescriptorChain<&M>,
        metrics: &QueueMetrics,
    ) -> Served {
        metrics.chains.fetch_add(1, Relaxed);
        let served = chain::with(mem, descriptors, |chain, page| {
            let exchange = Exchange {
                device: self,
                mem,
                chain,
                page,
                metrics,
            };
            exchange.serve()
        });
        served.unwrap_or_default()
    }

    fn create_pool(&self, kind: &PoolKind) -> Result<u32, Status> {
        let spec = match kind {
            PoolKind::Persistent => PoolSpec::Persistent,
            PoolKind::Ephemeral => PoolSpec::Ephemeral,
            PoolKind::Shared(group) => PoolSpec::Shared {
                group: group.as_str(),
            },
        };
        let create = || self.domain.create_pool_with(spec, self.config.dedup);
        let created = self.pools.create(self.config.max_pools, create);
        created
            .ok_or(Status::TooManyPools)?
            .map_err(create_pool_status)
    }

    fn destroy_pool(&self, id: u32) -> Result<(), Status> {
        let (pool, orphans) = self.pools.remove(id);
        self.destroy(orphans);
        let pool = pool.ok_or(Status::NoPool)?;
        self.domain.destroy_pool(pool).map_err(|_| Status::NoPool)
    }
}

/// One request and its answer.
struct Exchange<'a, M> {
    device: &'a TmemDevice,
    mem: &'a M,
    chain: &'a Chain,
    page: &'a mut [u8; PAGE_SIZE],
    metrics: &'a QueueMetrics,
}

impl<M: GuestMemory> Exchange<'_, M> {
    fn serve(mut self) -> Served {
        if self.chain.writable_len() < size_of::<Response>() {
            self.metrics.malformed(Malformed::NoResponse);
            return Served::default();
        }
        // Only as many statuses are written as the header claims and the chain has room for.
        let mut claimed = 0;
        match self.decode(&mut claimed) {
            Ok((request, entries)) => self.execute(&request, &entries),
            Err(refusal) => {
                if let Refusal::Malformed(rule) = refusal {
                    self.metrics.malformed(rule);
                }
                self.refuse(refusal.status(), claimed)
            }
        }
    }

    /// Reads header and entries, each once.
    fn decode(&self, claimed: &mut u16) -> Result<(Request, [Entry; MAX_BATCH as usize]), Refusal> {
        let chain = self.chain;
        if let Some(fault) = chain.fault() {
            return Err(Malformed::from(fault).into());
        }
        let mut reader = chain.reader();
        let mut header = RequestHeader::new_zeroed();
        reader
            .read(self.mem, header.as_mut_bytes())
            .map_err(|_| Malformed::ShortHeader)?;
        let request = request::decode(
            &header,
            chain.readable_len(),
            chain.writable_len(),
            self.device.features.load(Relaxed),
        );
        if header.count.get() <= MAX_BATCH {
            *claimed = header.count.get();
        }
        let request = request?;
        let mut entries = [Entry::new_zeroed(); MAX_BATCH as usize];
        let used = entries.get_mut(..usize::from(*claimed)).unwrap_or_default();
        reader
            .read(self.mem, used.as_mut_bytes())
            .map_err(|_| Malformed::OutsideMemory)?;
        request::check_entries(used)?;
        Ok((request, entries))
    }

    fn execute(&mut self, request: &Request, entries: &[Entry]) -> Served {
        let device = self.device;
        match request {
            Request::CreatePool(kind) => match device.create_pool(kind) {
                Ok(pool) => self.answer(&Answer::new(Status::Ok, 0).with_pool(pool)),
                Err(status) => self.refuse(status, 0),
            },
            Request::DestroyPool(pool) => self.done(device.destroy_pool(*pool)),
            Request::InvalidateObject { pool, object } => {
                let done = device
                    .domain
                    .invalidate_object(device.pool(*pool), ObjectId(*object))
                    .map_err(|_| Status::NoPool);
                if done.is_ok() {
                    self.metrics.objects_invalidated.fetch_add(1, Relaxed);
                }
                self.done(done)
            }
            Request::Store(batch) => self.store(batch, entries),
            Request::Load(batch) => self.load(batch, entries),
            Request::InvalidatePage(batch) => self.invalidate(batch, entries),
        }
    }

    fn store(&mut self, batch: &Batch, entries: &[Entry]) -> Served {
        let (pool, object) = (self.device.pool(batch.pool), ObjectId(batch.object));
        let mut pages = self.chain.reader();
        pages.skip(
            size_of::<RequestHeader>()
                .saturating_add(usize::from(batch.count).saturating_mul(size_of::<Entry>())),
        );
        let mut outcome = Outcome::new(batch, self.metrics);
        let mut before = Instant::now();
        for (entry, status) in entries.iter().zip(outcome.answer.statuses_mut()) {
            let index = entry.index.get();
            let result = match pages.read(self.mem, self.page) {
                Ok(()) => self
                    .device
                    .domain
                    .store(pool, object, index, self.page)
                    .map_err(store_status),
                Err(error) => {
                    // A store that fails leaves no old data; an unknown pool has none.
                    let _ = self.device.domain.invalidate_page(pool, object, index);
                    Err(error.into())
                }
            };
            self.device.pressure.note(result);
            let after = Instant::now();
            self.metrics.store_ns.record(nanoseconds(before, after));
            before = after;
            *status = outcome.tally.note(result);
        }
        self.metrics
            .pages_stored
            .fetch_add(outcome.tally.done.into(), Relaxed);
        self.finish(outcome, 0)
    }

    fn load(&mut self, batch: &Batch, entries: &[Entry]) -> Served {
        let (pool, object) = (self.device.pool(batch.pool), ObjectId(batch.object));
        let mut pages = self.chain.writer();
        pages.skip(size_of::<Response>().saturating_add(usize::from(batch.count)));
        let mut outcome = Outcome::new(batch, self.metrics);
        // Pages before the first one that could not be loaded.
        let mut contiguous = 0usize;
        let mut gap = false;
        let mut before = Instant::now();
        for (entry, status) in entries.iter().zip(outcome.answer.statuses_mut()) {
            let result = self
                .device
                .domain
                .load(pool, object, entry.index.get(), self.page)
                .map_err(load_status);
            let result = match result {
                Ok(()) => pages.write(self.mem, self.page).map_err(Status::from),
                Err(status) => {
                    pages.skip(PAGE_SIZE);
                    Err(status)
                }
            };
            let after = Instant::now();
            self.metrics.load_ns.record(nanoseconds(before, after));
            before = after;
            gap |= result.is_err();
            if !gap {
                contiguous = contiguous.saturating_add(1);
            }
            *status = outcome.tally.note(result);
        }
        self.metrics
            .pages_loaded
            .fetch_add(outcome.tally.done.into(), Relaxed);
        self.finish(outcome, contiguous.saturating_mul(PAGE_SIZE))
    }

    fn invalidate(&mut self, batch: &Batch, entries: &[Entry]) -> Served {
        let (pool, object) = (self.device.pool(batch.pool), ObjectId(batch.object));
        let mut outcome = Outcome::new(batch, self.metrics);
        for (entry, status) in entries.iter().zip(outcome.answer.statuses_mut()) {
            let result = self
                .device
                .domain
                .invalidate_page(pool, object, entry.index.get())
                .map_err(|_| Status::NoPool);
            *status = outcome.tally.note(result);
        }
        self.metrics
            .pages_invalidated
            .fetch_add(outcome.tally.done.into(), Relaxed);
        self.finish(outcome, 0)
    }

    /// Answers a batch, behind whose statuses `behind` bytes were written.
    fn finish(&self, mut outcome: Outcome<'_>, behind: usize) -> Served {
        if outcome.tally.no_pool {
            outcome.answer.set_status(Status::NoPool);
        }
        let served = self.answer(&outcome.answer);
        Served {
            len: served.len.saturating_add(used_len(behind)),
            pages: outcome.tally.done,
        }
    }

    fn done(&self, result: Result<(), Status>) -> Served {
        match result {
            Ok(()) => self.answer(&Answer::new(Status::Ok, 0)),
            Err(status) => self.refuse(status, 0),
        }
    }

    /// Refuses the whole request, with a status for as many of `count` entries as there is room for.
    fn refuse(&self, status: Status, count: u16) -> Served {
        self.metrics.refused(status);
        let room = self
            .chain
            .writable_len()
            .saturating_sub(size_of::<Response>());
        let count = count.min(u16::try_from(room).unwrap_or(u16::MAX));
        self.answer(&Answer::new(status, count))
    }

    fn answer(&self, answer: &Answer) -> Served {
        let (response, statuses) = (answer.response_bytes(), answer.status_bytes());
        let mut writer = self.chain.writer();
        let mut len = 0;
        for bytes in [response, statuses] {
            if writer.write(self.mem, bytes).is_err() {
                break;
            }
            len = used_len(bytes.len()).saturating_add(len);
        }
        Served { len, pages: 0 }
    }
}

/// The answer of a batch while it is being executed.
struct Outcome<'a> {
    answer: Answer,
    tally: Tally<'a>,
}

struct Tally<'a> {
    metrics: &'a QueueMetrics,
    /// Entries that were granted.
    done: u32,
    /// No entry found its pool.
    no_pool: bool,
}

impl<'a> Outcome<'a> {
    fn new(batch: &Batch, metrics: &'a QueueMetrics) -> Self {
        Self {
            answer: Answer::new(Status::Ok, batch.count),
            tally: Tally {
                metrics,
                done: 0,
                no_pool: true,
            },
        }
    }
}

impl Tally<'_> {
    /// Counts the outcome of one entry and gives its number.
    fn note(&mut self, result: Result<(), Status>) -> u8 {
        let status = match result {
            Ok(()) => {
                self.done = self.done.saturating_add(1);
                Status::Ok
            }
            Err(status) => {
                self.metrics.refused(status);
                status
            }
        };
        self.no_pool &= status == Status::NoPool;
        status.into()
    }
}

fn store_status(error: StoreError) -> Status {
    match error {
        StoreError::NoSpace => Status::NoSpace,
        StoreError::Frozen => Status::Frozen,
        StoreError::NoPool => Status::NoPool,
        StoreError::NoMemory => Status::NoMemory,
    }
}

fn load_status(error: LoadError) -> Status {
    match error {
        LoadError::NotFound => Status::NotFound,
        LoadError::NoPool => Status::NoPool,
        LoadError::Corrupt => Status::IoError,
    }
}

fn create_pool_status(error: CreatePoolError) -> Status {
    match error {
        CreatePoolError::TooMany => Status::TooManyPools,
        CreatePoolError::Denied | CreatePoolError::Removed => Status::Denied,
        CreatePoolError::NoSpace => Status::NoSpace,
        CreatePoolError::NoMemory => Status::NoMemory,
    }
}

fn nanoseconds(from: Instant, to: Instant) -> u64 {
    u64::try_from(to.saturating_duration_since(from).as_nanos()).unwrap_or(u64::MAX)
}

fn used_len(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}
