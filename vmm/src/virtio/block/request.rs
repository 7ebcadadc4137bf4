//! Pure decoding of a request chain: header (type, sector), data, one status byte at the very end of the writable
//! part. Descriptor borders mean nothing, so a header may come in pieces and a status may share its buffer with data.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions};

/// Bytes of a sector, the unit of every address on the wire.
pub const SECTOR: u64 = 512;
/// Data segments of a request: a chain has a header and a status besides.
pub(super) const SEG_MAX: u32 = 126;
/// Ranges in one discard or write-zeroes request.
pub(super) const MAX_RANGES: u32 = 32;
/// Sectors in one such range (64 MiB).
pub(super) const MAX_RANGE_SECTORS: u32 = 1 << 17;

/// Bytes of the header: type, reserved, sector.
const HEADER: u64 = 16;
/// Bytes of one range of a discard or write-zeroes request: sector, number of sectors, flags.
const RANGE: u64 = 16;
/// Bytes of the answer to GET_ID.
pub(super) const ID: u64 = 20;
/// Flag of a write-zeroes range: the sectors may be unmapped.
const FLAG_UNMAP: u32 = 1;

/// A piece of guest memory, checked to be inside of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) address: GuestAddress,
    pub(super) len: u32,
}

/// One range of a discard or write-zeroes request, inside of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) offset: u64,
    pub(super) len: u64,
    /// The range need not stay allocated.
    pub(super) unmap: bool,
}

/// What the driver asks for; offsets are bytes and checked against the capacity.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Read { offset: u64, to: Vec<Span> },
    Write { offset: u64, from: Vec<Span> },
    Flush,
    GetId { to: Vec<Span> },
    Discard(Vec<Range>),
    WriteZeroes(Vec<Range>),
}

/// A request that is answered without doing it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// `VIRTIO_BLK_S_IOERR`.
    IoError,
    /// `VIRTIO_BLK_S_UNSUPP`.
    Unsupported,
}

/// A decoded chain.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) operation: Result<Operation, Refusal>,
    /// Where the status byte goes.
    pub(super) status: GuestAddress,
    /// Bytes of the writable part in front of it.
    pub(super) writable: u64,
}

/// No byte of the chain can hold a status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Unanswerable;

/// What the decoder must know of the disk.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) capacity: u64,
    pub(super) read_only: bool,
}

/// Decodes the descriptors of one chain.
pub(super) fn decode<M: GuestMemory>(
    mem: &M,
    descriptors: impl Iterator<Item = Descriptor>,
    limits: Limits,
) -> Result<Request, Unanswerable> {
    let mut readable = Vec::new();
    let mut writable = Vec::new();
    let mut wrong_order = false;
    for descriptor in descriptors {
        let span = Span {
            address: descriptor.addr(),
            len: descriptor.len(),
        };
        if descriptor.is_write_only() {
            writable.push(span);
        } else {
            wrong_order |= !writable.is_empty();
            readable.push(span);
        }
    }
    // The status is the last writable byte.
    while writable.last().is_some_and(|span| span.len == 0) {
        writable.pop();
    }
    let last = writable.last_mut().ok_or(Unanswerable)?;
    last.len -= 1;
    let status = last
        .address
        .0
        .checked_add(u64::from(last.len))
        .map(GuestAddress)
        .ok_or(Unanswerable)?;
    if !mem.check_range(status, 1, Permissions::Write) {
        return Err(Unanswerable);
    }
    let operation = if wrong_order
        || !accessible(mem, &readable, Permissions::Read)
        || !accessible(mem, &writable, Permissions::Write)
    {
        Err(Refusal::IoError)
    } else {
        operation(mem, readable, &writable, limits)
    };
    Ok(Request {
        operation,
        status,
        writable: total(&writable),
    })
}

