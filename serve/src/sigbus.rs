//! Surviving a guest that truncates the file behind its memory.
//!
//! A mapping that reaches beyond the end of its file raises SIGBUS where it is touched, and the
//! default ends the process, with the pages of every other guest. The handler here puts zero pages
//! in place of the whole region and marks the memory of the touching thread as broken; the access
//! then goes on, and the thread ends the session of its guest before it answers anything more.
//!
//! Only the thread that serves a guest touches the memory of that guest, so the regions are kept
//! per thread. The handler never sees those of another thread, and never a half-written table.

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::ops::Range;
use std::sync::Once;
use std::sync::atomic::{Ordering, compiler_fence};

/// Most regions that guard one thread.
pub(crate) const MAX_REGIONS: usize = 8;

const NONE: (usize, usize) = (0, 0);

// `const` and without `Drop`: an access is a load at a fixed offset, also in the signal handler.
thread_local! {
    static REGIONS: [Cell<(usize, usize)>; MAX_REGIONS] =
        const { [const { Cell::new(NONE) }; MAX_REGIONS] };
    static BROKEN: Cell<bool> = const { Cell::new(false) };
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
    /// them are.
    pub(crate) fn new(regions: impl IntoIterator<Item = Range<usize>>) -> Self {
        install();
        let mut regions = regions.into_iter();
        REGIONS.with(|slots| {
            for slot in slots {
                slot.set(regions.next().map_or(NONE, |r| (r.start, r.end)));
            }
        });
        BROKEN.set(false);
        compiler_fence(Ordering::SeqCst);
        Self {
            _thread: std::marker::PhantomData,
        }
    }

    /// Whether a region turned out to be shorter than promised. What was read from it since its
    /// last check may be zeros that the guest never wrote.
    pub(crate) fn is_broken(&self) -> bool {
        compiler_fence(Ordering::SeqCst);
        BROKEN.get()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        compiler_fence(Ordering::SeqCst);
        REGIONS.with(|slots| slots.iter().for_each(|slot| slot.set(NONE)));
        compiler_fence(Ordering::SeqCst);
    }
}

/// Makes [`on_sigbus`] the handler of this process, once.
fn install() {
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
    // SAFETY: the kernel passes a valid `info` to a handler with SA_SIGINFO.
    let info = unsafe { &*info };
    let code = info.si_code;
    // SAFETY: in a SIGBUS of the kernel (code above 0) this field is an address; otherwise it is a
    // number that is not used.
    let address = unsafe { info.si_addr() }.addr();
    let region = REGIONS.with(|slots| {
        slots
            .iter()
            .map(Cell::get)
            .find(|&(start, end)| code > 0 && (start..end).contains(&address))
    });
    if let Some((start, end)) = region {
        // SAFETY: the range is a mapping of the guest that this thread serves, made with
        // `MmapRegion`, and outlives the guard (see `Guard`). Nothing holds a Rust reference into
        // guest memory, and its contents may change at any time anyway.
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
        if replaced != libc::MAP_FAILED {
            BROKEN.set(true);
            return;
        }
    }
    // Not a guest's doing: end as without a handler. The access is repeated and faults again; a
    // signal that somebody sent has to be sent once more.
    // SAFETY: restores the default action; touches no memory of ours.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
    if code <= 0 {
        // SAFETY: async-signal-safe; delivered when this handler returns.
        unsafe { libc::raise(signal) };
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

    #[test]
    fn touching_a_truncated_file_reads_zeros_and_is_noticed() {
        let file = tempfile::tempfile().expect("temporary file");
        file.set_len(8 * 4096).expect("sized");
        let (memory, range) = memory(file.try_clone().expect("clones"), 8 * 4096);
        let guard = Guard::new([range]);
        memory
            .write_obj(0x55u8, GuestAddress(4096))
            .expect("in memory");
        assert!(!guard.is_broken());
        // Of all descriptors only this one changes.
        assert!(file.as_raw_fd() >= 0);
        file.set_len(4096).expect("truncates");
        let byte: u8 = memory.read_obj(GuestAddress(4096)).expect("in memory");
        assert_eq!(byte, 0);
        assert!(guard.is_broken());
        drop(guard);
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
        let _guard = Guard::new(std::iter::once(range.start..range.start + 4096));
        file.set_len(4096).expect("truncates");
        let _: u8 = memory.read_obj(GuestAddress(4096)).expect("in memory");
    }
}
