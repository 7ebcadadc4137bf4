//! The block device: its worker thread, its answers, its configuration space.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK,
    VIRTIO_BLK_S_UNSUPP,
};
use virtio_queue::{QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use super::disk::Disk;
use super::metrics::{BlockMetrics, add};
use super::request::{
    self, ID, Limits, MAX_RANGE_SECTORS, MAX_RANGES, Operation, Refusal, Request, SECTOR, SEG_MAX,
    Span,
};
use crate::virtio::{Queues, VirtioDevice};

/// Virtio device id of a block device.
pub const DEVICE_ID: u32 = 2;
/// The only queue.
const QUEUE: u16 = 0;
const QUEUE_SIZE: u16 = 256;

/// A disk of the guest. Dropping it stops and joins its worker.
pub struct Block {
    shared: Arc<Shared>,
    config: [u8; 60],
    features: u64,
    worker: Option<JoinHandle<()>>,
}

struct Shared {
    doorbell: EventFd,
    stop: AtomicBool,
    active: Mutex<Option<Arc<Queues>>>,
    metrics: BlockMetrics,
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Block")
            .field("metrics", &self.shared.metrics)
            .finish_non_exhaustive()
    }
}

impl Block {
    /// A device over `disk`; `id` is what GET_ID answers (at most 20 bytes of it).
    pub fn new(disk: Disk, id: &str) -> io::Result<Self> {
        let limits = Limits {
            capacity: disk.capacity(),
            read_only: disk.is_read_only(),
        };
        let mut serial = [0; 20];
        for (to, from) in serial.iter_mut().zip(id.bytes()) {
            *to = from;
        }
        let shared = Arc::new(Shared {
            doorbell: EventFd::new(libc::EFD_CLOEXEC)?,
            stop: AtomicBool::new(false),
            active: Mutex::new(None),
            metrics: BlockMetrics::default(),
        });
        let mut worker = Worker {
            shared: Arc::clone(&shared),
            disk,
            limits,
            id: serial,
        };
        let name = format!("block {id}").chars().take(15).collect();
        let thread = std::thread::Builder::new()
            .name(name)
            .spawn(move || worker.run())?;
        let mut features =
            1 << VIRTIO_BLK_F_FLUSH | 1 << VIRTIO_BLK_F_BLK_SIZE | 1 << VIRTIO_BLK_F_SEG_MAX;
        features |= if limits.read_only {
            1 << VIRTIO_BLK_F_RO
        } else {
            1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES
        };
        Ok(Self {
            shared,
            config: config_space(limits.capacity),
            features,
            worker: Some(thread),
        })
    }

    /// Counters.
    pub fn metrics(&self) -> &BlockMetrics {
        &self.shared.metrics
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        let _ = self.shared.doorbell.write(1);
        if let Some(worker) = self.worker.take() {
            let _ = worker.join();
        }
    }
}

/// `struct virtio_blk_config` (section 5.2.4).
fn config_space(capacity: u64) -> [u8; 60] {
    let mut config = [0; 60];
    let mut put = |at: usize, bytes: &[u8]| {
        for (to, from) in config.iter_mut().skip(at).zip(bytes) {
            *to = *from;
        }
    };
    put(0, &(capacity / SECTOR).to_le_bytes());
    put(12, &SEG_MAX.to_le_bytes());
    // blk_size: a swap disk is used in pages, but the logical block stays a sector.
    put(20, &512u32.to_le_bytes());
    put(36, &MAX_RANGE_SECTORS.to_le_bytes());
    put(40, &MAX_RANGES.to_le_bytes());
    // discard_sector_alignment: pages, for that is what a file system can give back.
    put(44, &8u32.to_le_bytes());
    put(48, &MAX_RANGE_SECTORS.to_le_bytes());
    put(52, &MAX_RANGES.to_le_bytes());
    put(56, &[1]);
    config
}

impl VirtioDevice for Block {
    fn device_id(&self) -> u32 {
        DEVICE_ID
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        for (to, from) in data.iter_mut().zip(self.config.iter().skip(offset)) {
            *to = *from;
        }
    }

    fn activate(&self, _features: u64, queues: &Arc<Queues>) {
        *self
            .shared
            .active
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(queues));
        // A doorbell that rang before is not lost.
        let _ = self.shared.doorbell.write(1);
    }

    fn notify(&self, _queue: u16, _queues: &Queues) {
        // Reached only where the ioeventfd does not match, such as a doorbell of another width.
        let _ = self.shared.doorbell.write(1);
    }

    fn doorbell(&self, queue: u16) -> Option<&EventFd> {
        (queue == QUEUE).then_some(&self.shared.doorbell)
    }

    fn reset(&self) {
        // The transport has reset the queue under its lock, so the worker is not inside of it.
        *self
            .shared
            .active
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = None;
    }
}