fn operation<M: GuestMemory>(
    mem: &M,
    mut readable: Vec<Span>,
    writable: &[Span],
    limits: Limits,
) -> Result<Operation, Refusal> {
    let mut header = [0; 16];
    take(mem, &mut readable, &mut header).ok_or(Refusal::IoError)?;
    let [t0, t1, t2, t3, _, _, _, _, sector @ ..] = header;
    let kind = u32::from_le_bytes([t0, t1, t2, t3]);
    let sector = u64::from_le_bytes(sector);
    let writes = matches!(
        kind,
        VIRTIO_BLK_T_OUT | VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES
    );
    if writes && limits.read_only {
        return Err(Refusal::IoError);
    }
    match kind {
        VIRTIO_BLK_T_IN => {
            let offset = check_extent(sector, total(writable), limits.capacity)?;
            Ok(Operation::Read {
                offset,
                to: writable.to_vec(),
            })
        }
        VIRTIO_BLK_T_OUT => {
            let offset = check_extent(sector, total(&readable), limits.capacity)?;
            Ok(Operation::Write {
                offset,
                from: readable,
            })
        }
        VIRTIO_BLK_T_FLUSH => Ok(Operation::Flush),
        VIRTIO_BLK_T_GET_ID if total(writable) >= ID => Ok(Operation::GetId {
            to: writable.to_vec(),
        }),
        VIRTIO_BLK_T_GET_ID => Err(Refusal::IoError),
        VIRTIO_BLK_T_DISCARD => ranges(mem, readable, limits, false).map(Operation::Discard),
        VIRTIO_BLK_T_WRITE_ZEROES => {
            ranges(mem, readable, limits, true).map(Operation::WriteZeroes)
        }
        _ => Err(Refusal::Unsupported),
    }
}

/// Sector and length as a byte offset inside of the disk; the length is whole sectors and not empty.
fn check_extent(sector: u64, len: u64, capacity: u64) -> Result<u64, Refusal> {
    let offset = sector.checked_mul(SECTOR).ok_or(Refusal::IoError)?;
    let end = offset.checked_add(len).ok_or(Refusal::IoError)?;
    if len == 0 || !len.is_multiple_of(SECTOR) || end > capacity {
        return Err(Refusal::IoError);
    }
    Ok(offset)
}

/// The ranges of a discard or write-zeroes request (section 5.2.6.2).
fn ranges<M: GuestMemory>(
    mem: &M,
    mut readable: Vec<Span>,
    limits: Limits,
    zeroes: bool,
) -> Result<Vec<Range>, Refusal> {
    let bytes = total(&readable);
    let count = bytes / RANGE;
    if count == 0 || !bytes.is_multiple_of(RANGE) || count > u64::from(MAX_RANGES) {
        return Err(Refusal::IoError);
    }
    let mut ranges = Vec::new();
    for _ in 0..count {
        let mut raw = [0; 16];
        take(mem, &mut readable, &mut raw).ok_or(Refusal::IoError)?;
        let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, flags @ ..] = raw;
        let flags = u32::from_le_bytes(flags);
        let sectors = u32::from_le_bytes([n0, n1, n2, n3]);
        // Unknown flags, and UNMAP in a discard, are unsupported.
        if flags & !FLAG_UNMAP != 0 || (flags != 0 && !zeroes) {
            return Err(Refusal::Unsupported);
        }
        if sectors > MAX_RANGE_SECTORS {
            return Err(Refusal::IoError);
        }
        let len = u64::from(sectors) * SECTOR;
        let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        let offset = check_extent(sector, len, limits.capacity)?;
        ranges.push(Range {
            offset,
            len,
            unmap: !zeroes || flags & FLAG_UNMAP != 0,
        });
    }
    Ok(ranges)
}

/// Moves the first bytes of `spans` into `out`.
fn take<M: GuestMemory>(mem: &M, spans: &mut Vec<Span>, out: &mut [u8; 16]) -> Option<()> {
    if total(spans) < HEADER {
        return None;
    }
    let mut filled = 0;
    while filled < out.len() {
        let span = spans.first_mut()?;
        let count = usize::try_from(span.len).ok()?.min(out.len() - filled);
        mem.read_slice(out.get_mut(filled..filled + count)?, span.address)
            .ok()?;
        filled += count;
        let used = u32::try_from(count).ok()?;
        span.address = GuestAddress(span.address.0.checked_add(u64::from(used))?);
        span.len -= used;
        if span.len == 0 {
            spans.remove(0);
        }
    }
    Some(())
}

fn accessible<M: GuestMemory>(mem: &M, spans: &[Span], access: Permissions) -> bool {
    spans.iter().all(|span| {
        usize::try_from(span.len)
            .is_ok_and(|len| len == 0 || mem.check_range(span.address, len, access))
    })
}

/// Bytes in all spans. A chain has at most 2^32 of them (the queue crate sees to that).
pub(super) fn total(spans: &[Span]) -> u64 {
    spans.iter().map(|span| u64::from(span.len)).sum()
}

#[cfg(test)]
mod tests;
