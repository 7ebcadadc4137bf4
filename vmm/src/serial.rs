//! First serial port: a 16550 whose output is our standard output.

use std::io::{self, Write};
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, poll};
use vm_superio::serial::SerialEvents;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

use crate::stop::{StopFlag, Wake};

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
    /// A port that writes to standard output until `stop`.
    pub(crate) fn new(stop: StopFlag) -> io::Result<Self> {
        let line = Arc::new(EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?);
        let room = Arc::new(Wake::new()?);
        let events = RoomEvents(Arc::clone(&room));
        let uart = Serial::with_events(
            Line(Arc::clone(&line)),
            events,
            Output {
                stop,
                closed: false,
            },
        );
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
        // The sink loses what it cannot write; a line that is full is an interrupt already pending.
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
        // In loop-back mode the line is cut: the bytes are gone, as on the real thing.
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

/// Standard output without a buffer. A reader that is slow makes the guest wait; one that is gone loses the output;
/// neither can keep the machine from stopping, for the kick of a vCPU interrupts the write.
#[derive(Debug)]
struct Output {
    stop: StopFlag,
    closed: bool,
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        while !self.closed && !self.stop.is_stopped() {
            match rustix::io::write(rustix::stdio::stdout(), bytes) {
                Ok(written) => return Ok(written),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => {
                    let stdout = rustix::stdio::stdout();
                    let mut fds = [
                        PollFd::new(&stdout, PollFlags::OUT),
                        PollFd::new(&self.stop, PollFlags::IN),
                    ];
                    let _ = poll(&mut fds, None);
                }
                Err(error) => {
                    log::warn!("console output is lost from here on: {error}");
                    self.closed = true;
                }
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn input_waits_until_a_driver_receives_and_then_raises_the_line() {
        let mut port = SerialPort::new(StopFlag::new().unwrap()).unwrap();
        assert_eq!(port.feed(b"early"), 0);
        port.write(IER_OFFSET, IER_RECEIVE);
        assert_eq!(port.feed(b"hello"), 5);
        assert_eq!(port.line().read().unwrap(), 1);
        assert_eq!(port.read(0), b'h');
    }

    #[test]
    fn enabling_the_transmit_interrupt_raises_the_line() {
        let mut port = SerialPort::new(StopFlag::new().unwrap()).unwrap();
        port.write(IER_OFFSET, 2);
        assert_eq!(port.line().read().unwrap(), 1);
        assert_eq!(port.read(2) & 0xf, 2, "identified as transmitter empty");
    }

    #[test]
    fn a_full_receiver_takes_no_more_and_wakes_the_feeder_when_drained() {
        let mut port = SerialPort::new(StopFlag::new().unwrap()).unwrap();
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
