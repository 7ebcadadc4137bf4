//! The guest ABI of the virtio transcendent memory device: identifiers, features, operations,
//! statuses and the structures that lie in guest memory. No I/O, no allocation, no `std`.
//!
//! `guest-driver/include/uapi/linux/virtio_tmem.h` says the same in C and holds the model of the
//! device in prose; `docs/abi.md` has the byte maps and the rules.
//!
//! | module | holds |
//! |---|---|
//! | [`feature`] | device feature bits |
//! | [`config`] | configuration space |
//! | [`request`] | request header and entries, operations, pool flags |
//! | [`response`] | response header, statuses |
//! | [`event`] | events from host to guest, levels of pressure |

#![no_std]
#![forbid(unsafe_code)]
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::arithmetic_side_effects
)]

pub mod config;
pub mod event;
pub mod feature;
pub mod request;
pub mod response;
mod unknown;

pub use config::Config;
pub use event::{Event, EventType, Pressure};
pub use request::{Entry, GROUP_LEN, Op, RequestHeader};
pub use response::{Response, Status};
pub use unknown::Unknown;

/// Virtio device id. Not assigned by the virtio specification, which ends below it.
pub const DEVICE_ID: u32 = 60;

/// Index of the queue on which the host tells the guest of pressure and limits.
pub const EVENT_QUEUE: u16 = 0;

/// Index of the first request queue; there are [`Config::num_request_queues`] of them, of which the last
/// [`Config::num_store_queues`] are store queues.
pub const FIRST_REQUEST_QUEUE: u16 = 1;

/// Bytes of a page, in every guest.
pub const PAGE_SIZE: usize = 4096;

/// Most entries in one request.
pub const MAX_BATCH: u16 = 64;

/// Most descriptors in one chain, those of an indirect table included.
pub const MAX_DESCRIPTORS: usize = 1024;
