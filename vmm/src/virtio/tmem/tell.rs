//! What the guest is told after a request, whichever thread served it.

use tmem_device::{Progress, QueueCorrupt, TmemDevice};
use tmem_protocol::EVENT_QUEUE;
use virtio_queue::{Queue, QueueT};

use crate::virtio::Queues;

/// Interrupts the guest for what was served in `queue`, if it wants to be, or marks the device as broken. The lock of the
/// queue is still held, so that a reset comes after it.
pub(super) fn served(
    served: Result<Progress, QueueCorrupt>,
    queue: &mut Queue,
    queues: &Queues,
) -> Progress {
    let signalled = served.and_then(|progress| {
        if progress.chains > 0 {
            queues.signal_used(queue).map_err(QueueCorrupt::Ring)?;
        }
        Ok(progress)
    });
    signalled.unwrap_or_else(|error| {
        log::warn!("tmem device needs a reset: {error}");
        queues.interrupt().needs_reset();
        Progress::default()
    })
}

/// Tells the guest of pressure that changed with what was served.
pub(super) fn pressure(device: &TmemDevice, queues: &Queues) {
    if device.update_pressure() {
        queues.interrupt().config_changed();
        events(device, queues);
    }
}

/// Writes waiting events to the buffers that the guest has offered.
pub(super) fn events(device: &TmemDevice, queues: &Queues) {
    loop {
        let Some(mut queue) = queues.lock(EVENT_QUEUE).filter(|queue| queue.ready()) else {
            return;
        };
        let served = device.process_events(queues.mem(), &mut *queue);
        if !self::served(served, &mut queue, queues).more || queues.is_stopping() {
            return;
        }
    }
}
