//! A disk whose blocks are the pages of a pool.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use tmem_protocol::PAGE_SIZE;
use tmem_store::{CreatePoolError, Domain, LoadError, ObjectId, PoolId, PoolSpec};
use vm_memory::GuestMemory;

use super::backend::Backend;
use super::request::{BlkStatus, Clear, Extent, Geometry, SECTOR};
use crate::chain::Cursor;

/// Most pages in one read or write.
pub const MAX_PAGES: usize = 1024;
/// Most ranges in one discard or write-zeroes request.
pub const MAX_RANGES: u32 = 16;
/// Most sectors in one range.
pub const MAX_RANGE_SECTORS: u32 = 4096 * SECTORS_PER_PAGE;

const BLOCK_SIZE: u32 = 4096;
const SECTORS_PER_PAGE: u32 = 8;
const _: () = assert!(BLOCK_SIZE as usize == PAGE_SIZE);
const _: () = assert!(SECTORS_PER_PAGE as u64 * SECTOR == PAGE_SIZE as u64);

/// Most segments of a request and bytes of a segment: together at most [`MAX_PAGES`].
const SEG_MAX: u32 = 64;
const SIZE_MAX: u32 = 64 << 10;
const _: () = assert!(SEG_MAX as usize * SIZE_MAX as usize == MAX_PAGES * PAGE_SIZE);

/// The object that holds the pages of the disk.
const OBJECT: ObjectId = ObjectId([0; 3]);

/// A disk in a persistent pool of its own, which goes with it. A block that was never written reads as zeroes.
#[derive(Debug)]
pub struct PoolDisk {
    domain: Domain,
    pool: PoolId,
    /// Number of blocks.
    pages: u32,
    /// One bit for each block whose last write was refused: the store has dropped what was there, and
    /// it must not read as zeroes.
    lost: Box<[AtomicU64]>,
}

impl PoolDisk {
    /// An empty disk of `bytes` for the guest whose pages `domain` holds. What is more than whole pages, or
    /// than 2^32 - 1 pages, is left out.
    ///
    /// # Errors
    /// The domain may not have another pool.
    pub fn new(domain: Domain, bytes: u64) -> Result<Self, CreatePoolError> {
        let pool = domain.create_pool(PoolSpec::Persistent)?;
        let pages = bytes.checked_div(BLOCK_SIZE.into()).unwrap_or_default();
        let pages = u32::try_from(pages).unwrap_or(u32::MAX);
        Ok(Self {
            domain,
            pool,
            pages,
            lost: (0..pages.div_ceil(u64::BITS))
                .map(|_| AtomicU64::new(0))
                .collect(),
        })
    }

    fn lost_bit(&self, index: u32) -> Option<(&AtomicU64, u64)> {
        let word = usize::try_from(index.checked_div(u64::BITS)?).ok()?;
        let bit = 1u64.checked_shl(index.checked_rem(u64::BITS)?)?;
        Some((self.lost.get(word)?, bit))
    }

    fn is_lost(&self, index: u32) -> bool {
        self.lost_bit(index)
            .is_none_or(|(word, bit)| word.load(Relaxed) & bit != 0)
    }

    fn set_lost(&self, index: u32, lost: bool) {
        if let Some((word, bit)) = self.lost_bit(index) {
            if lost {
                word.fetch_or(bit, Relaxed);
            } else {
                word.fetch_and(!bit, Relaxed);
            }
        }
    }
}

/// The pages of an extent.
fn pages(extent: Extent) -> Result<Range<u32>, BlkStatus> {
    let page = |offset: Option<u64>| {
        let page = offset?.checked_div(BLOCK_SIZE.into())?;
        u32::try_from(page).ok()
    };
    let first = page(Some(extent.offset)).ok_or(BlkStatus::IoError)?;
    let end = page(extent.offset.checked_add(extent.len)).ok_or(BlkStatus::IoError)?;
    Ok(first..end)
}

impl Backend for PoolDisk {
    fn geometry(&self) -> Geometry {
        Geometry {
            capacity: u64::from(self.pages).saturating_mul(BLOCK_SIZE.into()),
            block_size: BLOCK_SIZE,
            seg_max: SEG_MAX,
            size_max: Some(SIZE_MAX),
            announce_topology: true,
            read_only: false,
            max_ranges: MAX_RANGES,
            max_range_sectors: MAX_RANGE_SECTORS,
            discard_alignment: SECTORS_PER_PAGE,
        }
    }

    fn read<M: GuestMemory>(
        &self,
        mem: &M,
        extent: Extent,
        to: &mut Cursor<'_>,
        page: &mut [u8; PAGE_SIZE],
    ) -> Result<u64, BlkStatus> {
        let mut unwritten = 0u64;
        for index in pages(extent)? {
            match self.domain.load(self.pool, OBJECT, index, page) {
                Ok(()) => {}
                Err(LoadError::NotFound) if !self.is_lost(index) => {
                    page.fill(0);
                    unwritten = unwritten.saturating_add(BLOCK_SIZE.into());
                }
                Err(_) => return Err(BlkStatus::IoError),
            }
            to.write(mem, page).map_err(|_| BlkStatus::IoError)?;
        }
        Ok(unwritten)
    }

    fn write<M: GuestMemory>(
        &self,
        mem: &M,
        extent: Extent,
        from: &mut Cursor<'_>,
        page: &mut [u8; PAGE_SIZE],
    ) -> Result<(), BlkStatus> {
        for index in pages(extent)? {
            from.read(mem, page).map_err(|_| BlkStatus::IoError)?;
            // Set first: a read on another queue must not see an empty block as one of zeroes.
            self.set_lost(index, true);
            self.domain
                .store(self.pool, OBJECT, index, page)
                .map_err(|_| BlkStatus::IoError)?;
            self.set_lost(index, false);
        }
        Ok(())
    }

    /// A page that the store accepted is as safe as it ever is.
    fn flush(&self) -> Result<(), BlkStatus> {
        Ok(())
    }

    fn clear(&self, extent: Extent, _clear: Clear) -> Result<(), BlkStatus> {
        for index in pages(extent)? {
            self.domain
                .invalidate_page(self.pool, OBJECT, index)
                .map_err(|_| BlkStatus::IoError)?;
            self.set_lost(index, false);
        }
        Ok(())
    }
}

impl Drop for PoolDisk {
    fn drop(&mut self) {
        // The operator may have removed the domain before.
        let _ = self.domain.destroy_pool(self.pool);
    }
}
