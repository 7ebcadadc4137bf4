//! Power management: the fixed registers of ACPI (PM1 event and control blocks, with the power button and power-off),
//! the reset register, and the pvpanic port at which a guest reports a panic. [`boot`](crate::boot) tells the guest
//! where they are.

use std::io;

use vmm_sys_util::eventfd::EventFd;

use crate::layout;

/// The type of sleep that the guest writes to power off.
pub(crate) const SLEEP_TYPE_S5: u8 = 5;

/// Power button, in the status and the enable register.
const POWER_BUTTON: u16 = 1 << 8;
/// Control register: events are the operating system's, not the firmware's. Always so.
const SCI_ENABLE: u16 = 1;
/// Control register: which sleep.
const SLEEP_TYPE_SHIFT: u16 = 10;
const SLEEP_TYPE_MASK: u16 = 7;
/// Control register: enter the sleep state (SLP_EN). Reads as 0.
const SLEEP_ENABLE: u16 = 1 << 13;

/// pvpanic: the guest panicked.
const PANICKED: u8 = 1;
/// pvpanic: it panicked, and a kernel of its own takes over to save what there is to save.
const CRASH_LOADED: u8 = 2;

/// The effect of an access on the machine, besides its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    None,
    /// The guest pulled the reset line.
    Reset,
    /// The guest powered itself off.
    PowerOff,
    /// The guest panicked; it may still write to its console and pull the reset line.
    Panicked,
    /// The guest panicked, and a kernel that it keeps for that takes over.
    CrashKernel,
}

/// The registers and the line of their interrupt.
#[derive(Debug)]
pub(crate) struct PowerPorts {
    status: u16,
    enable: u16,
    control: u16,
    line: EventFd,
}

