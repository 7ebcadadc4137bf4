//! One guest: its domain, its device, its socket and the thread that serves them.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::thread::JoinHandleExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Once, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::time::Timespec;
use tmem_base::socket::SocketFile;
use tmem_device::{StoreQueues, TmemConfig, TmemDevice};
use tmem_protocol::feature;
use tmem_store::{Domain, Gate};

use crate::config::GuestConfig;
use crate::handle::ThreadHandle;
use crate::log::RateLimitedLog;
use crate::memory::Account;
use crate::seccomp;
use crate::session::{self, Disconnect};

/// Most pools of one guest.
pub(crate) const MAX_POOLS: u8 = 32;

/// Pages that a guest should have in one store. Its thread serves loads between two stores, so more would make loads wait.
const STORE_BATCH: u16 = 16;

/// Rest after a connection that ended badly, so that a client that does it on purpose costs little.
const PAUSE: Duration = Duration::from_millis(50);

/// How long [`Guest::join`] waits for a thread that does not react.
const JOIN: Duration = Duration::from_millis(700);

/// A guest of the service. Dropping it stops it.
#[derive(Debug)]
pub(crate) struct Guest {
    pub(crate) config: GuestConfig,
    pub(crate) domain: Domain,
    pub(crate) device: Arc<TmemDevice>,
    pub(crate) handle: Arc<ThreadHandle>,
    pub(crate) account: Arc<Account>,
    thread: Option<JoinHandle<()>>,
    /// Absent where another process made the socket.
    _file: Option<SocketFile>,
}

impl Guest {
    /// Starts to serve connections to `listener`.
    pub(crate) fn start(
        config: GuestConfig,
        domain: Domain,
        listener: UnixListener,
        file: Option<SocketFile>,
        gate: Option<Arc<dyn Gate>>,
    ) -> io::Result<Self> {
        install_nudge();
        listener.set_nonblocking(true)?;
        let device = Arc::new(TmemDevice::new(
            domain.clone(),
            TmemConfig {
                request_queues: config.request_queues(),
                stores: StoreQueues {
                    count: config.queues,
                    batch: STORE_BATCH,
                },
                features: features(&config),
                max_pools: MAX_POOLS.into(),
                swap_bytes: config.swap,
                limit_bytes: config.limit.unwrap_or(0),
                dedup: config.dedup,
            },
        ));
        let handle = Arc::new(ThreadHandle::new()?);
        let account = Arc::new(Account::new(&config, gate, Arc::clone(&handle)));
        let server = Server {
            listener,
            device: Arc::clone(&device),
            handle: Arc::clone(&handle),
            log: Arc::new(RateLimitedLog::new(&config.name)),
            account: Arc::clone(&account),
            keep: config.keep,
            vring_bases: Vec::new(),
        };
        let (told, confined) = mpsc::sync_channel(1);
        // The kernel keeps 15 bytes of the name.
        let thread = thread::Builder::new()
            .name(format!("guest {}", config.name))
            .spawn(move || {
                let confined = seccomp::confine(seccomp::Thread::Guest);
                let serve = confined.is_ok();
                let _ = told.send(confined);
                if serve {
                    server.run();
                }
            })?;
        match confined.recv() {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(io::Error::other(error)),
            Err(_) => return Err(io::Error::other("its thread ended")),
        }
        Ok(Self {
            config,
            domain,
            device,
            handle,
            account,
            thread: Some(thread),
            _file: file,
        })
    }

    /// Asks the thread to end; [`Self::join`] waits for it.
    pub(crate) fn stop(&self) {
        self.handle.stop();
    }

    /// Waits for the thread after [`Self::stop`], until `deadline`. Returns whether it ended.
    pub(crate) fn join(&mut self, deadline: Instant) -> bool {
        let Some(thread) = self.thread.take() else {
            return true;
        };
        while !thread.is_finished() {
            if Instant::now() >= deadline {
                log::error!("The thread of guest {} does not end", self.config.name);
                return false;
            }
            // It may sit in a read or write of a descriptor of the guest.
            // SAFETY: not joined yet, so the handle is of a thread that exists or just ended.
            unsafe { libc::pthread_kill(thread.as_pthread_t(), wake_signal()) };
            thread::sleep(Duration::from_millis(1));
        }
        if thread.join().is_err() {
            log::error!("The thread of guest {} panicked", self.config.name);
        }
        true
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.stop();
        self.join(Instant::now() + JOIN);
    }
}

/// The features that the device offers. Shared pools work for guests that may join a group.
fn features(config: &GuestConfig) -> u64 {
    let mut features = feature::bit(feature::EVENTS) | feature::bit(feature::EPHEMERAL);
    if !config.groups.is_empty() {
        features |= feature::bit(feature::SHARED);
    }
    features
}

