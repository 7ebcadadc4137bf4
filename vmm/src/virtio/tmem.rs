//! Glue of `tmem-device` to the transport. A request is served on the vCPU thread that rang: when its exit is over,
//! the guest finds the answer in the used ring.

use std::sync::Arc;

use tmem_device::TmemDevice;
use tmem_protocol::{DEVICE_ID, EVENT_QUEUE};

use super::{Queues, VirtioDevice};

/// Entries of the event queue; the driver keeps a few buffers there.
const EVENT_QUEUE_SIZE: u16 = 16;
/// Entries of a request queue: two chains of the largest batch without indirect descriptors.
const REQUEST_QUEUE_SIZE: u16 = 256;

/// The tmem device of a machine.
#[derive(Debug)]
pub struct Tmem {
    device: Arc<TmemDevice>,
    request_queues: u16,
}

impl Tmem {
    /// Puts `device`, which has that many request queues, behind the trait of the transport.
    pub fn new(device: Arc<TmemDevice>, request_queues: u16) -> Self {
        Self {
            device,
            request_queues,
        }
    }

    /// One round on one queue; whether the guest left more than a round may do.
    fn serve(&self, index: u16, queues: &Queues) -> bool {
        let Some(mut queue) = queues.lock(index) else {
            return false;
        };
        // A reset may have come between the check of the transport and the lock.
        if !virtio_queue::QueueT::ready(&*queue) {
            return false;
        }
        let served = if index == EVENT_QUEUE {
            self.device.process_events(queues.mem(), &mut *queue)
        } else {
            self.device
                .process_requests(index, queues.mem(), &mut *queue)
        };
        let progress = match served {
            Ok(progress) => progress,
            Err(error) => {
                log::warn!("tmem device needs a reset: {error}");
                queues.interrupt().needs_reset();
                return false;
            }
        };
        if progress.chains > 0 && queues.signal_used(&mut queue).is_err() {
            queues.interrupt().needs_reset();
            return false;
        }
        progress.more
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
        let mut sizes = vec![EVENT_QUEUE_SIZE];
        sizes.extend((0..self.request_queues).map(|_| REQUEST_QUEUE_SIZE));
        sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.device.read_config(offset, data);
    }

    fn activate(&self, features: u64, _queues: &Arc<Queues>) {
        self.device
            .set_features(features & self.device.offered_features());
    }

    fn notify(&self, queue: u16, queues: &Queues) {
        self.device.metrics().count_doorbell(queue);
        // The lock is given back between rounds, so that a reset gets in; and a guest that never stops adding
        // chains cannot keep the machine from ending.
        while self.serve(queue, queues) && !queues.is_stopping() {}
        if queue != EVENT_QUEUE && self.device.update_pressure() {
            queues.interrupt().config_changed();
            while self.serve(EVENT_QUEUE, queues) && !queues.is_stopping() {}
        }
    }

    fn reset(&self) {
        self.device.reset();
    }
}
