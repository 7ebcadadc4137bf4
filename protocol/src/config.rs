//! The configuration space.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The configuration space. All of it is read-only for the driver.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    KnownLayout,
    Immutable,
    Unaligned,
)]
#[repr(C)]
pub struct Config {
    /// [`crate::PAGE_SIZE`]. Cannot change.
    pub page_size: U32,
    /// Number of request queues. Cannot change.
    pub num_request_queues: U16,
    /// Most entries in one request. Cannot change.
    pub max_batch: U16,
    /// Most pools at one time. Cannot change.
    pub max_pools: U32,
    /// A [`crate::Pressure`], valid with [`crate::feature::EVENTS`].
    pub pressure: U32,
    /// The most that the pages of this guest may use, in bytes; 0 is no limit.
    pub limit_bytes: U64,
    /// The size which the host suggests for a swap disk, in bytes; with 0 the guest decides.
    pub swap_bytes: U64,
    /// How many of the request queues, the last ones, are store queues; fewer than all. Cannot change. Valid with
    /// [`crate::feature::STORE_QUEUES`], else zero.
    pub num_store_queues: U16,
    /// How many entries the device would like at most in one store, 1 to [`Self::max_batch`]. A hint that cannot
    /// change. Valid with [`crate::feature::STORE_QUEUES`], else zero.
    pub store_batch: U16,
    /// Zero.
    pub reserved: U32,
}

const _: () = assert!(size_of::<Config>() == 40);
