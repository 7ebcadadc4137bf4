//! The kind of file behind a descriptor that a front end offers as memory.
//!
//! The owner of the file resolves page faults in a mapping. That has to be the kernel alone: a fault that waits for a
//! process, a server or a disk can hold up every other thread that changes the address space.

use std::fs::File;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use rustix::fs::FileType;
use rustix::io::Errno;
use tmem_control::api::MemoryBacking;

/// `HUGETLBFS_MAGIC` of <linux/magic.h>.
const HUGETLBFS: u64 = 0x9584_58f6;

/// A file that may be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Backing {
    /// Bytes of a page of it, of which a mapping has a whole number.
    pub(super) block: u64,
    /// Whether a page that is not there is made, for the account of who touches it, when it is touched. Those of
    /// hugetlbfs come from a pool that the operator filled.
    pub(super) grows: bool,
    /// Bytes of the file; `None` for what has no size.
    pub(super) size: Option<u64>,
}

/// Why a file is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Its pages may not be provided by the kernel alone.
    Foreign,
    /// The system does not say what it is.
    Unknown(Errno),
}

/// Looks at a file. Unless the operator allows any, nothing here asks its file system before it is known to be one of
/// the kernel's own: a file system in user space may never answer.
pub(super) fn look(file: &File, allowed: MemoryBacking) -> Result<Backing, Refusal> {
    // Only files of tmpfs and hugetlbfs have seals, none or some, and only the kernel is asked for them.
    match (rustix::fs::fcntl_get_seals(file), allowed) {
        (Ok(_), _) => {}
        (Err(_), MemoryBacking::Kernel) => return Err(Refusal::Foreign),
        (Err(_), MemoryBacking::Any) => {
            return Ok(Backing {
                block: page_size(),
                grows: false,
                size: size(file)?,
            });
        }
    }
    let stat = rustix::fs::fstatfs(file).map_err(Refusal::Unknown)?;
    let block = u64::try_from(stat.f_bsize).unwrap_or(0);
    let is_huge = u64::try_from(stat.f_type) == Ok(HUGETLBFS);
    Ok(Backing {
        block: block.max(page_size()),
        grows: !is_huge,
        size: size(file)?,
    })
}

fn size(file: &File) -> Result<Option<u64>, Refusal> {
    let stat = rustix::fs::fstat(file).map_err(Refusal::Unknown)?;
    let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    Ok(is_file.then(|| u64::try_from(stat.st_size).unwrap_or(0)))
}

/// Bytes of a page of this machine. Also for signal handlers, and no system call. Each access to a guest's memory asks
/// some times, so the C library is asked once.
pub(crate) fn page_size() -> u64 {
    static SIZE: AtomicU64 = AtomicU64::new(0);
    match SIZE.load(Relaxed) {
        0 => {
            // SAFETY: asks the C library for a number that it has.
            let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
            let size = u64::try_from(size).unwrap_or(4096);
            SIZE.store(size, Relaxed);
            size
        }
        size => size,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memfd(flags: rustix::fs::MemfdFlags) -> Option<File> {
        let file = File::from(rustix::fs::memfd_create("guest", flags).ok()?);
        file.set_len(4 << 20).ok()?;
        Some(file)
    }

    #[test]
    fn memory_of_the_kernel_is_taken_and_what_a_disk_or_a_process_backs_is_not() {
        let kernel = MemoryBacking::Kernel;
        let plain = memfd(rustix::fs::MemfdFlags::CLOEXEC).expect("memfd");
        let backing = look(&plain, kernel).expect("taken");
        assert!(backing.grows);
        assert_eq!((backing.block, backing.size), (page_size(), Some(4 << 20)));
        if let Some(huge) = memfd(rustix::fs::MemfdFlags::HUGETLB) {
            let backing = look(&huge, kernel).expect("taken");
            assert!(!backing.grows && backing.block > page_size(), "{backing:?}");
        } else {
            eprintln!("no huge pages in this kernel: they were not tested");
        }
        // In the folder of this program, which is on a disk wherever programs can be built.
        let folder = std::env::current_exe().expect("own path");
        let folder = folder.parent().expect("has one");
        let disk = tempfile::tempfile_in(folder).expect("temporary file");
        disk.set_len(4096).expect("sized");
        let (_read, write) = std::io::pipe().expect("pipe");
        let pipe = File::from(std::os::fd::OwnedFd::from(write));
        for foreign in [&disk, &pipe] {
            assert_eq!(look(foreign, kernel), Err(Refusal::Foreign));
        }
        let backing = look(&disk, MemoryBacking::Any).expect("allowed");
        assert_eq!((backing.grows, backing.size), (false, Some(4096)));
    }
}
