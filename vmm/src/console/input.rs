//! Standard input: raw while it is a terminal, read by one thread that feeds the serial port.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

use crate::serial::SerialPort;
use crate::stop::StopFlag;

/// Ctrl-A: starts an escape where the terminal is raw.
const ESCAPE: u8 = 1;
/// Input that waits for the guest; the terminal keeps the rest.
const PENDING_MAX: usize = 4096;

/// A terminal in raw mode; dropping it restores what was.
#[derive(Debug)]
struct RawTerminal(Termios);

impl RawTerminal {
    /// `None` where standard input is no terminal.
    fn new() -> io::Result<Option<Self>> {
        let Ok(before) = tcgetattr(rustix::stdio::stdin()) else {
            return Ok(None);
        };
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &raw)?;
        Ok(Some(Self(before)))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &self.0);
    }
}

/// The thread that reads it. Dropping it stops and joins the thread, then restores the terminal.
#[derive(Debug)]
pub(crate) struct Input {
    thread: Option<JoinHandle<()>>,
    stop: StopFlag,
    _terminal: Option<RawTerminal>,
}

impl Input {
    /// Starts feeding `serial`; calls `quit` when the escape is typed.
    pub(crate) fn start(
        serial: Arc<Mutex<SerialPort>>,
        quit: impl FnOnce() + Send + 'static,
    ) -> io::Result<Self> {
        let terminal = RawTerminal::new()?;
        if terminal.is_some() {
            eprint!("tmem: Ctrl-A x ends the guest, Ctrl-A a sends Ctrl-A\r\n");
        }
        let stop = StopFlag::new()?;
        let escapes = terminal.is_some();
        let stopped = stop.clone();
        let thread = std::thread::Builder::new()
            .name("console".into())
            .spawn(move || {
                if feed(&serial, &stopped, escapes) == Ended::Quit {
                    quit();
                }
            })?;
        Ok(Self {
            thread: Some(thread),
            stop,
            _terminal: terminal,
        })
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        self.stop.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Ended {
    Stopped,
    EndOfInput,
    Quit,
}

fn feed(serial: &Mutex<SerialPort>, stop: &StopFlag, escapes: bool) -> Ended {
    let lock = || serial.lock().unwrap_or_else(PoisonError::into_inner);
    let room = lock().room();
    let stdin = rustix::stdio::stdin();
    let mut keys = Keys {
        escapes,
        escaped: false,
    };
    let mut pending = Vec::new();
    let mut open = true;
    while open || !pending.is_empty() {
        let mut fds = vec![
            PollFd::new(stop, PollFlags::IN),
            PollFd::new(&*room, PollFlags::IN),
        ];
        if open && pending.len() < PENDING_MAX {
            fds.push(PollFd::new(&stdin, PollFlags::IN));
        }
        if poll(&mut fds, None).is_err() {
            continue;
        }
        if stop.is_stopped() {
            return Ended::Stopped;
        }
        room.clear();
        if fds.get(2).is_some_and(|fd| !fd.revents().is_empty()) {
            let mut bytes = [0; 256];
            match rustix::io::read(stdin, &mut bytes) {
                Ok(0) => open = false,
                Ok(count) => {
                    if keys.filter(bytes.get(..count).unwrap_or_default(), &mut pending) {
                        return Ended::Quit;
                    }
                }
                Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
                Err(_) => open = false,
            }
        }
        if !pending.is_empty() {
            let taken = lock().feed(&pending);
            pending.drain(..taken);
        }
    }
    Ended::EndOfInput
}

/// Recognizes the escape in the typed characters.
struct Keys {
    escapes: bool,
    escaped: bool,
}

impl Keys {
    /// Appends to `out` the characters for the guest; true when the user wants to quit.
    fn filter(&mut self, typed: &[u8], out: &mut Vec<u8>) -> bool {
        for &byte in typed {
            match (self.escaped, byte) {
                (true, b'x') => return true,
                (true, b'a' | ESCAPE) => out.push(ESCAPE),
                (true, other) => out.extend([ESCAPE, other]),
                (false, ESCAPE) if self.escapes => {
                    self.escaped = true;
                    continue;
                }
                (false, other) => out.push(other),
            }
            self.escaped = false;
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(escapes: bool, parts: &[&[u8]]) -> (Vec<u8>, bool) {
        let mut keys = Keys {
            escapes,
            escaped: false,
        };
        let mut out = Vec::new();
        let quit = parts.iter().any(|part| keys.filter(part, &mut out));
        (out, quit)
    }

    #[test]
    fn control_a_x_quits_even_when_typed_slowly() {
        assert!(typed(true, &[b"ls\x01x"]).1);
        assert!(typed(true, &[b"ls\x01", b"x"]).1);
    }

    #[test]
    fn control_a_a_sends_one_control_a_and_unknown_escapes_pass() {
        assert_eq!(typed(true, &[b"\x01a"]), (vec![1], false));
        assert_eq!(typed(true, &[b"\x01\x01x"]), (vec![1, b'x'], false));
        assert_eq!(typed(true, &[b"\x01c"]), (vec![1, b'c'], false));
    }

    #[test]
    fn input_that_is_no_terminal_passes_unchanged() {
        assert_eq!(typed(false, &[b"\x01x"]), (vec![1, b'x'], false));
    }
}
