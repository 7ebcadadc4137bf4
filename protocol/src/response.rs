//! Answers of the device.

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::unknown::Unknown;

/// The first bytes of the writable part of every chain. The status of each entry follows.
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
pub struct Response {
    /// A [`Status`]: that of the request as a whole.
    pub status: u8,
    /// Zero.
    pub reserved: u8,
    /// Number of entry statuses which follow.
    pub count: U16,
    /// Id of the new pool of a [`crate::Op::CreatePool`], else zero.
    pub pool: U32,
}

const _: () = assert!(size_of::<Response>() == 8);

/// The outcome of a request, or of one entry of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// Done.
    Ok = 0,
    /// Load: there is no such page.
    NotFound = 1,
    /// The limit of the guest or the budget of the host is used up.
    NoSpace = 2,
    /// Store: the host accepts no new pages of this guest now.
    Frozen = 3,
    /// There is no pool with this id.
    NoPool = 4,
    /// The request is malformed.
    Invalid = 5,
    /// Unknown operation or flag, or its feature was not negotiated.
    Unsupported = 6,
    /// Create pool: the host does not let the guest have this pool.
    Denied = 7,
    /// The host could not allocate memory.
    NoMemory = 8,
    /// Load: the page is lost. There is data of this key, but it is damaged.
    IoError = 9,
    /// Create pool: the guest has as many pools as it may have.
    TooManyPools = 10,
}

impl Status {
    /// Number of statuses; they are numbered from 0 without a gap.
    pub const COUNT: usize = Self::ALL.len();

    /// Every status, at the index that is its number.
    pub const ALL: [Self; 11] = [
        Self::Ok,
        Self::NotFound,
        Self::NoSpace,
        Self::Frozen,
        Self::NoPool,
        Self::Invalid,
        Self::Unsupported,
        Self::Denied,
        Self::NoMemory,
        Self::IoError,
        Self::TooManyPools,
    ];

    /// The name in statistics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::NotFound => "not_found",
            Self::NoSpace => "no_space",
            Self::Frozen => "frozen",
            Self::NoPool => "no_pool",
            Self::Invalid => "invalid",
            Self::Unsupported => "unsupported",
            Self::Denied => "denied",
            Self::NoMemory => "no_memory",
            Self::IoError => "io_error",
            Self::TooManyPools => "too_many_pools",
        }
    }
}

impl From<Status> for u8 {
    fn from(status: Status) -> Self {
        status as Self
    }
}

impl TryFrom<u8> for Status {
    type Error = Unknown;

    fn try_from(value: u8) -> Result<Self, Unknown> {
        Self::ALL
            .get(usize::from(value))
            .copied()
            .ok_or(Unknown(u32::from(value)))
    }
}
