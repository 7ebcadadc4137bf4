//! One connection of a front end: its messages and its rings, on one thread.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::epoll;
use rustix::io::Errno;
use rustix::time::Timespec;
use tmem_device::TmemDevice;
use tmem_protocol::EVENT_QUEUE;
use vhost::vhost_user::{BackendReqHandler, Error as VhostError};

use crate::backend::{Backend, FIRST_RING_TOKEN};
use crate::handle::ThreadHandle;
use crate::log::RateLimitedLog;
use crate::memory::Account;
use crate::peek::{Next, peek};
use crate::sigbus::Broken;

/// How long a ring is polled after its last request: about the cost of sleeping and being woken. That is `wakeup_us` of
/// `cargo xtask bench serve`, 17 to 31 us on a virtual machine, where it takes two exits.
pub const SPIN: Duration = Duration::from_micros(25);

/// Polls of idle rings between two reads of the clock, since a read takes longer than a poll.
const POLLS: u32 = 8;

/// How long a guest that always has requests can keep its own messages waiting.
const TURN: Duration = Duration::from_millis(1);

/// How long a service that ends goes on answering requests.
const FINISH: Duration = Duration::from_millis(200);

/// Time between two checks whether there is room for the descriptors of a message.
const ROOM: Duration = Duration::from_millis(20);

const CONTROL: u64 = 0;
const WAKE: u64 = 1;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Disconnect {
    #[error("Disconnected")]
    Closed,
    #[error("Stopped")]
    Stopped,
    #[error("Its memory is shorter than it said")]
    BrokenMemory,
    #[error(
        "Its memory lost pages while they were used, more than it may have made here (first-touch)"
    )]
    Untouched,
    #[error("Its memory cannot be unmapped, so no more of it is mapped")]
    Stuck,
    #[error("A bug: its thread panicked, and its pages are freed")]
    Panicked,
    #[error("Bad message: {0}")]
    Protocol(VhostError),
    #[error("The host cannot serve it: {0}")]
    Host(#[from] io::Error),
}

impl From<Errno> for Disconnect {
    fn from(error: Errno) -> Self {
        Self::Host(error.into())
    }
}

/// State that outlives a connection.
pub(crate) struct Guest<'a> {
    pub(crate) device: &'a Arc<TmemDevice>,
    pub(crate) handle: &'a ThreadHandle,
    pub(crate) log: &'a Arc<RateLimitedLog>,
    pub(crate) account: &'a Arc<Account>,
    /// Where the rings went on when the last connection ended.
    pub(crate) vring_bases: &'a mut Vec<u16>,
}

/// Serves one connection until it ends.
pub(crate) fn run(stream: UnixStream, guest: Guest<'_>) -> Disconnect {
    let Guest { handle, .. } = guest;
    guest.account.begin();
    let backend = match start(&stream, &guest) {
        Ok(backend) => backend,
        Err(error) => return Disconnect::Host(error),
    };
    let events = Arc::clone(lock(&backend).events());
    let handler = BackendReqHandler::from_stream(stream, Arc::clone(&backend));
    let mut session = Session {
        backend,
        handler,
        handle,
        log: guest.log,
        waits: false,
    };
    let end = session.run(&events);
    if handle.is_stopped() {
        lock(&session.backend).finish(Instant::now() + FINISH);
    }
    *guest.vring_bases = lock(&session.backend).vring_bases();
    end
}

#[expect(
    clippy::arc_with_non_send_sync,
    reason = "`BackendReqHandler` takes nothing else; it stays on this thread"
)]
fn start(stream: &UnixStream, guest: &Guest<'_>) -> io::Result<Arc<Mutex<Backend>>> {
    let events = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let watch = |token| epoll::EventData::new_u64(token);
    epoll::add(&events, stream, watch(CONTROL), epoll::EventFlags::IN)?;
    let wakes = guest.handle.wakes();
    epoll::add(&events, wakes, watch(WAKE), epoll::EventFlags::IN)?;
    let backend = Backend::new(
        Arc::clone(guest.device),
        guest.vring_bases,
        Arc::new(events),
        Arc::clone(guest.log),
        Arc::clone(guest.account),
    )
    .map_err(io::Error::other)?;
    Ok(Arc::new(Mutex::new(backend)))
}

struct Session<'a> {
    /// Used by this thread only; `BackendReqHandler` wants it shareable.
    backend: Arc<Mutex<Backend>>,
    handler: BackendReqHandler<Mutex<Backend>>,
    handle: &'a ThreadHandle,
    log: &'a RateLimitedLog,
    /// The next message waits for room for its descriptors. Its connection is not watched meanwhile.
    waits: bool,
}

/// How serving the rings ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pause {
    /// There was nothing to do for [`SPIN`].
    Idle,
    /// There was something to do all the time.
    Busy,
}

