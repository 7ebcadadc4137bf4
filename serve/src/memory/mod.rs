//! The memory of one guest, as its front end describes it.
//!
//! | module | holds |
//! |---|---|
//! | `backing` | which files are taken |
//! | `mapping` | a mapping, which is always undone |
//! | `faults` | pages that nobody has touched are made by no accident |
//! | `files` | when a file is gone, and with it the pages that were made in it |
//! | `account` | how many of them may be made, and other bounds of a guest |
//! | `pace` | how fast tables may follow one another |

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use vhost::vhost_user::message::VhostUserMemoryRegion;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{
    GuestAddress, GuestMemory, GuestMemoryError, GuestMemoryMmap, GuestRegionMmap, Permissions,
    bitmap::BS, guest_memory::GuestMemorySliceIterator,
};

use crate::sigbus::{self, Broken, Guard, MAX_REGIONS, Watched};
use backing::Refusal;
pub(crate) use backing::page_size;
use faults::Faults;
use mapping::Mapping;

mod account;
mod backing;
mod faults;
mod files;
mod mapping;
mod pace;

pub(crate) use account::Account;
pub use account::MemoryReport;
use account::processor_time;
pub(crate) use faults::{FLAGS as USERFAULTFD_FLAGS, make_page};
pub(crate) use faults::{UFFDIO_API, UFFDIO_REGISTER, UFFDIO_ZEROPAGE};
pub(crate) use files::{MARK as FANOTIFY_MARK, watch as watch_files};

