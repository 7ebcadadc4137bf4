//! The disk: features, configuration space, requests.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use tmem_protocol::PAGE_SIZE;
use tmem_store::{CreatePoolError, Domain, LoadError, ObjectId, PoolId, PoolSpec};
use virtio_queue::{DescriptorChain, QueueT};
use vm_memory::GuestMemory;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::metrics::BlockMetrics;
use super::request::{
    self, Header, ID_LEN, MAX_PAGES, MAX_RANGE_SECTORS, MAX_RANGES, Pages, Range, Request,
    SECTORS_PER_PAGE, Status,
};
use crate::chain::{self, Chain, Cursor};
use crate::queue::{self, Progress, QueueCorrupt, Used};

const F_SIZE_MAX: u64 = 1 << 1;
const F_SEG_MAX: u64 = 1 << 2;
const F_BLK_SIZE: u64 = 1 << 6;
const F_FLUSH: u64 = 1 << 9;
const F_TOPOLOGY: u64 = 1 << 10;
const F_MQ: u64 = 1 << 12;
const F_DISCARD: u64 = 1 << 13;
const F_WRITE_ZEROES: u64 = 1 << 14;

/// Most segments of a request and bytes of a segment: together at most [`MAX_PAGES`].
const SEG_MAX: u32 = 64;
const SIZE_MAX: u32 = 64 << 10;
const _: () = assert!(SEG_MAX as usize * SIZE_MAX as usize == MAX_PAGES * PAGE_SIZE);

/// The object that holds the pages of the disk.
const OBJECT: ObjectId = ObjectId([0; 3]);

/// How a disk is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockConfig {
    /// Number of request queues, at least 1.
    pub request_queues: u16,
    /// Size of the disk in bytes; what is more than whole pages, or than 2^32 - 1 pages, is left out.
    pub bytes: u64,
    /// Name of the disk, which the guest shows as its serial number. Cut after 20 bytes.
    pub id: String,
}

/// Configuration space (5.2.4), up to the fields for discard and write-zeroes.
#[derive(Default, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct ConfigSpace {
    capacity: U64,
    size_max: U32,
    seg_max: U32,
    geometry: [u8; 4],
    blk_size: U32,
    physical_block_exp: u8,
    alignment_offset: u8,
    min_io_size: U16,
    opt_io_size: U32,
    writeback: u8,
    unused0: u8,
    num_queues: U16,
    max_discard_sectors: U32,
    max_discard_seg: U32,
    discard_sector_alignment: U32,
    max_write_zeroes_sectors: U32,
    max_write_zeroes_seg: U32,
    write_zeroes_may_unmap: u8,
    unused1: [u8; 3],
}

const _: () = assert!(size_of::<ConfigSpace>() == 60);

/// A virtio-blk disk whose blocks are pages of a persistent pool. A block that nobody wrote reads as
/// zeroes. Its queues can be served by several threads at once, each queue by one at a time.
#[derive(Debug)]
pub struct BlockDevice {
    domain: Domain,
    pool: PoolId,
    request_queues: u16,
    /// Number of blocks.
    capacity: u32,
    id: [u8; ID_LEN],
    /// One bit for each block whose last write was refused: the store has dropped what was there, and
    /// it must not read as zeroes.
    lost: Box<[AtomicU64]>,
    metrics: BlockMetrics,
}

impl BlockDevice {
    /// An empty disk for the guest whose pages `domain` holds.
    ///
    /// # Errors
    /// The domain may not have another pool.
    pub fn new(domain: Domain, config: &BlockConfig) -> Result<Self, CreatePoolError> {
        let pool = domain.create_pool(PoolSpec::Persistent)?;
        let pages = config.bytes.checked_div(PAGE_SIZE as u64);
        let capacity = u32::try_from(pages.unwrap_or_default()).unwrap_or(u32::MAX);
        let mut id = [0; ID_LEN];
        for (to, from) in id.iter_mut().zip(config.id.bytes()) {
            *to = from;
        }
        Ok(Self {
            domain,
            pool,
            request_queues: config.request_queues.max(1),
            capacity,
            id,
            lost: (0..capacity.div_ceil(u64::BITS))
                .map(|_| AtomicU64::new(0))
                .collect(),
            metrics: BlockMetrics::default(),
        })
    }

