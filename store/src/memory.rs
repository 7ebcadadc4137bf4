//! Segment memory: with `bad_memory`, the only module with `unsafe`.
//!
//! An owner's segments are one memfd, mapped in extents that double in size, so that a segment's
//! address is found without a lock and nothing is ever moved or unmapped while the owner lives.
//! Bytes are read and written as relaxed atomic words: whatever the rest of the crate gets wrong
//! about who may touch a slot, the outcome is wrong bytes (which the check of the entry finds), never
//! undefined behaviour.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::fs::{FallocateFlags, MemfdFlags};
use rustix::mm::{Advice, MapFlags, MlockFlags, ProtFlags};

use crate::bad_memory;
use crate::entry::MAX_SEGMENTS;
use crate::sync::{Mutex, assert_no_lock_is_held};

/// Bytes of a segment.
pub(crate) const SEGMENT_BYTES: usize = 256 * 1024;
/// Bytes of a frame, the unit in which the kernel gives and takes memory.
pub(crate) const FRAME_BYTES: usize = 4096;
/// Segments in the first extent; each further one is twice as large.
const FIRST_EXTENT: u32 = 64;
/// Extents that [`MAX_SEGMENTS`] need.
const EXTENTS: usize = 17;

/// The kernel is known to give files in memory single frames only.
static ALWAYS_SMALL_PAGES: AtomicBool = AtomicBool::new(false);

/// Finds out whether a file in memory that is told to allocate a frame gets that frame, or perhaps a huge page around
/// it, for which no account is charged. Opens a file, so call it before the thread is confined.
pub(crate) fn learn_page_sizes() {
    let policy = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/shmem_enabled");
    let small = match policy {
        Ok(policy) => ["[never]", "[advise]", "[deny]"]
            .iter()
            .any(|choice| policy.contains(choice)),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    };
    ALWAYS_SMALL_PAGES.store(small, Ordering::Relaxed);
}

/// The memory of one owner.
#[derive(Debug)]
pub(crate) struct Memory {
    file: OwnedFd,
    extents: [OnceLock<Extent>; EXTENTS],
    /// Held while an extent is mapped.
    growing: Mutex<()>,
    /// The host may not swap it out.
    locked: bool,
}

/// The check that a read returns for lost bytes. No written data has it, since a check has ten bits.
const LOST: u16 = u16::MAX;

#[derive(Debug)]
struct Extent {
    base: NonNull<AtomicU64>,
    bytes: usize,
}

// SAFETY: an extent is plain shared memory that is only reached through atomics.
unsafe impl Send for Extent {}
// SAFETY: as above.
unsafe impl Sync for Extent {}

impl Extent {
    /// Tells the kernel what it may not do with the memory.
    fn advise(&self, locked: bool) -> io::Result<()> {
        let at = self.base.as_ptr().cast();
        // A huge page is more than the frames that are charged. A dump is no place for what guests stored. A kernel that
        // has neither does not know the advice.
        for advice in [Advice::LinuxNoHugepage, Advice::LinuxDontDump] {
            // SAFETY: the whole of our mapping; none of its bytes changes.
            let _ = unsafe { rustix::mm::madvise(at, self.bytes, advice) };
        }
        if locked {
            // Address space of which most is never used: only populated pages are locked. SAFETY: as above.
            unsafe { rustix::mm::mlock_with(at, self.bytes, MlockFlags::ONFAULT) }?;
        }
        Ok(())
    }
}

/// Whether so much address space may be locked.
pub(crate) fn can_lock(bytes: u64) -> io::Result<()> {
    let bytes = usize::try_from(bytes)
        .unwrap_or(usize::MAX)
        .clamp(FRAME_BYTES, 1 << 46);
    // SAFETY: a new mapping at an address the kernel chooses, of which nothing can be touched.
    let at = unsafe {
        rustix::mm::mmap_anonymous(
            std::ptr::null_mut(),
            bytes,
            ProtFlags::empty(),
            MapFlags::PRIVATE | MapFlags::NORESERVE,
        )
    }?;
    // SAFETY: the mapping just made.
    let locked = unsafe { rustix::mm::mlock_with(at, bytes, MlockFlags::ONFAULT) };
    // SAFETY: as above; no other code knows it.
    let _ = unsafe { rustix::mm::munmap(at, bytes) };
    Ok(locked?)
}

