//! Surviving a guest that truncates the file of its memory.
//!
//! A mapping that reaches beyond the end of its file raises SIGBUS where it is touched, and the
//! default ends the process, with the pages of every other guest. The handler here puts zero pages
//! in place of the whole region and marks the memory of the touching thread as broken; the access
//! then goes on, and the thread ends the session of its guest before it answers anything more.
//!
//! An untouched page raises SIGBUS, too, where the mapping is watched. It is allocated here, as long as the thread may
//! allocate pages (`memory`).
//!
//! Only the thread that serves a guest touches the memory of that guest, so the regions are kept
//! per thread. The handler never sees those of another thread, and never a half-written table. No
//! thread holds a lock while it touches guest memory.

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering, compiler_fence};

use rustix::io::Errno;

use crate::memory::{make_page, page_size};

/// Most regions that guard one thread.
pub(crate) const MAX_REGIONS: usize = 8;

/// Tries at one page that is there when it shall be made and missing when it is touched: a front end
/// takes it out all the time.
const TRIES: u32 = 100;

/// Start, end, and whether missing pages are made.
const NONE: (usize, usize, bool) = (0, 0, false);

/// The fault of a guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Broken {
    /// It ends before its region does, or its pages cannot be had.
    Short,
    /// A page was missing when it was touched, and the guest has no allowance for another.
    Untouched,
}

// `const` and without `Drop`: an access is a load at a fixed offset, also in the signal handler.
thread_local! {
    static REGIONS: [Cell<(usize, usize, bool)>; MAX_REGIONS] =
        const { [const { Cell::new(NONE) }; MAX_REGIONS] };
    /// Pages that were made in each.
    static MADE: [Cell<u64>; MAX_REGIONS] = const { [const { Cell::new(0) }; MAX_REGIONS] };
    static BROKEN: Cell<Option<Broken>> = const { Cell::new(None) };
    /// The descriptor that makes pages, or -1.
    static FAULTS: Cell<RawFd> = const { Cell::new(-1) };
    /// Pages that may be made.
    static ALLOWED: Cell<u64> = const { Cell::new(0) };
    /// Page that was tried last, and how often.
    static TRIED: Cell<(usize, u32)> = const { Cell::new((0, 0)) };
}

/// Threads that can never go on.
static PARKED: AtomicU32 = AtomicU32::new(0);

/// One region.
#[derive(Clone, Debug)]
pub(crate) struct Watched {
    /// All addresses of its mapping, which is replaced as a whole.
    pub(crate) range: Range<usize>,
    /// Whether a page that is missing is made.
    pub(crate) makes_pages: bool,
}

/// The regions of the guest that this thread serves, for as long as this lives.
///
/// Drop it before the mappings it names: nothing else may lie at their addresses meanwhile.
pub(crate) struct Guard {
    /// Stays on the thread that made it.
    _thread: std::marker::PhantomData<*const ()>,
}

impl Guard {
    /// Guards `regions`, which replace what this thread guarded before. At most [`MAX_REGIONS`] of
    /// them are. `faults` makes missing pages, and is open for as long as this lives.
    pub(crate) fn new(
        regions: impl IntoIterator<Item = Watched>,
        faults: Option<BorrowedFd<'_>>,
    ) -> Self {
        install();
        let mut regions = regions.into_iter();
        REGIONS.with(|slots| {
            for slot in slots {
                slot.set(regions.next().map_or(NONE, |region| {
                    (region.range.start, region.range.end, region.makes_pages)
                }));
            }
        });
        MADE.with(|made| made.iter().for_each(|made| made.set(0)));
        FAULTS.set(faults.map_or(-1, |faults| faults.as_raw_fd()));
        BROKEN.set(None);
        compiler_fence(Ordering::SeqCst);
        Self {
            _thread: std::marker::PhantomData,
        }
    }

    /// Whether memory turned out to be less than promised. Data that was read from it since the last check may be zeros
    /// that the guest never wrote.
    pub(crate) fn broken(&self) -> Option<Broken> {
        compiler_fence(Ordering::SeqCst);
        BROKEN.get()
    }

