//! The two threads of the device. `tmem control` makes the exchanges with the service, one at a time, and may wait for
//! ever in one. `tmem link` watches descriptors, passes interrupts on, and never waits for the service.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{Timespec, epoll};
use rustix::io::Errno;

use super::ServiceError;
use super::connection::{self, Connection, Fault, Ring};
use super::device::{Command, Setup, Shared};

/// Between the first two tries to connect; then twice as long each time, up to [`LONGEST_RETRY`].
const RETRY: Duration = Duration::from_millis(50);
/// A service that is restarted is found at the latest after this.
const LONGEST_RETRY: Duration = Duration::from_millis(800);

/// What an event of the link thread is about.
pub(super) mod token {
    pub(super) const WAKE: u64 = 0;
    pub(super) const CALL: u64 = 1;
    pub(super) const ERROR: u64 = 2;
    /// Plus the generation of the connection.
    pub(in super::super) const CONNECTION: u64 = 16;
}

/// The thread `tmem control`.
pub(super) struct Control {
    shared: Arc<Shared>,
    connection: Option<Connection>,
    generation: u64,
    /// Rings that the service may be serving.
    rings: Vec<Ring>,
}

impl Control {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            connection: None,
            generation: 0,
            rings: Vec::new(),
        }
    }

    /// Connects, then carries out commands until the device is dropped.
    pub(super) fn run(mut self, until: Instant) {
        let first = self.connect(until);
        let goes_on = first.is_ok();
        self.shared.change(|state| state.first = Some(first));
        while goes_on
            && self
                .shared
                .wait(None, |state| state.closing || state.command.is_some())
        {
            let command = {
                let mut state = self.shared.state();
                if state.closing {
                    break;
                }
                state.command.take()
            };
            match command {
                Some(Command::Start(setup)) => self.start(setup),
                Some(Command::Stop) => self.stop(),
                None => {}
            }
        }
    }

    /// Connects and shakes hands; tries again until `until` where nobody listens.
    fn connect(&mut self, until: Instant) -> Result<(), ServiceError> {
        let path = &self.shared.path;
        let refused = |source| ServiceError::Connect {
            path: path.clone(),
            source,
        };
        let mut retry = RETRY;
        let socket = loop {
            let error = match connection::connect(path) {
                Ok(socket) => break socket,
                Err(error) => error,
            };
            let may_come = matches!(
                error.kind(),
                io::ErrorKind::NotFound
                    | io::ErrorKind::ConnectionRefused
                    | io::ErrorKind::WouldBlock
            );
            let now = Instant::now();
            if !may_come || now >= until {
                return Err(refused(error));
            }
            let next = until.min(now + retry);
            retry = LONGEST_RETRY.min(retry * 2);
            let shared = &self.shared;
            if shared.wait(Some(next), |state| state.closing || state.command.is_some()) {
                return Err(refused(error));
            }
        };
        self.shared.connected(&socket).map_err(refused)?;
        let connection = match Connection::new(socket) {
            Ok(connection) => connection,
            Err(fault) => {
                self.shared.disconnected();
                let path = path.clone();
                return Err(match fault {
                    Fault::Failed(step, source) => ServiceError::Failed { path, step, source },
                    Fault::Unsuitable(what) => ServiceError::Unsuitable { path, what },
                });
            }
        };
        self.shared.change(|state| {
            let changed = state.config != connection.config;
            state.config = connection.config;
            state.features = connection.features;
            state.request_queues = connection.request_queues;
            if changed && let Some(queues) = &state.active {
                queues.interrupt().config_changed();
            }
            self.generation = state.generation;
        });
        self.connection = Some(connection);
        Ok(())
    }

    fn start(&mut self, setup: Setup) {
        if self.connection.is_some() && self.shared.state().socket.is_none() {
            // It was lost while no driver needed it.
            self.connection = None;
        }
        let until = Instant::now() + self.shared.patience.start;
        if self.connection.is_none()
            && let Err(error) = self.connect(until)
        {
            return self.shared.fail(format_args!("{}", Chain(&error)));
        }
        let Some(connection) = &mut self.connection else {
            return;
        };
        self.rings.clone_from(&setup.rings);
        let doors = &self.shared.doors;
        match connection.start(setup.features, &setup.mem, &setup.rings, doors) {
            Ok(()) => {
                let mut state = self.shared.state();
                state.start_until = None;
                state.faulty = false;
            }
            Err(fault) => {
                self.shared.fail(format_args!("{fault}"));
                self.retire();
            }
        }
    }

    /// Stops what was started. The device is quiet afterwards.
    fn stop(&mut self) {
        let rings = std::mem::take(&mut self.rings);
        let lost = self.shared.state().socket.is_none();
        match &mut self.connection {
            Some(_) if lost => self.connection = None,
            Some(connection) if !rings.is_empty() => {
                if let Err(fault) = connection.stop(&rings) {
                    log::warn!(
                        "The tmem service at {} was cut off: {fault}",
                        self.shared.path.display()
                    );
                    self.retire();
                }
            }
            _ => {}
        }
        self.shared.change(|state| state.quiet = true);
    }

    /// Gives a connection up that cannot be trusted with another message, and waits until the service has let go too.
    fn retire(&mut self) {
        if let Some(connection) = self.connection.take() {
            connection.close();
        }
        self.rings.clear();
        self.shared.disconnected();
    }
}

