//! The thread that takes console output to where it belongs.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use super::backlog::{Backlog, mark};
use super::config::ConsoleConfig;
use super::file::LimitedFile;
use crate::stop::StopFlag;

/// Bytes of one write: as many as a pipe that polls as writable accepts without waiting (`PIPE_BUF`).
pub(super) const CHUNK: usize = 4096;
/// When the guest has ended, a reader that takes nothing for so long gets nothing more.
const STALL: Duration = Duration::from_secs(2);
/// Time between two signals to a thread that must return from its write.
const KICK: Duration = Duration::from_millis(20);
/// Signals until a thread that the system holds (a disk that does not answer) is left behind.
const KICKS: u32 = 100;

/// Destination of the output.
trait Sink: std::fmt::Debug + Send {
    /// Writes a chunk; false when it is lost, or in part. Ends early when `shared` says to give up.
    fn write(&mut self, bytes: &[u8], shared: &Shared) -> bool;

    /// Whether nothing will ever arrive any more, so that it is no use to tell what was left out.
    fn is_closed(&self) -> bool;
}

/// A console that is open and not written to yet.
#[derive(Debug)]
pub(crate) struct Opened {
    sink: Box<dyn Sink>,
    backlog: Arc<Backlog>,
}

impl Opened {
    /// The destination in `config`; none if output is discarded.
    pub(crate) fn new(config: &ConsoleConfig) -> io::Result<Option<Self>> {
        let sink: Box<dyn Sink> = match config {
            ConsoleConfig::None => return Ok(None),
            ConsoleConfig::Stdio => Box::new(Stream {
                to: rustix::stdio::stdout().try_clone_to_owned()?,
                closed: false,
            }),
            ConsoleConfig::File { path, limit } => Box::new(Logged {
                file: LimitedFile::open(path, *limit)?,
                path: path.clone(),
                failing: false,
            }),
        };
        let backlog = Arc::new(Backlog::new());
        Ok(Some(Self { sink, backlog }))
    }

    /// Where the guest's output is put.
    pub(crate) fn backlog(&self) -> Arc<Backlog> {
        Arc::clone(&self.backlog)
    }

    /// Begins to write.
    pub(crate) fn start(self) -> io::Result<Output> {
        Output::start(self.sink, self.backlog)
    }
}

/// A descriptor that may block: a pipe, a terminal.
#[derive(Debug)]
struct Stream {
    to: OwnedFd,
    /// It has no reader any more.
    closed: bool,
}

impl Sink for Stream {
    fn write(&mut self, bytes: &[u8], shared: &Shared) -> bool {
        if self.closed {
            return false;
        }
        write_stream(&self.to, bytes, shared).unwrap_or_else(|error| {
            log::warn!("console output is lost from here on: {error}");
            self.closed = true;
            false
        })
    }

    fn is_closed(&self) -> bool {
        self.closed
    }
}

/// A file with a limit.
#[derive(Debug)]
struct Logged {
    file: LimitedFile,
    path: PathBuf,
    /// The last write failed.
    failing: bool,
}

impl Sink for Logged {
    fn write(&mut self, bytes: &[u8], shared: &Shared) -> bool {
        let result = self.file.write(bytes);
        // A line when it begins, not for each byte.
        if let Err(error) = &result
            && !self.failing
        {
            let path = self.path.display();
            log::warn!("console output is lost: cannot write to {path}: {error}");
        }
        self.failing = result.is_err();
        shared.progress();
        result.is_ok()
    }

    fn is_closed(&self) -> bool {
        false
    }
}

