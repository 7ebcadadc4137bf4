//! The file behind a block device.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate};
use vm_memory::{Bytes, GuestMemoryMmap};

use super::request::{Range, SECTOR, Span};

/// A disk that cannot be used. Each text names the file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiskError {
    /// It cannot be opened.
    #[error("Cannot open disk {}", path.display())]
    Open {
        /// File given.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// It is neither a regular file nor a block device.
    #[error("Disk {} is neither a regular file nor a block device", .0.display())]
    Kind(PathBuf),
    /// Its size is 0 or no multiple of a sector.
    #[error("Disk {} has {size} bytes, which is no positive multiple of {SECTOR}", path.display())]
    Size {
        /// File given.
        path: PathBuf,
        /// Its size.
        size: u64,
    },
    /// Another process writes to it.
    #[error("Disk {} is in use by another process", .0.display())]
    InUse(PathBuf),
}

/// An open disk file, locked against a second writer.
#[derive(Debug)]
pub struct Disk {
    file: File,
    capacity: u64,
    read_only: bool,
}

impl Disk {
    /// Opens `path`. Writable disks are locked alone, read-only ones together.
    pub fn open(path: &Path, read_only: bool) -> Result<Self, DiskError> {
        let failed = |source| DiskError::Open {
            path: path.to_owned(),
            source,
        };
        let metadata = std::fs::metadata(path).map_err(failed)?;
        if !metadata.is_file() && !metadata.file_type().is_block_device() {
            return Err(DiskError::Kind(path.to_owned()));
        }
        let mut file = OpenOptions::new()
            .read(true)
            .write(!read_only)
            .open(path)
            .map_err(failed)?;
        let locked = if read_only {
            file.try_lock_shared()
        } else {
            file.try_lock()
        };
        match locked {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(DiskError::InUse(path.to_owned())),
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        let capacity = file.seek(SeekFrom::End(0)).map_err(failed)?;
        if capacity == 0 || !capacity.is_multiple_of(SECTOR) {
            return Err(DiskError::Size {
                path: path.to_owned(),
                size: capacity,
            });
        }
        Ok(Self {
            file,
            capacity,
            read_only,
        })
    }

    /// Size in bytes.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Whether writes are refused.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Reads from `offset` into guest memory.
    pub(super) fn read(
        &mut self,
        mem: &GuestMemoryMmap,
        offset: u64,
        to: &[Span],
    ) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(offset))?;
        for span in to {
            let len = usize::try_from(span.len).map_err(io::Error::other)?;
            mem.read_exact_volatile_from(span.address, &mut self.file, len)
                .map_err(io::Error::other)?;
        }
        Ok(())
    }

    /// Writes guest memory to `offset`.
    pub(super) fn write(
        &mut self,
        mem: &GuestMemoryMmap,
        offset: u64,
        from: &[Span],
    ) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(offset))?;
        for span in from {
            let len = usize::try_from(span.len).map_err(io::Error::other)?;
            mem.write_all_volatile_to(span.address, &mut self.file, len)
                .map_err(io::Error::other)?;
        }
        Ok(())
    }

    /// Makes what was written durable.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Gives the range back to the file system where that can be done; its contents do not matter afterwards.
    pub(super) fn discard(&mut self, range: Range) -> io::Result<()> {
        match self.allocate(
            FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            range,
        ) {
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NODEV) => Ok(()),
            result => Ok(result?),
        }
    }

    /// Makes the range read as zeros.
    pub(super) fn write_zeroes(&mut self, range: Range) -> io::Result<()> {
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let flags = if range.unmap {
            hole
        } else {
            FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE
        };
        match self.allocate(flags, range) {
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NODEV) => {}
            result => return Ok(result?),
        }
        self.file.seek(SeekFrom::Start(range.offset))?;
        io::copy(&mut io::repeat(0).take(range.len), &mut self.file)?;
        self.file.flush()
    }

    fn allocate(&self, flags: FallocateFlags, range: Range) -> rustix::io::Result<()> {
        fallocate(&self.file, flags, range.offset, range.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_are_no_disk_are_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("missing");
        assert!(matches!(
            Disk::open(&missing, false),
            Err(DiskError::Open { .. })
        ));
        assert!(matches!(
            Disk::open(dir.path(), true),
            Err(DiskError::Kind(_))
        ));
        let odd = dir.path().join("odd");
        std::fs::write(&odd, [0; 700]).unwrap();
        let error = Disk::open(&odd, false).unwrap_err();
        assert!(matches!(error, DiskError::Size { size: 700, .. }));
        assert!(error.to_string().contains("odd"));
        std::fs::write(&odd, []).unwrap();
        assert!(matches!(
            Disk::open(&odd, false),
            Err(DiskError::Size { size: 0, .. })
        ));
    }

    #[test]
    fn a_writable_disk_has_one_user_and_a_read_only_one_many() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(4096).unwrap();
        let first = Disk::open(file.path(), false).unwrap();
        assert!(matches!(
            Disk::open(file.path(), false),
            Err(DiskError::InUse(_))
        ));
        assert!(matches!(
            Disk::open(file.path(), true),
            Err(DiskError::InUse(_))
        ));
        drop(first);
        let _first = Disk::open(file.path(), true).unwrap();
        assert!(Disk::open(file.path(), true).is_ok());
    }

    #[test]
    fn zeroed_ranges_read_as_zeros_with_and_without_unmap() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for unmap in [false, true] {
            std::fs::write(file.path(), [0xaa; 8192]).unwrap();
            let mut disk = Disk::open(file.path(), false).unwrap();
            disk.write_zeroes(Range {
                offset: 4096,
                len: 1024,
                unmap,
            })
            .unwrap();
            let bytes = std::fs::read(file.path()).unwrap();
            assert_eq!(bytes.len(), 8192);
            assert!(
                bytes[..4096]
                    .iter()
                    .chain(&bytes[5120..])
                    .all(|byte| *byte == 0xaa)
            );
            assert!(bytes[4096..5120].iter().all(|byte| *byte == 0));
            disk.discard(Range {
                offset: 0,
                len: 4096,
                unmap: true,
            })
            .unwrap();
        }
    }
}
