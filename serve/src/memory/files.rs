//! Files of front ends in which this process made pages. They are charged to it until the file is deleted, that is
//! until no process has a name, descriptor or mapping of it. fanotify(7) reports that, and nothing else here.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// Events that are read at a time, in bytes: some dozens of them.
const EVENTS: usize = 4096;
/// Bytes of an event before what it says of its file.
const METADATA: usize = 24;
/// Bytes before the handle of a file: kind and length, file system, length and type of the handle.
const INFO: usize = 20;
/// `FAN_EVENT_INFO_TYPE_FID`.
const FILE_ID: u8 = 1;

/// The arguments of [`Watch::file`], which the table of system calls allows.
pub(crate) const MARK: (u32, u64) = (libc::FAN_MARK_ADD, libc::FAN_DELETE_SELF);
const NO_PATH: &CStr = c"";

/// A file, for as long as there is one: its file system and its handle there.
type Identity = Box<[u8]>;

/// Learns when files are deleted.
#[derive(Debug)]
pub(crate) struct Watch {
    events: OwnedFd,
    /// Locked for moments: nothing under it waits.
    files: Mutex<BTreeMap<Identity, Arc<AtomicBool>>>,
}

/// The one of this process: a user can have few.
pub(crate) fn watch() -> Option<&'static Watch> {
    static WATCH: OnceLock<Option<Watch>> = OnceLock::new();
    let opened = WATCH.get_or_init(|| {
        let opened = Watch::open();
        opened
            .inspect_err(|error| {
                log::warn!(
                    "The kernel does not say when the memory of a front end is gone (fanotify: {error}): what is touched in it first counts against first-touch for as long as its guest is there"
                );
            })
            .ok()
    });
    opened.as_ref()
}

impl Watch {
    fn open() -> io::Result<Self> {
        let flags = libc::FAN_CLOEXEC | libc::FAN_NONBLOCK | libc::FAN_REPORT_FID;
        // SAFETY: makes a descriptor, touches no memory.
        let fd = unsafe { libc::fanotify_init(flags, libc::O_CLOEXEC.cast_unsigned()) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            // SAFETY: just made, and no other code has it.
            events: unsafe { OwnedFd::from_raw_fd(fd) },
            files: Mutex::default(),
        })
    }

    /// A flag that is set some time after the file was deleted ([`Self::look`]); for one file always the same flag.
    pub(super) fn file(&self, file: &File) -> io::Result<Arc<AtomicBool>> {
        let identity = identity(file)?;
        let (flags, mask) = MARK;
        // SAFETY: marks the file of an open descriptor; there is no path.
        let marked = unsafe {
            libc::fanotify_mark(
                self.events.as_raw_fd(),
                flags,
                mask,
                file.as_raw_fd(),
                std::ptr::null(),
            )
        };
        if marked != 0 {
            return Err(io::Error::last_os_error());
        }
        let mut files = self.files();
        // Flags that no account uses any more.
        files.retain(|_, gone| Arc::strong_count(gone) > 1);
        Ok(Arc::clone(files.entry(identity).or_default()))
    }

    /// Notes which files are deleted.
    pub(super) fn look(&self) {
        let mut bytes = [0; EVENTS];
        // Events that are read are taken out of the list before another thread reads.
        let mut files = self.files();
        while let Ok(len @ 1..) = rustix::io::read(&self.events, &mut bytes) {
            for identity in identities(bytes.get(..len).unwrap_or_default()) {
                if let Some(gone) = files.remove(identity) {
                    gone.store(true, Relaxed);
                }
            }
        }
    }

    fn files(&self) -> MutexGuard<'_, BTreeMap<Identity, Arc<AtomicBool>>> {
        // Each entry is whole at any time.
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The files that are named in events: file system, type and bytes of the handle.
fn identities(mut events: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        while let Some(len) = number(events, 0).filter(|len| *len >= METADATA) {
            let (event, rest) = events.split_at_checked(len)?;
            events = rest;
            let info = event.get(METADATA..)?;
            let named = info.first() == Some(&FILE_ID);
            // In place of its length stands where the handle ends.
            let end = number(info, 12).and_then(|handle| handle.checked_add(INFO));
            if let Some(info) = end.and_then(|end| info.get(4..end)).filter(|_| named) {
                return Some(info);
            }
        }
        None
    })
}

fn number(bytes: &[u8], at: usize) -> Option<usize> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    usize::try_from(u32::from_ne_bytes(*bytes)).ok()
}

