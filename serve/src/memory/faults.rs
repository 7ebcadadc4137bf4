//! Has the kernel say where a page would be made, in place of making it: userfaultfd(2).
//!
//! Checking first and touching then does not work: a front end can take the page out of its file in between, as often
//! as it likes.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Once;

use rustix::io::Errno;

/// `UFFD_USER_MODE_ONLY`: no privilege is needed, and what the kernel itself touches is not waited for.
const USER_MODE_ONLY: libc::c_int = 1;
/// The flags that the table of system calls allows.
pub(crate) const FLAGS: u32 = (USER_MODE_ONLY | libc::O_CLOEXEC | libc::O_NONBLOCK).cast_unsigned();

const API: u64 = 0xaa;
/// A missing page raises SIGBUS, and no process is asked for it.
const FEATURE_SIGBUS: u64 = 1 << 7;
const FEATURE_MISSING_SHMEM: u64 = 1 << 5;
const MODE_MISSING: u64 = 1;

// `_IOWR(0xAA, number, size)` of <linux/userfaultfd.h>.
/// Negotiates features.
pub(crate) const UFFDIO_API: u64 = request(0x3f, size_of::<Api>());
/// Watches a mapping.
pub(crate) const UFFDIO_REGISTER: u64 = request(0x00, size_of::<Register>());
/// Makes a page of zeros.
pub(crate) const UFFDIO_ZEROPAGE: u64 = request(0x04, size_of::<ZeroPage>());

const fn request(number: u64, size: usize) -> u64 {
    3 << 30 | (size as u64) << 16 | 0xaa << 8 | number
}

#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct Register {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
struct ZeroPage {
    start: u64,
    len: u64,
    mode: u64,
    zeropage: i64,
}

/// Watches mappings; those that are still there when it is dropped are as others then.
#[derive(Debug)]
pub(super) struct Faults(OwnedFd);

impl Faults {
    /// `None` where the kernel or a filter around this process does not have it, which is said once.
    ///
    /// # Errors
    /// There is no descriptor for it: nothing is mapped then that is not counted.
    pub(super) fn open() -> io::Result<Option<Self>> {
        match Self::try_open() {
            Ok(faults) => Ok(Some(faults)),
            Err(error) if is_short(&error) => Err(error),
            Err(error) => {
                static ONCE: Once = Once::new();
                ONCE.call_once(|| {
                    log::warn!(
                        "The kernel does not say which pages of guest memory are touched first (userfaultfd: {error}): they are charged to this process and not counted"
                    );
                });
                Ok(None)
            }
        }
    }

    fn try_open() -> io::Result<Self> {
        // SAFETY: makes a descriptor, touches no memory.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, FLAGS) };
        let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just made, and no other code has it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let mut api = Api {
            api: API,
            features: FEATURE_SIGBUS | FEATURE_MISSING_SHMEM,
            ioctls: 0,
        };
        // SAFETY: reads and writes one `Api`, which is there.
        let done =
            unsafe { libc::syscall(libc::SYS_ioctl, fd.as_raw_fd(), UFFDIO_API, &raw mut api) };
        if done != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self(fd))
    }

    /// Has touches of missing pages of a mapping end in SIGBUS.
    pub(super) fn watch(&self, range: &Range<usize>) -> io::Result<()> {
        let mut register = Register {
            start: u64::try_from(range.start).map_err(io::Error::other)?,
            len: u64::try_from(range.len()).map_err(io::Error::other)?,
            mode: MODE_MISSING,
            ioctls: 0,
        };
        // SAFETY: reads and writes one `Register`; the range is a mapping of the caller's, whose contents stay.
        let done = unsafe {
            libc::syscall(
                libc::SYS_ioctl,
                self.0.as_raw_fd(),
                UFFDIO_REGISTER,
                &raw mut register,
            )
        };
        if done != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

/// Whether there is no more of what makes a descriptor, for now.
fn is_short(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    errno.is_some_and(|errno| matches!(errno, Errno::MFILE | Errno::NFILE | Errno::NOMEM))
}

impl AsFd for Faults {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Makes the page of zeros that is missing at the address of a page, `len` bytes long. Called by a signal handler: no
/// allocation, no lock.
pub(crate) fn make_page(faults: RawFd, address: usize, len: usize) -> Result<(), Errno> {
    let mut page = ZeroPage {
        start: u64::try_from(address).unwrap_or(0),
        len: u64::try_from(len).unwrap_or(0),
        mode: 0,
        zeropage: 0,
    };
    // SAFETY: reads and writes one `ZeroPage`. A page that is there already is left alone.
    let done = unsafe { libc::syscall(libc::SYS_ioctl, faults, UFFDIO_ZEROPAGE, &raw mut page) };
    match done {
        0 => Ok(()),
        // What the system call just said.
        _ => Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::FAULT)),
    }
}

/// Whether all pages of a range are there. Where they are watched, none is made.
pub(super) fn are_there(range: &Range<usize>) -> bool {
    let start = std::ptr::without_provenance_mut(range.start);
    // SAFETY: maps pages that are in the file into the caller's own mapping; no contents change.
    unsafe { libc::madvise(start, range.len(), libc::MADV_POPULATE_READ) == 0 }
}
