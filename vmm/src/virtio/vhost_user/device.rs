//! The device as the transport sees it. No vCPU ever waits for the service, except in a reset, and there for a bounded
//! time: whatever the service is asked goes through the control thread.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use rustix::event::epoll;
use tmem_protocol::DEVICE_ID;
use virtio_queue::QueueT;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use super::connection::{self, CONFIG_BYTES, Doors, Ring};
use super::threads::{Control, Link, token};
use super::{EVENT_QUEUE_SIZE, Patience, REQUEST_QUEUE_SIZE, ServiceError};
use crate::stop::Wake;
use crate::virtio::{Queues, VirtioDevice};

/// Bits of a feature word that belong to the device type (virtio 1.2, section 2.2).
const DEVICE_FEATURES: u64 = 0xff_ffff;

/// What a front end knows of its service. The figures of the store are the service's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkFigures {
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

/// What the control thread is to do.
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

/// What the vCPUs and the two threads share. Its lock is never held while something waits for the service.
pub(super) struct Shared {
    pub(super) path: PathBuf,
    pub(super) patience: Patience,
    pub(super) doors: Doors,
    pub(super) events: rustix::fd::OwnedFd,
    /// Wakes the link thread.
    pub(super) wake: Wake,
    state: Mutex<State>,
    changed: Condvar,
    connections: AtomicU64,
    activations: AtomicU64,
    faults: AtomicU64,
    interrupts: AtomicU64,
    doorbell_exits: AtomicU64,
}

impl Shared {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state and tells whoever waits for a change.
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
            // Without the lock: whoever reads the log may be slow, and a vCPU may be about to reset.
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
}

/// A tmem device served by another process. Dropping it closes the connection and joins its threads.
pub struct VhostUser {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl std::fmt::Debug for VhostUser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VhostUser")
            .field("socket", &self.shared.path)
            .finish_non_exhaustive()
    }
}

impl VhostUser {
    /// Connects to the service at `path`, and waits for it and its answers no longer than `patience` says.
    pub fn connect(path: &Path, patience: Patience) -> Result<Self, ServiceError> {
        let system = |what| move |source| ServiceError::System { what, source };
        let eventfd = || {
            EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
                .map_err(system("create an eventfd"))
        };
        let events = epoll::create(epoll::CreateFlags::CLOEXEC)
            .map_err(|error| system("create an epoll descriptor")(error.into()))?;
        let shared = Arc::new(Shared {
            path: path.to_owned(),
            patience,
            doors: Doors {
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
        });
        let mut device = Self {
            shared: Arc::clone(&shared),
            threads: Vec::new(),
        };
        let link = Link::new(Arc::clone(&shared)).map_err(system("watch the service"))?;
        let control = Control::new(Arc::clone(&shared));
        let until = Instant::now() + patience.connect;
        for (name, run) in [
            (
                "tmem link",
                Box::new(move || link.run()) as Box<dyn FnOnce() + Send>,
            ),
            ("tmem control", Box::new(move || control.run(until))),
        ] {
            let thread = std::thread::Builder::new().name(name.to_owned()).spawn(run);
            device
                .threads
                .push(thread.map_err(system("start a thread"))?);
        }
        if !shared.wait(Some(until), |state| state.first.is_some()) {
            // Cut off and joined: its last word tells a service that is silent from one that is not there.
            drop(device);
            return Err(match shared.state().first.take() {
                Some(Err(error @ ServiceError::Connect { .. })) => error,
                _ => ServiceError::Silent {
                    path: path.to_owned(),
                    patience: patience.connect,
                },
            });
        }
        let first = shared.state().first.take();
        first.unwrap_or(Ok(()))?;
        let queues = shared.state().request_queues + 1;
        let kicks = (0..queues)
            .map(|_| eventfd())
            .collect::<Result<Vec<_>, _>>()?;
        // Set here only.
        let _ = shared.doors.kicks.set(kicks);
        Ok(device)
    }

    #[cfg(test)]
    pub(super) fn doors(&self) -> &Doors {
        &self.shared.doors
    }

    /// What is known here.
    pub fn figures(&self) -> LinkFigures {
        let shared = &self.shared;
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        LinkFigures {
            socket: shared.path.clone(),
            connected: shared.state().socket.is_some(),
            connections: count(&shared.connections),
            activations: count(&shared.activations),
            faults: count(&shared.faults),
            interrupts: count(&shared.interrupts),
            doorbell_exits: count(&shared.doorbell_exits),
        }
    }
}

impl Drop for VhostUser {
    fn drop(&mut self) {
        self.shared.change(|state| {
            state.closing = true;
            if let Some(socket) = &state.socket {
                connection::shutdown(socket);
            }
        });
        self.shared.wake.wake();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                log::error!("A thread of the tmem device panicked");
            }
        }
    }
}

impl VirtioDevice for VhostUser {
    fn device_id(&self) -> u32 {
        DEVICE_ID
    }

    fn features(&self) -> u64 {
        self.shared.state().features & DEVICE_FEATURES
    }

    fn transport_features(&self) -> u64 {
        self.shared.state().features
    }

    fn shares_memory(&self) -> bool {
        true
    }

    fn queue_sizes(&self) -> Vec<u16> {
        let kicks = self.shared.doors.kicks.get().map_or(0, Vec::len);
        let mut sizes = vec![REQUEST_QUEUE_SIZE; kicks];
        if let Some(first) = sizes.first_mut() {
            *first = EVENT_QUEUE_SIZE;
        }
        sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        let config = self.shared.state().config;
        for (to, from) in data.iter_mut().zip(config.iter().skip(offset)) {
            *to = *from;
        }
    }

    fn activate(&self, features: u64, queues: &Arc<Queues>) {
        let mut rings = Vec::new();
        for index in (0u16..).take(queues.len()) {
            let Some(queue) = queues.lock(index) else {
                continue;
            };
            if queue.ready() {
                rings.push(Ring {
                    index,
                    size: queue.size(),
                    descriptors: queue.desc_table(),
                    available: queue.avail_ring(),
                    used: queue.used_ring(),
                });
            }
        }
        let setup = Setup {
            features,
            mem: queues.mem().clone(),
            rings,
        };
        self.shared.activations.fetch_add(1, Ordering::Relaxed);
        self.shared.change(|state| {
            state.active = Some(Arc::clone(queues));
            state.quiet = false;
            state.start_until = Some(Instant::now() + self.shared.patience.start);
            state.command = Some(Command::Start(setup));
        });
        self.shared.wake.wake();
    }

    /// KVM takes the doorbells, all that name a queue. Nothing is passed on here: a write to the eventfd could wait
    /// for the service.
    fn notify(&self, _queue: u16, _queues: &Queues) {
        self.shared.doorbell_exits.fetch_add(1, Ordering::Relaxed);
    }

    fn doorbell(&self, queue: u16) -> Option<&EventFd> {
        self.shared.doors.kicks.get()?.get(usize::from(queue))
    }

    fn reset(&self) {
        let until = Instant::now() + self.shared.patience.stop;
        let mut was_active = false;
        self.shared.change(|state| {
            was_active = state.active.take().is_some();
            state.start_until = None;
            if !state.quiet {
                // A start that has not begun is not needed any more.
                state.command = Some(Command::Stop);
            }
        });
        if !self.shared.wait(Some(until), |state| state.quiet) && was_active {
            log::warn!(
                "The tmem service at {} does not confirm a reset: until it does, or closes the connection, it may write \
                 to the guest's memory",
                self.shared.path.display()
            );
        }
    }

    fn is_quiet(&self) -> bool {
        self.shared.state().quiet
    }
}
