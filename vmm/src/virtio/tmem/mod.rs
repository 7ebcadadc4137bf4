//! Glue of `tmem-device` to the transport. A request is served on the vCPU thread that rang: when its exit is over,
//! the guest finds the answer in the used ring. Store queues can have threads of their own instead (`store_thread`).

mod store_thread;
mod tell;

use std::io;
use std::sync::Arc;

use tmem_device::TmemDevice;
use tmem_device::tmem::num_queues;
use tmem_protocol::{DEVICE_ID, EVENT_QUEUE};
use virtio_queue::QueueT;
use vmm_sys_util::eventfd::EventFd;

use self::store_thread::StoreThreads;
use super::{Queues, VirtioDevice};

/// Entries of the event queue; the driver keeps a few buffers there.
const EVENT_QUEUE_SIZE: u16 = 16;
/// Entries of a request queue: two chains of the largest batch without indirect descriptors.
const REQUEST_QUEUE_SIZE: u16 = 256;

/// The tmem device of a machine. Dropping it stops and joins its threads.
#[derive(Debug)]
pub struct Tmem {
    device: Arc<TmemDevice>,
    threads: StoreThreads,
}

impl Tmem {
    /// Puts `device` behind the trait of the transport, with so many threads that serve its store queues; with 0, or
    /// without store queues, the vCPUs do. There is never more than one thread for a queue.
    ///
    /// # Errors
    /// The system has no thread or no descriptor for it.
    pub fn new(device: Arc<TmemDevice>, store_threads: u16) -> io::Result<Self> {
        let threads = StoreThreads::start(&device, store_threads)?;
        Ok(Self { device, threads })
    }

    /// One round on one queue; whether the guest left more than a round may do.
    fn serve(&self, index: u16, queues: &Queues) -> bool {
        let Some(mut queue) = queues.lock(index) else {
            return false;
        };
        // A reset may have come between the check of the transport and the lock.
        if !queue.ready() {
            return false;
        }
        let served = self
            .device
            .process_requests(index, queues.mem(), &mut *queue);
        tell::served(served, &mut queue, queues).more
    }
}

impl VirtioDevice for Tmem {
    fn device_id(&self) -> u32 {
        DEVICE_ID
    }

    fn features(&self) -> u64 {
        self.device.offered_features()
    }

    fn queue_sizes(&self) -> Vec<u16> {
        let queues = num_queues(self.device.config().request_queues);
        let mut sizes = vec![REQUEST_QUEUE_SIZE; queues.into()];
        if let Some(first) = sizes.first_mut() {
            *first = EVENT_QUEUE_SIZE;
        }
        sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.device.read_config(offset, data);
    }

    fn activate(&self, features: u64, queues: &Arc<Queues>) {
        self.device
            .set_features(features & self.device.offered_features());
        self.threads.activate(queues);
    }

    fn notify(&self, queue: u16, queues: &Queues) {
        // With a thread, reached only where the ioeventfd does not match.
        if let Some(doorbell) = self.threads.doorbell(queue) {
            let _ = doorbell.write(1);
            return;
        }
        self.device.metrics().count_doorbells(queue, 1);
        if queue == EVENT_QUEUE {
            return tell::events(&self.device, queues);
        }
        // The lock is given back between rounds, so that a reset gets in; and a guest that never stops adding
        // chains cannot keep the machine from ending.
        while self.serve(queue, queues) && !queues.is_stopping() {}
        tell::pressure(&self.device, queues);
    }

    fn doorbell(&self, queue: u16) -> Option<&EventFd> {
        self.threads.doorbell(queue)
    }

    fn reset(&self) {
        self.threads.deactivate();
        self.device.reset();
    }
}

#[cfg(test)]
mod tests;