    /// Pages that were made in each region, in the order they were given.
    pub(crate) fn made(&self) -> [u64; MAX_REGIONS] {
        compiler_fence(Ordering::SeqCst);
        MADE.with(|made| std::array::from_fn(|at| made.get(at).map_or(0, Cell::get)))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        compiler_fence(Ordering::SeqCst);
        REGIONS.with(|slots| slots.iter().for_each(|slot| slot.set(NONE)));
        FAULTS.set(-1);
        compiler_fence(Ordering::SeqCst);
    }
}

/// Pages that this thread may make.
pub(crate) fn allowed() -> u64 {
    compiler_fence(Ordering::SeqCst);
    ALLOWED.get()
}

/// Changes how many pages this thread may make.
pub(crate) fn set_allowed(pages: u64) {
    ALLOWED.set(pages);
    compiler_fence(Ordering::SeqCst);
}

/// Takes from what this thread may make.
pub(crate) fn take_allowed(pages: u64) {
    set_allowed(allowed().saturating_sub(pages));
}

/// Makes the handler that of this process, once.
pub(crate) fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if let Err(error) = vmm_sys_util::signal::register_signal_handler(libc::SIGBUS, on_sigbus) {
            // Cannot happen with a valid signal number; without it a bad guest ends the process.
            log::error!("Cannot handle SIGBUS: {error}");
        }
    });
}

/// Only async-signal-safe operations, no allocation, no lock.
extern "C" fn on_sigbus(signal: c_int, info: *mut libc::siginfo_t, _context: *mut c_void) {
    // The calls below change it behind the back of what was interrupted.
    // SAFETY: asks for an address.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: the number of this thread.
    let before = unsafe { *errno };
    // SAFETY: the kernel passes a valid `info` to a handler with SA_SIGINFO.
    let info = unsafe { &*info };
    let code = info.si_code;
    // SAFETY: in a SIGBUS of the kernel (code above 0) this field is an address; otherwise it is a
    // number that is not used.
    let address = unsafe { info.si_addr() }.addr();
    if code > 0 && (guest_memory(code, address) || tmem_store::repair(address)) {
        // SAFETY: as above.
        unsafe { *errno = before };
        return;
    }
    // Not caused by a guest: end as without a handler. The access is repeated and faults again; a signal that a process
    // sent has to be sent once more. SAFETY: restores the default action; touches no memory of ours.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
    if code <= 0 {
        // SAFETY: async-signal-safe; delivered when this handler returns.
        unsafe { libc::raise(signal) };
    }
}

