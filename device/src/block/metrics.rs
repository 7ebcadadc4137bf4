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
    /// Writes of the guest to a doorbell.
    doorbells,
    /// Chains taken and returned.
    chains,
    /// Pages written.
    pages_written,
    /// Pages read that had been written.
    pages_read,
    /// Pages read that nobody had written.
    zero_pages_read,
    /// Pages discarded or zeroed.
    pages_cleared,
    /// Requests answered with an I/O error.
    io_errors,
    /// Requests that the device does not know.
    unsupported,
    /// Chains with a fault or without room for a status.
    malformed,
    /// Times the device had to stop because a ring made no sense.
    queue_faults,
}

impl BlockMetrics {
    /// Counts a write of the guest to a doorbell.
    pub fn count_doorbell(&self) {
        self.doorbells.fetch_add(1, Relaxed);
    }
}
