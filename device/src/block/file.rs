//! A disk over a file or block device of the host.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use tmem_protocol::PAGE_SIZE;
use vm_memory::GuestMemory;

use super::backend::Backend;
use super::request::{BlkStatus, Clear, Extent, Geometry, SECTOR};
use crate::chain::Cursor;

/// The logical block: what uses the disk in pages does so by itself.
const BLOCK_SIZE: u32 = 512;
const _: () = assert!(BLOCK_SIZE as u64 == SECTOR);
/// Data segments of a request: a chain has a header and a status besides.
const SEG_MAX: u32 = 126;
/// Most ranges in one discard or write-zeroes request.
const MAX_RANGES: u32 = 32;
/// Most sectors in one range (64 MiB).
const MAX_RANGE_SECTORS: u32 = 1 << 17;
/// Sectors of a page, for that is what a file system can give back.
const DISCARD_ALIGNMENT: u32 = 8;

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
pub struct FileDisk {
    /// Behind a lock because of its position.
    file: Mutex<File>,
    capacity: u64,
    read_only: bool,
}

impl FileDisk {
    /// Opens `path`. Writable disks are locked alone, read-only ones together.
    ///
    /// # Errors
    /// The file is no disk, or another process has it.
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
            file: Mutex::new(file),
            capacity,
            read_only,
        })
    }

    fn file(&self) -> MutexGuard<'_, File> {
        // Each user sets the position first, so a panic leaves nothing inconsistent.
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The answer to a request that met an error of the host, which the operator is told.
fn failed(error: io::Error) -> BlkStatus {
    log::warn!("disk error: {error}");
    BlkStatus::IoError
}

fn write_zeroes(file: &mut File, extent: Extent) -> io::Result<()> {
    file.seek(SeekFrom::Start(extent.offset))?;
    io::copy(&mut io::repeat(0).take(extent.len), file).map(|_| ())
}

impl Backend for FileDisk {
    fn geometry(&self) -> Geometry {
        Geometry {
            capacity: self.capacity,
            block_size: BLOCK_SIZE,
            seg_max: SEG_MAX,
            size_max: None,
            announce_topology: false,
            read_only: self.read_only,
            max_ranges: MAX_RANGES,
            max_range_sectors: MAX_RANGE_SECTORS,
            discard_alignment: DISCARD_ALIGNMENT,
        }
    }

    fn read<M: GuestMemory>(
        &self,
        mem: &M,
        extent: Extent,
        to: &mut Cursor<'_>,
        _page: &mut [u8; PAGE_SIZE],
    ) -> Result<u64, BlkStatus> {
        let mut file = self.file();
        file.seek(SeekFrom::Start(extent.offset)).map_err(failed)?;
        to.write_from(mem, &mut *file, extent.len).map_err(failed)?;
        Ok(0)
    }

    fn write<M: GuestMemory>(
        &self,
        mem: &M,
        extent: Extent,
        from: &mut Cursor<'_>,
        _page: &mut [u8; PAGE_SIZE],
    ) -> Result<(), BlkStatus> {
        let mut file = self.file();
        file.seek(SeekFrom::Start(extent.offset)).map_err(failed)?;
        from.read_into(mem, &mut *file, extent.len).map_err(failed)
    }

    fn flush(&self) -> Result<(), BlkStatus> {
        self.file().sync_data().map_err(failed)
    }

    fn clear(&self, extent: Extent, clear: Clear) -> Result<(), BlkStatus> {
        let mut file = self.file();
        let how = match clear {
            Clear::Discard | Clear::Zero { unmap: true } => FallocateFlags::PUNCH_HOLE,
            Clear::Zero { unmap: false } => FallocateFlags::ZERO_RANGE,
        };
        let flags = how | FallocateFlags::KEEP_SIZE;
        match (fallocate(&*file, flags, extent.offset, extent.len), clear) {
            // What the file system cannot give back it keeps.
            (Err(Errno::OPNOTSUPP | Errno::NODEV), Clear::Discard) => Ok(()),
            (Err(Errno::OPNOTSUPP | Errno::NODEV), Clear::Zero { .. }) => {
                write_zeroes(&mut file, extent).map_err(failed)
            }
            (done, _) => done.map_err(|error| failed(error.into())),
        }
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
            FileDisk::open(&missing, false),
            Err(DiskError::Open { .. })
        ));
        assert!(matches!(
            FileDisk::open(dir.path(), true),
            Err(DiskError::Kind(_))
        ));
        let odd = dir.path().join("odd");
        std::fs::write(&odd, [0; 700]).unwrap();
        let error = FileDisk::open(&odd, false).unwrap_err();
        assert!(matches!(error, DiskError::Size { size: 700, .. }));
        assert!(error.to_string().contains("odd"));
        std::fs::write(&odd, []).unwrap();
        assert!(matches!(
            FileDisk::open(&odd, false),
            Err(DiskError::Size { size: 0, .. })
        ));
    }

    #[test]
    fn a_writable_disk_has_one_user_and_a_read_only_one_many() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(4096).unwrap();
        let first = FileDisk::open(file.path(), false).unwrap();
        assert!(matches!(
            FileDisk::open(file.path(), false),
            Err(DiskError::InUse(_))
        ));
        assert!(matches!(
            FileDisk::open(file.path(), true),
            Err(DiskError::InUse(_))
        ));
        drop(first);
        let _first = FileDisk::open(file.path(), true).unwrap();
        assert!(FileDisk::open(file.path(), true).is_ok());
    }

    #[test]
    fn zeroed_ranges_read_as_zeros_with_and_without_unmap() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for unmap in [false, true] {
            std::fs::write(file.path(), [0xaa; 8192]).unwrap();
            let disk = FileDisk::open(file.path(), false).unwrap();
            let extent = Extent {
                offset: 4096,
                len: 1024,
            };
            disk.clear(extent, Clear::Zero { unmap }).unwrap();
            let bytes = std::fs::read(file.path()).unwrap();
            assert_eq!(bytes.len(), 8192);
            assert!(
                bytes[..4096]
                    .iter()
                    .chain(&bytes[5120..])
                    .all(|byte| *byte == 0xaa)
            );
            assert!(bytes[4096..5120].iter().all(|byte| *byte == 0));
            let extent = Extent {
                offset: 0,
                len: 4096,
            };
            disk.clear(extent, Clear::Discard).unwrap();
        }
    }

    #[test]
    fn zeroes_are_written_where_the_file_system_cannot_make_them() {
        let mut file = tempfile::tempfile().unwrap();
        io::Write::write_all(&mut file, &[0xaa; 4096]).unwrap();
        let extent = Extent {
            offset: 1024,
            len: 512,
        };
        write_zeroes(&mut file, extent).unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes.len(), 4096);
        let zeroed = |at: usize| (1024..1536).contains(&at);
        assert!(
            bytes
                .iter()
                .enumerate()
                .all(|(at, byte)| (*byte == 0) == zeroed(at))
        );
    }
}
