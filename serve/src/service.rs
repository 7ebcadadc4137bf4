//! The service: one store, its guests, and what an operator does with them.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Resource, getrlimit};
use tmem_base::socket::SocketFile;
use tmem_control::api::Compression;
use tmem_device::TmemDevice;
use tmem_device::tmem::MetricsSnapshot;
use tmem_store::{Domain, DomainConfig, Gate, Store, StoreConfig};

use crate::activation;
use crate::config::{Config, GuestConfig, MAX_GUESTS};
use crate::guest::{Guest, MAX_POOLS};
use crate::listen::{ListenError, listen};
use crate::memory::MemoryReport;
use crate::seccomp::{Thread, confine_or_abort, prepare};

/// How long the guests of a service together may take to stop.
const STOP: Duration = Duration::from_millis(700);

/// How long a reserve waits for the host to have memory.
const PATIENCE: Duration = Duration::from_secs(2);

/// Time between two checks for it.
const PAUSE: Duration = Duration::from_millis(5);

/// Descriptors of a ring: kick, call, error.
const RING_DESCRIPTORS: u64 = 3;

/// Further descriptors of a guest: 8 memory regions and 32 that come with one message (`vhost`), the
/// listener, the connection twice, epoll, the wake-up, the file behind its pages, the faults of its memory; and some room.
const GUEST_DESCRIPTORS: u64 = 8 + 32 + 7 + 2;

/// Descriptors that belong to no guest: control plane, signals, standard streams, statistics of the host's memory.
const OWN_DESCRIPTORS: u64 = 128;

/// Why a service or a guest of it does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The store does not take the numbers.
    #[error("The store refuses this configuration")]
    Store(#[source] tmem_store::ConfigError),
    /// The socket of a guest.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// A name that is taken.
    #[error("There is a guest named {0:?}")]
    SameName(String),
    /// A socket that is taken.
    #[error("Socket {} belongs to guest {guest:?}", path.display())]
    SameSocket {
        /// The path of the socket.
        path: std::path::PathBuf,
        /// The guest that has it.
        guest: String,
    },
    /// More guests than the service takes.
    #[error("There are {MAX_GUESTS} guests already")]
    TooManyGuests,
    /// Each guest can hold so many descriptors that there would be none for others.
    #[error("The guests can need {needed} descriptors, and the limit of the process is {limit}")]
    Descriptors {
        /// The descriptors that all guests together can need.
        needed: u64,
        /// The limit.
        limit: u64,
    },
    /// The host does not have what was reserved.
    #[error(
        "The reserve of guest {guest:?} cannot be populated: the host has memory for {populated} of {reserve} bytes. Make the reserve smaller, or do without reserve-populate"
    )]
    Populate {
        /// Name of the guest.
        guest: String,
        /// Bytes that are there.
        populated: u64,
        /// Bytes that were promised.
        reserve: u64,
    },
    /// The service is ending.
    #[error("The service is ending")]
    Stopped,
    /// No thread, or no descriptor for it.
    #[error("Cannot start a thread")]
    Thread(#[source] io::Error),
}

/// A running service. Dropping it stops it.
#[derive(Debug)]
pub struct Service {
    store: Store,
    gate: Option<Arc<dyn Gate>>,
    /// Reserves are taken from the host before they are needed.
    populates: bool,
    /// Most descriptors of the process; asked for while that is allowed.
    descriptors: Option<u64>,
    guests: Mutex<BTreeMap<String, Guest>>,
    /// Guests that are being added: each has its name, its socket and its descriptors already. Locked after `guests`.
    adding: Mutex<Adding>,
}

#[derive(Debug, Default)]
struct Adding {
    guests: Vec<GuestConfig>,
    /// No guest is added any more.
    stopped: bool,
}

/// One guest as it is now.
#[derive(Clone, Debug)]
pub struct GuestReport {
    /// The configuration that the operator chose.
    pub config: GuestConfig,
    /// Whether a front end is connected.
    pub connected: bool,
    /// Connections since the guest was added.
    pub connections: u64,
    /// The counters of its device.
    pub device: MetricsSnapshot,
    /// The account of its front end's memory.
    pub memory: MemoryReport,
}

impl Service {
    /// Starts to serve.
    ///
    /// # Errors
    /// See [`StartError`]. Nothing is left running then.
    pub fn start(config: Config) -> Result<Self, StartError> {
        Self::start_with(config, BTreeMap::new(), None)
    }

