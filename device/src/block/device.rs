//! The disk: features, configuration space, serving a queue.

use tmem_protocol::PAGE_SIZE;
use virtio_queue::{DescriptorChain, QueueT};
use vm_memory::GuestMemory;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::backend::Backend;
use super::metrics::{BlockMetrics, add};
use super::request::{
    self, BlkStatus, Geometry, Header, ID_LEN, MAX_RANGES, Range, Request, SECTOR,
};
use crate::chain::{self, Chain, Cursor};
use crate::queue::{self, Progress, QueueCorrupt, Used};

const F_SIZE_MAX: u64 = 1 << 1;
const F_SEG_MAX: u64 = 1 << 2;
const F_RO: u64 = 1 << 5;
const F_BLK_SIZE: u64 = 1 << 6;
const F_FLUSH: u64 = 1 << 9;
const F_TOPOLOGY: u64 = 1 << 10;
const F_MQ: u64 = 1 << 12;
const F_DISCARD: u64 = 1 << 13;
const F_WRITE_ZEROES: u64 = 1 << 14;

/// How a disk looks to the guest, whatever is behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockConfig {
    /// Number of request queues, at least 1.
    pub request_queues: u16,
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

/// What a request that was executed did.
#[derive(Default)]
struct Done {
    /// Bytes written from the start of the writable part.
    written: usize,
    /// Bytes of the disk read, written or cleared.
    bytes: u64,
}

/// A virtio-blk disk over `B`. Its queues can be served by several threads at once, each queue by one at a
/// time.
#[derive(Debug)]
pub struct BlockDevice<B> {
    backend: B,
    geometry: Geometry,
    request_queues: u16,
    id: [u8; ID_LEN],
    metrics: BlockMetrics,
}

impl<B: Backend> BlockDevice<B> {
    /// A disk with the bytes that `backend` has.
    #[must_use]
    pub fn new(backend: B, config: &BlockConfig) -> Self {
        let mut id = [0; ID_LEN];
        for (to, from) in id.iter_mut().zip(config.id.bytes()) {
            *to = from;
        }
        Self {
            geometry: backend.geometry(),
            backend,
            request_queues: config.request_queues.max(1),
            id,
            metrics: BlockMetrics::default(),
        }
    }

    /// The device feature bits to offer; those of the transport are not among them.
    #[must_use]
    pub fn offered_features(&self) -> u64 {
        let Geometry {
            size_max,
            announce_topology,
            read_only,
            ..
        } = self.geometry;
        let when = |offered: bool, features: u64| if offered { features } else { 0 };
        F_SEG_MAX
            | F_BLK_SIZE
            | F_FLUSH
            | when(size_max.is_some(), F_SIZE_MAX)
            | when(announce_topology, F_TOPOLOGY)
            | when(read_only, F_RO)
            | when(!read_only, F_DISCARD | F_WRITE_ZEROES)
            | when(self.request_queues > 1, F_MQ)
    }