struct Worker {
    shared: Arc<Shared>,
    disk: Disk,
    limits: Limits,
    id: [u8; 20],
}

impl Worker {
    fn run(&mut self) {
        while self.shared.doorbell.read().is_ok() && !self.shared.stop.load(Ordering::SeqCst) {
            let active = self
                .shared
                .active
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone();
            let Some(queues) = active else { continue };
            if let Err(error) = self.drain(&queues) {
                log::warn!("block device needs a reset: {error}");
                queues.interrupt().needs_reset();
            }
        }
    }

    /// Answers until the queue is empty. The lock is given back between requests, so that a reset gets in.
    fn drain(&mut self, queues: &Queues) -> Result<(), virtio_queue::Error> {
        loop {
            if self.shared.stop.load(Ordering::SeqCst) || queues.interrupt().is_reset_needed() {
                return Ok(());
            }
            let Some(mut queue) = queues.lock(QUEUE) else {
                return Ok(());
            };
            if !queue.ready() {
                return Ok(());
            }
            let mem = queues.mem();
            let Some(chain) = queue.iter(mem)?.next() else {
                if queue.enable_notification(mem)? {
                    continue;
                }
                return Ok(());
            };
            let head = chain.head_index();
            let used = self.answer(mem, chain);
            queue.add_used(mem, head, used)?;
            queues.signal_used(&mut queue)?;
        }
    }

    /// Does one request and returns how many bytes of its writable part were written.
    fn answer(
        &mut self,
        mem: &GuestMemoryMmap,
        chain: impl Iterator<Item = virtio_queue::desc::split::Descriptor>,
    ) -> u32 {
        let metrics = &self.shared.metrics;
        let Ok(Request {
            operation,
            status,
            writable,
        }) = request::decode(mem, chain, self.limits)
        else {
            add(&metrics.unanswerable, 1);
            return 0;
        };
        let done = operation.and_then(|operation| {
            perform(&mut self.disk, mem, &self.id, metrics, operation).map_err(|error| {
                log::warn!("disk error: {error}");
                Refusal::IoError
            })
        });
        let (byte, written) = match done {
            Ok(written) => (VIRTIO_BLK_S_OK, written),
            Err(Refusal::IoError) => {
                add(&metrics.io_errors, 1);
                (VIRTIO_BLK_S_IOERR, 0)
            }
            Err(Refusal::Unsupported) => {
                add(&metrics.unsupported, 1);
                (VIRTIO_BLK_S_UNSUPP, 0)
            }
        };
        let byte = byte.to_le_bytes()[0];
        if mem.write_obj(byte, status).is_err() {
            return 0;
        }
        // The length counts from the start of the writable part; without a gap only if all of it was filled.
        if written == writable {
            u32::try_from(written + 1).unwrap_or(u32::MAX)
        } else {
            1
        }
    }
}

/// Does the I/O and returns the bytes written to guest memory in front of the status.
fn perform(
    disk: &mut Disk,
    mem: &GuestMemoryMmap,
    id: &[u8; 20],
    metrics: &BlockMetrics,
    operation: Operation,
) -> io::Result<u64> {
    match operation {
        Operation::Read { offset, to } => {
            disk.read(mem, offset, &to)?;
            add(&metrics.reads, 1);
            add(&metrics.read_bytes, request::total(&to));
            Ok(request::total(&to))
        }
        Operation::Write { offset, from } => {
            disk.write(mem, offset, &from)?;
            add(&metrics.writes, 1);
            add(&metrics.written_bytes, request::total(&from));
            Ok(0)
        }
        Operation::Flush => {
            disk.flush()?;
            add(&metrics.flushes, 1);
            Ok(0)
        }
        Operation::GetId { to } => {
            put(mem, &to, id)?;
            Ok(ID)
        }
        Operation::Discard(ranges) => {
            for range in ranges {
                disk.discard(range)?;
                add(&metrics.ranges, 1);
            }
            Ok(0)
        }
        Operation::WriteZeroes(ranges) => {
            for range in ranges {
                disk.write_zeroes(range)?;
                add(&metrics.ranges, 1);
            }
            Ok(0)
        }
    }
}

/// Scatters `bytes` over `spans`.
fn put(mem: &GuestMemoryMmap, spans: &[Span], mut bytes: &[u8]) -> io::Result<()> {
    for span in spans {
        let count = usize::try_from(span.len)
            .map_err(io::Error::other)?
            .min(bytes.len());
        let (now, later) = bytes.split_at(count);
        mem.write_slice(now, span.address)
            .map_err(io::Error::other)?;
        bytes = later;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
