//! One descriptor chain as two streams of bytes.
//!
//! A [`Chain`] is gathered once: its descriptors are read, their order, number and place in guest
//! memory are checked, and what is wrong is kept as its [`Fault`]. After that only [`Cursor`]s
//! touch guest memory, and each byte of a request once.

use std::cell::RefCell;
use std::io::{self, ErrorKind};

use tmem_protocol::{MAX_DESCRIPTORS, PAGE_SIZE, Status};
use virtio_queue::DescriptorChain;
use vm_memory::{
    Address, Bytes, GuestAddress, GuestMemory, GuestMemoryError, Permissions, ReadVolatile,
    WriteVolatile,
};

/// Why a chain is malformed as a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It has no end: a loop, a bad indirect table, an index outside the table, over 4 GiB.
    Incomplete,
    /// It has more than [`MAX_DESCRIPTORS`] descriptors.
    TooLong,
    /// A readable descriptor follows a writable one.
    Order,
    /// A descriptor lies outside guest memory.
    OutsideMemory,
}

#[derive(Clone, Copy, Debug)]
struct Segment {
    addr: GuestAddress,
    len: usize,
}

/// The descriptors of one chain. Lives as long as the thread, so that no request allocates.
#[derive(Debug, Default)]
pub(crate) struct Chain {
    readable: Vec<Segment>,
    writable: Vec<Segment>,
    readable_len: usize,
    writable_len: usize,
    fault: Option<Fault>,
}

impl Chain {
    /// Replaces what is here by the descriptors of `descriptors`.
    fn gather<M: GuestMemory>(&mut self, mem: &M, descriptors: DescriptorChain<&M>) {
        self.readable.clear();
        self.writable.clear();
        (self.readable_len, self.writable_len) = (0, 0);
        self.fault = None;

        // The iterator ends in the same way at the end of a chain and where it cannot go on.
        let mut complete = false;
        for (number, descriptor) in descriptors.enumerate() {
            if number >= MAX_DESCRIPTORS {
                self.fault.get_or_insert(Fault::TooLong);
                return;
            }
            complete = !descriptor.has_next();
            let Ok(len) = usize::try_from(descriptor.len()) else {
                self.fault.get_or_insert(Fault::OutsideMemory);
                continue;
            };
            if len == 0 {
                continue;
            }
            let (segments, total, access) = if descriptor.is_write_only() {
                (
                    &mut self.writable,
                    &mut self.writable_len,
                    Permissions::Write,
                )
            } else {
                if !self.writable.is_empty() {
                    self.fault.get_or_insert(Fault::Order);
                }
                (
                    &mut self.readable,
                    &mut self.readable_len,
                    Permissions::Read,
                )
            };
            if !mem.check_range(descriptor.addr(), len, access) {
                self.fault.get_or_insert(Fault::OutsideMemory);
            }
            *total = total.saturating_add(len);
            segments.push(Segment {
                addr: descriptor.addr(),
                len,
            });
        }
        if !complete {
            self.fault.get_or_insert(Fault::Incomplete);
        }
    }

    /// What is wrong with the chain. What is not wrong can be used all the same.
    pub(crate) fn fault(&self) -> Option<Fault> {
        self.fault
    }

    /// Number of readable bytes.
    pub(crate) fn readable_len(&self) -> usize {
        self.readable_len
    }

    /// Number of writable bytes.
    pub(crate) fn writable_len(&self) -> usize {
        self.writable_len
    }

    /// The readable bytes, from the first.
    pub(crate) fn reader(&self) -> Cursor<'_> {
        Cursor::new(&self.readable)
    }

    /// The writable bytes, from the first.
    pub(crate) fn writer(&self) -> Cursor<'_> {
        Cursor::new(&self.writable)
    }
}

/// Why bytes of a stream cannot be touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OutOfReach {
    /// The stream ends, or guest memory does not have them.
    Outside,
    /// Nobody has touched them yet, and there is no memory for them.
    NoMemory,
}

impl From<GuestMemoryError> for OutOfReach {
    fn from(error: GuestMemoryError) -> Self {
        match error {
            GuestMemoryError::IOError(error) if error.kind() == ErrorKind::OutOfMemory => {
                Self::NoMemory
            }
            _ => Self::Outside,
        }
    }
}

impl From<OutOfReach> for Status {
    fn from(error: OutOfReach) -> Self {
        match error {
            OutOfReach::Outside => Self::Invalid,
            OutOfReach::NoMemory => Self::NoMemory,
        }
    }
}

/// A place in a stream of bytes.
///
/// Visible for the sake of [`Backend`](crate::block::Backend), but without a name outside of this crate.
#[derive(Clone, Debug)]
pub struct Cursor<'a> {
    segments: std::slice::Iter<'a, Segment>,
    current: Option<Segment>,
}

