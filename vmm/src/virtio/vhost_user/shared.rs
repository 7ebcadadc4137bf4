//! The state that the vCPUs and the two threads of the device share.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use rustix::event::epoll;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use super::connection::{self, CONFIG_BYTES, Eventfds, Ring};
use super::error::ServiceError;
use super::timeouts::Timeouts;
use crate::stop::Wake;
use crate::virtio::Queues;

/// Statistics of a front end about its service. The statistics of the store are the service's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrontendStats {
    /// The socket.
    pub socket: PathBuf,
    /// Whether the service is connected.
    pub connected: bool,
    /// Connections made.
    pub connections: u64,
    /// Times a driver became ready.
    pub activations: u64,
    /// Times the device broke: it needed a reset. A driver that tries in vain to have it again adds none.
    pub faults: u64,
    /// Interrupts that the service asked for.
    pub interrupts: u64,
    /// Doorbells that made a vCPU thread leave the guest. The service counts the others.
    pub doorbell_exits: u64,
}

/// The source of an event of the link thread.
pub(super) mod token {
    pub(in super::super) const WAKE: u64 = 0;
    pub(in super::super) const CALL: u64 = 1;
    pub(in super::super) const ERROR: u64 = 2;
    /// Plus the generation of the connection.
    pub(in super::super) const CONNECTION: u64 = 16;
}

/// A command for the control thread.
pub(super) enum Command {
    Start(Setup),
    Stop,
}

/// A driver that is ready.
pub(super) struct Setup {
    pub(super) features: u64,
    pub(super) mem: GuestMemoryMmap,
    pub(super) rings: Vec<Ring>,
}

pub(super) struct State {
    pub(super) command: Option<Command>,
    /// The device is being dropped.
    pub(super) closing: bool,
    /// How the first connection went.
    pub(super) first: Option<Result<(), ServiceError>>,
    /// A second descriptor of the present connection.
    pub(super) socket: Option<UnixStream>,
    pub(super) generation: u64,
    pub(super) features: u64,
    pub(super) config: [u8; CONFIG_BYTES],
    pub(super) request_queues: u16,
    /// Between `activate` and `reset`.
    pub(super) active: Option<Arc<Queues>>,
    /// Until when the rings must be served.
    pub(super) start_until: Option<Instant>,
    /// The service does not touch the guest's memory.
    pub(super) quiet: bool,
    /// A fault was counted and logged, and the rings have not been served since.
    pub(super) faulty: bool,
}

/// The state that the vCPUs and the two threads share. No thread holds its lock while it waits for the service.
pub(super) struct Shared {
    pub(super) path: PathBuf,
    pub(super) timeouts: Timeouts,
    pub(super) eventfds: Eventfds,
    pub(super) events: rustix::fd::OwnedFd,
    /// Wakes the link thread.
    pub(super) wake: Wake,
    state: Mutex<State>,
    changed: Condvar,
    connections: AtomicU64,
    pub(super) activations: AtomicU64,
    faults: AtomicU64,
    interrupts: AtomicU64,
    pub(super) doorbell_exits: AtomicU64,
}

impl Shared {
    /// For the service at `path`, before there is a connection.
    pub(super) fn new(path: &Path, timeouts: Timeouts) -> Result<Self, ServiceError> {
        let events = epoll::create(epoll::CreateFlags::CLOEXEC)
            .map_err(|error| system("create an epoll descriptor")(error.into()))?;
        Ok(Self {
            path: path.to_owned(),
            timeouts,
            eventfds: Eventfds {
                kicks: OnceLock::new(),
                call: eventfd()?,
                error: eventfd()?,
            },
            events,
            wake: Wake::new().map_err(system("create an eventfd"))?,
            state: Mutex::new(State {
                command: None,
                closing: false,
                first: None,
                socket: None,
                generation: 0,
                features: 0,
                config: [0; CONFIG_BYTES],
                request_queues: 0,
                active: None,
                start_until: None,
                quiet: true,
                faulty: false,
            }),
            changed: Condvar::new(),
            connections: AtomicU64::new(0),
            activations: AtomicU64::new(0),
            faults: AtomicU64::new(0),
            interrupts: AtomicU64::new(0),
            doorbell_exits: AtomicU64::new(0),
        })
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state and wakes the threads that wait for a change.
    pub(super) fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.changed.notify_all();
    }

