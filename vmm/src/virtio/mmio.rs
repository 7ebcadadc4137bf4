//! virtio-mmio transport, version 2 (virtio 1.2, section 4.2): the register window of one device.
//!
//! Everything here is written by a guest that may be hostile. A write that the specification forbids in the present
//! state is ignored; rings that cannot work mark the device as needing a reset. Only `QueueNotify` avoids the lock
//! of the registers, so that vCPUs meet on nothing but the queue they share.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virtio_bindings::virtio_config::{VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_F_VERSION_1};
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueT;
use vm_memory::{GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use super::{Interrupt, Queues, VirtioDevice};
use crate::stop::StopFlag;

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
/// "TMEM": the vendor is informative.
const VENDOR_ID: u32 = u32::from_le_bytes(*b"TMEM");

/// Register offsets (table 4.1 of the specification).
mod reg {
    pub(super) const MAGIC_VALUE: u64 = 0x000;
    pub(super) const VERSION: u64 = 0x004;
    pub(super) const DEVICE_ID: u64 = 0x008;
    pub(super) const VENDOR_ID: u64 = 0x00c;
    pub(super) const DEVICE_FEATURES: u64 = 0x010;
    pub(super) const DEVICE_FEATURES_SEL: u64 = 0x014;
    pub(super) const DRIVER_FEATURES: u64 = 0x020;
    pub(super) const DRIVER_FEATURES_SEL: u64 = 0x024;
    pub(super) const QUEUE_SEL: u64 = 0x030;
    pub(super) const QUEUE_NUM_MAX: u64 = 0x034;
    pub(super) const QUEUE_NUM: u64 = 0x038;
    pub(super) const QUEUE_READY: u64 = 0x044;
    pub(super) const QUEUE_NOTIFY: u64 = 0x050;
    pub(super) const INTERRUPT_STATUS: u64 = 0x060;
    pub(super) const INTERRUPT_ACK: u64 = 0x064;
    pub(super) const STATUS: u64 = 0x070;
    pub(super) const QUEUE_DESC_LOW: u64 = 0x080;
    pub(super) const QUEUE_DESC_HIGH: u64 = 0x084;
    pub(super) const QUEUE_DRIVER_LOW: u64 = 0x090;
    pub(super) const QUEUE_DRIVER_HIGH: u64 = 0x094;
    pub(super) const QUEUE_DEVICE_LOW: u64 = 0x0a0;
    pub(super) const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
    pub(super) const SHM_LEN_LOW: u64 = 0x0b0;
    pub(super) const SHM_LEN_HIGH: u64 = 0x0b4;
    pub(super) const SHM_BASE_LOW: u64 = 0x0b8;
    pub(super) const SHM_BASE_HIGH: u64 = 0x0bc;
    pub(super) const CONFIG_GENERATION: u64 = 0x0fc;
    pub(super) const CONFIG: u64 = 0x100;
}

/// Offset of `QueueNotify`, where an ioeventfd listens.
pub(crate) const QUEUE_NOTIFY: u64 = reg::QUEUE_NOTIFY;

const TRANSPORT_FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// Status bits a driver may set.
const DRIVER_STATUS: u32 = VIRTIO_CONFIG_S_ACKNOWLEDGE
    | VIRTIO_CONFIG_S_DRIVER
    | VIRTIO_CONFIG_S_DRIVER_OK
    | VIRTIO_CONFIG_S_FEATURES_OK
    | VIRTIO_CONFIG_S_FAILED;

/// The registers of one queue, as the driver wrote them before it set QueueReady.
#[derive(Debug, Clone, Copy, Default)]
struct QueueSetup {
    size: u32,
    desc: u64,
    driver: u64,
    device: u64,
    ready: bool,
}

/// A reset by the driver. The lock of the registers is not held while the device carries it out.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Reset {
    #[default]
    None,
    /// A vCPU is in the device's `reset`.
    Running,
    /// It has returned, and the device may be in use still.
    Unconfirmed,
}

#[derive(Debug, Default)]
struct Registers {
    reset: Reset,
    device_features_sel: u32,
    driver_features_sel: u32,
    driver_features: u64,
    queue_sel: u32,
    status: u32,
    setup: Vec<QueueSetup>,
}