/// Why a memory table is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MapError {
    #[error("{0} memory regions, at most {MAX_REGIONS}")]
    TooManyRegions(usize),
    #[error("More than {0} bytes of memory")]
    TooLarge(u64),
    #[error(
        "Region at {0:#x} is no memory of the kernel (memfd, tmpfs or hugetlbfs): whoever backs it could stop this service (memory-backing)"
    )]
    Foreign(u64),
    #[error("Region at {0:#x} cannot be looked at")]
    Unknown(u64, #[source] io::Error),
    #[error("Region at {at:#x} is not aligned to pages of {block} bytes")]
    Alignment { at: u64, block: u64 },
    #[error("Region at {0:#x} cannot be mapped")]
    Map(u64, #[source] io::Error),
    #[error("Region at {0:#x} is longer than its file")]
    Short(u64),
    #[error("Region at {0:#x} does not fit the address space")]
    Address(u64),
    #[error("Regions overlap")]
    Overlap(#[source] vm_memory::GuestRegionCollectionError),
    #[error("Memory of this guest could not be unmapped: it gets no more")]
    Stuck,
}

/// Mapped memory. Dropping it unmaps.
pub(crate) struct GuestRam {
    // Dropped in this order: the guard never names memory that is no longer mapped, and nothing points to that memory.
    guard: Guard,
    memory: GuestMemoryMmap,
    regions: Vec<Region>,
    /// Watches the regions that say so; it has to be open for that.
    _faults: Option<Faults>,
    account: Arc<Account>,
    /// Measures the time of dropping the fields above.
    unmapping: Unmapping,
}

/// Notes how long something took, when it is dropped.
struct Unmapping {
    account: Arc<Account>,
    began: Option<Duration>,
}

impl Drop for Unmapping {
    fn drop(&mut self) {
        if let Some(began) = self.began {
            self.account.spend_since(began);
        }
    }
}

struct Region {
    /// Address in the front end.
    user: u64,
    guest: u64,
    len: u64,
    /// Of a region whose missing pages are counted.
    counted: Option<Counted>,
    mapping: Mapping,
}

struct Counted {
    file: File,
    /// A bit for each unit, set when it has its page table.
    tables: Vec<Cell<u64>>,
}

/// Bytes that one page of a page table maps.
fn unit() -> u64 {
    page_size().saturating_mul(page_size() / 8)
}

impl GuestRam {
    /// Maps a memory table for the calling thread, which from now on is the only one to touch it.
    /// The table that this thread had before must be dropped already.
    pub(crate) fn map(
        table: &[VhostUserMemoryRegion],
        files: Vec<File>,
        account: &Arc<Account>,
    ) -> Result<Self, MapError> {
        // Also what fails is undone, and counts.
        let began = processor_time();
        let mapped = Self::map_all(table, files, account);
        account.spend_since(began);
        mapped
    }

    fn map_all(
        table: &[VhostUserMemoryRegion],
        files: Vec<File>,
        account: &Arc<Account>,
    ) -> Result<Self, MapError> {
        if !account.may_map() {
            return Err(MapError::Stuck);
        }
        if table.len() > MAX_REGIONS {
            return Err(MapError::TooManyRegions(table.len()));
        }
        let total = table
            .iter()
            .try_fold(0u64, |sum, region| sum.checked_add(region.memory_size));
        let most = account.most();
        let described = total
            .filter(|total| *total <= most)
            .ok_or(MapError::TooLarge(most))?;
        let mut regions = Vec::with_capacity(table.len());
        let mut faults = None;
        for (entry, file) in table.iter().zip(files) {
            regions.push(Region::map(entry, file, account, &mut faults)?);
        }
        let mapped = regions.iter().map(Region::mapped);
        let mapped = mapped.collect::<Result<_, _>>()?;
        let memory = GuestMemoryMmap::from_regions(mapped).map_err(MapError::Overlap)?;
        let watched = regions.iter().map(|region| Watched {
            range: region.mapping.range(),
            makes_pages: region.counted.is_some(),
        });
        account.described.store(described, Relaxed);
        Ok(Self {
            guard: Guard::new(watched, faults.as_ref().map(AsFd::as_fd)),
            memory,
            regions,
            _faults: faults,
            account: Arc::clone(account),
            unmapping: Unmapping {
                account: Arc::clone(account),
                began: None,
            },
        })
    }

    /// The fault of this memory, if there is one. See [`Guard::broken`].
    pub(crate) fn broken(&self) -> Option<Broken> {
        self.guard.broken()
    }

    /// The guest address of an address in the front end.
    pub(crate) fn to_guest(&self, user: u64) -> Option<u64> {
        self.regions.iter().find_map(|region| {
            let offset = user.checked_sub(region.user)?;
            (offset < region.len).then(|| region.guest.checked_add(offset))?
        })
    }

    /// Whether bytes may be touched: not if that allocates pages beyond the guest's allowance. Addresses outside guest
    /// memory are left to the access.
    fn admit(&self, addr: GuestAddress, count: usize) -> Result<(), GuestMemoryError> {
        let Ok(mut left) = u64::try_from(count) else {
            return Ok(());
        };
        let mut at = addr.0;
        // Nearly always one turn.
        while left > 0 {
            let Some((region, offset)) = self.regions.iter().find_map(|region| {
                let offset = at.checked_sub(region.guest)?;
                (offset < region.len).then_some((region, offset))
            }) else {
                return Ok(());
            };
            let here = left.min(region.len.saturating_sub(offset));
            if !region.admit(offset, here, &self.account) {
                self.account.refused.fetch_add(1, Relaxed);
                return Err(GuestMemoryError::IOError(io::ErrorKind::OutOfMemory.into()));
            }
            left = left.saturating_sub(here);
            at = at.saturating_add(here);
        }
        Ok(())
    }
}

impl Drop for GuestRam {
    fn drop(&mut self) {
        self.account.described.store(0, Relaxed);
        let made = self.regions.iter().zip(self.guard.made());
        let made = made.filter_map(|(region, pages)| Some((&region.counted.as_ref()?.file, pages)));
        self.account.settle(made);
        self.unmapping.began = Some(processor_time());
    }
}

impl GuestMemory for GuestRam {
    type PhysicalMemory = GuestMemoryMmap;
    type Bitmap = ();

    fn check_range(&self, addr: GuestAddress, count: usize, access: Permissions) -> bool {
        GuestMemory::check_range(&self.memory, addr, count, access)
    }

    fn get_slices<'a>(
        &'a self,
        addr: GuestAddress,
        count: usize,
        access: Permissions,
    ) -> Result<impl GuestMemorySliceIterator<'a, BS<'a, Self::Bitmap>>, GuestMemoryError> {
        self.admit(addr, count)?;
        GuestMemory::get_slices(&self.memory, addr, count, access)
    }
}

impl Region {
    /// Maps one region, watched by `faults`, which are opened for the first one that needs them.
    fn map(
        entry: &VhostUserMemoryRegion,
        file: File,
        account: &Arc<Account>,
        faults: &mut Option<Faults>,
    ) -> Result<Self, MapError> {
        let guest = entry.guest_phys_addr;
        let backing = backing::look(&file, account.backing()).map_err(|refusal| match refusal {
            Refusal::Foreign => MapError::Foreign(guest),
            Refusal::Unknown(errno) => MapError::Unknown(guest, errno.into()),
        })?;
        let block = backing.block;
        if !(guest | entry.memory_size | entry.mmap_offset).is_multiple_of(block) {
            return Err(MapError::Alignment { at: guest, block });
        }
        let end = entry.mmap_offset.checked_add(entry.memory_size);
        // Only for a better message: the file can become shorter at any time (`sigbus`).
        if backing
            .size
            .is_some_and(|size| end.is_none_or(|end| end > size))
        {
            return Err(MapError::Short(guest));
        }
        let len = usize::try_from(entry.memory_size).map_err(|_| MapError::Address(guest))?;
        let map = |error| MapError::Map(guest, error);
        let mapping = Mapping::new(&file, entry.mmap_offset, len, account).map_err(map)?;
        let mut watched = false;
        if backing.grows {
            if faults.is_none() {
                *faults = Faults::open().map_err(map)?;
            }
            if let Some(faults) = faults {
                faults.watch(&mapping.range()).map_err(map)?;
                watched = true;
            }
        }
        let words = entry.memory_size.div_ceil(unit()).div_ceil(64);
        let words = usize::try_from(words).map_err(|_| MapError::Address(guest))?;
        Ok(Self {
            user: entry.user_addr,
            guest,
            len: entry.memory_size,
            counted: watched.then(|| Counted {
                file,
                tables: vec![Cell::new(0); words],
            }),
            mapping,
        })
    }

    fn mapped(&self) -> Result<GuestRegionMmap, MapError> {
        let range = self.mapping.range();
        let builder = MmapRegionBuilder::new(range.len())
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE);
        // SAFETY: a mapping of that length, which outlives this view of it (`GuestRam`).
        let builder = unsafe { builder.with_raw_mmap_pointer(self.mapping.start()) };
        let region = builder
            .build()
            .map_err(|error| MapError::Map(self.guest, io::Error::other(error)))?;
        GuestRegionMmap::new(region, GuestAddress(self.guest)).ok_or(MapError::Address(self.guest))
    }

    /// Whether bytes of it, at least one, may be touched.
    fn admit(&self, offset: u64, len: u64, account: &Account) -> bool {
        let Some(Counted { tables, .. }) = &self.counted else {
            return true;
        };
        let last = offset.saturating_add(len.saturating_sub(1));
        // Each access comes here: sizes are powers of two, and divisions would be felt.
        let (page, unit) = (page_size().trailing_zeros(), unit().trailing_zeros());
        let units = offset >> unit..=last >> unit;
        let new = units.clone().filter(|unit| !has_bit(tables, *unit));
        let new = u64::try_from(new.count()).unwrap_or(u64::MAX);
        let pages = (last >> page).saturating_sub(offset >> page);
        let pages = pages.saturating_add(1);
        let wanted = pages.saturating_add(new);
        let is_there = || {
            let range = self.touched(offset, last);
            new == 0 && range.is_some_and(|range| faults::are_there(&range))
        };
        if !account.afford(wanted) {
            if is_there() {
                return true;
            }
            if !account.wait_for(wanted) {
                return false;
            }
        }
        if new > 0 {
            sigbus::take_allowed(new);
            units.for_each(|unit| set_bit(tables, unit));
        }
        true
    }

    /// The addresses of the pages from that of byte `first` to that of byte `last`.
    fn touched(&self, first: u64, last: u64) -> Option<Range<usize>> {
        let start = self.mapping.range().start;
        let from = usize::try_from(first / page_size() * page_size()).ok()?;
        let to =
            usize::try_from(last.checked_add(1)?.checked_next_multiple_of(page_size())?).ok()?;
        Some(start.checked_add(from)?..start.checked_add(to)?)
    }
}

fn has_bit(words: &[Cell<u64>], bit: u64) -> bool {
    let word = usize::try_from(bit / 64).ok().and_then(|at| words.get(at));
    word.is_none_or(|word| word.get() & 1 << (bit % 64) != 0)
}

fn set_bit(words: &[Cell<u64>], bit: u64) {
    if let Some(word) = usize::try_from(bit / 64).ok().and_then(|at| words.get(at)) {
        word.set(word.get() | 1 << (bit % 64));
    }
}
