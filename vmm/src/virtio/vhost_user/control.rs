//! The thread `tmem control`: it makes the exchanges with the service, one at a time, and may wait forever in one.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tmem_base::error::one_line;

use super::connection::{self, Connection, Fault, Ring};
use super::error::ServiceError;
use super::shared::{Command, Setup, Shared};

/// Between the first two tries to connect; then twice as long each time, up to [`LONGEST_RETRY`].
const RETRY: Duration = Duration::from_millis(50);
/// A service that is restarted is found at the latest after this.
const LONGEST_RETRY: Duration = Duration::from_millis(800);

/// The thread `tmem control`.
pub(super) struct ControlThread {
    shared: Arc<Shared>,
    connection: Option<Connection>,
    generation: u64,
    /// Rings that the service may be serving.
    rings: Vec<Ring>,
}

impl ControlThread {
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

    /// Connects and makes the handshake; tries again until `until` while no process listens.
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
        let until = Instant::now() + self.shared.timeouts.start;
        if self.connection.is_none()
            && let Err(error) = self.connect(until)
        {
            return self.shared.fail(format_args!("{}", one_line(&error)));
        }
        let Some(connection) = &mut self.connection else {
            return;
        };
        self.rings.clone_from(&setup.rings);
        let eventfds = &self.shared.eventfds;
        match connection.start(setup.features, &setup.mem, &setup.rings, eventfds) {
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

    /// Gives up a connection on which no further message is safe, and waits until the service has closed it, too.
    fn retire(&mut self) {
        if let Some(connection) = self.connection.take() {
            connection.close();
        }
        self.rings.clear();
        self.shared.disconnected();
    }
}
