//! One mapping of a front end's memory, which is always undone.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::account::Account;

/// A shared mapping of a number of whole pages of its file. Dropping it unmaps.
pub(super) struct Mapping {
    start: *mut u8,
    len: usize,
    account: Arc<Account>,
}

impl Mapping {
    /// Maps `len` bytes at `offset`. Of hugetlbfs both, like all of the mapping, must be whole pages of the file: the
    /// kernel neither unmaps nor replaces a part of one.
    pub(super) fn new(
        file: &File,
        offset: u64,
        len: usize,
        account: &Arc<Account>,
    ) -> io::Result<Self> {
        let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
        // SAFETY: a new mapping at an address that the kernel chooses.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_NORESERVE,
                file.as_raw_fd(),
                offset,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // A core file of the service is no place for what a guest has in memory.
        // SAFETY: the whole of a mapping; none of its bytes changes. Where the advice is refused, a core file is larger.
        let _ = unsafe { libc::madvise(start, len, libc::MADV_DONTDUMP) };
        Ok(Self {
            start: start.cast(),
            len,
            account: Arc::clone(account),
        })
    }

    pub(super) fn start(&self) -> *mut u8 {
        self.start
    }

    /// The addresses of all of it.
    pub(super) fn range(&self) -> Range<usize> {
        self.start.addr()..self.start.addr().saturating_add(self.len)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` and unmapped nowhere else; no pointer into it is left (`GuestRam`).
        if unsafe { libc::munmap(self.start.cast(), self.len) } != 0 {
            self.account.stuck.fetch_add(1, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{MemfdFlags, memfd_create};

    #[test]
    fn a_mapping_that_cannot_be_undone_is_counted_and_one_of_whole_pages_can_be() {
        let Ok(file) = memfd_create("guest", MemfdFlags::HUGETLB) else {
            eprintln!("no huge pages in this kernel: nothing was tested");
            return;
        };
        let file = File::from(file);
        file.set_len(4 << 20).expect("sized");
        let account = Arc::new(Account::default());
        drop(Mapping::new(&file, 0, 4 << 20, &account).expect("maps"));
        assert!(account.may_map());
        // The kernel maps the whole page, and unmaps no part of it.
        let part = Mapping::new(&file, 0, 0x5000, &account).expect("maps");
        let (start, len) = (part.start(), 4 << 20);
        drop(part);
        assert!(!account.may_map());
        // SAFETY: the remaining mapping, which is not used.
        assert_eq!(unsafe { libc::munmap(start.cast(), len) }, 0);
    }
}
