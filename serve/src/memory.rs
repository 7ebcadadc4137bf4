//! The memory of one guest, as its front end describes it.

use std::fs::File;

use vhost::vhost_user::message::VhostUserMemoryRegion;
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

use crate::sigbus::{Guard, MAX_REGIONS};

/// Most memory of one guest, in bytes. What is mapped takes address space of the process, and
/// [`crate::service::MAX_GUESTS`] guests of this size still fit.
pub(crate) const MAX_GUEST_BYTES: u64 = 1 << 40;

/// Why a memory table is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MapError {
    #[error("{0} memory regions, at most {MAX_REGIONS}")]
    TooManyRegions(usize),
    #[error("More than {MAX_GUEST_BYTES} bytes of memory")]
    TooLarge,
    #[error("Region at {0:#x} is not aligned to pages")]
    Alignment(u64),
    #[error("Region at {0:#x} cannot be mapped")]
    Map(u64, #[source] vhost::vhost_user::Error),
    #[error("Region at {0:#x} is longer than its file")]
    Short(u64),
    #[error("Regions overlap")]
    Overlap(#[source] vm_memory::GuestRegionCollectionError),
}

/// Mapped memory. Dropping it unmaps.
pub(crate) struct GuestRam {
    // Dropped in this order: the guard never names what is no longer mapped.
    guard: Guard,
    memory: GuestMemoryMmap,
    regions: Vec<Region>,
}

struct Region {
    /// Address in the front end.
    user: u64,
    guest: u64,
    len: u64,
}

impl GuestRam {
    /// Maps a memory table for the calling thread, which from now on is the only one to touch it.
    /// The table that this thread had before must be dropped already.
    pub(crate) fn map(table: &[VhostUserMemoryRegion], files: Vec<File>) -> Result<Self, MapError> {
        if table.len() > MAX_REGIONS {
            return Err(MapError::TooManyRegions(table.len()));
        }
        let total = table
            .iter()
            .try_fold(0u64, |sum, region| sum.checked_add(region.memory_size));
        if total.is_none_or(|total| total > MAX_GUEST_BYTES) {
            return Err(MapError::TooLarge);
        }
        let mut regions = Vec::with_capacity(table.len());
        let mut mapped = Vec::with_capacity(table.len());
        let mut guarded = Vec::with_capacity(table.len());
        for (entry, file) in table.iter().zip(files) {
            let guest = entry.guest_phys_addr;
            if (guest | entry.memory_size | entry.mmap_offset) % 4096 != 0 {
                return Err(MapError::Alignment(guest));
            }
            // Only for a better message: the file can become shorter at any time (`sigbus`).
            if is_short(entry, &file) {
                return Err(MapError::Short(guest));
            }
            let mapping: MmapRegion = entry
                .mmap_region(file)
                .map_err(|source| MapError::Map(guest, source))?;
            let start = mapping.as_ptr().addr();
            guarded.push(start..start.saturating_add(mapping.size()));
            regions.push(Region {
                user: entry.user_addr,
                guest,
                len: entry.memory_size,
            });
            mapped.push(
                GuestRegionMmap::new(mapping, GuestAddress(guest)).ok_or(MapError::TooLarge)?,
            );
        }
        let memory = GuestMemoryMmap::from_regions(mapped).map_err(MapError::Overlap)?;
        Ok(Self {
            guard: Guard::new(guarded),
            memory,
            regions,
        })
    }

    /// The memory.
    pub(crate) fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// Whether the guest took memory away that it had promised. See [`Guard::is_broken`].
    pub(crate) fn is_broken(&self) -> bool {
        self.guard.is_broken()
    }

    /// The guest address of an address in the front end.
    pub(crate) fn to_guest(&self, user: u64) -> Option<u64> {
        self.regions.iter().find_map(|region| {
            let offset = user.checked_sub(region.user)?;
            (offset < region.len).then(|| region.guest.checked_add(offset))?
        })
    }
}

/// Whether a region reaches beyond the end of its file, as far as it has one.
fn is_short(region: &VhostUserMemoryRegion, file: &File) -> bool {
    let Ok(stat) = rustix::fs::fstat(file) else {
        return true;
    };
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    let end = region.mmap_offset.checked_add(region.memory_size);
    rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::RegularFile
        && end.is_none_or(|end| end > size)
}
