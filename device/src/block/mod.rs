//! A virtio-blk swap disk over the page store, for guests that have no driver of ours.
//!
//! | module | holds |
//! |---|---|
//! | `device` | [`BlockDevice`]: features, configuration space, requests |
//! | [`request`] | pure decoding of a request |
//! | `metrics` | counters |
//!
//! References are to section 5.2 of the virtio specification, version 1.2.

mod device;
mod metrics;
pub mod request;

pub use device::{BlockConfig, BlockDevice};
pub use metrics::{BlockMetrics, BlockSnapshot};

/// Name of the device in messages.
pub const NAME: &str = "virtio-blk";

/// Virtio device id of a block device.
pub const DEVICE_ID: u32 = 2;
