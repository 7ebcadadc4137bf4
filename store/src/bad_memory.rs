//! Surviving host memory that is lost: a page that went bad, or that cannot be read back from swap.
//!
//! Touching such a page of a segment raises SIGBUS, and the default ends the process with the pages of all guests. A
//! handler of the process asks [`repair`], which puts a zero page in its place and notes that every 64 bytes of it are lost
//! (slots are whole multiples of that). [`crate::memory`] marks those bytes as good when something is written there, and
//! asks [`is_lost`] after each read: what lies there is never taken for a guest's bytes.
//!
//! Nothing here allocates in the handler or waits for a thread that could be in it: tables are fixed or only ever grow, and
//! readers take no lock.

use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::ptr::without_provenance_mut;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize};
use std::sync::atomic::{Ordering, compiler_fence, fence};

use rustix::mm::{MapFlags, ProtFlags};

/// Bytes of a page.
const PAGE: usize = 4096;
/// Bytes for each bit of a page's mask.
const UNIT: usize = 64;
/// Places for pages that are lost: more than a process may have mappings, of which each page takes one.
const CELLS: usize = 1 << 16;
/// Extents of one block of the list.
const BLOCK: usize = 64;
/// Faults on a page that was replaced, after which its replacement counts as bad: threads that touched the page at the same
/// time fault once each.
const FAULTS: u32 = 1000;
/// An address that no page has: the cell was used.
const USED: usize = 1;

/// The memory of one extent, where faults are repaired.
#[derive(Debug, Default)]
struct Range {
    start: AtomicUsize,
    end: AtomicUsize,
}

/// Extents; blocks are never freed, so a handler can walk them at any time.
#[derive(Debug)]
struct Block {
    ranges: [Range; BLOCK],
    next: AtomicPtr<Block>,
}

static EXTENTS: Block = Block {
    ranges: [const {
        Range {
            start: AtomicUsize::new(0),
            end: AtomicUsize::new(0),
        }
    }; BLOCK],
    next: AtomicPtr::new(std::ptr::null_mut()),
};

/// A page with lost bytes, found by the hash of its address.
struct Cell {
    page: AtomicUsize,
    /// Bit for each 64 bytes that are lost.
    mask: AtomicU64,
    faults: AtomicU32,
    /// A page of no file lies there.
    replaced: AtomicBool,
}

static LOST: [Cell; CELLS] = [const {
    Cell {
        page: AtomicUsize::new(0),
        mask: AtomicU64::new(0),
        faults: AtomicU32::new(0),
        replaced: AtomicBool::new(false),
    }
}; CELLS];
/// Held by who changes the table. No segment is touched meanwhile, so the holder does not come to the handler.
static CHANGING: AtomicBool = AtomicBool::new(false);
/// Pages in the table; 0 in every process with good memory.
static NOTED: AtomicU64 = AtomicU64::new(0);
/// Pages that were ever found bad.
static FOUND: AtomicU64 = AtomicU64::new(0);
/// Written to when one is found, or -1.
static TELL: AtomicI32 = AtomicI32::new(-1);

struct Changing;

impl Changing {
    fn begin() -> Self {
        while CHANGING.swap(true, Ordering::Acquire) {
            std::hint::spin_loop();
        }
        Self
    }
}

impl Drop for Changing {
    fn drop(&mut self) {
        CHANGING.store(false, Ordering::Release);
    }
}

/// Pages of host memory that were found bad since the process began.
#[must_use]
pub fn bad_pages() -> u64 {
    FOUND.load(Ordering::Relaxed)
}

/// Has an eventfd written to whenever a page is found bad. It has to stay open until another one, or none, takes its place.
pub fn tell_of_bad_pages(event: Option<BorrowedFd<'_>>) {
    let event = event.map_or(-1, |event| event.as_raw_fd());
    TELL.store(event, Ordering::Release);
}

