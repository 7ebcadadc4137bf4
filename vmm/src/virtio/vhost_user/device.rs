//! The device as the transport sees it. A vCPU waits for the service only in a reset, and there for a bounded time: all
//! messages are sent by the control thread.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Instant;

use tmem_protocol::DEVICE_ID;
use virtio_queue::QueueT;
use vmm_sys_util::eventfd::EventFd;

#[cfg(test)]
use super::connection::Eventfds;
use super::connection::{self, Ring};
use super::control::ControlThread;
use super::error::ServiceError;
use super::link::LinkThread;
use super::shared::{Command, FrontendStats, Setup, Shared, eventfd};
use super::timeouts::Timeouts;
use crate::virtio::{Queues, VirtioDevice};

/// Entries of the event queue, as in the device of this process.
const EVENT_QUEUE_SIZE: u16 = 16;
/// Entries of a request queue.
const REQUEST_QUEUE_SIZE: u16 = 256;
/// Bits of a feature word that belong to the device type (virtio 1.2, section 2.2).
const DEVICE_FEATURES: u64 = 0xff_ffff;

/// A tmem device served by another process. Dropping it closes the connection and joins its threads.
pub struct VhostUser {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl std::fmt::Debug for VhostUser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VhostUser")
            .field("socket", &self.shared.path)
            .finish_non_exhaustive()
    }
}

impl VhostUser {
    /// Connects to the service at `path`, and waits for it and its answers no longer than `timeouts` says.
    pub fn connect(path: &Path, timeouts: Timeouts) -> Result<Self, ServiceError> {
        let system = |what| move |source| ServiceError::System { what, source };
        let shared = Arc::new(Shared::new(path, timeouts)?);
        let mut device = Self {
            shared: Arc::clone(&shared),
            threads: Vec::new(),
        };
        let link = LinkThread::new(Arc::clone(&shared)).map_err(system("watch the service"))?;
        let control = ControlThread::new(Arc::clone(&shared));
        let until = Instant::now() + timeouts.connect;
        for (name, run) in [
            (
                "tmem link",
                Box::new(move || link.run()) as Box<dyn FnOnce() + Send>,
            ),
            ("tmem control", Box::new(move || control.run(until))),
        ] {
            let thread = std::thread::Builder::new().name(name.to_owned()).spawn(run);
            device
                .threads
                .push(thread.map_err(system("start a thread"))?);
        }
        if !shared.wait(Some(until), |state| state.first.is_some()) {
            // The control thread is cut off and joined. Its error tells a service that is silent from one that is not there.
            drop(device);
            return Err(match shared.state().first.take() {
                Some(Err(error @ ServiceError::Connect { .. })) => error,
                _ => ServiceError::Silent {
                    path: path.to_owned(),
                    timeout: timeouts.connect,
                },
            });
        }
        let first = shared.state().first.take();
        first.unwrap_or(Ok(()))?;
        let queues = shared.state().request_queues + 1;
        let kicks = (0..queues)
            .map(|_| eventfd())
            .collect::<Result<Vec<_>, _>>()?;
        // Set here only.
        let _ = shared.eventfds.kicks.set(kicks);
        Ok(device)
    }

    #[cfg(test)]
    pub(super) fn eventfds(&self) -> &Eventfds {
        &self.shared.eventfds
    }

    /// The statistics that are known here.
    pub fn stats(&self) -> FrontendStats {
        self.shared.stats()
    }
}

impl Drop for VhostUser {
    fn drop(&mut self) {
        self.shared.change(|state| {
            state.closing = true;
            if let Some(socket) = &state.socket {
                connection::shutdown(socket);
            }
        });
        self.shared.wake.wake();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                log::error!("A thread of the tmem device panicked");
            }
        }
    }
}

impl VirtioDevice for VhostUser {
    fn device_id(&self) -> u32 {
        DEVICE_ID
    }

    fn features(&self) -> u64 {
        self.shared.state().features & DEVICE_FEATURES
    }

    fn transport_features(&self) -> u64 {
        self.shared.state().features
    }

    fn shares_memory(&self) -> bool {
        true
    }

    fn queue_sizes(&self) -> Vec<u16> {
        let kicks = self.shared.eventfds.kicks.get().map_or(0, Vec::len);
        let mut sizes = vec![REQUEST_QUEUE_SIZE; kicks];
        if let Some(first) = sizes.first_mut() {
            *first = EVENT_QUEUE_SIZE;
        }
        sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        let config = self.shared.state().config;
        for (to, from) in data.iter_mut().zip(config.iter().skip(offset)) {
            *to = *from;
        }
    }

    fn activate(&self, features: u64, queues: &Arc<Queues>) {
        let mut rings = Vec::new();
        for index in (0u16..).take(queues.len()) {
            let Some(queue) = queues.lock(index) else {
                continue;
            };
            if queue.ready() {
                rings.push(Ring {
                    index,
                    size: queue.size(),
                    descriptors: queue.desc_table(),
                    available: queue.avail_ring(),
                    used: queue.used_ring(),
                });
            }
        }
        let setup = Setup {
            features,
            mem: queues.mem().clone(),
            rings,
        };
        self.shared.activations.fetch_add(1, Ordering::Relaxed);
        self.shared.change(|state| {
            state.active = Some(Arc::clone(queues));
            state.quiet = false;
            state.start_until = Some(Instant::now() + self.shared.timeouts.start);
            state.command = Some(Command::Start(setup));
        });
        self.shared.wake.wake();
    }

    /// KVM takes the doorbells, all that name a queue. Nothing is passed on here: a write to the eventfd could wait
    /// for the service.
    fn notify(&self, _queue: u16, _queues: &Queues) {
        self.shared.doorbell_exits.fetch_add(1, Ordering::Relaxed);
    }

    fn doorbell(&self, queue: u16) -> Option<&EventFd> {
        self.shared.eventfds.kicks.get()?.get(usize::from(queue))
    }

    fn reset(&self) {
        let until = Instant::now() + self.shared.timeouts.stop;
        let mut was_active = false;
        self.shared.change(|state| {
            was_active = state.active.take().is_some();
            state.start_until = None;
            if !state.quiet {
                // A start that has not begun is not needed any more.
                state.command = Some(Command::Stop);
            }
        });
        if !self.shared.wait(Some(until), |state| state.quiet) && was_active {
            log::warn!(
                "The tmem service at {} does not confirm a reset: until it does, or closes the connection, it may write \
                 to the guest's memory",
                self.shared.path.display()
            );
        }
    }

    fn is_quiet(&self) -> bool {
        self.shared.state().quiet
    }
}