impl<'a> Cursor<'a> {
    fn new(segments: &'a [Segment]) -> Self {
        Self {
            segments: segments.iter(),
            current: None,
        }
    }

    /// Takes the next contiguous piece, of at most `max` bytes and of at least one.
    fn take(&mut self, max: usize) -> Option<Segment> {
        let segment = match self.current.take() {
            Some(segment) => segment,
            None => *self.segments.next()?,
        };
        let len = segment.len.min(max);
        let rest = segment.len.saturating_sub(len);
        if rest > 0 {
            self.current = Some(Segment {
                addr: segment.addr.checked_add(u64::try_from(len).ok()?)?,
                len: rest,
            });
        }
        Some(Segment { len, ..segment })
    }

    /// Moves on by `len` bytes, or to the end.
    pub(crate) fn skip(&mut self, mut len: usize) {
        while len > 0 {
            match self.take(len) {
                Some(piece) => len = len.saturating_sub(piece.len),
                None => return,
            }
        }
    }

    /// Copies the next bytes out of guest memory.
    pub(crate) fn read<M: GuestMemory>(
        &mut self,
        mem: &M,
        mut buffer: &mut [u8],
    ) -> Result<(), OutOfReach> {
        while !buffer.is_empty() {
            let piece = self.take(buffer.len()).ok_or(OutOfReach::Outside)?;
            let (head, tail) = buffer
                .split_at_mut_checked(piece.len)
                .ok_or(OutOfReach::Outside)?;
            mem.read_slice(head, piece.addr)?;
            buffer = tail;
        }
        Ok(())
    }

    /// Copies bytes to the next place in guest memory.
    pub(crate) fn write<M: GuestMemory>(
        &mut self,
        mem: &M,
        mut bytes: &[u8],
    ) -> Result<(), OutOfReach> {
        while !bytes.is_empty() {
            let piece = self.take(bytes.len()).ok_or(OutOfReach::Outside)?;
            let (head, tail) = bytes
                .split_at_checked(piece.len)
                .ok_or(OutOfReach::Outside)?;
            mem.write_slice(head, piece.addr)?;
            bytes = tail;
        }
        Ok(())
    }

    /// Lets the next `len` bytes of guest memory be written to `to`, which for a file is without a copy here.
    pub(crate) fn read_into<M: GuestMemory>(
        &mut self,
        mem: &M,
        to: &mut impl WriteVolatile,
        len: u64,
    ) -> io::Result<()> {
        self.each(len, |piece| {
            mem.write_all_volatile_to(piece.addr, to, piece.len)
        })
    }

    /// Lets the next `len` bytes of guest memory be filled from `from`, which for a file is without a copy here.
    pub(crate) fn write_from<M: GuestMemory>(
        &mut self,
        mem: &M,
        from: &mut impl ReadVolatile,
        len: u64,
    ) -> io::Result<()> {
        self.each(len, |piece| {
            mem.read_exact_volatile_from(piece.addr, from, piece.len)
        })
    }

    /// The contiguous pieces of the next `len` bytes, one after the other.
    fn each(
        &mut self,
        mut len: u64,
        mut act: impl FnMut(Segment) -> Result<(), GuestMemoryError>,
    ) -> io::Result<()> {
        while len > 0 {
            let most = usize::try_from(len).unwrap_or(usize::MAX);
            let piece = self.take(most).ok_or(ErrorKind::UnexpectedEof)?;
            act(piece).map_err(io::Error::other)?;
            len = len.saturating_sub(u64::try_from(piece.len).map_err(io::Error::other)?);
        }
        Ok(())
    }
}

struct Scratch {
    chain: Chain,
    page: [u8; PAGE_SIZE],
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = const {
        RefCell::new(Scratch {
            chain: Chain {
                readable: Vec::new(),
                writable: Vec::new(),
                readable_len: 0,
                writable_len: 0,
                fault: None,
            },
            page: [0; PAGE_SIZE],
        })
    };
}

/// Runs `serve` with the chain and a page buffer, both of which belong to this thread.
///
/// `serve` must not come back here; it would find nothing to work with and get `None`.
pub(crate) fn with<M: GuestMemory, T>(
    mem: &M,
    descriptors: DescriptorChain<&M>,
    serve: impl FnOnce(&Chain, &mut [u8; PAGE_SIZE]) -> T,
) -> Option<T> {
    SCRATCH.with(|scratch| {
        let mut scratch = scratch.try_borrow_mut().ok()?;
        let Scratch { chain, page } = &mut *scratch;
        chain.gather(mem, descriptors);
        Some(serve(chain, page))
    })
}
