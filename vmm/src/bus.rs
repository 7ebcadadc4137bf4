//! Dispatch of exits to user space: I/O ports and MMIO windows.

use std::sync::{Arc, Mutex, PoisonError};

use crate::layout;
use crate::power::{Effect, PowerPorts};
use crate::serial::SerialPort;
use crate::virtio::mmio::MmioTransport;

/// Keyboard controller: data and command/status port.
const I8042_DATA: u16 = 0x60;
const I8042_COMMAND: u16 = 0x64;
/// "Pulse the reset line": how `reboot=k` ends the guest.
const I8042_RESET: u8 = 0xfe;
/// Reset control register: the guest is reset when this bit is written as 1.
const RESET_NOW: u8 = 1 << 2;
const SERIAL_LAST: u16 = layout::SERIAL_PORT + 7;
const PM1_LAST: u16 = layout::PM1_CONTROL + 1;

/// All devices a vCPU can reach by an exit.
#[derive(Debug)]
pub(crate) struct Bus {
    serial: Arc<Mutex<SerialPort>>,
    power: Arc<Mutex<PowerPorts>>,
    transports: Vec<Arc<MmioTransport>>,
}

impl Bus {
    pub(crate) fn new(
        serial: Arc<Mutex<SerialPort>>,
        power: Arc<Mutex<PowerPorts>>,
        transports: Vec<Arc<MmioTransport>>,
    ) -> Self {
        Self {
            serial,
            power,
            transports,
        }
    }

    /// `in`: each byte of a wider access is all ones, as on a bus where no device answers.
    pub(crate) fn port_in(&self, port: u16, data: &mut [u8]) {
        data.fill(0xff);
        match (port, data) {
            (layout::SERIAL_PORT..=SERIAL_LAST, data) => {
                let mut serial = self.serial.lock().unwrap_or_else(PoisonError::into_inner);
                // A string instruction reads the same register again for each byte.
                for byte in data {
                    *byte = serial.read(offset(port));
                }
            }
            // Both buffers of the controller are always empty.
            (I8042_DATA | I8042_COMMAND, data) => data.fill(0),
            (layout::PM1_EVENT..=PM1_LAST | layout::PVPANIC_PORT, data) => {
                let power = self.power.lock().unwrap_or_else(PoisonError::into_inner);
                power.read(port, data);
            }
            _ => {}
        }
    }

    /// `out`.
    pub(crate) fn port_out(&self, port: u16, data: &[u8]) -> Effect {
        match port {
            layout::SERIAL_PORT..=SERIAL_LAST => {
                let mut serial = self.serial.lock().unwrap_or_else(PoisonError::into_inner);
                for byte in data {
                    serial.write(offset(port), *byte);
                }
                Effect::None
            }
            I8042_COMMAND if data.first() == Some(&I8042_RESET) => Effect::Reset,
            layout::RESET_PORT if data.first().is_some_and(|byte| byte & RESET_NOW != 0) => {
                Effect::Reset
            }
            layout::PM1_EVENT..=PM1_LAST | layout::PVPANIC_PORT => {
                let mut power = self.power.lock().unwrap_or_else(PoisonError::into_inner);
                power.write(port, data)
            }
            _ => Effect::None,
        }
    }

    /// Read of an address that is no memory.
    pub(crate) fn mmio_read(&self, address: u64, data: &mut [u8]) {
        match self.window(address) {
            Some((transport, offset)) => transport.read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// Write to an address that is no memory.
    pub(crate) fn mmio_write(&self, address: u64, data: &[u8]) {
        if let Some((transport, offset)) = self.window(address) {
            transport.write(offset, data);
        }
    }

    fn window(&self, address: u64) -> Option<(&MmioTransport, u64)> {
        let relative = address.checked_sub(layout::MMIO_BASE)?;
        let index = usize::try_from(relative / layout::MMIO_WINDOW).ok()?;
        Some((self.transports.get(index)?, relative % layout::MMIO_WINDOW))
    }
}

fn offset(port: u16) -> u8 {
    (port - layout::SERIAL_PORT).to_le_bytes()[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bus() -> Bus {
        let serial = SerialPort::new(None).unwrap();
        let power = PowerPorts::new().unwrap();
        Bus::new(
            Arc::new(Mutex::new(serial)),
            Arc::new(Mutex::new(power)),
            Vec::new(),
        )
    }

    #[test]
    fn the_reset_lines_end_the_guest_and_nothing_else_does() {
        let bus = bus();
        assert_eq!(bus.port_out(0x64, &[0xfe]), Effect::Reset);
        let acpi = [layout::RESET_VALUE];
        assert_eq!(bus.port_out(layout::RESET_PORT, &acpi), Effect::Reset);
        // With the second, a PC is told the kind of the next reset.
        for (port, data) in [(0x64, 0xd1), (0xcf9, 0x02), (0x60, 0xfe), (0x80, 0xfe)] {
            assert_eq!(bus.port_out(port, &[data]), Effect::None);
        }
        for port in [0x64, layout::RESET_PORT] {
            assert_eq!(bus.port_out(port, &[]), Effect::None);
        }
    }

    #[test]
    fn sleep_for_good_and_a_panic_reach_their_registers() {
        let bus = bus();
        let sleep = 0x2000u16 | 5 << 10;
        let control = layout::PM1_CONTROL;
        assert_eq!(
            bus.port_out(control, &sleep.to_le_bytes()),
            Effect::PowerOff
        );
        assert_eq!(bus.port_out(0x505, &[1]), Effect::Panicked);
        let mut word = [0; 2];
        bus.port_in(control, &mut word);
        assert_eq!(word[0] & 1, 1, "ACPI mode is on");
    }

    #[test]
    fn linux_finds_the_input_buffer_of_the_keyboard_controller_empty() {
        let mut status = [0xaa];
        bus().port_in(0x64, &mut status);
        assert_eq!(status[0] & 2, 0);
    }

    #[test]
    fn addresses_where_nothing_is_read_as_ones() {
        let bus = bus();
        let mut data = [0; 4];
        bus.mmio_read(layout::MMIO_BASE, &mut data);
        assert_eq!(data, [0xff; 4]);
        data = [0; 4];
        bus.port_in(0xcf8, &mut data);
        assert_eq!(data, [0xff; 4]);
        bus.mmio_write(0, &[1, 2, 3]);
        bus.mmio_write(u64::MAX, &[1]);
    }
}