/// An error and its causes on one line.
struct Chain<'a>(&'a dyn std::error::Error);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

/// The thread `tmem link`. Descriptors that the service has too are watched edge-triggered and never read: it could
/// make a read wait. Every write to an eventfd is an edge, read or not.
pub(super) struct Link {
    shared: Arc<Shared>,
}

impl Link {
    pub(super) fn new(shared: Arc<Shared>) -> io::Result<Self> {
        let once = epoll::EventFlags::IN | epoll::EventFlags::ET;
        let data = epoll::EventData::new_u64;
        let events = &shared.events;
        epoll::add(
            events,
            &shared.wake,
            data(token::WAKE),
            epoll::EventFlags::IN,
        )?;
        let (call, error) = (borrowed(&shared.doors.call), borrowed(&shared.doors.error));
        epoll::add(events, call, data(token::CALL), once)?;
        epoll::add(events, error, data(token::ERROR), once)?;
        Ok(Self { shared })
    }

    pub(super) fn run(self) {
        let shared = &*self.shared;
        let mut ready = Vec::with_capacity(8);
        loop {
            let (closing, until) = {
                let state = shared.state();
                (state.closing, state.start_until)
            };
            if closing {
                return;
            }
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                shared.look_at_time();
                continue;
            }
            let timeout = left.and_then(|left| Timespec::try_from(left).ok());
            let room = rustix::buffer::spare_capacity(&mut ready);
            match epoll::wait(&shared.events, room, timeout.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return shared.fail(format_args!("it cannot be watched: {error}")),
            }
            for event in ready.drain(..) {
                self.event(event.data.u64());
            }
        }
    }

    fn event(&self, token: u64) {
        let shared = &*self.shared;
        match token {
            token::WAKE => shared.wake.clear(),
            token::CALL => shared.interrupt(),
            token::ERROR => shared.fail(format_args!("a ring makes no sense")),
            connection => shared.lost(connection.saturating_sub(token::CONNECTION)),
        }
    }
}

fn borrowed(eventfd: &vmm_sys_util::eventfd::EventFd) -> std::os::fd::BorrowedFd<'_> {
    // SAFETY: the descriptor is open as long as the eventfd, which outlives the borrow.
    unsafe { std::os::fd::BorrowedFd::borrow_raw(std::os::fd::AsRawFd::as_raw_fd(eventfd)) }
}
