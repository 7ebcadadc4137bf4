//! First serial port: a 16550 whose output goes to the console's backlog.

use std::io::{self, Write};
use std::sync::Arc;

use vm_superio::serial::SerialEvents;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

use crate::console::Backlog;
use crate::stop::Wake;

const IER_OFFSET: u8 = 1;
/// Received-data interrupt enable.
const IER_RECEIVE: u8 = 1;

/// The port, its interrupt line, and the wake-up of the thread that feeds it.
#[derive(Debug)]
pub(crate) struct SerialPort {
    uart: Serial<Line, RoomEvents, Output>,
    line: Arc<EventFd>,
    room: Arc<Wake>,
}

impl SerialPort {
    /// A port whose output goes to `backlog`, or nowhere.
    pub(crate) fn new(backlog: Option<Arc<Backlog>>) -> io::Result<Self> {
        let line = Arc::new(EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?);
        let room = Arc::new(Wake::new()?);
        let events = RoomEvents(Arc::clone(&room));
        let uart = Serial::with_events(Line(Arc::clone(&line)), events, Output(backlog));
        Ok(Self { uart, line, room })
    }

    /// Descriptor to register with KVM.
    pub(crate) fn line(&self) -> &EventFd {
        &self.line
    }

    /// Readable when the guest may have made room for input.
    pub(crate) fn room(&self) -> Arc<Wake> {
        Arc::clone(&self.room)
    }

    pub(crate) fn read(&mut self, offset: u8) -> u8 {
        self.uart.read(offset)
    }

    pub(crate) fn write(&mut self, offset: u8, value: u8) {
        // Output never fails; a line that is full is an interrupt already pending.
        let _ = self.uart.write(offset, value);
        if offset == IER_OFFSET && self.receives() {
            self.room.wake();
        }
    }

    /// Whether a driver waits for input. Earlier bytes would be lost when it clears the receiver.
    fn receives(&self) -> bool {
        self.uart.state().interrupt_enable & IER_RECEIVE != 0
    }

    /// Takes what fits of `input` and returns how much that was.
    pub(crate) fn feed(&mut self, input: &[u8]) -> usize {
        let room = self.uart.fifo_capacity().min(input.len());
        if room == 0 || !self.receives() {
            return 0;
        }
        // In loop-back mode the line is disconnected: the bytes are lost, as with real hardware.
        let _ = self
            .uart
            .enqueue_raw_bytes(input.get(..room).unwrap_or_default());
        room
    }
}

#[derive(Debug)]
struct Line(Arc<EventFd>);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

#[derive(Debug)]
struct RoomEvents(Arc<Wake>);

impl SerialEvents for RoomEvents {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}

    fn in_buffer_empty(&self) {
        self.0.wake();
    }
}

/// The output of the guest.
#[derive(Debug)]
struct Output(Option<Arc<Backlog>>);

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(backlog) = &self.0 {
            backlog.push(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, poll};

    use super::*;

    #[test]
    fn a_guest_that_writes_without_end_to_a_console_that_nobody_reads_is_not_stopped() {
        let backlog = Arc::new(Backlog::new());
        let mut port = SerialPort::new(Some(Arc::clone(&backlog))).unwrap();
        let bytes = 3 << 20;
        for _ in 0..bytes {
            port.write(0, b'x');
        }
        assert_eq!(backlog.left(), bytes);
    }

    #[test]
    fn input_waits_until_a_driver_receives_and_then_raises_the_line() {
        let mut port = SerialPort::new(None).unwrap();
        assert_eq!(port.feed(b"early"), 0);
        port.write(IER_OFFSET, IER_RECEIVE);
        assert_eq!(port.feed(b"hello"), 5);
        assert_eq!(port.line().read().unwrap(), 1);
        assert_eq!(port.read(0), b'h');
    }

    #[test]
    fn enabling_the_transmit_interrupt_raises_the_line() {
        let mut port = SerialPort::new(None).unwrap();
        port.write(IER_OFFSET, 2);
        assert_eq!(port.line().read().unwrap(), 1);
        assert_eq!(port.read(2) & 0xf, 2, "identified as transmitter empty");
    }

    #[test]
    fn a_full_receiver_takes_no_more_and_wakes_the_feeder_when_drained() {
        let mut port = SerialPort::new(None).unwrap();
        port.write(IER_OFFSET, IER_RECEIVE);
        let taken = port.feed(&[b'x'; 100]);
        assert!(taken < 100);
        assert_eq!(port.feed(b"y"), 0);
        port.room().clear();
        for _ in 0..taken {
            assert_eq!(port.read(0), b'x');
        }
        let room = port.room();
        let mut fds = [PollFd::new(&*room, PollFlags::IN)];
        assert_eq!(
            poll(&mut fds, Some(&rustix::event::Timespec::default())).unwrap(),
            1
        );
    }
}