/// One device with its register window.
pub struct MmioTransport {
    device: Arc<dyn VirtioDevice>,
    queues: Arc<Queues>,
    interrupt: Arc<Interrupt>,
    queue_sizes: Vec<u16>,
    registers: Mutex<Registers>,
    /// DRIVER_OK was accepted and no reset came since.
    active: AtomicBool,
    /// Doorbell exits by queue, over the life of the machine.
    doorbells: Vec<AtomicU64>,
}

impl fmt::Debug for MmioTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MmioTransport")
            .field("device_id", &self.device.device_id())
            .finish_non_exhaustive()
    }
}

impl MmioTransport {
    /// Puts `device` behind a window; its queues will lie in `mem`.
    pub(crate) fn new(
        device: Arc<dyn VirtioDevice>,
        mem: GuestMemoryMmap,
        interrupt: Arc<Interrupt>,
        stop: StopFlag,
    ) -> Result<Self, virtio_queue::Error> {
        let queue_sizes = device.queue_sizes();
        let queues = Arc::new(Queues::new(
            mem,
            &queue_sizes,
            Arc::clone(&interrupt),
            stop,
        )?);
        let doorbells = queue_sizes.iter().map(|_| AtomicU64::new(0)).collect();
        let setup = vec![QueueSetup::default(); queue_sizes.len()];
        let registers = Mutex::new(Registers {
            setup,
            ..Registers::default()
        });
        Ok(Self {
            device,
            queues,
            interrupt,
            queue_sizes,
            registers,
            active: AtomicBool::new(false),
            doorbells,
        })
    }

