//! Pure decoding: what a request asks for, or why it is refused.

use tmem_protocol::PAGE_SIZE;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of the unit that positions and sizes on the wire are counted in, whatever the block size.
pub const SECTOR: u64 = 512;
/// Sectors of a page, which is the block size of the disk.
pub const SECTORS_PER_PAGE: u64 = PAGE_SIZE as u64 / SECTOR;
/// Most pages in one read or write.
pub const MAX_PAGES: usize = 1024;
/// Most ranges in one discard or write-zeroes request.
pub const MAX_RANGES: usize = 16;
/// Most sectors in one range.
pub const MAX_RANGE_SECTORS: u32 = 4096 * 8;
/// Bytes of the name of the disk.
pub const ID_LEN: usize = 20;

const T_IN: u32 = 0;
const T_OUT: u32 = 1;
const T_FLUSH: u32 = 4;
const T_GET_ID: u32 = 8;
const T_DISCARD: u32 = 11;
const T_WRITE_ZEROES: u32 = 13;

/// Flag of a range to be zeroed: it need not be kept.
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

/// What a request asks for. Pages are within the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Read pages.
    Read(Pages),
    /// Write pages.
    Write(Pages),
    /// Make everything durable: as durable as it ever is.
    Flush,
    /// Read the name of the disk.
    GetId,
    /// Discard, or write zeroes: both make the ranges read as zeroes.
    Clear {
        /// Number of ranges.
        ranges: usize,
        /// Whether the request is a discard, which allows no flags.
        discard: bool,
    },
}

/// Consecutive pages of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pages {
    /// The first one.
    pub first: u32,
    /// Number of pages.
    pub count: u32,
}

impl Pages {
    fn decode(sector: u64, bytes: u64, capacity: u32) -> Option<Self> {
        if !sector.is_multiple_of(SECTORS_PER_PAGE) || !bytes.is_multiple_of(PAGE_SIZE as u64) {
            return None;
        }
        let first = u32::try_from(sector.checked_div(SECTORS_PER_PAGE)?).ok()?;
        let count = u32::try_from(bytes.checked_div(PAGE_SIZE as u64)?).ok()?;
        (first.checked_add(count)? <= capacity).then_some(Self { first, count })
    }

    /// The pages.
    #[must_use]
    pub fn indices(self) -> std::ops::Range<u32> {
        self.first..self.first.saturating_add(self.count)
    }
}

/// Why a request was not executed, or the end of one that was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// Done.
    Ok = 0,
    /// Not done, or not all of it.
    IoError = 1,
    /// The device does not know such a request.
    Unsupported = 2,
}

/// Decodes a request with `readable` and `writable` bytes behind the header and before the status, for
/// a disk of `capacity` pages.
///
/// # Errors
/// The status that tells the driver.
pub fn decode(
    header: &Header,
    readable: usize,
    writable: usize,
    capacity: u32,
) -> Result<Request, Status> {
    let sector = header.sector.get();
    let pages = |bytes: usize| {
        if bytes > MAX_PAGES.saturating_mul(PAGE_SIZE) {
            return Err(Status::IoError);
        }
        let bytes = u64::try_from(bytes).map_err(|_| Status::IoError)?;
        Pages::decode(sector, bytes, capacity).ok_or(Status::IoError)
    };
    let ranges = |discard| {
        let ranges = readable.checked_div(size_of::<Range>()).unwrap_or_default();
        if !readable.is_multiple_of(size_of::<Range>()) || !(1..=MAX_RANGES).contains(&ranges) {
            return Err(Status::IoError);
        }
        Ok(Request::Clear { ranges, discard })
    };
    match header.request_type.get() {
        T_IN => pages(writable).map(Request::Read),
        T_OUT => pages(readable).map(Request::Write),
        T_FLUSH => Ok(Request::Flush),
        T_GET_ID if writable < ID_LEN => Err(Status::IoError),
        T_GET_ID => Ok(Request::GetId),
        T_DISCARD => ranges(true),
        T_WRITE_ZEROES => ranges(false),
        _ => Err(Status::Unsupported),
    }
}

/// Decodes a range of a [`Request::Clear`].
///
/// # Errors
/// The status that tells the driver.
pub fn decode_range(range: &Range, discard: bool, capacity: u32) -> Result<Pages, Status> {
    let known = if discard { 0 } else { RANGE_UNMAP };
    if range.flags.get() & !known != 0 {
        return Err(Status::Unsupported);
    }
    if range.sectors.get() > MAX_RANGE_SECTORS {
        return Err(Status::IoError);
    }
    let bytes = u64::from(range.sectors.get()).saturating_mul(SECTOR);
    Pages::decode(range.sector.get(), bytes, capacity).ok_or(Status::IoError)
}