impl Drop for Extent {
    fn drop(&mut self) {
        bad_memory::forget(self.base.addr().get(), self.bytes);
        // SAFETY: `base` and `bytes` are what mmap returned; every borrow of the mapping borrows the
        // `Memory` that owns this extent, so none is left.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

/// The extent of a segment and the index of the segment in it.
fn locate(segment: u32) -> (usize, usize) {
    let position = segment / FIRST_EXTENT + 1;
    let extent = position.ilog2();
    let first = FIRST_EXTENT * ((1 << extent) - 1);
    (extent as usize, (segment - first) as usize)
}

impl Memory {
    /// An empty memory; `name` shows in `/proc/PID/maps`.
    pub(crate) fn new(name: &str) -> io::Result<Self> {
        let file = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC)?;
        Ok(Self {
            file,
            extents: [const { OnceLock::new() }; EXTENTS],
            growing: Mutex::new(()),
            locked: false,
        })
    }

    /// As it is, or with its populated pages locked in memory.
    pub(crate) fn locked(self, locked: bool) -> Self {
        Self { locked, ..self }
    }

    /// Makes the segment addressable. Costs no memory yet.
    pub(crate) fn map(&self, segment: u32) -> io::Result<()> {
        assert!(segment < MAX_SEGMENTS, "segment id out of range");
        let (extent_index, _) = locate(segment);
        if self.extents[extent_index].get().is_some() {
            return Ok(());
        }
        let _growing = self.growing.lock();
        if self.extents[extent_index].get().is_some() {
            return Ok(());
        }
        let bytes = (SEGMENT_BYTES * (FIRST_EXTENT as usize)) << extent_index;
        let offset = (SEGMENT_BYTES * (FIRST_EXTENT as usize) * ((1 << extent_index) - 1)) as u64;
        rustix::fs::ftruncate(&self.file, offset + bytes as u64)?;
        // SAFETY: a new mapping at an address the kernel chooses; nothing else is affected.
        let base = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::NORESERVE,
                self.file.as_fd(),
                offset,
            )
        }?;
        let Some(base) = NonNull::new(base.cast::<AtomicU64>()) else {
            return Err(io::Error::other("mapped at address zero"));
        };
        bad_memory::register(base.addr().get(), bytes);
        let extent = Extent { base, bytes };
        extent.advise(self.locked)?;
        // Nobody else sets it: `growing` is held.
        let _ = self.extents[extent_index].set(extent);
        Ok(())
    }

    /// The words of a mapped range. `offset` and `bytes` are multiples of 8.
    fn words(&self, segment: u32, offset: usize, bytes: usize) -> &[AtomicU64] {
        let (extent_index, index) = locate(segment);
        assert!(offset + bytes <= SEGMENT_BYTES && offset.is_multiple_of(8));
        let extent = self.extents[extent_index].get().expect("segment is mapped");
        let start = index * SEGMENT_BYTES + offset;
        debug_assert!(start + bytes <= extent.bytes);
        // SAFETY: `index` is below the extent's number of segments (by `locate`) and the range lies in
        // one segment (asserted above), so the sum stays in the mapping.
        let base = unsafe { extent.base.add(start / 8) };
        // SAFETY: the mapping is initialised (the kernel gives zeroes), aligned to a page with an
        // offset that is a multiple of 8, lives as long as `self`, and is accessed as atomics only.
        unsafe { std::slice::from_raw_parts(base.as_ptr(), bytes / 8) }
    }

    /// Takes memory for frames of a mapped segment, so that touching them can not fail.
    ///
    /// Where [`learn_page_sizes`] found that to be the same, the file gets the frames first: the kernel may have to reclaim
    /// memory for them, and for a populated mapping it would do so with the lock of the address space held, which
    /// every thread of the process waits for that maps anything.
    pub(crate) fn populate(&self, segment: u32, first: usize, frames: usize) -> io::Result<()> {
        assert_no_lock_is_held();
        let bytes = frames * FRAME_BYTES;
        let allocate = || {
            rustix::io::retry_on_intr(|| {
                rustix::fs::fallocate(
                    &self.file,
                    FallocateFlags::KEEP_SIZE,
                    u64::from(segment) * SEGMENT_BYTES as u64 + (first * FRAME_BYTES) as u64,
                    bytes as u64,
                )
            })
        };
        let small_pages = ALWAYS_SMALL_PAGES.load(Ordering::Relaxed);
        if small_pages {
            allocate()?;
        }
        let words = self.words(segment, first * FRAME_BYTES, bytes);
        // SAFETY: the range is a part of our mapping; populating changes no byte of it.
        let populated = unsafe {
            rustix::mm::madvise(
                words.as_ptr().cast_mut().cast(),
                bytes,
                Advice::LinuxPopulateWrite,
            )
        };
        match populated {
            // Kernels before 5.14 do not know the advice.
            Err(rustix::io::Errno::INVAL) if small_pages => Ok(()),
            Err(rustix::io::Errno::INVAL) => Ok(allocate()?),
            other => Ok(other?),
        }
    }

    /// Gives frames back to the kernel; they read as zeroes afterwards.
    pub(crate) fn punch(&self, segment: u32, first: usize, frames: usize) -> io::Result<()> {
        assert_no_lock_is_held();
        let offset = u64::from(segment) * SEGMENT_BYTES as u64 + (first * FRAME_BYTES) as u64;
        let bytes = frames * FRAME_BYTES;
        rustix::fs::fallocate(
            &self.file,
            FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            offset,
            bytes as u64,
        )?;
        let start = self
            .words(segment, first * FRAME_BYTES, bytes)
            .as_ptr()
            .addr();
        bad_memory::release(start, bytes, |page| {
            self.map_page(page, offset + (page - start) as u64);
        });
        Ok(())
    }

    /// Puts a page of the file back to where one of no file took its place.
    fn map_page(&self, page: usize, offset: u64) {
        // SAFETY: a page of one of our extents that holds no slot; it is reached through atomics only.
        let mapped = unsafe {
            rustix::mm::mmap(
                std::ptr::without_provenance_mut(page),
                FRAME_BYTES,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::NORESERVE | MapFlags::FIXED,
                self.file.as_fd(),
                offset,
            )
        };
        // The page of no file serves as well, but is not counted.
        if mapped.is_ok() {
            for advice in [Advice::LinuxNoHugepage, Advice::LinuxDontDump] {
                // SAFETY: the page just mapped; none of its bytes changes.
                let _ = unsafe {
                    rustix::mm::madvise(std::ptr::without_provenance_mut(page), FRAME_BYTES, advice)
                };
            }
        }
    }

    /// Writes `bytes` at `offset` (a multiple of 64), the last word padded with zeroes. Returns the
    /// check of what was written.
    pub(crate) fn write(&self, segment: u32, offset: usize, bytes: &[u8]) -> u16 {
        let words = self.words(segment, offset, bytes.len().next_multiple_of(8));
        loop {
            let begin = bad_memory::begin();
            let check = Self::fill(words, bytes);
            if bad_memory::written(begin, words.as_ptr().addr(), bytes.len()) {
                return check;
            }
        }
    }

    fn fill(words: &[AtomicU64], bytes: &[u8]) -> u16 {
        let mut check = Check::default();
        let (whole, rest) = bytes.as_chunks::<32>();
        let (quads, tail) = words.split_at(whole.len() * 4);
        for (quad, chunk) in quads.as_chunks::<4>().0.iter().zip(whole) {
            let (chunk, _) = chunk.as_chunks::<8>();
            let chunk = [0, 1, 2, 3].map(|lane| u64::from_ne_bytes(chunk[lane]));
            for lane in 0..4 {
                quad[lane].store(chunk[lane], Ordering::Relaxed);
            }
            check.add(chunk);
        }
        let mut last = [0u64; 4];
        for (lane, part) in rest.chunks(8).enumerate() {
            let mut word = [0; 8];
            word[..part.len()].copy_from_slice(part);
            last[lane] = u64::from_ne_bytes(word);
            tail[lane].store(last[lane], Ordering::Relaxed);
        }
        if !rest.is_empty() {
            check.add(last);
        }
        check.finish()
    }

    /// Reads as many bytes as `bytes` has. Returns the check of what was read, or a value that is no check if some of
    /// it is lost.
    pub(crate) fn read(&self, segment: u32, offset: usize, bytes: &mut [u8]) -> u16 {
        let words = self.words(segment, offset, bytes.len().next_multiple_of(8));
        let mut check = Check::default();
        let (whole, rest) = bytes.as_chunks_mut::<32>();
        let (quads, tail) = words.split_at(whole.len() * 4);
        for (quad, out) in quads.as_chunks::<4>().0.iter().zip(whole) {
            let chunk = [0, 1, 2, 3].map(|lane: usize| quad[lane].load(Ordering::Relaxed));
            let (out, _) = out.as_chunks_mut::<8>();
            for lane in 0..4 {
                out[lane] = chunk[lane].to_ne_bytes();
            }
            check.add(chunk);
        }
        if !rest.is_empty() {
            let mut last = [0u64; 4];
            for (lane, part) in rest.chunks_mut(8).enumerate() {
                last[lane] = tail[lane].load(Ordering::Relaxed);
                part.copy_from_slice(&last[lane].to_ne_bytes()[..part.len()]);
            }
            check.add(last);
        }
        if bad_memory::is_lost(words.as_ptr().addr(), bytes.len()) {
            return LOST;
        }
        check.finish()
    }

    /// Copies a slot's bytes to another slot of the same memory. Lost bytes are marked as lost there, too; `false` when
    /// that is not possible.
    #[must_use]
    pub(crate) fn copy(&self, from: (u32, usize), to: (u32, usize), bytes: usize) -> bool {
        let bytes = bytes.next_multiple_of(8);
        let from = self.words(from.0, from.1, bytes);
        let to = self.words(to.0, to.1, bytes);
        let start = to.as_ptr().addr();
        loop {
            let begin = bad_memory::begin();
            for (from, to) in from.iter().zip(to) {
                to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
            }
            if bad_memory::written(begin, start, bytes) {
                break;
            }
        }
        !bad_memory::is_lost(from.as_ptr().addr(), bytes) || bad_memory::lose(start, bytes)
    }

    /// Truncates the file here: an access behind that raises SIGBUS, as bad memory does.
    #[cfg(test)]
    pub(crate) fn cut(&self, bytes: u64) {
        rustix::fs::ftruncate(&self.file, bytes).expect("is ours");
    }

    /// The address of a byte, for tests that take its page away.
    #[cfg(test)]
    pub(crate) fn address(&self, segment: u32, offset: usize) -> usize {
        self.words(segment, offset, 8).as_ptr().addr()
    }

    /// Flips a bit, as bad memory would.
    #[cfg(test)]
    pub(crate) fn damage(&self, segment: u32, offset: usize) {
        self.words(segment, offset, 8)[0].fetch_xor(1 << 13, Ordering::Relaxed);
    }
}

