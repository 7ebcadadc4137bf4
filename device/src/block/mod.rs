//! A virtio-blk device, for guests that have no driver of ours: over a pool of the page store, or over a host file.
//!
//! | module | holds |
//! |---|---|
//! | `device` | [`BlockDevice`]: features, configuration space, serving a queue |
//! | [`request`] | pure decoding of a request |
//! | `backend` | [`Backend`]: the storage behind a disk |
//! | [`pool`] | [`PoolDisk`]: pages of a persistent pool |
//! | `file` | [`FileDisk`]: a file or block device of the host |
//! | `metrics` | counters |
//!
//! References are to section 5.2 of the virtio specification, version 1.2.

mod backend;
mod device;
mod file;
mod metrics;
pub mod pool;
pub mod request;

pub use backend::Backend;
pub use device::{BlockConfig, BlockDevice};
pub use file::{DiskError, FileDisk};
pub use metrics::{BlockMetrics, BlockSnapshot};
pub use pool::PoolDisk;

/// Virtio device id of a block device.
pub const DEVICE_ID: u32 = 2;
