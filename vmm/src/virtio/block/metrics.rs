//! Counters of a block device.

use std::sync::atomic::{AtomicU64, Ordering};

/// Requests by kind since the machine started; all monotonic.
#[derive(Debug, Default)]
pub struct BlockMetrics {
    /// Reads answered.
    pub reads: AtomicU64,
    /// Bytes they returned.
    pub read_bytes: AtomicU64,
    /// Writes answered.
    pub writes: AtomicU64,
    /// Bytes they took.
    pub written_bytes: AtomicU64,
    /// Flushes answered.
    pub flushes: AtomicU64,
    /// Ranges discarded or zeroed.
    pub ranges: AtomicU64,
    /// Requests answered with an I/O error.
    pub io_errors: AtomicU64,
    /// Requests answered as unsupported.
    pub unsupported: AtomicU64,
    /// Chains too malformed to hold a status.
    pub unanswerable: AtomicU64,
}

/// Adds to a counter.
pub(super) fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}
