//! Pure decoding, in bytes and sectors: what a request asks for, or why it is refused.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of the unit that positions and sizes on the wire are counted in, whatever the block size.
pub const SECTOR: u64 = 512;
/// Most ranges in one discard or write-zeroes request that any disk takes.
pub const MAX_RANGES: usize = 32;
/// Bytes of the name of the disk.
pub const ID_LEN: usize = 20;

const T_IN: u32 = 0;
const T_OUT: u32 = 1;
const T_FLUSH: u32 = 4;
const T_GET_ID: u32 = 8;
const T_DISCARD: u32 = 11;
const T_WRITE_ZEROES: u32 = 13;

/// Flag of a range to be zeroed: it need not stay allocated.
const RANGE_UNMAP: u32 = 1;

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
pub struct Header {
    /// What is asked for.
    pub request_type: U32,
    /// Not looked at: it was a priority once.
    pub reserved: U32,
    /// First sector of a read or write.
    pub sector: U64,
}

const _: () = assert!(size_of::<Header>() == 16);

/// A range to be discarded or zeroed.
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
pub struct Range {
    /// First sector.
    pub sector: U64,
    /// Number of sectors.
    pub sectors: U32,
    /// Flags.
    pub flags: U32,
}

const _: () = assert!(size_of::<Range>() == 16);

/// Size and limits of a disk: what the decoder checks a request against, and what the device announces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes of the disk, a multiple of the block size.
    pub capacity: u64,
    /// Bytes of a block, a multiple of [`SECTOR`]. Requests begin and end between blocks.
    pub block_size: u32,
    /// Most data segments of a request.
    pub seg_max: u32,
    /// Most bytes of a segment, where there is a limit; with it a request has at most
    /// [`seg_max`](Self::seg_max) times as many bytes.
    pub size_max: Option<u32>,
    /// Whether a block is announced as the best size of a read or write.
    pub announce_topology: bool,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Most ranges in one discard or write-zeroes request, at most [`MAX_RANGES`].
    pub max_ranges: u32,
    /// Most sectors in one range.
    pub max_range_sectors: u32,
    /// Sectors that a discard should be a multiple of.
    pub discard_alignment: u32,
}

impl Geometry {
    /// Most bytes of one read or write.
    #[must_use]
    pub fn max_bytes(&self) -> u64 {
        self.size_max.map_or(u64::MAX, |size| {
            u64::from(size).saturating_mul(self.seg_max.into())
        })
    }
}

/// Consecutive bytes of a disk: whole blocks, at least one, all of them inside of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Position of the first byte.
    pub offset: u64,
    /// Number of bytes.
    pub len: u64,
}

impl Extent {
    fn decode(sector: u64, len: u64, geometry: &Geometry) -> Result<Self, BlkStatus> {
        let offset = sector.checked_mul(SECTOR).ok_or(BlkStatus::IoError)?;
        let end = offset.checked_add(len).ok_or(BlkStatus::IoError)?;
        let block = u64::from(geometry.block_size);
        let whole = offset.is_multiple_of(block) && len.is_multiple_of(block);
        if len == 0 || !whole || end > geometry.capacity {
            return Err(BlkStatus::IoError);
        }
        Ok(Self { offset, len })
    }
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Read.
    Read(Extent),
    /// Write.
    Write(Extent),
    /// Make durable what was written.
    Flush,
    /// Read the name of the disk.
    GetId,
    /// Discard, or write zeroes.
    Clear {
        /// Number of ranges.
        ranges: usize,
        /// Whether the request is a discard, which allows no flags.
        discard: bool,
    },
}

/// What becomes of an extent that is discarded or zeroed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clear {
    /// Its contents do not matter any more.
    Discard,
    /// It reads as zeroes.
    Zero {
        /// It need not stay allocated.
        unmap: bool,
    },
}

/// How a request ended: the last byte of its writable part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum BlkStatus {
    /// Done.
    Ok = 0,
    /// Not done, or not all of it.
    IoError = 1,
    /// The device does not know such a request.
    Unsupported = 2,
}

/// Decodes a request with `readable` and `writable` bytes behind the header and before the status.
///
/// # Errors
/// The status that tells the driver.
pub fn decode(
    header: &Header,
    readable: usize,
    writable: usize,
    geometry: &Geometry,
) -> Result<Request, BlkStatus> {
    let request_type = header.request_type.get();
    if geometry.read_only && matches!(request_type, T_OUT | T_DISCARD | T_WRITE_ZEROES) {
        return Err(BlkStatus::IoError);
    }
    let extent = |bytes: usize| {
        let bytes = u64::try_from(bytes).map_err(|_| BlkStatus::IoError)?;
        if bytes > geometry.max_bytes() {
            return Err(BlkStatus::IoError);
        }
        Extent::decode(header.sector.get(), bytes, geometry)
    };
    let ranges = |discard| {
        let ranges = readable.checked_div(size_of::<Range>()).unwrap_or_default();
        let most = usize::try_from(geometry.max_ranges).unwrap_or_default();
        if !readable.is_multiple_of(size_of::<Range>())
            || !(1..=most.min(MAX_RANGES)).contains(&ranges)
        {
            return Err(BlkStatus::IoError);
        }
        Ok(Request::Clear { ranges, discard })
    };
    match request_type {
        T_IN => extent(writable).map(Request::Read),
        T_OUT => extent(readable).map(Request::Write),
        T_FLUSH => Ok(Request::Flush),
        T_GET_ID if writable < ID_LEN => Err(BlkStatus::IoError),
        T_GET_ID => Ok(Request::GetId),
        T_DISCARD => ranges(true),
        T_WRITE_ZEROES => ranges(false),
        _ => Err(BlkStatus::Unsupported),
    }
}

/// Decodes a range of a [`Request::Clear`].
///
/// # Errors
/// The status that tells the driver.
pub fn decode_range(
    range: &Range,
    discard: bool,
    geometry: &Geometry,
) -> Result<(Extent, Clear), BlkStatus> {
    let flags = range.flags.get();
    let known = if discard { 0 } else { RANGE_UNMAP };
    if flags & !known != 0 {
        return Err(BlkStatus::Unsupported);
    }
    let sectors = range.sectors.get();
    if sectors > geometry.max_range_sectors {
        return Err(BlkStatus::IoError);
    }
    let len = u64::from(sectors).saturating_mul(SECTOR);
    let extent = Extent::decode(range.sector.get(), len, geometry)?;
    let clear = if discard {
        Clear::Discard
    } else {
        let unmap = flags & RANGE_UNMAP != 0;
        Clear::Zero { unmap }
    };
    Ok((extent, clear))
}

#[cfg(test)]
mod tests;
