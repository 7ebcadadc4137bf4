//! Counters of the disk. They only grow, also over a reset of the device.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counters of one disk.
        #[derive(Debug, Default)]
        pub struct BlockMetrics {
            $(pub(super) $name: AtomicU64,)*
        }

        /// What [`BlockMetrics`] held at one time.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct BlockSnapshot {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl BlockMetrics {
            /// The counters, read one after the other while they grow.
            #[must_use]
            pub fn snapshot(&self) -> BlockSnapshot {
                BlockSnapshot {
                    $($name: self.$name.load(Relaxed),)*
                }
            }
        }
    };
}

counters! {
    /// Times a doorbell woke the thread that serves a queue.
    doorbells,
    /// Chains taken and returned.
    chains,
    /// Reads answered.
    reads,
    /// Bytes they returned.
    read_bytes,
    /// Of these, bytes that were never written. A disk over a file does not know.
    unwritten_bytes,
    /// Writes answered.
    writes,
    /// Bytes they took.
    written_bytes,
    /// Flushes answered.
    flushes,
    /// Ranges discarded or zeroed.
    ranges,
    /// Bytes in them.
    cleared_bytes,
    /// Requests answered with an I/O error.
    io_errors,
    /// Requests that the device does not know.
    unsupported,
    /// Chains with a fault, or without room for a status.
    malformed,
    /// Chains returned without a status: guest memory has no byte for it.
    unanswerable,
    /// Times the device had to stop because a ring was inconsistent.
    queue_faults,
}

impl BlockMetrics {
    /// Counts a doorbell.
    pub fn count_doorbell(&self) {
        self.doorbells.fetch_add(1, Relaxed);
    }
}

/// Adds to a counter.
pub(super) fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Relaxed);
}