impl Session<'_> {
    fn run(&mut self, events: &impl std::os::fd::AsFd) -> Disconnect {
        let mut ready = Vec::with_capacity(32);
        let mut pause = Pause::Idle;
        loop {
            // Chains that came before notifications were on again are not kicked for.
            let poll = pause == Pause::Busy || lock(&self.backend).arm();
            let timeout = match poll {
                true => Some(Duration::ZERO),
                false => self.waits.then_some(ROOM),
            };
            let timeout = timeout.and_then(|time| Timespec::try_from(time).ok());
            let timeout = timeout.as_ref();
            match epoll::wait(events, rustix::buffer::spare_capacity(&mut ready), timeout) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return error.into(),
            }
            let mut asked = Ok(());
            if self.waits {
                asked = self.message();
            }
            for event in ready.drain(..) {
                asked = asked.and_then(|()| self.event(event.data.u64(), event.flags));
            }
            if let Err(end) = asked {
                return end;
            }
            pause = match self.serve() {
                Ok(pause) => pause,
                Err(end) => return end,
            };
        }
    }

    /// Receives the next message and does what it says, or leaves it for later when there is no room for its descriptors.
    fn message(&mut self) -> Result<(), Disconnect> {
        match peek(self.stream()) {
            Ok(Next::Message) => {}
            Ok(Next::Nothing) => return Ok(()),
            Ok(Next::NoRoom) => return self.wait_for_room(true),
            Ok(Next::Torn) => return Err(Disconnect::Protocol(VhostError::PartialMessage)),
            Err(Errno::CONNRESET) => return Err(Disconnect::Closed),
            Err(error) => return Err(error.into()),
        }
        self.wait_for_room(false)?;
        self.handler.handle_request().map_err(|error| match error {
            VhostError::Disconnected | VhostError::SocketBroken(_) => Disconnect::Closed,
            _ if self.handle.is_stopped() => Disconnect::Stopped,
            _ if !lock(&self.backend).may_map() => Disconnect::Stuck,
            error => Disconnect::Protocol(error),
        })
    }

    /// Stops watching the connection, or starts again: otherwise the waiting message would be reported all the time.
    fn wait_for_room(&mut self, waits: bool) -> Result<(), Disconnect> {
        if waits == self.waits {
            return Ok(());
        }
        if waits {
            self.log.warn(format_args!(
                "A message waits: the process has no room for its descriptors (RLIMIT_NOFILE)"
            ));
        }
        let flags = match waits {
            true => epoll::EventFlags::empty(),
            false => epoll::EventFlags::IN,
        };
        let events = Arc::clone(lock(&self.backend).events());
        epoll::modify(
            &events,
            self.stream(),
            epoll::EventData::new_u64(CONTROL),
            flags,
        )?;
        self.waits = waits;
        Ok(())
    }

    fn stream(&self) -> BorrowedFd<'_> {
        // SAFETY: the handler has it open as long as it lives.
        unsafe { BorrowedFd::borrow_raw(self.handler.as_raw_fd()) }
    }

    fn event(&mut self, token: u64, flags: epoll::EventFlags) -> Result<(), Disconnect> {
        match token {
            // Nobody waits for the answer to a message that waits.
            CONTROL if self.waits && flags.contains(epoll::EventFlags::HUP) => {
                return Err(Disconnect::Closed);
            }
            CONTROL => self.message()?,
            WAKE => {
                self.handle.clear();
                lock(&self.backend).deliver_events();
            }
            ring => {
                let ring = ring.saturating_sub(FIRST_RING_TOKEN);
                let ring = u16::try_from(ring).unwrap_or(u16::MAX);
                let mut backend = lock(&self.backend);
                backend.kicked(ring);
                if ring == EVENT_QUEUE {
                    backend.deliver_events();
                }
            }
        }
        Ok(())
    }

    /// Serves the rings until they have been idle for [`SPIN`], at most for [`TURN`].
    fn serve(&mut self) -> Result<Pause, Disconnect> {
        let mut backend = lock(&self.backend);
        let mut served = backend.serve();
        if served > 0 {
            backend.disarm();
        }
        let began = Instant::now();
        let mut last = (served > 0).then_some(began);
        loop {
            // Before anything else is promised on the strength of what was read.
            match backend.broken() {
                Some(Broken::Short) => return Err(Disconnect::BrokenMemory),
                Some(Broken::Untouched) => return Err(Disconnect::Untouched),
                None => {}
            }
            if self.handle.is_stopped() {
                return Err(Disconnect::Stopped);
            }
            let now = Instant::now();
            if served > 0 {
                last = Some(now);
            }
            match last {
                Some(last) if now.saturating_duration_since(last) < SPIN => {}
                _ => return Ok(Pause::Idle),
            }
            if now.saturating_duration_since(began) >= TURN {
                return Ok(Pause::Busy);
            }
            served = backend.serve();
            for _ in 1..POLLS {
                if served > 0 {
                    break;
                }
                std::hint::spin_loop();
                served = backend.serve();
            }
        }
    }
}

fn lock(backend: &Mutex<Backend>) -> MutexGuard<'_, Backend> {
    // No other thread uses it: a panic poisons it and ends the only user.
    backend.lock().unwrap_or_else(PoisonError::into_inner)
}