    /// The device's interrupt.
    pub fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }

    /// Doorbells that made a vCPU thread leave the guest, by queue.
    pub fn doorbell_exits(&self) -> Vec<u64> {
        self.doorbells
            .iter()
            .map(|count| count.load(Ordering::Relaxed))
            .collect()
    }

    #[cfg(test)]
    pub(crate) fn queues(&self) -> &Queues {
        &self.queues
    }

    /// Queues whose doorbell is an eventfd, with it.
    pub(crate) fn doorbell_fds(&self) -> impl Iterator<Item = (u16, &EventFd)> {
        (0u16..)
            .zip(&self.queue_sizes)
            .filter_map(|(index, _)| Some((index, self.device.doorbell(index)?)))
    }

    fn registers(&self) -> MutexGuard<'_, Registers> {
        self.registers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn offered(&self) -> u64 {
        self.device.features() | TRANSPORT_FEATURES & self.device.transport_features()
    }

    /// A read of the window. Anything but a register at its own width reads as 0.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(offset) = offset.checked_sub(reg::CONFIG) {
            self.device.read_config(offset, data);
        } else if let Ok(word) = <&mut [u8; 4]>::try_from(data) {
            *word = self.read_register(offset).to_le_bytes();
        }
    }

    fn read_register(&self, offset: u64) -> u32 {
        let mut registers = self.registers();
        if offset == reg::STATUS {
            self.confirm_reset(&mut registers);
        }
        let queue = usize::try_from(registers.queue_sel).unwrap_or(usize::MAX);
        match offset {
            reg::MAGIC_VALUE => MAGIC,
            reg::VERSION => VERSION,
            reg::DEVICE_ID => self.device.device_id(),
            reg::VENDOR_ID => VENDOR_ID,
            reg::DEVICE_FEATURES => match registers.device_features_sel {
                0 => low(self.offered()),
                1 => high(self.offered()),
                _ => 0,
            },
            reg::QUEUE_NUM_MAX => self
                .queue_sizes
                .get(queue)
                .map_or(0, |size| u32::from(*size)),
            reg::QUEUE_READY => registers
                .setup
                .get(queue)
                .map_or(0, |setup| u32::from(setup.ready)),
            reg::INTERRUPT_STATUS => self.interrupt.status(),
            reg::STATUS => self.status(&registers),
            // No shared memory region: a length of -1 (section 4.2.2).
            reg::SHM_LEN_LOW | reg::SHM_LEN_HIGH | reg::SHM_BASE_LOW | reg::SHM_BASE_HIGH => {
                u32::MAX
            }
            reg::CONFIG_GENERATION => self.interrupt.config_generation(),
            _ => 0,
        }
    }

    fn status(&self, registers: &Registers) -> u32 {
        let needs_reset = self.interrupt.is_reset_needed();
        registers.status
            | if needs_reset {
                VIRTIO_CONFIG_S_NEEDS_RESET
            } else {
                0
            }
    }

    /// A write to the window. Anything but a register at its own width is ignored.
    pub fn write(&self, offset: u64, data: &[u8]) {
        if let Some(offset) = offset.checked_sub(reg::CONFIG) {
            self.device.write_config(offset, data);
        } else if let Ok(word) = <[u8; 4]>::try_from(data) {
            let value = u32::from_le_bytes(word);
            match offset {
                reg::QUEUE_NOTIFY => self.notify(value),
                _ => self.write_register(offset, value),
            }
        }
    }

    /// Runs the device on the calling vCPU thread.
    fn notify(&self, value: u32) {
        let Ok(index) = u16::try_from(value) else {
            return;
        };
        let Some(count) = self.doorbells.get(usize::from(index)) else {
            return;
        };
        count.fetch_add(1, Ordering::Relaxed);
        if self.active.load(Ordering::Acquire) && !self.interrupt.is_reset_needed() {
            self.device.notify(index, &self.queues);
        }
    }

    fn write_register(&self, offset: u64, value: u32) {
        if offset == reg::STATUS && value == 0 {
            return self.reset();
        }
        let mut registers = self.registers();
        let registers = &mut *registers;
        // A device that is being reset has nothing to be set up; its interrupts can still be acknowledged.
        if registers.reset != Reset::None && offset != reg::INTERRUPT_ACK {
            return;
        }
        match offset {
            reg::DEVICE_FEATURES_SEL => registers.device_features_sel = value,
            reg::DRIVER_FEATURES_SEL => registers.driver_features_sel = value,
            reg::DRIVER_FEATURES => self.write_features(registers, value),
            reg::QUEUE_SEL => registers.queue_sel = value,
            reg::INTERRUPT_ACK => self.interrupt.acknowledge(value),
            reg::STATUS => self.write_status(registers, value),
            reg::QUEUE_READY => self.write_ready(registers, value),
            _ => Self::write_setup(registers, offset, value),
        }
    }

    /// Features can be chosen between DRIVER and FEATURES_OK (section 3.1.1).
    fn write_features(&self, registers: &mut Registers, value: u32) {
        let negotiating = registers.status & VIRTIO_CONFIG_S_DRIVER != 0
            && registers.status & (VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_FAILED) == 0;
        if !negotiating {
            return;
        }
        let value = u64::from(value);
        match registers.driver_features_sel {
            0 => registers.driver_features = registers.driver_features & !0xffff_ffff | value,
            1 => registers.driver_features = registers.driver_features & 0xffff_ffff | value << 32,
            // A feature behind bit 63 cannot have been offered: remembered as one that cannot be accepted.
            _ if value != 0 => registers.driver_features |= !self.offered(),
            _ => {}
        }
    }

    fn write_status(&self, registers: &mut Registers, value: u32) {
        // NEEDS_RESET belongs to the device: a driver that writes back what it read does not mean it.
        let value = value & DRIVER_STATUS;
        // The driver must not clear bits except by reset (section 2.1.1).
        if registers.status & !value != 0 {
            return;
        }
        let mut accepted = value;
        if accepted & VIRTIO_CONFIG_S_ACKNOWLEDGE == 0 {
            accepted &= VIRTIO_CONFIG_S_FAILED;
        }
        if accepted & VIRTIO_CONFIG_S_DRIVER == 0 {
            accepted &= !(VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK);
        }
        if accepted & VIRTIO_CONFIG_S_FEATURES_OK != 0 && !self.features_acceptable(registers) {
            accepted &= !(VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK);
        }
        if accepted & VIRTIO_CONFIG_S_FEATURES_OK == 0 || accepted & VIRTIO_CONFIG_S_FAILED != 0 {
            accepted &= !VIRTIO_CONFIG_S_DRIVER_OK | registers.status;
        }
        let starts = accepted & !registers.status & VIRTIO_CONFIG_S_DRIVER_OK != 0;
        registers.status |= accepted;
        if starts {
            self.device
                .activate(registers.driver_features, &self.queues);
            self.active.store(true, Ordering::Release);
        }
    }

    /// Only offered bits, and VERSION_1 among them: this transport has no legacy mode.
    fn features_acceptable(&self, registers: &Registers) -> bool {
        registers.driver_features & !self.offered() == 0
            && registers.driver_features & (1 << VIRTIO_F_VERSION_1) != 0
    }

    fn reset(&self) {
        {
            let mut registers = self.registers();
            match registers.reset {
                Reset::None => {}
                Reset::Running => return,
                Reset::Unconfirmed => return self.confirm_reset(&mut registers),
            }
            registers.reset = Reset::Running;
            self.active.store(false, Ordering::Release);
            self.queues.set_resetting(true);
            for index in (0u16..).take(self.queues.len()) {
                // Taking the lock waits for a vCPU that is inside of the queue.
                if let Some(mut queue) = self.queues.lock(index) {
                    queue.reset();
                }
            }
        }
        // It may wait for another process, and other vCPUs must get at the registers meanwhile.
        self.device.reset();
        let mut registers = self.registers();
        registers.reset = Reset::Unconfirmed;
        self.confirm_reset(&mut registers);
    }

    /// Ends a reset once the device is quiet.
    fn confirm_reset(&self, registers: &mut Registers) {
        if registers.reset != Reset::Unconfirmed || !self.device.is_quiet() {
            return;
        }
        self.queues.set_resetting(false);
        self.interrupt.reset();
        registers.setup.fill(QueueSetup::default());
        *registers = Registers {
            setup: std::mem::take(&mut registers.setup),
            ..Registers::default()
        };
    }

    fn write_ready(&self, registers: &mut Registers, value: u32) {
        let Ok(index) = u16::try_from(registers.queue_sel) else {
            return;
        };
        let Some(setup) = registers.setup.get_mut(usize::from(index)) else {
            return;
        };
        let Some(mut queue) = self.queues.lock(index) else {
            return;
        };
        match value {
            0 => {
                queue.set_ready(false);
                setup.ready = false;
            }
            1 if !setup.ready && registers.status & VIRTIO_CONFIG_S_FEATURES_OK != 0 => {
                if start_queue(&mut queue, setup, self.queues.mem()) {
                    queue.set_event_idx(
                        registers.driver_features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0,
                    );
                    setup.ready = true;
                } else {
                    queue.reset();
                    self.interrupt.needs_reset();
                }
            }
            _ => {}
        }
    }

    /// Size and addresses can be written while the queue is not ready (section 4.2.2.2).
    fn write_setup(registers: &mut Registers, offset: u64, value: u32) {
        let Some(setup) = usize::try_from(registers.queue_sel)
            .ok()
            .and_then(|index| registers.setup.get_mut(index))
        else {
            return;
        };
        if setup.ready || registers.status & VIRTIO_CONFIG_S_FEATURES_OK == 0 {
            return;
        }
        match offset {
            reg::QUEUE_NUM => setup.size = value,
            reg::QUEUE_DESC_LOW => set_low(&mut setup.desc, value),
            reg::QUEUE_DESC_HIGH => set_high(&mut setup.desc, value),
            reg::QUEUE_DRIVER_LOW => set_low(&mut setup.driver, value),
            reg::QUEUE_DRIVER_HIGH => set_high(&mut setup.driver, value),
            reg::QUEUE_DEVICE_LOW => set_low(&mut setup.device, value),
            reg::QUEUE_DEVICE_HIGH => set_high(&mut setup.device, value),
            _ => {}
        }
    }
}

