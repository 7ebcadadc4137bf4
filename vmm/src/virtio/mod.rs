//! The common parts of virtio devices: queues, interrupt, and the trait that the transport calls.

pub mod block;
pub mod mmio;
pub mod tmem;
pub mod vhost_user;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tmem_device::queue::wants_interrupt;
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use crate::stop::StopFlag;

/// Interrupt status bit: a queue has used buffers.
pub(crate) const INTERRUPT_USED_RING: u32 = 1;
/// Interrupt status bit: the configuration changed, or the device needs a reset.
pub(crate) const INTERRUPT_CONFIG: u32 = 2;

/// One virtio device behind the transport.
///
/// Lock order: a lock of the transport's registers, then one queue, then what the device has inside. A device never
/// calls back into the transport; it reaches its queues and its interrupt through [`Queues`].
pub trait VirtioDevice: Send + Sync {
    /// Virtio device id.
    fn device_id(&self) -> u32;

    /// Device feature bits that are offered, without those of the transport.
    fn features(&self) -> u64;

    /// Feature bits of the transport that work with this device; the others are not offered.
    fn transport_features(&self) -> u64 {
        u64::MAX
    }

    /// Whether another process must be able to map the guest's memory.
    fn shares_memory(&self) -> bool {
        false
    }

    /// Largest size of each queue, a power of two each.
    fn queue_sizes(&self) -> Vec<u16>;

    /// Copies configuration bytes from `offset`; bytes behind the space stay 0.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Takes configuration bytes; most devices have none to write.
    fn write_config(&self, _offset: u64, _data: &[u8]) {}

    /// The driver is ready. `features` are the accepted bits, those of the transport among them. Buffers may be used
    /// from now until `reset`.
    fn activate(&self, features: u64, queues: &Arc<Queues>);

    /// The driver rang the doorbell of `queue`: called on the vCPU thread that did, and only while active.
    fn notify(&self, queue: u16, queues: &Queues);

    /// An eventfd that takes the doorbell of `queue` away from the vCPU threads.
    fn doorbell(&self, _queue: u16) -> Option<&EventFd> {
        None
    }

    /// Back to the state before `activate`. When it returns, the device touches no queue any more, unless
    /// [`is_quiet`](Self::is_quiet) says otherwise. May wait for a bounded time; no lock is held.
    fn reset(&self);

    /// Whether a reset is complete. The driver finds the device's status at 0 only then.
    fn is_quiet(&self) -> bool {
        true
    }
}

/// The line to the guest and what the guest reads when it rings.
#[derive(Debug)]
pub struct Interrupt {
    line: EventFd,
    status: AtomicU32,
    needs_reset: AtomicBool,
    config_generation: AtomicU32,
}

impl Interrupt {
    /// An interrupt with its irqfd.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            line: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
            status: AtomicU32::new(0),
            needs_reset: AtomicBool::new(false),
            config_generation: AtomicU32::new(0),
        })
    }

    /// Descriptor to register with KVM.
    pub(crate) fn line(&self) -> &EventFd {
        &self.line
    }

    fn raise(&self, bits: u32) {
        self.status.fetch_or(bits, Ordering::SeqCst);
        // A full counter (EAGAIN) is a pending interrupt already.
        let _ = self.line.write(1);
    }

    /// Tells the driver of used buffers.
    pub fn used_ring(&self) {
        self.raise(INTERRUPT_USED_RING);
    }

    /// Tells the driver that configuration fields changed.
    pub fn config_changed(&self) {
        self.config_generation.fetch_add(1, Ordering::SeqCst);
        self.raise(INTERRUPT_CONFIG);
    }

    /// Marks the device as broken until the driver resets it (DEVICE_NEEDS_RESET) and tells the driver.
    pub fn needs_reset(&self) {
        if !self.needs_reset.swap(true, Ordering::SeqCst) {
            self.raise(INTERRUPT_CONFIG);
        }
    }

    /// Whether the device waits for its reset.
    pub fn is_reset_needed(&self) -> bool {
        self.needs_reset.load(Ordering::SeqCst)
    }

    pub(crate) fn status(&self) -> u32 {
        self.status.load(Ordering::SeqCst)
    }

    pub(crate) fn acknowledge(&self, bits: u32) {
        self.status.fetch_and(!bits, Ordering::SeqCst);
    }

    pub(crate) fn config_generation(&self) -> u32 {
        self.config_generation.load(Ordering::SeqCst)
    }

    pub(crate) fn reset(&self) {
        self.status.store(0, Ordering::SeqCst);
        self.needs_reset.store(false, Ordering::SeqCst);
    }
}

/// Queues of one device, each behind a lock of its own, with the guest memory they live in.
#[derive(Debug)]
pub struct Queues {
    mem: GuestMemoryMmap,
    queues: Vec<Mutex<Queue>>,
    interrupt: Arc<Interrupt>,
    /// The driver resets the device.
    resetting: AtomicBool,
    stop: StopFlag,
}

impl Queues {
    /// Queues with the given largest sizes, for a machine that ends with `stop`.
    pub(crate) fn new(
        mem: GuestMemoryMmap,
        sizes: &[u16],
        interrupt: Arc<Interrupt>,
        stop: StopFlag,
    ) -> Result<Self, virtio_queue::Error> {
        let queues = sizes
            .iter()
            .map(|size| Queue::new(*size).map(Mutex::new))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            mem,
            queues,
            interrupt,
            resetting: AtomicBool::new(false),
            stop,
        })
    }

    /// Whether the machine is ending, or the driver resets the device: whatever has no bound of its own must stop.
    pub fn is_stopping(&self) -> bool {
        self.stop.is_stopped() || self.resetting.load(Ordering::SeqCst)
    }

    /// A reset begins or is over. A thread that serves a queue without an end would keep it from the lock of the queue.
    pub(crate) fn set_resetting(&self, resetting: bool) {
        self.resetting.store(resetting, Ordering::SeqCst);
    }

    /// The named thread of the device cannot go on: the machine ends with an error.
    pub(crate) fn report_failure(&self, thread: &str) {
        self.stop.report_failure(thread);
    }

    /// Guest memory.
    pub fn mem(&self) -> &GuestMemoryMmap {
        &self.mem
    }

    /// The device's interrupt.
    pub fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }

    /// How many queues there are.
    pub fn len(&self) -> usize {
        self.queues.len()
    }

    /// Whether there is no queue.
    pub fn is_empty(&self) -> bool {
        self.queues.is_empty()
    }

    /// Locks a queue. A poisoned lock is taken all the same: the ring indexes are written last, so after a panic a
    /// queue has lost at most one chain.
    pub fn lock(&self, index: u16) -> Option<MutexGuard<'_, Queue>> {
        let queue = self.queues.get(usize::from(index))?;
        Some(queue.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Raises the interrupt if the driver wants one for what was used in `queue` since the last call.
    pub fn signal_used(&self, queue: &mut Queue) -> Result<(), virtio_queue::Error> {
        if wants_interrupt(queue, &self.mem)? {
            self.interrupt.used_ring();
        }
        Ok(())
    }
}
