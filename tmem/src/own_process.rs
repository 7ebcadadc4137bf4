//! The use of this process's limits. It is read from files that are opened before a thread is
//! confined.

use std::fs::File;
use std::io::{self, Seek};
use std::mem::MaybeUninit;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};

use rustix::fs::RawDir;
use rustix::process::{Resource, getrlimit};
use tmem_control::api::Process;

/// Bytes read at a time.
const CHUNK: usize = 16 << 10;

/// The lists of descriptors and mappings of this process.
#[derive(Debug)]
pub(crate) struct OwnProcess {
    /// A folder and a file of /proc, which one thread can read at a time.
    lists: Mutex<(File, File)>,
    descriptors_limit: Option<u64>,
    mappings_limit: Option<u64>,
}

impl OwnProcess {
    /// Opens them; to be called when the limits are as they will be.
    ///
    /// # Errors
    /// There is no /proc, or it does not show this process.
    pub(crate) fn open() -> io::Result<Self> {
        let limit = std::fs::read_to_string("/proc/sys/vm/max_map_count");
        Ok(Self {
            lists: Mutex::new((File::open("/proc/self/fd")?, File::open("/proc/self/maps")?)),
            descriptors_limit: getrlimit(Resource::Nofile).current,
            mappings_limit: limit.ok().and_then(|text| text.trim().parse().ok()),
        })
    }

    /// Counts; `None` where the kernel does not let us.
    pub(crate) fn usage(&self) -> Option<Process> {
        let mut lists = self.lists.lock().unwrap_or_else(PoisonError::into_inner);
        let (descriptors, mappings) = &mut *lists;
        Some(Process {
            descriptors: entries(descriptors).ok()?,
            descriptors_limit: self.descriptors_limit,
            mappings: lines(mappings).ok()?,
            mappings_limit: self.mappings_limit,
        })
    }
}

/// Entries of a folder.
fn entries(folder: &mut File) -> io::Result<u64> {
    folder.rewind()?;
    let mut space = [MaybeUninit::uninit(); CHUNK];
    let mut list = RawDir::new(folder, &mut space);
    let mut count = 0;
    while let Some(entry) = list.next() {
        let entry = entry?;
        if !entry.file_name().to_bytes().starts_with(b".") {
            count += 1;
        }
    }
    Ok(count)
}

/// Lines of a file from its begin.
fn lines(file: &File) -> io::Result<u64> {
    let mut chunk = [0; CHUNK];
    let mut count = 0;
    let mut at = 0;
    loop {
        let read = file.read_at(&mut chunk, at)?;
        let part = chunk.get(..read).unwrap_or_default();
        if part.is_empty() {
            return Ok(count);
        }
        let ends = part.iter().filter(|byte| **byte == b'\n').count();
        count += u64::try_from(ends).unwrap_or(u64::MAX);
        at += u64::try_from(read).unwrap_or(u64::MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_and_mappings_are_those_of_now() {
        let own = OwnProcess::open().expect("there is /proc");
        let before = own.usage().expect("may look");
        assert!(before.descriptors >= 5, "{before:?}");
        let limit = before.mappings_limit.expect("is known");
        assert!(limit > before.mappings);
        for number in 0..600 {
            // Neighbours that differ do not become one.
            let protection = [libc::PROT_NONE, libc::PROT_READ][number % 2];
            // SAFETY: a new mapping at an address that the kernel chooses.
            let made = unsafe {
                libc::mmap(
                    std::ptr::null_mut(),
                    4096,
                    protection,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                    -1,
                    0,
                )
            };
            assert_ne!(made, libc::MAP_FAILED);
        }
        let after = own.usage().expect("may look");
        // The heap may have grown, too.
        let new = after.mappings - before.mappings;
        assert!((600..620).contains(&new), "{before:?}, {after:?}");
        let more: Vec<File> = (0..100)
            .map(|_| File::open("/dev/null").expect("opens"))
            .collect();
        let after = own.usage().expect("may look");
        assert_eq!(after.descriptors, before.descriptors + 100);
        drop(more);
        assert_eq!(
            own.usage().expect("may look").descriptors,
            before.descriptors
        );
    }
}