/// As events have it.
fn identity(file: &File) -> io::Result<Identity> {
    #[repr(C)]
    struct Handle {
        len: u32,
        kind: i32,
        bytes: [u8; libc::MAX_HANDLE_SZ as usize],
    }
    let mut handle = Handle {
        len: libc::MAX_HANDLE_SZ.cast_unsigned(),
        kind: 0,
        bytes: [0; libc::MAX_HANDLE_SZ as usize],
    };
    let mut mount = 0;
    // SAFETY: reads an empty path, writes a handle of at most the length that it has, and a number.
    let named = unsafe {
        libc::name_to_handle_at(
            file.as_raw_fd(),
            NO_PATH.as_ptr(),
            (&raw mut handle).cast(),
            &raw mut mount,
            libc::AT_EMPTY_PATH,
        )
    };
    if named != 0 {
        return Err(io::Error::last_os_error());
    }
    let mut stat = MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: writes one `statfs`.
    if unsafe { libc::fstatfs(file.as_raw_fd(), stat.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call wrote it.
    let stat = unsafe { stat.assume_init() };
    // SAFETY: two numbers without padding.
    let system: [u8; 8] = unsafe { std::mem::transmute(stat.f_fsid) };
    let len = usize::try_from(handle.len).unwrap_or(0);
    let bytes = handle.bytes.get(..len).unwrap_or_default();
    let (size, kind) = (handle.len.to_ne_bytes(), handle.kind.to_ne_bytes());
    let identity: [&[u8]; 4] = [&system, &size, &kind, bytes];
    Ok(identity.concat().into_boxed_slice())
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    fn memfd() -> File {
        let file = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC);
        File::from(file.expect("memfd"))
    }

    /// `None` where the kernel or a filter does not have it, which is said.
    fn watch() -> Option<Watch> {
        let opened = Watch::open();
        opened
            .inspect_err(|error| eprintln!("NOT TESTED: no fanotify here: {error}"))
            .ok()
    }

    fn is_gone(watch: &Watch, file: &AtomicBool) -> bool {
        watch.look();
        file.load(Relaxed)
    }

    #[test]
    fn a_file_is_gone_with_its_last_descriptor_name_or_mapping_and_not_before() {
        let Some(watch) = watch() else { return };
        let file = memfd();
        file.set_len(4096).expect("sized");
        let other = file.try_clone().expect("clones");
        let gone = watch.file(&file).expect("watched");
        let again = watch.file(&other).expect("watched");
        assert!(Arc::ptr_eq(&gone, &again), "it is one file");
        let beside = memfd();
        let beside_gone = watch.file(&beside).expect("watched");
        let mapped =
            vm_memory::MmapRegion::<()>::from_file(vm_memory::FileOffset::new(other, 0), 4096);
        drop(file);
        assert!(!is_gone(&watch, &gone));
        drop(mapped.expect("maps"));
        let deadline = Instant::now() + Duration::from_secs(30);
        while !is_gone(&watch, &gone) {
            assert!(Instant::now() < deadline, "it is not known to be gone");
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(!is_gone(&watch, &beside_gone));
        // One that has a name is there as long as that.
        let folder = tempfile::tempdir_in("/dev/shm").expect("a folder");
        let path = folder.path().join("guest");
        let named = File::create_new(&path).expect("makes");
        let gone = watch.file(&named).expect("watched");
        drop(named);
        assert!(!is_gone(&watch, &gone));
        std::fs::remove_file(path).expect("removes");
        assert!(is_gone(&watch, &gone));
        assert_eq!(watch.files().len(), 1, "what is gone is not kept");
    }

    #[test]
    fn events_that_are_cut_off_or_of_another_kind_name_no_file() {
        let mut event = vec![0u8; METADATA + INFO + 4];
        let len = u32::try_from(event.len()).expect("small");
        event[..4].copy_from_slice(&len.to_ne_bytes());
        event[METADATA + 12] = 4;
        assert_eq!(identities(&event).count(), 0, "another kind");
        event[METADATA] = FILE_ID;
        assert_eq!(identities(&event).count(), 1);
        assert_eq!(identities(&[&event[..], &event].concat()).count(), 2);
        for cut in 0..event.len() {
            assert_eq!(identities(&event[..cut]).count(), 0);
        }
        event[METADATA + 12..METADATA + 16].fill(0xff);
        assert_eq!(identities(&event).count(), 0, "a handle beyond its event");
        event[..4].fill(0);
        assert_eq!(identities(&event).count(), 0, "and no endless loop");
    }
}
