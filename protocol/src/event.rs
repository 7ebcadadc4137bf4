//! Events that the host sends to the guest.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::unknown::Unknown;

/// One event, written to one writable buffer of the event queue.
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
pub struct Event {
    /// An [`EventType`]. The driver ignores types it does not know.
    pub event_type: U16,
    /// Zero.
    pub reserved: U16,
    /// A [`Pressure`].
    pub level: U32,
    /// The most that the pages of this guest may use, in bytes; 0 is no limit.
    pub limit_bytes: U64,
    /// Bytes that the pages of this guest use.
    pub used_bytes: U64,
}

const _: () = assert!(size_of::<Event>() == 24);

/// The type of an event. Every event has all current values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum EventType {
    /// The pressure on the host's memory changed.
    Pressure = 1,
    /// The limit of this guest changed.
    Limits = 2,
}

impl TryFrom<u16> for EventType {
    type Error = Unknown;

    fn try_from(value: u16) -> Result<Self, Unknown> {
        match value {
            1 => Ok(Self::Pressure),
            2 => Ok(Self::Limits),
            _ => Err(Unknown(u32::from(value))),
        }
    }
}

/// How scarce the host's memory is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum Pressure {
    /// There is room.
    #[default]
    None = 0,
    /// Ephemeral pages are being evicted.
    Some = 1,
    /// Stores are being refused.
    Full = 2,
}

impl TryFrom<u32> for Pressure {
    type Error = Unknown;

    fn try_from(value: u32) -> Result<Self, Unknown> {
        match value {
            0 => Ok(Self::None),
            1 => Ok(Self::Some),
            2 => Ok(Self::Full),
            _ => Err(Unknown(value)),
        }
    }
}