/// Moves the driver's setup into the queue; false if the rings cannot work: size 0, above the maximum or no power of
/// two, an address misaligned or outside of memory.
fn start_queue(queue: &mut virtio_queue::Queue, setup: &QueueSetup, mem: &GuestMemoryMmap) -> bool {
    let Ok(size) = u16::try_from(setup.size) else {
        return false;
    };
    queue.reset();
    let set = queue
        .try_set_size(size)
        .and_then(|()| queue.try_set_desc_table_address(GuestAddress(setup.desc)))
        .and_then(|()| queue.try_set_avail_ring_address(GuestAddress(setup.driver)))
        .and_then(|()| queue.try_set_used_ring_address(GuestAddress(setup.device)));
    // The queue crate takes address 0 of the available ring for "not set".
    if set.is_err() || setup.driver == 0 {
        return false;
    }
    queue.set_ready(true);
    queue.is_valid(mem)
}

fn low(value: u64) -> u32 {
    let [a, b, c, d, ..] = value.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

fn high(value: u64) -> u32 {
    low(value >> 32)
}

fn set_low(register: &mut u64, value: u32) {
    *register = *register & !0xffff_ffff | u64::from(value);
}

fn set_high(register: &mut u64, value: u32) {
    *register = *register & 0xffff_ffff | u64::from(value) << 32;
}

#[cfg(test)]
mod tests;