/// Writes all, or returns false when told to give up.
fn write_stream(to: &OwnedFd, bytes: &[u8], shared: &Shared) -> io::Result<bool> {
    let mut rest = bytes;
    while !rest.is_empty() {
        let mut fds = [
            PollFd::new(to, PollFlags::OUT),
            PollFd::new(&shared.give_up, PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Ok(_) if shared.give_up.is_stopped() => return Ok(false),
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        match rustix::io::write(to, rest) {
            Ok(count) => {
                rest = rest.get(count..).unwrap_or_default();
                shared.progress();
            }
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(true)
}

/// The state that the thread and its owner share.
#[derive(Debug)]
struct Shared {
    give_up: StopFlag,
    /// Grows with everything that is written.
    written: AtomicU64,
    finished: Mutex<bool>,
    at_end: Condvar,
}

impl Shared {
    fn new() -> io::Result<Self> {
        Ok(Self {
            give_up: StopFlag::new()?,
            written: AtomicU64::new(0),
            finished: Mutex::new(false),
            at_end: Condvar::new(),
        })
    }

    fn progress(&self) {
        self.written.fetch_add(1, Ordering::SeqCst);
    }

    /// Waits at most so long for the end of the thread.
    fn wait(&self, patience: Duration) -> bool {
        let finished = self.finished.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self
            .at_end
            .wait_timeout_while(finished, patience, |finished| !*finished);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

/// Tells the owner that the thread it lives in has ended, also by a panic.
struct AtEnd(Arc<Shared>);

impl Drop for AtEnd {
    fn drop(&mut self) {
        *self
            .0
            .finished
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = true;
        self.0.at_end.notify_one();
    }
}

/// The thread. Dropping it writes the rest of the backlog, as long as a reader takes it, and joins the thread.
#[derive(Debug)]
pub(crate) struct Output {
    thread: Option<JoinHandle<()>>,
    backlog: Arc<Backlog>,
    shared: Arc<Shared>,
    stall: Duration,
}

impl Output {
    /// Begins to take `backlog` to `sink`.
    fn start(mut sink: Box<dyn Sink>, backlog: Arc<Backlog>) -> io::Result<Self> {
        // The handler does nothing: the signal's only effect is that it ends a blocking write with EINTR.
        register_signal_handler(SIGRTMIN(), no_op)?;
        let shared = Arc::new(Shared::new()?);
        let at_end = AtEnd(Arc::clone(&shared));
        let from = Arc::clone(&backlog);
        let thread = std::thread::Builder::new()
            .name("console out".into())
            .spawn(move || carry(&mut *sink, &from, &at_end.0))?;
        Ok(Self {
            thread: Some(thread),
            backlog,
            shared,
            stall: STALL,
        })
    }

    fn finish(&mut self) {
        self.backlog.end();
        let mut written = self.shared.written.load(Ordering::SeqCst);
        while !self.shared.wait(self.stall) {
            let now = self.shared.written.load(Ordering::SeqCst);
            if now == written {
                self.abandon();
                break;
            }
            written = now;
        }
        if let Some(thread) = self.thread.take_if(|_| self.shared.wait(Duration::ZERO)) {
            // A panic wrote its own message.
            let _ = thread.join();
        }
    }

    /// Nobody takes the rest. The thread may be inside of a write.
    fn abandon(&self) {
        self.shared.give_up.stop();
        for _ in 0..KICKS {
            if let Some(thread) = &self.thread {
                let _ = thread.kill(SIGRTMIN());
            }
            if self.shared.wait(KICK) {
                break;
            }
        }
        log::warn!(
            "{} bytes of console output are lost: nobody takes them",
            self.backlog.left()
        );
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        self.finish();
    }
}

extern "C" fn no_op(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

/// The thread's function.
fn carry(sink: &mut dyn Sink, backlog: &Backlog, shared: &Shared) {
    let mut chunk = vec![0; CHUNK];
    // Bytes that did not arrive since the last that did.
    let mut lost = 0u64;
    loop {
        let count = backlog.take(&mut chunk);
        let bytes = chunk.get(..count).unwrap_or_default();
        if count == 0 || shared.give_up.is_stopped() {
            break;
        }
        let told = lost == 0 || sink.is_closed() || sink.write(mark(lost).as_bytes(), shared);
        if told && sink.write(bytes, shared) {
            lost = 0;
        } else {
            lost = lost.saturating_add(count as u64);
        }
    }
    if lost > 0 && !sink.is_closed() {
        sink.write(mark(lost).as_bytes(), shared);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{PipeReader, Read};

    use super::*;

    /// The reading end of a pipe and a sink at its other end.
    fn pipe() -> (PipeReader, Box<dyn Sink>) {
        let (reader, writer) = std::io::pipe().unwrap();
        let stream = Stream {
            to: writer.into(),
            closed: false,
        };
        (reader, Box::new(stream))
    }

    /// A disk that is full for some writes.
    #[derive(Debug)]
    struct Full {
        writes: u32,
        full: std::ops::Range<u32>,
        content: Vec<u8>,
    }

    impl Sink for Full {
        fn write(&mut self, bytes: &[u8], _: &Shared) -> bool {
            let fits = !self.full.contains(&self.writes);
            self.writes += 1;
            if fits {
                self.content.extend_from_slice(bytes);
            }
            fits
        }

        fn is_closed(&self) -> bool {
            false
        }
    }

    #[test]
    fn output_of_a_time_in_which_the_disk_was_full_is_missed_and_counted() {
        let backlog = Backlog::new();
        for letter in *b"abcd" {
            backlog.push(&[letter; CHUNK]);
        }
        backlog.end();
        // "b", then the mark in front of "c".
        let mut sink = Full {
            writes: 0,
            full: 1..3,
            content: Vec::new(),
        };
        carry(&mut sink, &backlog, &Shared::new().unwrap());
        let [a, d] = [b'a', b'd'].map(|letter| String::from_utf8(vec![letter; CHUNK]).unwrap());
        let missing = 2 * CHUNK as u64;
        let content = String::from_utf8(sink.content).unwrap();
        assert_eq!(content, format!("{a}{}{d}", mark(missing)));
    }

    #[test]
    fn a_disk_that_stays_full_is_no_endless_work() {
        let backlog = Backlog::with_capacity(CHUNK);
        for _ in 0..10 {
            backlog.push(&[b'x'; CHUNK]);
        }
        backlog.end();
        let mut sink = Full {
            writes: 0,
            full: 0..u32::MAX,
            content: Vec::new(),
        };
        carry(&mut sink, &backlog, &Shared::new().unwrap());
        assert!(sink.writes < 10, "{} writes", sink.writes);
    }

    #[test]
    fn the_last_words_of_a_guest_arrive_before_the_end() {
        let (mut reader, sink) = pipe();
        let backlog = Arc::new(Backlog::new());
        let output = Output::start(sink, Arc::clone(&backlog)).unwrap();
        let text = "Kernel panic\n".repeat(5000);
        backlog.push(text.as_bytes());
        let read = std::thread::spawn(move || {
            let mut all = String::new();
            reader.read_to_string(&mut all).unwrap();
            all
        });
        drop(output);
        assert_eq!(read.join().unwrap(), text);
    }

    #[test]
    fn a_reader_that_takes_nothing_stops_neither_the_guest_nor_the_end() {
        let (mut reader, sink) = pipe();
        let backlog = Arc::new(Backlog::new());
        let mut output = Output::start(sink, Arc::clone(&backlog)).unwrap();
        output.stall = Duration::from_millis(1);
        // More than the pipe and the backlog hold, on the thread that drops it.
        for _ in 0..2000 {
            backlog.push(&[b'x'; 1024]);
        }
        drop(output);
        assert!(backlog.left() > 0);
        let mut all = Vec::new();
        reader.read_to_end(&mut all).unwrap();
        assert!(all.len() < 2000 * 1024);
    }

    #[test]
    fn a_reader_that_is_late_is_told_how_much_it_missed() {
        let (mut reader, sink) = pipe();
        let backlog = Arc::new(Backlog::new());
        let output = Output::start(sink, Arc::clone(&backlog)).unwrap();
        let total = 3000 * 1024;
        for _ in 0..3000 {
            backlog.push(&[b'x'; 1024]);
        }
        let end = std::thread::spawn(move || drop(output));
        let mut all = String::new();
        reader.read_to_string(&mut all).unwrap();
        end.join().unwrap();
        let (_, rest) = all.split_once("[tmem: ").expect("a mark");
        let (left_out, _) = rest
            .split_once(" bytes of console output left out]")
            .unwrap();
        let arrived = all.matches('x').count();
        assert_eq!(arrived + left_out.parse::<usize>().unwrap(), total);
    }

    #[test]
    fn a_reader_that_is_gone_costs_the_output_and_nothing_else() {
        let (reader, sink) = pipe();
        drop(reader);
        let backlog = Arc::new(Backlog::new());
        let output = Output::start(sink, Arc::clone(&backlog)).unwrap();
        for _ in 0..100 {
            backlog.push(&[b'x'; 100_000]);
        }
        drop(output);
        assert_eq!(backlog.left(), 0);
    }
}
