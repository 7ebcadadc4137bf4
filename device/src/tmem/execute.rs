//! One request: decoded, executed, answered.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use tmem_protocol::{Entry, MAX_BATCH, PAGE_SIZE, RequestHeader, Response, Status};
use tmem_store::{LoadError, ObjectId, StoreError};
use vm_memory::GuestMemory;
use zerocopy::{FromZeros, IntoBytes};

use super::metrics::QueueMetrics;
use super::pool_table::PoolTable;
use super::pressure::PressureWatch;
use super::request::{self, Answer, Batch, DecodeError, Malformed, Request};
use crate::chain::Chain;
use crate::queue::{Used, used_len};

/// One request and its answer.
pub(super) struct Execution<'a, M> {
    pub(super) pools: &'a PoolTable,
    /// The features that the driver accepted.
    pub(super) features: u64,
    pub(super) pressure: &'a PressureWatch,
    pub(super) metrics: &'a QueueMetrics,
    pub(super) mem: &'a M,
    pub(super) chain: &'a Chain,
    /// Where a page is while it moves between guest and store.
    pub(super) page: &'a mut [u8; PAGE_SIZE],
}

impl<M: GuestMemory> Execution<'_, M> {
    /// Executes the request and writes the answer.
    pub(super) fn serve(mut self) -> Used {
        if self.chain.writable_len() < size_of::<Response>() {
            self.metrics.malformed(Malformed::NoResponse);
            return Used::default();
        }
        // Only as many statuses are written as the header claims and the chain has room for.
        let mut claimed = 0;
        match self.decode(&mut claimed) {
            Ok((request, entries)) => self.execute(&request, &entries),
            Err(error) => {
                if let DecodeError::Malformed(rule) = error {
                    self.metrics.malformed(rule);
                }
                self.refuse(error.status(), claimed)
            }
        }
    }

    /// Reads header and entries, each once.
    fn decode(
        &self,
        claimed: &mut u16,
    ) -> Result<(Request, [Entry; MAX_BATCH as usize]), DecodeError> {
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
            self.features,
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

    fn execute(&mut self, request: &Request, entries: &[Entry]) -> Used {
        match request {
            Request::CreatePool(kind) => match self.pools.create(kind) {
                Ok(pool) => self.answer(&Answer::new(Status::Ok, 0).with_pool(pool)),
                Err(status) => self.refuse(status, 0),
            },
            Request::DestroyPool(pool) => self.done(self.pools.destroy(*pool)),
            Request::InvalidateObject { pool, object } => {
                let done = self
                    .pools
                    .domain()
                    .invalidate_object(self.pools.find(*pool), ObjectId(*object))
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

    fn store(&mut self, batch: &Batch, entries: &[Entry]) -> Used {
        let (pool, object) = (self.pools.find(batch.pool), ObjectId(batch.object));
        let mut pages = self.chain.reader();
        pages.skip(
            size_of::<RequestHeader>()
                .saturating_add(usize::from(batch.count).saturating_mul(size_of::<Entry>())),
        );
        let mut answer = BatchAnswer::new(batch, self.metrics);
        let mut before = Instant::now();
        for (position, entry) in batch_entries(batch, entries) {
            let index = entry.index.get();
            let result = match pages.read(self.mem, self.page) {
                Ok(()) => self
                    .pools
                    .domain()
                    .store(pool, object, index, self.page)
                    .map_err(store_status),
                Err(error) => {
                    // A store that fails leaves no old data; an unknown pool has none.
                    let _ = self.pools.domain().invalidate_page(pool, object, index);
                    Err(error.into())
                }
            };
            self.pressure.note(result);
            let after = Instant::now();
            self.metrics.store_ns.record(nanoseconds(before, after));
            before = after;
            answer.note(position, result);
        }
        self.metrics
            .pages_stored
            .fetch_add(answer.done.into(), Relaxed);
        self.finish(answer, 0)
    }

    fn load(&mut self, batch: &Batch, entries: &[Entry]) -> Used {
        let (pool, object) = (self.pools.find(batch.pool), ObjectId(batch.object));
        let mut pages = self.chain.writer();
        pages.skip(size_of::<Response>().saturating_add(usize::from(batch.count)));
        let mut answer = BatchAnswer::new(batch, self.metrics);
        // Pages before the first one that could not be loaded.
        let mut contiguous = 0usize;
        let mut gap = false;
        let mut before = Instant::now();
        for (position, entry) in batch_entries(batch, entries) {
            let result = self
                .pools
                .domain()
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
            answer.note(position, result);
        }
        self.metrics
            .pages_loaded
            .fetch_add(answer.done.into(), Relaxed);
        self.finish(answer, contiguous.saturating_mul(PAGE_SIZE))
    }

    fn invalidate(&mut self, batch: &Batch, entries: &[Entry]) -> Used {
        let (pool, object) = (self.pools.find(batch.pool), ObjectId(batch.object));
        let mut answer = BatchAnswer::new(batch, self.metrics);
        for (position, entry) in batch_entries(batch, entries) {
            let result = self
                .pools
                .domain()
                .invalidate_page(pool, object, entry.index.get())
                .map_err(|_| Status::NoPool);
            answer.note(position, result);
        }
        self.metrics
            .pages_invalidated
            .fetch_add(answer.done.into(), Relaxed);
        self.finish(answer, 0)
    }

    /// Answers a batch, behind whose statuses `behind` bytes were written.
    fn finish(&self, mut batch: BatchAnswer<'_>, behind: usize) -> Used {
        if batch.no_pool {
            batch.answer.set_status(Status::NoPool);
        }
        let used = self.answer(&batch.answer);
        Used {
            len: used.len.saturating_add(used_len(behind)),
            pages: batch.done,
            entries: batch.count.into(),
        }
    }

    fn done(&self, result: Result<(), Status>) -> Used {
        match result {
            Ok(()) => self.answer(&Answer::new(Status::Ok, 0)),
            Err(status) => self.refuse(status, 0),
        }
    }

    /// Refuses the whole request, with a status for as many of `count` entries as there is room for.
    fn refuse(&self, status: Status, count: u16) -> Used {
        self.metrics.refused(status);
        let room = self
            .chain
            .writable_len()
            .saturating_sub(size_of::<Response>());
        let count = count.min(u16::try_from(room).unwrap_or(u16::MAX));
        self.answer(&Answer::new(status, count))
    }

    fn answer(&self, answer: &Answer) -> Used {
        let (response, statuses) = (answer.response_bytes(), answer.status_bytes());
        let mut writer = self.chain.writer();
        let mut len = 0;
        for bytes in [response, statuses] {
            if writer.write(self.mem, bytes).is_err() {
                break;
            }
            len = used_len(bytes.len()).saturating_add(len);
        }
        Used {
            len,
            ..Used::default()
        }
    }
}

/// The answer of a batch while it is being executed.
struct BatchAnswer<'a> {
    answer: Answer,
    /// Its entries.
    count: u16,
    metrics: &'a QueueMetrics,
    /// Entries that were granted.
    done: u32,
    /// No entry found its pool.
    no_pool: bool,
}

impl<'a> BatchAnswer<'a> {
    fn new(batch: &Batch, metrics: &'a QueueMetrics) -> Self {
        Self {
            answer: Answer::new(Status::Ok, batch.count),
            count: batch.count,
            metrics,
            done: 0,
            no_pool: true,
        }
    }

    /// Notes how the entry at `position` ended.
    fn note(&mut self, position: usize, result: Result<(), Status>) {
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
        self.answer.set_entry(position, status);
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

/// The entries of a batch with their positions.
fn batch_entries<'a>(
    batch: &Batch,
    entries: &'a [Entry],
) -> impl Iterator<Item = (usize, &'a Entry)> + use<'a> {
    entries.iter().take(batch.count.into()).enumerate()
}

fn nanoseconds(from: Instant, to: Instant) -> u64 {
    u64::try_from(to.saturating_duration_since(from).as_nanos()).unwrap_or(u64::MAX)
}