/// Sees to a touch of guest memory. `false` where the address is of something else.
fn guest_memory(code: c_int, address: usize) -> bool {
    let regions = |slots: &[Cell<(usize, usize, bool)>; MAX_REGIONS]| {
        let mut slots = slots.iter().map(Cell::get).enumerate();
        slots.find(|&(_, (start, end, _))| (start..end).contains(&address))
    };
    let Some((region, (start, end, makes_pages))) = REGIONS.with(regions) else {
        return false;
    };
    // Other codes are of memory that went bad: no page is missing there.
    let broken = if code == libc::BUS_ADRERR && makes_pages {
        match make(region, address) {
            Ok(()) => return true,
            Err(broken) => broken,
        }
    } else {
        Broken::Short
    };
    // SAFETY: the range is a whole mapping of the guest that this thread serves, and outlives the
    // guard (see `Guard`). Nothing holds a Rust reference into guest memory, and its contents may
    // change at any time anyway.
    let replaced = unsafe {
        libc::mmap(
            std::ptr::without_provenance_mut(start),
            end - start,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    if replaced == libc::MAP_FAILED {
        // The thread cannot go on, and ending the process would end all other guests.
        park();
    }
    BROKEN.set(Some(broken));
    true
}

/// Makes the page at an address of a region, if this thread may.
fn make(region: usize, address: usize) -> Result<(), Broken> {
    let len = usize::try_from(page_size()).unwrap_or(4096);
    let page = address / len * len;
    let Some(left) = ALLOWED.get().checked_sub(1) else {
        return Err(Broken::Untouched);
    };
    match make_page(FAULTS.get(), page, len) {
        Ok(()) => {
            ALLOWED.set(left);
            MADE.with(|made| {
                if let Some(made) = made.get(region) {
                    made.set(made.get().saturating_add(1));
                }
            });
            TRIED.set((0, 0));
            Ok(())
        }
        // Somebody else made it, or the address space is being changed.
        Err(Errno::EXIST | Errno::AGAIN) => {
            let (last, tries) = TRIED.get();
            let tries = if last == page { tries + 1 } else { 0 };
            TRIED.set((page, tries));
            if tries < TRIES {
                Ok(())
            } else {
                Err(Broken::Untouched)
            }
        }
        Err(_) => Err(Broken::Short),
    }
}

/// Stops this thread for ever. A stop of its guest leaves it behind.
fn park() -> ! {
    PARKED.fetch_add(1, Ordering::Relaxed);
    loop {
        // SAFETY: waits for nothing; a signal interrupts it.
        unsafe { libc::ppoll(std::ptr::null_mut(), 0, std::ptr::null(), std::ptr::null()) };
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
    use vm_memory::{FileOffset, GuestRegionMmap, MmapRegion};

    use super::*;

    fn memory(file: std::fs::File, len: usize) -> (GuestMemoryMmap, Range<usize>) {
        let mapping: MmapRegion<()> =
            MmapRegion::from_file(FileOffset::new(file, 0), len).expect("maps");
        let start = mapping.as_ptr().addr();
        let region = GuestRegionMmap::new(mapping, GuestAddress(0)).expect("fits");
        let memory = GuestMemoryMmap::from_regions(vec![region]).expect("one region");
        assert_eq!(
            memory.iter().map(GuestMemoryRegion::len).sum::<u64>(),
            len as u64
        );
        (memory, start..start + len)
    }

    fn whole(range: Range<usize>) -> Watched {
        Watched {
            range,
            makes_pages: false,
        }
    }

    #[test]
    fn touching_a_truncated_file_reads_zeros_and_is_noticed() {
        let file = tempfile::tempfile().expect("temporary file");
        file.set_len(8 * 4096).expect("sized");
        let (memory, range) = memory(file.try_clone().expect("clones"), 8 * 4096);
        let guard = Guard::new([whole(range)], None);
        memory
            .write_obj(0x55u8, GuestAddress(4096))
            .expect("in memory");
        assert_eq!(guard.broken(), None);
        // Of all descriptors only this one changes.
        assert!(file.as_raw_fd() >= 0);
        file.set_len(4096).expect("truncates");
        let byte: u8 = memory.read_obj(GuestAddress(4096)).expect("in memory");
        assert_eq!(byte, 0);
        assert_eq!(guard.broken(), Some(Broken::Short));
        drop(guard);
    }

    #[test]
    fn a_region_that_cannot_be_replaced_stops_its_thread_and_nothing_else() {
        let huge = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::HUGETLB);
        let Ok(file) = huge.map(std::fs::File::from) else {
            eprintln!("no huge pages in this kernel: nothing was tested");
            return;
        };
        file.set_len(2 << 20).expect("sized");
        std::thread::spawn(move || {
            let (memory, range) = memory(file, 2 << 20);
            // A part of a huge page: the kernel replaces none.
            let _guard = Guard::new([whole(range.start..range.start + 0x5000)], None);
            let _: u8 = memory.read_obj(GuestAddress(4096)).expect("in memory");
            // A machine with a huge page to spare lets it read one.
            PARKED.fetch_add(1, Ordering::Relaxed);
        });
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
        while PARKED.load(Ordering::Relaxed) == 0 {
            assert!(std::time::Instant::now() < deadline, "not in time");
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }

    #[test]
    fn another_mapping_is_left_to_the_default_action() {
        // In a child: the default action ends the process.
        let status = std::process::Command::new(std::env::current_exe().expect("own path"))
            .args([
                "--ignored",
                "--exact",
                "sigbus::tests::child_that_dies_of_sigbus",
            ])
            .status()
            .expect("starts");
        use std::os::unix::process::ExitStatusExt;
        assert_eq!(status.signal(), Some(libc::SIGBUS), "{status}");
    }

    #[test]
    #[ignore = "run by another_mapping_is_left_to_the_default_action"]
    fn child_that_dies_of_sigbus() {
        let file = tempfile::tempfile().expect("temporary file");
        file.set_len(2 * 4096).expect("sized");
        let (memory, range) = memory(file.try_clone().expect("clones"), 2 * 4096);
        let _guard = Guard::new([whole(range.start..range.start + 4096)], None);
        file.set_len(4096).expect("truncates");
        let _: u8 = memory.read_obj(GuestAddress(4096)).expect("in memory");
    }
}