    /// Waits until `done`, at most until `until` where that is given. Returns whether it is done.
    pub(super) fn wait(&self, until: Option<Instant>, done: impl Fn(&State) -> bool) -> bool {
        let mut state = self.state();
        while !done(&state) {
            state = match until {
                None => self
                    .changed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner),
                Some(until) => {
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return false;
                    }
                    self.changed
                        .wait_timeout(state, left)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                }
            };
        }
        true
    }

    /// Takes a new connection, so that its end is noticed and can be brought about.
    pub(super) fn connected(&self, socket: &UnixStream) -> std::io::Result<()> {
        let copy = socket.try_clone()?;
        let mut state = self.state();
        state.generation += 1;
        let watch = epoll::EventData::new_u64(token::CONNECTION + state.generation);
        let flags = epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
        epoll::add(&self.events, &copy, watch, flags)?;
        if state.closing {
            connection::shutdown(&copy);
        }
        state.socket = Some(copy);
        self.connections.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// The connection is over.
    pub(super) fn disconnected(&self) {
        self.change(|state| self.forget(state));
    }

    fn forget(&self, state: &mut State) {
        if let Some(socket) = state.socket.take() {
            // Not only by closing it: the other descriptor may be open still.
            let _ = epoll::delete(&self.events, &socket);
        }
    }

    /// The service closed a connection.
    pub(super) fn lost(&self, generation: u64) {
        self.fail_if(format_args!("it closed the connection"), |state| {
            let is_present = state.generation == generation;
            if is_present {
                self.forget(state);
            }
            is_present
        });
    }

    /// The time in which the rings must be served may be over.
    pub(super) fn look_at_time(&self) {
        self.fail_if(format_args!("it does not answer"), |state| {
            state
                .start_until
                .is_some_and(|until| until <= Instant::now())
        });
    }

    /// Marks the device as broken, if a driver uses it.
    pub(super) fn fail(&self, why: std::fmt::Arguments<'_>) {
        self.fail_if(why, |_| true);
    }

    /// Does so if `is_meant` finds that it is about the present state: a driver may reset the device at any time, and
    /// the next one uses it, perhaps on another connection.
    fn fail_if(&self, why: std::fmt::Arguments<'_>, is_meant: impl FnOnce(&mut State) -> bool) {
        let mut state = self.state();
        if !is_meant(&mut state) {
            return;
        }
        state.start_until = None;
        if state.closing {
            return;
        }
        let Some(queues) = &state.active else {
            return;
        };
        let is_new = !queues.interrupt().is_reset_needed() && !state.faulty;
        if is_new {
            self.faults.fetch_add(1, Ordering::Relaxed);
        }
        queues.interrupt().needs_reset();
        state.faulty = true;
        drop(state);
        if is_new {
            // Without the lock: the reader of the log may be slow, and a vCPU may be about to reset.
            log::warn!(
                "The tmem device needs a reset, its pages are lost: the service at {}: {why}; the guest's driver goes on \
                 trying to have it again",
                self.path.display()
            );
        }
    }

    /// Passes an interrupt on.
    pub(super) fn interrupt(&self) {
        if let Some(queues) = &self.state().active {
            self.interrupts.fetch_add(1, Ordering::Relaxed);
            queues.interrupt().used_ring();
        }
    }

    /// The statistics that are known here.
    pub(super) fn stats(&self) -> FrontendStats {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        FrontendStats {
            socket: self.path.clone(),
            connected: self.state().socket.is_some(),
            connections: count(&self.connections),
            activations: count(&self.activations),
            faults: count(&self.faults),
            interrupts: count(&self.interrupts),
            doorbell_exits: count(&self.doorbell_exits),
        }
    }
}

fn system(what: &'static str) -> impl Fn(std::io::Error) -> ServiceError {
    move |source| ServiceError::System { what, source }
}

/// An eventfd that neither end waits for.
pub(super) fn eventfd() -> Result<EventFd, ServiceError> {
    EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(system("create an eventfd"))
}