impl PowerPorts {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            status: 0,
            enable: 0,
            control: 0,
            line: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
        })
    }

    /// Descriptor to register with KVM.
    pub(crate) fn line(&self) -> &EventFd {
        &self.line
    }

    /// Presses the power button. False when no driver of the guest has enabled it yet; a driver that does so later
    /// still gets the event.
    pub(crate) fn press(&mut self) -> bool {
        self.status |= POWER_BUTTON;
        self.raise();
        self.enable & POWER_BUTTON != 0
    }

    /// An interrupt as long as there is an event that the guest wants to know of.
    fn raise(&self) {
        if self.status & self.enable != 0 {
            // A full counter is an interrupt already pending.
            let _ = self.line.write(1);
        }
    }

    /// `in`, for the ports of [`layout`] that are ours.
    pub(crate) fn read(&self, port: u16, data: &mut [u8]) {
        if port == layout::PVPANIC_PORT {
            data.fill(PANICKED | CRASH_LOADED);
            return;
        }
        let control = (self.control | SCI_ENABLE) & !SLEEP_ENABLE;
        let registers = [self.status, self.enable, control].map(u16::to_le_bytes);
        let from = usize::from(port.wrapping_sub(layout::PM1_EVENT));
        for (to, byte) in data.iter_mut().zip(registers.iter().flatten().skip(from)) {
            *to = *byte;
        }
    }

    /// `out`, for the same ports.
    pub(crate) fn write(&mut self, port: u16, data: &[u8]) -> Effect {
        if port == layout::PVPANIC_PORT {
            return match data.first() {
                Some(events) if events & CRASH_LOADED != 0 => Effect::CrashKernel,
                Some(events) if events & PANICKED != 0 => Effect::Panicked,
                _ => Effect::None,
            };
        }
        let mut effect = Effect::None;
        for (port, byte) in (port..).zip(data) {
            effect = match self.write_byte(port, *byte) {
                Effect::None => effect,
                other => other,
            };
        }
        self.raise();
        effect
    }

    fn write_byte(&mut self, port: u16, byte: u8) -> Effect {
        let offset = port.wrapping_sub(layout::PM1_EVENT);
        let shift = 8 * (offset & 1);
        let (value, mask) = (u16::from(byte) << shift, 0xff << shift);
        match offset / 2 {
            // A bit written as 1 is cleared.
            0 => self.status &= !value,
            1 => self.enable = self.enable & !mask | value,
            2 => {
                self.control = self.control & !mask | value;
                let sleep_type = self.control >> SLEEP_TYPE_SHIFT & SLEEP_TYPE_MASK;
                if value & SLEEP_ENABLE != 0 && sleep_type == u16::from(SLEEP_TYPE_S5) {
                    return Effect::PowerOff;
                }
            }
            _ => {}
        }
        Effect::None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: u16 = layout::PM1_EVENT;
    const ENABLE: u16 = layout::PM1_EVENT + 2;
    const CONTROL: u16 = layout::PM1_CONTROL;

    fn word(ports: &PowerPorts, port: u16) -> u16 {
        let mut data = [0xaa; 2];
        ports.read(port, &mut data);
        u16::from_le_bytes(data)
    }

    fn interrupts(ports: &PowerPorts) -> u64 {
        ports.line().read().unwrap_or(0)
    }

    #[test]
    fn a_button_pressed_is_an_interrupt_until_the_guest_takes_note() {
        let mut ports = PowerPorts::new().unwrap();
        ports.write(ENABLE, &POWER_BUTTON.to_le_bytes());
        assert_eq!(interrupts(&ports), 0);
        assert!(ports.press());
        assert_eq!(interrupts(&ports), 1);
        assert_eq!(word(&ports, STATUS), POWER_BUTTON);
        // A write of zeros clears nothing, so the line is raised once more.
        ports.write(STATUS, &[0, 0]);
        assert_eq!(interrupts(&ports), 1);
        ports.write(STATUS, &POWER_BUTTON.to_le_bytes());
        assert_eq!((word(&ports, STATUS), interrupts(&ports)), (0, 0));
    }

    #[test]
    fn a_button_pressed_before_anyone_listens_is_heard_when_a_driver_does() {
        let mut ports = PowerPorts::new().unwrap();
        assert!(!ports.press());
        assert_eq!(interrupts(&ports), 0);
        ports.write(ENABLE + 1, &[1]);
        assert_eq!(interrupts(&ports), 1);
    }

    #[test]
    fn the_guest_powers_off_with_the_type_of_s5_and_sleeps_no_other_way() {
        let mut ports = PowerPorts::new().unwrap();
        for sleep_type in 0..8 {
            let word = SLEEP_ENABLE | sleep_type << SLEEP_TYPE_SHIFT;
            let expected = match sleep_type {
                5 => Effect::PowerOff,
                _ => Effect::None,
            };
            assert_eq!(ports.write(CONTROL, &word.to_le_bytes()), expected);
        }
        // As Linux does it: the type first, then the same with the bit.
        let mut ports = PowerPorts::new().unwrap();
        let kind = 5 << SLEEP_TYPE_SHIFT | SCI_ENABLE;
        assert_eq!(ports.write(CONTROL, &kind.to_le_bytes()), Effect::None);
        assert_eq!(word(&ports, CONTROL), kind);
        let go = (kind | SLEEP_ENABLE).to_le_bytes();
        assert_eq!(ports.write(CONTROL, &go), Effect::PowerOff);
        assert_eq!(word(&ports, CONTROL), kind, "the bit reads as 0");
    }

    #[test]
    fn the_machine_is_in_acpi_mode_from_the_start_and_enable_bits_read_back() {
        let mut ports = PowerPorts::new().unwrap();
        assert_eq!(word(&ports, CONTROL) & SCI_ENABLE, SCI_ENABLE);
        ports.write(CONTROL, &[0, 0]);
        assert_eq!(word(&ports, CONTROL) & SCI_ENABLE, SCI_ENABLE);
        ports.write(ENABLE, &0x0321u16.to_le_bytes());
        assert_eq!(word(&ports, ENABLE), 0x0321);
    }

    #[test]
    fn a_panic_is_told_apart_from_one_that_a_crash_kernel_looks_after() {
        let mut ports = PowerPorts::new().unwrap();
        let port = layout::PVPANIC_PORT;
        let mut events = [0];
        ports.read(port, &mut events);
        assert_eq!(events, [PANICKED | CRASH_LOADED]);
        assert_eq!(ports.write(port, &[0]), Effect::None);
        assert_eq!(ports.write(port, &[]), Effect::None);
        assert_eq!(ports.write(port, &[4]), Effect::None);
        assert_eq!(ports.write(port, &[PANICKED]), Effect::Panicked);
        assert_eq!(ports.write(port, &[CRASH_LOADED]), Effect::CrashKernel);
    }

    #[test]
    fn accesses_of_any_width_and_place_do_no_harm() {
        let mut ports = PowerPorts::new().unwrap();
        for port in STATUS..=CONTROL + 1 {
            for length in [0, 1, 2, 3, 4, 8, 64] {
                let mut data = vec![0xff; length];
                ports.read(port, &mut data);
                ports.write(port, &data);
            }
        }
    }
}