/// The signal that interrupts a system call of a guest's thread and does nothing else.
fn wake_signal() -> libc::c_int {
    vmm_sys_util::signal::SIGRTMIN()
}

fn install_nudge() {
    extern "C" fn nothing(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // Without SA_RESTART, which is the point of it.
        if let Err(error) = vmm_sys_util::signal::register_signal_handler(wake_signal(), nothing) {
            log::error!("Cannot handle the signal that wakes a thread: {error}");
        }
    });
}

/// The thread of a guest.
struct Server {
    listener: UnixListener,
    device: Arc<TmemDevice>,
    handle: Arc<ThreadHandle>,
    log: Arc<RateLimitedLog>,
    account: Arc<Account>,
    keep: Duration,
    /// Where the rings go on, while the pools of a lost connection are kept.
    vring_bases: Vec<u16>,
}

impl Server {
    fn run(mut self) {
        let mut kept_until = None;
        while !self.handle.is_stopped() {
            let accepted = self.accept(kept_until);
            // Checked before the connection is used: a client that connects as the time is over finds no pools.
            if kept_until.is_some_and(|until| Instant::now() >= until) {
                self.log.info(format_args!("Its pools are freed"));
                kept_until = None;
                self.forget();
            }
            let stream = match accepted {
                Ok(Some(stream)) => stream,
                Ok(None) => continue,
                Err(error) => {
                    self.log.warn(format_args!("Cannot accept: {error}"));
                    self.rest(PAUSE);
                    continue;
                }
            };
            kept_until = None;
            let end = self.serve_or_panic(stream);
            let keep = match end {
                // The guest is gone or its VMM restarts, or the host is short of something, of descriptors for
                // example: the device and its pools wait for it.
                Disconnect::Closed | Disconnect::Host(_) => self.keep,
                // The pages of such a guest are not kept.
                Disconnect::BrokenMemory
                | Disconnect::Untouched
                | Disconnect::Stuck
                | Disconnect::Protocol(_)
                | Disconnect::Panicked
                | Disconnect::Stopped => Duration::ZERO,
            };
            if keep.is_zero() {
                self.forget();
            } else {
                kept_until = Instant::now().checked_add(keep);
            }
            // Only now, so that an observer who sees the end of the connection also sees its effects.
            self.handle.disconnected();
            match end {
                Disconnect::Closed | Disconnect::Stopped => {
                    self.log.info(format_args!("{end}"));
                }
                end => {
                    self.log.warn(format_args!("{end}"));
                    self.rest(PAUSE);
                }
            }
        }
    }

    /// A panic costs this guest its connection and its pages, and affects no other guest.
    fn serve_or_panic(&mut self, stream: UnixStream) -> Disconnect {
        // Incomplete work is dropped with the guest's pools: no lock is held here, and the data under the locks of the
        // store is consistent at any time.
        let served = catch_unwind(AssertUnwindSafe(|| self.serve(stream)));
        served.unwrap_or_else(|_| {
            self.account.count_panic();
            Disconnect::Panicked
        })
    }

    fn serve(&mut self, stream: UnixStream) -> Disconnect {
        match stream.try_clone() {
            Ok(clone) => self.handle.connected(clone),
            Err(error) => return Disconnect::Host(error),
        }
        self.log.info(format_args!("Connected"));
        session::run(
            stream,
            session::Guest {
                device: &self.device,
                handle: &self.handle,
                log: &self.log,
                account: &self.account,
                vring_bases: &mut self.vring_bases,
            },
        )
    }

    /// Frees what the guest has.
    fn forget(&mut self) {
        self.device.reset();
        self.vring_bases.clear();
    }

    /// Waits for a connection, a wake-up or `until`.
    fn accept(&self, until: Option<Instant>) -> io::Result<Option<UnixStream>> {
        let mut waits = [
            PollFd::from_borrowed_fd(self.listener.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.handle.wakes(), PollFlags::IN),
        ];
        let timeout = until.map(|until| timespec(until.saturating_duration_since(Instant::now())));
        match poll(&mut waits, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        self.handle.clear();
        match self.listener.accept() {
            Ok((stream, _)) => Ok(Some(stream)),
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock
                | io::ErrorKind::Interrupted
                | io::ErrorKind::ConnectionAborted => Ok(None),
                _ => Err(error),
            },
        }
    }

    /// Waits for a stop, at most for `time`.
    fn rest(&self, time: Duration) {
        let until = Instant::now() + time;
        while !self.handle.is_stopped() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let mut waits = [PollFd::from_borrowed_fd(self.handle.wakes(), PollFlags::IN)];
            let _ = poll(&mut waits, Some(&timespec(left)));
            self.handle.clear();
        }
    }
}

fn timespec(time: Duration) -> Timespec {
    Timespec::try_from(time).unwrap_or(Timespec {
        tv_sec: i64::MAX,
        tv_nsec: 0,
    })
}
