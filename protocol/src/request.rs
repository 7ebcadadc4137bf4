//! Requests of the driver.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::unknown::Unknown;

/// Bytes of the name of a share group.
pub const GROUP_LEN: usize = 24;

/// Flag of [`Op::CreatePool`]: the pool is ephemeral.
pub const POOL_EPHEMERAL: u32 = 1 << 0;
/// Flag of [`Op::CreatePool`]: join the share group named in the object. Needs [`POOL_EPHEMERAL`].
pub const POOL_SHARED: u32 = 1 << 1;

/// The first bytes of every request.
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
pub struct RequestHeader {
    /// An [`Op`].
    pub op: U16,
    /// Number of entries which follow.
    pub count: U16,
    /// Id of the pool; for [`Op::CreatePool`] the flags of the new pool.
    pub pool: U32,
    /// The object; for [`Op::CreatePool`] of a shared pool the name of the share group.
    pub object: [U64; 3],
}

const _: () = assert!(size_of::<RequestHeader>() == 32);
const _: () = assert!(size_of::<[U64; 3]>() == GROUP_LEN);

impl RequestHeader {
    /// The object's bytes as the name of a share group, padding included.
    #[must_use]
    pub fn group(&self) -> &[u8] {
        self.object.as_bytes()
    }
}

/// One page of a request.
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
pub struct Entry {
    /// Index of the page in the object.
    pub index: U32,
    /// Zero.
    pub reserved: U32,
}

const _: () = assert!(size_of::<Entry>() == 8);

/// The operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Op {
    /// Create a pool; the answer has its id.
    CreatePool = 1,
    /// Destroy a pool and every page in it.
    DestroyPool = 2,
    /// Store pages.
    Store = 3,
    /// Load pages.
    Load = 4,
    /// Invalidate pages.
    InvalidatePage = 5,
    /// Invalidate every page of one object.
    InvalidateObject = 6,
}

impl Op {
    /// Every operation.
    pub const ALL: [Self; 6] = [
        Self::CreatePool,
        Self::DestroyPool,
        Self::Store,
        Self::Load,
        Self::InvalidatePage,
        Self::InvalidateObject,
    ];

    /// Whether a request of this operation has entries.
    #[must_use]
    pub const fn has_entries(self) -> bool {
        matches!(self, Self::Store | Self::Load | Self::InvalidatePage)
    }
}

impl TryFrom<u16> for Op {
    type Error = Unknown;

    fn try_from(value: u16) -> Result<Self, Unknown> {
        Self::ALL
            .into_iter()
            .find(|op| *op as u16 == value)
            .ok_or(Unknown(u32::from(value)))
    }
}