/// Repairs the page at an address that raised SIGBUS, if it belongs to a segment. `true` when the access can be repeated: it
/// finds zeroes. To be called by a handler of SIGBUS, for faults of the kernel's only; async-signal-safe.
#[must_use]
pub fn repair(address: usize) -> bool {
    let page = address & !(PAGE - 1);
    if !is_segment(page) {
        return false;
    }
    let changing = Changing::begin();
    let Some(cell) = cell_of(page) else {
        return false;
    };
    if cell.replaced.load(Ordering::Relaxed) && cell.faults.fetch_add(1, Ordering::Relaxed) < FAULTS
    {
        // Another thread was faster.
        return true;
    }
    // Before the zeroes are there to be read.
    cell.mask.store(u64::MAX, Ordering::SeqCst);
    // SAFETY: a page of an extent, which is only reached through atomics (see `memory`) and unmapped as a whole.
    let mapped = unsafe {
        rustix::mm::mmap_anonymous(
            without_provenance_mut(page),
            PAGE,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::PRIVATE | MapFlags::FIXED | MapFlags::NORESERVE,
        )
    };
    if mapped.is_err() {
        return false;
    }
    cell.faults.store(0, Ordering::Relaxed);
    cell.replaced.store(true, Ordering::Relaxed);
    FOUND.fetch_add(1, Ordering::SeqCst);
    drop(changing);
    tell(TELL.load(Ordering::Acquire));
    true
}

fn tell(event: RawFd) {
    if event >= 0 {
        // SAFETY: the caller that passed the descriptor keeps it open.
        let event = unsafe { BorrowedFd::borrow_raw(event) };
        let _ = rustix::io::write(event, &1u64.to_ne_bytes());
    }
}

fn blocks() -> impl Iterator<Item = &'static Block> {
    std::iter::successors(Some(&EXTENTS), |block| {
        // SAFETY: null, or a block that was leaked when it was put there.
        unsafe { block.next.load(Ordering::Acquire).as_ref() }
    })
}

fn is_segment(address: usize) -> bool {
    blocks().flat_map(|block| &block.ranges).any(|range| {
        let start = range.start.load(Ordering::Acquire);
        let end = range.end.load(Ordering::Acquire);
        // A cell that is used again meanwhile has other bounds.
        (start..end).contains(&address) && range.start.load(Ordering::Acquire) == start
    })
}

/// Has faults in a mapping of a file's pages repaired, until [`forget`].
pub(crate) fn register(start: usize, bytes: usize) {
    let mut last = &EXTENTS;
    for block in blocks() {
        last = block;
        for range in &block.ranges {
            let free = range
                .start
                .compare_exchange(0, USED, Ordering::AcqRel, Ordering::Relaxed);
            if free.is_ok() {
                range.end.store(start + bytes, Ordering::Release);
                range.start.store(start, Ordering::Release);
                return;
            }
        }
    }
    let block = Block {
        ranges: std::array::from_fn(|_| Range::default()),
        next: AtomicPtr::new(std::ptr::null_mut()),
    };
    block.ranges[0].end.store(start + bytes, Ordering::Relaxed);
    block.ranges[0].start.store(start, Ordering::Relaxed);
    let block: &'static mut Block = Box::leak(Box::new(block));
    let block: *mut Block = block;
    loop {
        let null = std::ptr::null_mut();
        let linked = last
            .next
            .compare_exchange(null, block, Ordering::AcqRel, Ordering::Acquire);
        match linked {
            Ok(_) => return,
            // SAFETY: a block of another extent, leaked as ours was.
            Err(next) => last = unsafe { &*next },
        }
    }
}

/// The mapping is removed.
pub(crate) fn forget(start: usize, bytes: usize) {
    for range in blocks().flat_map(|block| &block.ranges) {
        if range.start.load(Ordering::Acquire) == start {
            range.end.store(0, Ordering::Release);
            range.start.store(0, Ordering::Release);
            break;
        }
    }
    release(start, bytes, |_| ());
}

/// Pages found bad before a write, for [`written`].
pub(crate) fn begin() -> u64 {
    FOUND.load(Ordering::SeqCst)
}

/// Whether some of the bytes, which were just read, are lost.
pub(crate) fn is_lost(start: usize, bytes: usize) -> bool {
    // The bytes first: to read them may have been what repaired them.
    fence(Ordering::Acquire);
    NOTED.load(Ordering::Relaxed) != 0
        && pages(start, bytes).any(|(page, units)| {
            find(page).is_some_and(|cell| cell.mask.load(Ordering::SeqCst) & units != 0)
        })
}