/// Ten bits that a changed word changes: four lanes, so that it keeps up with the copy.
#[derive(Default)]
struct Check([u64; 4]);

impl Check {
    #[inline]
    fn add(&mut self, words: [u64; 4]) {
        for (lane, word) in self.0.iter_mut().zip(words) {
            *lane = lane.rotate_left(5).wrapping_add(word);
        }
    }

    fn finish(self) -> u16 {
        let mut sum = 0u64;
        for lane in self.0 {
            sum = (sum.rotate_left(17) ^ lane).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
        (sum >> 54) as u16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_double_and_cover_every_segment() {
        assert_eq!(locate(0), (0, 0));
        assert_eq!(locate(63), (0, 63));
        assert_eq!(locate(64), (1, 0));
        assert_eq!(locate(191), (1, 127));
        assert_eq!(locate(192), (2, 0));
        let (extent, index) = locate(MAX_SEGMENTS - 1);
        assert!(extent < EXTENTS && index < (FIRST_EXTENT as usize) << extent);
    }

    #[test]
    fn bytes_come_back_with_the_same_check_and_a_changed_bit_shows() {
        let memory = Memory::new("test").expect("memfd");
        memory.map(200).expect("map");
        learn_page_sizes();
        for len in [1, 7, 8, 31, 32, 33, 64, 1000, 4095, 4096] {
            let bytes: Vec<u8> = (0..len).map(|i| (i * 7 + len) as u8).collect();
            memory.populate(200, 0, 2).expect("populate");
            let written = memory.write(200, 64, &bytes);
            let mut back = vec![0; len];
            assert_eq!(memory.read(200, 64, &mut back), written);
            assert_eq!(back, bytes);
            assert!(memory.copy((200, 64), (200, 8192), len));
            assert_eq!(memory.read(200, 8192, &mut back), written);
            if len >= 8 {
                memory.damage(200, 64);
                assert_ne!(memory.read(200, 64, &mut back), written);
            }
        }
    }

    #[test]
    fn punched_frames_read_as_zeroes() {
        let memory = Memory::new("test").expect("memfd");
        memory.map(0).expect("map");
        memory.write(0, FRAME_BYTES, &[1; 64]);
        memory.punch(0, 1, 1).expect("punch");
        let mut back = [9; 64];
        memory.read(0, FRAME_BYTES, &mut back);
        assert_eq!(back, [0; 64]);
    }
}