    /// As [`Self::start`], with sockets of some guests (by name) that another process made, and a gate that grants
    /// memory.
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn start_with(
        config: Config,
        mut sockets: BTreeMap<String, UnixListener>,
        gate: Option<Arc<dyn Gate>>,
    ) -> Result<Self, StartError> {
        prepare();
        crate::sigbus::install();
        // No thread that is confined may open it.
        crate::memory::watch_files();
        let store = Store::new(StoreConfig {
            budget: config.memory,
            background_start: Some(|| confine_or_abort(Thread::Upkeep)),
            gate: gate.clone(),
            locked: config.mlock,
            ..StoreConfig::default()
        })
        .map_err(StartError::Store)?;
        let service = Self {
            store,
            gate,
            populates: config.reserve_populate,
            descriptors: getrlimit(Resource::Nofile).current,
            guests: Mutex::new(BTreeMap::new()),
            adding: Mutex::default(),
        };
        for guest in config.guests {
            let socket = sockets.remove(&guest.name);
            let domain = match socket {
                Some(socket) => service.add_on(guest, socket)?,
                None => service.add(guest, None)?,
            };
            if service.populates {
                populate(&domain)?;
            }
        }
        Ok(service)
    }

    /// Adds a guest; its socket is there when this returns.
    ///
    /// # Errors
    /// See [`StartError`]. Nothing is left behind then.
    pub fn add_guest(&self, config: GuestConfig) -> Result<(), StartError> {
        let domain = self.add(config, None)?;
        self.populate_later(domain);
        Ok(())
    }

    /// Adds a guest whose socket another process made. Its path is that of the socket, whatever its configuration says;
    /// the file is not removed.
    ///
    /// # Errors
    /// See [`StartError`]. The socket is closed then.
    pub fn add_guest_on(
        &self,
        config: GuestConfig,
        socket: UnixListener,
    ) -> Result<(), StartError> {
        let domain = self.add_on(config, socket)?;
        self.populate_later(domain);
        Ok(())
    }

    fn add_on(&self, config: GuestConfig, socket: UnixListener) -> Result<Domain, StartError> {
        let path = activation::address(&socket);
        let config = GuestConfig {
            socket: path,
            ..config
        };
        self.add(config, Some(socket))
    }

    /// Takes what a guest's reserve lacks from the host, if that is how the service was started; after the reserve was changed.
    pub fn populate(&self, name: &str) {
        if let Some(domain) = self.store.domain(name) {
            self.populate_later(domain);
        }
    }

    /// In a thread of its own, so that no caller waits for gigabytes.
    fn populate_later(&self, domain: Domain) {
        if !self.populates {
            return;
        }
        let name = domain.name().to_owned();
        let thread = thread::Builder::new().name("tmem-populate".to_owned());
        let started = thread.spawn(move || {
            confine_or_abort(Thread::Upkeep);
            if let Err(error) = populate(&domain) {
                log::warn!("{error}");
            }
        });
        if let Err(error) = started {
            log::warn!("The reserve of guest {name} is not populated: {error}");
        }
    }

    fn add(&self, config: GuestConfig, socket: Option<UnixListener>) -> Result<Domain, StartError> {
        self.begin(&config)?;
        // Its reserve may have to be gathered, so no lock is held meanwhile.
        let started = self.start_guest(config.clone(), socket);
        let mut guests = self.guests();
        let mut adding = self.adding();
        adding.guests.retain(|other| other.name != config.name);
        let guest = started?;
        let domain = guest.domain.clone();
        if adding.stopped {
            drop((adding, guests));
            domain.remove();
            return Err(StartError::Stopped);
        }
        guests.insert(config.name, guest);
        Ok(domain)
    }

    /// Checks that a guest may be added, and keeps its place.
    fn begin(&self, config: &GuestConfig) -> Result<(), StartError> {
        let guests = self.guests();
        let mut adding = self.adding();
        if adding.stopped {
            return Err(StartError::Stopped);
        }
        let configs = || {
            let known = guests.values().map(|guest| &guest.config);
            known.chain(&adding.guests)
        };
        if configs().any(|other| other.name == config.name) {
            return Err(StartError::SameName(config.name.clone()));
        }
        if let Some(other) = configs().find(|other| other.socket == config.socket) {
            return Err(StartError::SameSocket {
                path: config.socket.clone(),
                guest: other.name.clone(),
            });
        }
        if configs().count() >= MAX_GUESTS {
            return Err(StartError::TooManyGuests);
        }
        let needed = descriptors(configs().chain([config]));
        if let Some(limit) = self.descriptors.filter(|limit| needed > *limit) {
            return Err(StartError::Descriptors { needed, limit });
        }
        adding.guests.push(config.clone());
        Ok(())
    }

    fn start_guest(
        &self,
        config: GuestConfig,
        socket: Option<UnixListener>,
    ) -> Result<Guest, StartError> {
        let (listener, file): (UnixListener, Option<SocketFile>) = match socket {
            Some(listener) => (listener, None),
            None => {
                let (listener, file) = listen(&config.socket, config.access)?;
                (listener, Some(file))
            }
        };
        let domain = self
            .store
            .add_domain(
                &config.name,
                DomainConfig {
                    reserve: config.reserve,
                    limit: config.limit.unwrap_or(u64::MAX),
                    weight: config.weight,
                    max_pools: MAX_POOLS,
                    cold: config.compression == Compression::Dense,
                    groups: config.groups.clone(),
                },
            )
            .map_err(StartError::Store)?;
        if config.frozen {
            domain.freeze();
        }
        let gate = self.gate.clone();
        let guest = Guest::start(config, domain.clone(), listener, file, gate);
        guest.map_err(|error| {
            domain.remove();
            StartError::Thread(error)
        })
    }