/// The bytes were written since [`begin`], and are correct. `false` when a page went bad meanwhile, and they have to be
/// written again.
#[must_use]
pub(crate) fn written(begin: u64, start: usize, bytes: usize) -> bool {
    // The bytes first: to write them may have been what found the page.
    compiler_fence(Ordering::SeqCst);
    if NOTED.load(Ordering::SeqCst) == 0 {
        // Who finds the page bad after this notes all of it as lost.
        return true;
    }
    // Nobody is about to replace a page.
    let _changing = Changing::begin();
    if FOUND.load(Ordering::SeqCst) != begin {
        return false;
    }
    for (page, units) in pages(start, bytes) {
        if let Some(cell) = find(page) {
            cell.mask.fetch_and(!units, Ordering::SeqCst);
        }
    }
    true
}

/// The bytes are copies of bytes that are lost.
pub(crate) fn lose(start: usize, bytes: usize) -> bool {
    let _changing = Changing::begin();
    pages(start, bytes).all(|(page, units)| {
        cell_of(page)
            .map(|cell| cell.mask.fetch_or(units, Ordering::SeqCst))
            .is_some()
    })
}

/// The bytes, whole pages, hold nothing any more. `restore` is called with each page that was replaced, and puts the file's
/// page back.
pub(crate) fn release(start: usize, bytes: usize, mut restore: impl FnMut(usize)) {
    if NOTED.load(Ordering::Relaxed) == 0 {
        return;
    }
    let _changing = Changing::begin();
    let mut restore = |cell: &Cell, page| {
        if cell.replaced.swap(false, Ordering::Relaxed) {
            restore(page);
        }
        cell.mask.store(0, Ordering::SeqCst);
        cell.page.store(USED, Ordering::Release);
        NOTED.fetch_sub(1, Ordering::SeqCst);
    };
    let range = start..start + bytes;
    if bytes / PAGE < CELLS {
        for page in range.step_by(PAGE) {
            if let Some(cell) = find(page) {
                restore(cell, page);
            }
        }
    } else {
        for cell in &LOST {
            let page = cell.page.load(Ordering::Relaxed);
            if range.contains(&page) {
                restore(cell, page);
            }
        }
    }
}

/// The pages that bytes touch, each with the bits of its units.
fn pages(start: usize, bytes: usize) -> impl Iterator<Item = (usize, u64)> {
    let end = start + bytes.max(1);
    (start & !(PAGE - 1)..end).step_by(PAGE).map(move |page| {
        let first = start.saturating_sub(page) / UNIT;
        let last = (end.min(page + PAGE) - 1 - page) / UNIT;
        (page, (u64::MAX << first) & (u64::MAX >> (63 - last)))
    })
}

fn cells(page: usize) -> impl Iterator<Item = &'static Cell> {
    let first = (page / PAGE).wrapping_mul(0x9e37_79b1);
    (0..CELLS).map(move |step| &LOST[first.wrapping_add(step) % CELLS])
}

/// The cell of a page that is in the table.
fn find(page: usize) -> Option<&'static Cell> {
    cells(page)
        .map(|cell| (cell, cell.page.load(Ordering::Acquire)))
        .take_while(|(_, found)| *found != 0)
        .find(|(_, found)| *found == page)
        .map(|(cell, _)| cell)
}

/// The cell of a page, which is made if need be. Only while the table is being changed.
fn cell_of(page: usize) -> Option<&'static Cell> {
    if let Some(cell) = find(page) {
        return Some(cell);
    }
    let cell = cells(page).find(|cell| cell.page.load(Ordering::Relaxed) <= USED)?;
    cell.mask.store(0, Ordering::Relaxed);
    cell.faults.store(0, Ordering::Relaxed);
    cell.replaced.store(false, Ordering::Relaxed);
    NOTED.fetch_add(1, Ordering::SeqCst);
    cell.page.store(page, Ordering::Release);
    Some(cell)
}

#[cfg(test)]
mod tests;
