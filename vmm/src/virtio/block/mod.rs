//! virtio-blk over a file (virtio 1.2, section 5.2): the plain swap disk that tmem is compared with and falls back
//! to. All I/O happens in one worker thread, so the vCPUs only ring the doorbell, which is an ioeventfd.
//!
//! [`request`] decodes a chain and touches no file, [`device`] does the I/O.

mod device;
mod disk;
mod metrics;
mod request;

pub use device::{Block, DEVICE_ID};
pub use disk::{Disk, DiskError};
pub use metrics::BlockMetrics;
pub use request::SECTOR;
