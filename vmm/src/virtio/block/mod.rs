//! virtio-blk over a file (virtio 1.2, section 5.2): the plain swap disk that tmem is compared with and falls back
//! to. All I/O happens in one worker thread, so the vCPUs only ring the doorbell, which is an ioeventfd.
//!
//! [`request`] decodes a chain and touches no file, [`device`] does the I/O.

mod device;
mod disk;
mod metrics;
mod request;

pub use device::Block;
pub use disk::{Disk, DiskError};
pub use metrics::BlockMetrics;

/// Virtio device id of a block device.
pub const DEVICE_ID: u32 = 2;
/// Bytes of a sector, the unit of every address on the wire.
pub const SECTOR: u64 = 512;
/// The only queue.
const QUEUE: u16 = 0;
const QUEUE_SIZE: u16 = 256;
/// Data segments of a request: a chain has a header and a status besides.
const SEG_MAX: u32 = 126;
/// Ranges in one discard or write-zeroes request.
const MAX_RANGES: u32 = 32;
/// Sectors in one such range (64 MiB).
const MAX_RANGE_SECTORS: u32 = 1 << 17;
