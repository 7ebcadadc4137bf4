//! Counters of the device. They only grow, also over a reset of the device.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use tmem_protocol::{FIRST_REQUEST_QUEUE, Status};

use super::request::Malformed;
use crate::histogram::{Histogram, HistogramSnapshot};

/// Counters of one request queue. Aligned so that two vCPUs do not meet on a cache line.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct QueueMetrics {
    doorbells: AtomicU64,
    pub(super) chains: AtomicU64,
    pub(super) pages_stored: AtomicU64,
    pub(super) pages_loaded: AtomicU64,
    pub(super) pages_invalidated: AtomicU64,
    pub(super) objects_invalidated: AtomicU64,
    pub(super) queue_faults: AtomicU64,
    refusals: [AtomicU64; Status::COUNT],
    malformed: [AtomicU64; Malformed::COUNT],
    pub(super) store_ns: Histogram,
    pub(super) load_ns: Histogram,
    pub(super) pages_per_doorbell: Histogram,
}

impl QueueMetrics {
    /// Counts a request, or an entry of one, that was not granted.
    pub(super) fn refused(&self, status: Status) {
        if let Some(counter) = self.refusals.get(usize::from(u8::from(status))) {
            counter.fetch_add(1, Relaxed);
        }
    }

    /// Counts a chain that breaks a rule.
    pub(super) fn malformed(&self, rule: Malformed) {
        if let Some(counter) = self.malformed.get(rule as usize) {
            counter.fetch_add(1, Relaxed);
        }
    }
}

/// Counters of one device.
#[derive(Debug)]
pub struct TmemMetrics {
    queues: Box<[QueueMetrics]>,
    /// Counts that do not belong to a request queue, but to the event queue.
    rest: QueueMetrics,
    pub(super) events_posted: AtomicU64,
    pub(super) events_delivered: AtomicU64,
    pub(super) resets: AtomicU64,
}

impl TmemMetrics {
    pub(super) fn new(request_queues: u16) -> Self {
        Self {
            queues: (0..request_queues)
                .map(|_| QueueMetrics::default())
                .collect(),
            rest: QueueMetrics::default(),
            events_posted: AtomicU64::new(0),
            events_delivered: AtomicU64::new(0),
            resets: AtomicU64::new(0),
        }
    }

    pub(super) fn queue(&self, queue_index: u16) -> &QueueMetrics {
        queue_index
            .checked_sub(FIRST_REQUEST_QUEUE)
            .and_then(|index| self.queues.get(usize::from(index)))
            .unwrap_or(&self.rest)
    }

    /// Counts writes of the guest to the doorbell of queue `queue_index`.
    pub fn count_doorbells(&self, queue_index: u16, writes: u64) {
        self.queue(queue_index).doorbells.fetch_add(writes, Relaxed);
    }

    /// The counters of all queues together.
    #[must_use]
    pub fn snapshot(&self) -> MetricsSnapshot {
        let mut total = MetricsSnapshot {
            event_doorbells: self.rest.doorbells.load(Relaxed),
            events_posted: self.events_posted.load(Relaxed),
            events_delivered: self.events_delivered.load(Relaxed),
            resets: self.resets.load(Relaxed),
            ..MetricsSnapshot::default()
        };
        for queue in &self.queues {
            add(&mut total.doorbells, &queue.doorbells);
        }
        for queue in self.queues.iter().chain([&self.rest]) {
            add(&mut total.chains, &queue.chains);
            add(&mut total.pages_stored, &queue.pages_stored);
            add(&mut total.pages_loaded, &queue.pages_loaded);
            add(&mut total.pages_invalidated, &queue.pages_invalidated);
            add(&mut total.objects_invalidated, &queue.objects_invalidated);
            add(&mut total.queue_faults, &queue.queue_faults);
            for (sum, counter) in total.refusals.iter_mut().zip(&queue.refusals) {
                add(sum, counter);
            }
            for (sum, counter) in total.malformed.iter_mut().zip(&queue.malformed) {
                add(sum, counter);
            }
            queue.store_ns.add_to(&mut total.store_ns);
            queue.load_ns.add_to(&mut total.load_ns);
            queue
                .pages_per_doorbell
                .add_to(&mut total.pages_per_doorbell);
        }
        total
    }
}

fn add(sum: &mut u64, counter: &AtomicU64) {
    *sum = sum.wrapping_add(counter.load(Relaxed));
}

/// The values of [`TmemMetrics`] at one time. The counters are read one after the other while they grow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MetricsSnapshot {
    /// Writes to the doorbells of the request queues.
    pub doorbells: u64,
    /// Writes to the doorbell of the event queue.
    pub event_doorbells: u64,
    /// Chains taken from request queues and returned.
    pub chains: u64,
    /// Pages that a store put into a pool.
    pub pages_stored: u64,
    /// Pages that a load found.
    pub pages_loaded: u64,
    /// Entries of invalidate requests that were executed.
    pub pages_invalidated: u64,
    /// Objects that were invalidated.
    pub objects_invalidated: u64,
    /// Requests and entries that were not granted, at the index that is the number of their
    /// [`Status`]. A request that is refused as a whole counts once.
    pub refusals: [u64; Status::COUNT],
    /// Chains that broke a rule, in the order of [`Malformed::ALL`].
    pub malformed: [u64; Malformed::COUNT],
    /// Times that the device had to stop because a ring was inconsistent.
    pub queue_faults: u64,
    /// Nanoseconds per stored page, from the copy out of guest memory to the outcome.
    pub store_ns: HistogramSnapshot,
    /// Nanoseconds per loaded page, to the end of the copy into guest memory.
    pub load_ns: HistogramSnapshot,
    /// Pages stored, loaded and invalidated in one call for a doorbell.
    pub pages_per_doorbell: HistogramSnapshot,
    /// Events which the host posted.
    pub events_posted: u64,
    /// Events which were written to a buffer of the guest.
    pub events_delivered: u64,
    /// Resets of the device.
    pub resets: u64,
}