    /// Removes a guest: cuts its connection off and frees its pages. Returns whether there was one.
    pub fn remove_guest(&self, name: &str) -> bool {
        let Some(guest) = self.guests().remove(name) else {
            return false;
        };
        let domain = guest.domain.clone();
        // Waits for its thread, so not under the lock.
        drop(guest);
        domain.remove();
        true
    }

    /// Tells a guest what it may have now, if it listens.
    pub fn announce(&self, name: &str) {
        let guests = self.guests();
        let Some(guest) = guests.get(name) else {
            return;
        };
        let limit = guest.domain.limit();
        guest
            .device
            .post_limits(if limit == u64::MAX { 0 } else { limit });
        // Its thread writes to its ring.
        guest.handle.wake();
    }

    /// Changes how much memory the front end of a guest may describe, from its next table on, and how much of it is touched
    /// here first. `None` as in [`GuestConfig`].
    pub fn set_memory(&self, name: &str, memory: Option<u64>, first_touch: Option<u64>) {
        if let Some(guest) = self.guests().get_mut(name) {
            guest.config.memory = memory;
            guest.config.first_touch = first_touch;
            guest.account.set(memory, first_touch);
        }
    }

    /// Tells all guests whether the host is short of memory; those that know it already hear nothing. `false` when guests are
    /// just being added or removed, which is not waited for: to be called again then.
    pub fn announce_host(&self, short: bool) -> bool {
        let guests = match self.guests.try_lock() {
            Ok(guests) => guests,
            Err(TryLockError::Poisoned(guests)) => guests.into_inner(),
            Err(TryLockError::WouldBlock) => return false,
        };
        for guest in guests.values() {
            if guest.device.note_host(short) {
                // Its thread writes to its ring.
                guest.handle.wake();
            }
        }
        true
    }

    /// The store behind it.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The device of a guest, for its counters.
    pub fn device(&self, name: &str) -> Option<Arc<TmemDevice>> {
        let guests = self.guests();
        guests.get(name).map(|guest| Arc::clone(&guest.device))
    }

    /// The guests, in the order of their names.
    pub fn report(&self) -> Vec<GuestReport> {
        let guests = self.guests();
        let report = guests.values().map(|guest| GuestReport {
            config: guest.config.clone(),
            connected: guest.handle.is_connected(),
            connections: guest.handle.connections(),
            device: guest.device.metrics().snapshot(),
            memory: guest.account.report(),
        });
        report.collect()
    }

    /// Ends the service: the guests' pending requests are answered, and their sockets are removed. No guest is added
    /// any more.
    pub fn stop(&self) {
        let mut guests = {
            let mut guests = self.guests();
            self.adding().stopped = true;
            std::mem::take(&mut *guests)
        };
        // All at once, so that they do not wait for one another.
        guests.values().for_each(Guest::stop);
        let deadline = Instant::now() + STOP;
        for guest in guests.values_mut() {
            guest.join(deadline);
        }
    }

    fn adding(&self) -> MutexGuard<'_, Adding> {
        // As below.
        self.adding.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn guests(&self) -> MutexGuard<'_, BTreeMap<String, Guest>> {
        // Every critical section leaves the map whole.
        self.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes the reserve of a guest from the host. Waits for memory, as long as it gets some.
fn populate(domain: &Domain) -> Result<(), StartError> {
    let mut last = Instant::now();
    loop {
        match domain.populate_reserve() {
            Ok(false) => return Ok(()),
            Ok(true) => last = Instant::now(),
            // The host grants less at a time than it has.
            Err(_) if last.elapsed() < PATIENCE => thread::sleep(PAUSE),
            Err(_) => {
                return Err(StartError::Populate {
                    guest: domain.name().to_owned(),
                    populated: domain.used(),
                    reserve: domain.stats().reserve,
                });
            }
        }
    }
}

/// Descriptors that these guests can make the process have open at one time.
fn descriptors<'a>(guests: impl Iterator<Item = &'a GuestConfig>) -> u64 {
    let each = guests.map(|guest| {
        let rings = u64::from(guest.request_queues()).saturating_add(1);
        let groups = u64::try_from(guest.groups.len()).unwrap_or(u64::MAX);
        rings
            .saturating_mul(RING_DESCRIPTORS)
            .saturating_add(GUEST_DESCRIPTORS)
            .saturating_add(groups)
    });
    each.fold(OWN_DESCRIPTORS, u64::saturating_add)
}

impl Drop for Service {
    fn drop(&mut self) {
        self.stop();
    }
}