    /// The device feature bits to offer; those of the transport are not among them.
    #[must_use]
    pub fn offered_features(&self) -> u64 {
        let many = if self.request_queues > 1 { F_MQ } else { 0 };
        F_SIZE_MAX
            | F_SEG_MAX
            | F_BLK_SIZE
            | F_FLUSH
            | F_TOPOLOGY
            | F_DISCARD
            | F_WRITE_ZEROES
            | many
    }

    /// Reads the configuration space. What lies beyond its end reads as zero.
    pub fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = ConfigSpace {
            capacity: u64::from(self.capacity)
                .saturating_mul(SECTORS_PER_PAGE)
                .into(),
            size_max: SIZE_MAX.into(),
            seg_max: SEG_MAX.into(),
            blk_size: u32::try_from(PAGE_SIZE).unwrap_or_default().into(),
            min_io_size: 1.into(),
            opt_io_size: 1.into(),
            num_queues: self.request_queues.into(),
            max_discard_sectors: MAX_RANGE_SECTORS.into(),
            max_discard_seg: u32::try_from(MAX_RANGES).unwrap_or_default().into(),
            discard_sector_alignment: u32::try_from(SECTORS_PER_PAGE).unwrap_or_default().into(),
            max_write_zeroes_sectors: MAX_RANGE_SECTORS.into(),
            max_write_zeroes_seg: u32::try_from(MAX_RANGES).unwrap_or_default().into(),
            write_zeroes_may_unmap: 1,
            ..ConfigSpace::default()
        };
        data.fill(0);
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        let bytes = config.as_bytes().get(offset..).unwrap_or_default();
        for (to, from) in data.iter_mut().zip(bytes) {
            *to = *from;
        }
    }

    /// The counters.
    #[must_use]
    pub fn metrics(&self) -> &BlockMetrics {
        &self.metrics
    }

    /// Serves a request queue after its doorbell rang, and arms the doorbell again. The caller then
    /// asks the queue whether the guest wants an interrupt.
    ///
    /// # Errors
    /// The ring is inconsistent: the caller sets DEVICE_NEEDS_RESET and does not call again before
    /// the reset.
    pub fn process_requests<M: GuestMemory, Q: QueueT>(
        &self,
        mem: &M,
        queue: &mut Q,
    ) -> Result<Progress, QueueCorrupt> {
        queue::drain(mem, queue, |chain| self.serve(mem, chain)).inspect_err(|_| {
            self.metrics.queue_faults.fetch_add(1, Relaxed);
        })
    }

    /// Serves at most `limit` chains of a request queue and leaves notifications as they are: for a
    /// thread that polls. [`Progress::more`] is never set.
    ///
    /// # Errors
    /// As [`Self::process_requests`].
    pub fn poll_requests<M: GuestMemory, Q: QueueT>(
        &self,
        mem: &M,
        queue: &mut Q,
        limit: u16,
    ) -> Result<Progress, QueueCorrupt> {
        queue::poll(mem, queue, limit, |chain| self.serve(mem, chain)).inspect_err(|_| {
            self.metrics.queue_faults.fetch_add(1, Relaxed);
        })
    }

    fn serve<M: GuestMemory>(&self, mem: &M, descriptors: DescriptorChain<&M>) -> Used {
        self.metrics.chains.fetch_add(1, Relaxed);
        chain::with(mem, descriptors, |chain, page| {
            // The status is the last writable byte.
            let Some(room) = chain.writable_len().checked_sub(1) else {
                self.metrics.malformed.fetch_add(1, Relaxed);
                return Used::default();
            };
            let (status, written, pages) = match self.execute(mem, chain, room, page) {
                Ok((written, pages)) => (Status::Ok, written, pages),
                Err(status) => (status, 0, 0),
            };
            let counter = match status {
                Status::Ok => None,
                Status::IoError => Some(&self.metrics.io_errors),
                Status::Unsupported => Some(&self.metrics.unsupported),
            };
            if let Some(counter) = counter {
                counter.fetch_add(1, Relaxed);
            }
            let mut end = chain.writer();
            end.skip(room);
            let answered = end.write(mem, &[status as u8]).is_ok();
            // The length must not cover what was not written.
            let len = match written == room {
                true if answered => room.saturating_add(1),
                _ => written,
            };
            Used {
                len: queue::used_len(len),
                pages,
            }
        })
        .unwrap_or_default()
    }

    /// Bytes written from the start of the writable part, and pages read, written or cleared.
    fn execute<M: GuestMemory>(
        &self,
        mem: &M,
        chain: &Chain,
        room: usize,
        page: &mut [u8; PAGE_SIZE],
    ) -> Result<(usize, u32), Status> {
        if chain.fault().is_some() {
            self.metrics.malformed.fetch_add(1, Relaxed);
            return Err(Status::IoError);
        }
        let mut reader = chain.reader();
        let mut header = Header::new_zeroed();
        let data = chain.readable_len().checked_sub(size_of::<Header>());
        let data = data.ok_or(Status::IoError)?;
        reader
            .read(mem, header.as_mut_bytes())
            .map_err(|_| Status::IoError)?;
        match request::decode(&header, data, room, self.capacity)? {
            Request::Read(pages) => {
                let mut writer = chain.writer();
                self.read(mem, &mut writer, pages, page)?;
                Ok((room, pages.count))
            }
            Request::Write(pages) => {
                self.write(mem, &mut reader, pages, page)?;
                Ok((0, pages.count))
            }
            Request::Flush => Ok((0, 0)),
            Request::GetId => {
                chain
                    .writer()
                    .write(mem, &self.id)
                    .map_err(|_| Status::IoError)?;
                Ok((ID_LEN, 0))
            }
            Request::Clear { ranges, discard } => {
                let count = self.clear(mem, &mut reader, ranges, discard)?;
                Ok((0, count))
            }
        }
    }

    fn read<M: GuestMemory>(
        &self,
        mem: &M,
        writer: &mut Cursor<'_>,
        pages: Pages,
        page: &mut [u8; PAGE_SIZE],
    ) -> Result<(), Status> {
        for index in pages.indices() {
            let counter = match self.domain.load(self.pool, OBJECT, index, page) {
                Ok(()) => &self.metrics.pages_read,
                Err(LoadError::NotFound) if !self.is_lost(index) => {
                    page.fill(0);
                    &self.metrics.zero_pages_read
                }
                Err(_) => return Err(Status::IoError),
            };
            writer.write(mem, page).map_err(|_| Status::IoError)?;
            counter.fetch_add(1, Relaxed);
        }
        Ok(())
    }

    fn write<M: GuestMemory>(
        &self,
        mem: &M,
        reader: &mut Cursor<'_>,
        pages: Pages,
        page: &mut [u8; PAGE_SIZE],
    ) -> Result<(), Status> {
        for index in pages.indices() {
            reader.read(mem, page).map_err(|_| Status::IoError)?;
            // Set first: a read on another queue must not see an empty block as one of zeroes.
            self.set_lost(index, true);
            self.domain
                .store(self.pool, OBJECT, index, page)
                .map_err(|_| Status::IoError)?;
            self.set_lost(index, false);
            self.metrics.pages_written.fetch_add(1, Relaxed);
        }
        Ok(())
    }

    fn clear<M: GuestMemory>(
        &self,
        mem: &M,
        reader: &mut Cursor<'_>,
        ranges: usize,
        discard: bool,
    ) -> Result<u32, Status> {
        // All are looked at before the first is executed.
        let mut decoded = [None; MAX_RANGES];
        for place in decoded.iter_mut().take(ranges) {
            let mut range = Range::new_zeroed();
            reader
                .read(mem, range.as_mut_bytes())
                .map_err(|_| Status::IoError)?;
            *place = Some(request::decode_range(&range, discard, self.capacity)?);
        }
        let mut count = 0u32;
        for pages in decoded.into_iter().flatten() {
            for index in pages.indices() {
                self.domain
                    .invalidate_page(self.pool, OBJECT, index)
                    .map_err(|_| Status::IoError)?;
                self.set_lost(index, false);
            }
            count = count.saturating_add(pages.count);
        }
        self.metrics.pages_cleared.fetch_add(count.into(), Relaxed);
        Ok(count)
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

impl Drop for BlockDevice {
    fn drop(&mut self) {
        // The operator may have removed the domain before.
        let _ = self.domain.destroy_pool(self.pool);
    }
}