    /// Reads the configuration space. What lies beyond its end reads as zero.
    pub fn read_config(&self, offset: u64, data: &mut [u8]) {
        let geometry = &self.geometry;
        let best_blocks = u16::from(geometry.announce_topology);
        // The field is there with F_MQ only.
        let queues = match self.request_queues {
            1 => 0,
            many => many,
        };
        let config = ConfigSpace {
            capacity: geometry
                .capacity
                .checked_div(SECTOR)
                .unwrap_or_default()
                .into(),
            size_max: geometry.size_max.unwrap_or_default().into(),
            seg_max: geometry.seg_max.into(),
            blk_size: geometry.block_size.into(),
            min_io_size: best_blocks.into(),
            opt_io_size: u32::from(best_blocks).into(),
            num_queues: queues.into(),
            max_discard_sectors: geometry.max_range_sectors.into(),
            max_discard_seg: geometry.max_ranges.into(),
            discard_sector_alignment: geometry.discard_alignment.into(),
            max_write_zeroes_sectors: geometry.max_range_sectors.into(),
            max_write_zeroes_seg: geometry.max_ranges.into(),
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
        queue::drain(mem, queue, u32::MAX, |chain| self.serve(mem, chain))
            .inspect_err(|_| add(&self.metrics.queue_faults, 1))
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
        let serve = |chain: DescriptorChain<&M>| self.serve(mem, chain);
        queue::poll(mem, queue, limit.into(), serve, || false)
            .inspect_err(|_| add(&self.metrics.queue_faults, 1))
    }

    fn serve<M: GuestMemory>(&self, mem: &M, descriptors: DescriptorChain<&M>) -> Used {
        add(&self.metrics.chains, 1);
        chain::with(mem, descriptors, |chain, page| {
            // The status is the last writable byte.
            let Some(room) = chain.writable_len().checked_sub(1) else {
                add(&self.metrics.malformed, 1);
                add(&self.metrics.unanswerable, 1);
                return Used::default();
            };
            let (status, done) = match self.execute(mem, chain, room, page) {
                Ok(done) => (BlkStatus::Ok, done),
                Err(status) => (status, Done::default()),
            };
            match status {
                BlkStatus::Ok => {}
                BlkStatus::IoError => add(&self.metrics.io_errors, 1),
                BlkStatus::Unsupported => add(&self.metrics.unsupported, 1),
            }
            let mut end = chain.writer();
            end.skip(room);
            let answered = end.write(mem, &[status as u8]).is_ok();
            if !answered {
                add(&self.metrics.unanswerable, 1);
            }
            // The length must not cover what was not written (2.7.8.2).
            let len = match done.written == room {
                true if answered => room.saturating_add(1),
                _ => done.written,
            };
            let pages = done.bytes.checked_div(PAGE_SIZE as u64).unwrap_or_default();
            Used {
                len: queue::used_len(len),
                pages: u32::try_from(pages).unwrap_or(u32::MAX),
                entries: 1,
            }
        })
        .unwrap_or_default()
    }

    fn execute<M: GuestMemory>(
        &self,
        mem: &M,
        chain: &Chain,
        room: usize,
        page: &mut [u8; PAGE_SIZE],
    ) -> Result<Done, BlkStatus> {
        let metrics = &self.metrics;
        if chain.fault().is_some() {
            add(&metrics.malformed, 1);
            return Err(BlkStatus::IoError);
        }
        let mut reader = chain.reader();
        let mut header = Header::new_zeroed();
        let data = chain.readable_len().checked_sub(size_of::<Header>());
        let data = data.ok_or(BlkStatus::IoError)?;
        reader
            .read(mem, header.as_mut_bytes())
            .map_err(|_| BlkStatus::IoError)?;
        match request::decode(&header, data, room, &self.geometry)? {
            Request::Read(extent) => {
                let mut writer = chain.writer();
                let unwritten = self.backend.read(mem, extent, &mut writer, page)?;
                add(&metrics.reads, 1);
                add(&metrics.read_bytes, extent.len);
                add(&metrics.unwritten_bytes, unwritten);
                Ok(Done {
                    written: room,
                    bytes: extent.len,
                })
            }
            Request::Write(extent) => {
                self.backend.write(mem, extent, &mut reader, page)?;
                add(&metrics.writes, 1);
                add(&metrics.written_bytes, extent.len);
                Ok(Done {
                    written: 0,
                    bytes: extent.len,
                })
            }
            Request::Flush => {
                self.backend.flush()?;
                add(&metrics.flushes, 1);
                Ok(Done::default())
            }
            Request::GetId => {
                chain
                    .writer()
                    .write(mem, &self.id)
                    .map_err(|_| BlkStatus::IoError)?;
                Ok(Done {
                    written: ID_LEN,
                    bytes: 0,
                })
            }
            Request::Clear { ranges, discard } => {
                let bytes = self.clear(mem, &mut reader, ranges, discard)?;
                Ok(Done { written: 0, bytes })
            }
        }
    }

    /// Bytes that were discarded or zeroed.
    fn clear<M: GuestMemory>(
        &self,
        mem: &M,
        reader: &mut Cursor<'_>,
        ranges: usize,
        discard: bool,
    ) -> Result<u64, BlkStatus> {
        // All are looked at before the first is executed.
        let mut decoded = [None; MAX_RANGES];
        for entry in decoded.iter_mut().take(ranges) {
            let mut range = Range::new_zeroed();
            reader
                .read(mem, range.as_mut_bytes())
                .map_err(|_| BlkStatus::IoError)?;
            *entry = Some(request::decode_range(&range, discard, &self.geometry)?);
        }
        let mut bytes = 0u64;
        for (extent, clear) in decoded.into_iter().flatten() {
            self.backend.clear(extent, clear)?;
            add(&self.metrics.ranges, 1);
            add(&self.metrics.cleared_bytes, extent.len);
            bytes = bytes.saturating_add(extent.len);
        }
        Ok(bytes)
    }
}
