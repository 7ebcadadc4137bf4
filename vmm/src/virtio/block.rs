//! Glue of the virtio-blk device of `tmem-device` to the transport, over a host file: the plain swap disk that tmem
//! is compared with and falls back to. All I/O happens in one worker thread, so the vCPUs only ring the doorbell,
//! which is an ioeventfd.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use tmem_base::error::one_line;
use tmem_device::block::DEVICE_ID;
use tmem_device::{BlockConfig, BlockDevice, BlockMetrics, FileDisk, QueueCorrupt};
use virtio_queue::QueueT;
use vmm_sys_util::eventfd::EventFd;

use super::{Queues, VirtioDevice};

/// The only queue.
const QUEUE: u16 = 0;
const QUEUE_SIZE: u16 = 256;

/// A disk of the guest. Dropping it stops and joins its worker.
#[derive(Debug)]
pub struct Block {
    shared: Arc<Shared>,
    worker: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    device: BlockDevice<FileDisk>,
    doorbell: EventFd,
    stop: AtomicBool,
    active: Mutex<Option<Arc<Queues>>>,
}

impl Block {
    /// A device over `disk`; `id` is what GET_ID answers (at most 20 bytes of it).
    pub fn new(disk: FileDisk, id: &str) -> io::Result<Self> {
        let config = BlockConfig {
            request_queues: 1,
            id: id.to_owned(),
        };
        let shared = Arc::new(Shared {
            device: BlockDevice::new(disk, &config),
            doorbell: EventFd::new(libc::EFD_CLOEXEC)?,
            stop: AtomicBool::new(false),
            active: Mutex::new(None),
        });
        let worker = Arc::clone(&shared);
        let name = format!("block {id}").chars().take(15).collect();
        let thread = std::thread::Builder::new()
            .name(name)
            .spawn(move || worker.run())?;
        Ok(Self {
            shared,
            worker: Some(thread),
        })
    }

    /// Counters.
    pub fn metrics(&self) -> &BlockMetrics {
        self.shared.device.metrics()
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

impl VirtioDevice for Block {
    fn device_id(&self) -> u32 {
        DEVICE_ID
    }

    fn features(&self) -> u64 {
        self.shared.device.offered_features()
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.shared.device.read_config(offset, data);
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

/// What the worker does.
impl Shared {
    fn run(&self) {
        while self.doorbell.read().is_ok() && !self.stop.load(Ordering::SeqCst) {
            let active = self
                .active
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone();
            let Some(queues) = active else { continue };
            self.device.metrics().count_doorbell();
            if let Err(error) = self.drain(&queues) {
                log::warn!("block device needs a reset: {}", one_line(&error));
                queues.interrupt().needs_reset();
            }
        }
    }

    /// Answers until the queue is empty. The lock is given back between requests, so that a reset gets in.
    fn drain(&self, queues: &Queues) -> Result<(), QueueCorrupt> {
        loop {
            if self.stop.load(Ordering::SeqCst) || queues.interrupt().is_reset_needed() {
                return Ok(());
            }
            let Some(mut queue) = queues.lock(QUEUE) else {
                return Ok(());
            };
            if !queue.ready() {
                return Ok(());
            }
            let mem = queues.mem();
            let progress = self.device.poll_requests(mem, &mut *queue, 1)?;
            if progress.chains > 0 {
                queues.signal_used(&mut queue).map_err(QueueCorrupt::Ring)?;
            } else if !queue.enable_notification(mem).map_err(QueueCorrupt::Ring)? {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests;
