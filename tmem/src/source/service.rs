//! The part of a running service that clients of the control socket may see and change.

use std::io::ErrorKind;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;

use tmem_base::error::one_line;
use tmem_control::api::{FrontEnd, GuestSpec};
use tmem_control::clients::Clients;
use tmem_control::operation::Passed;
use tmem_control::{Done, Operation, Refused, Source, Stats};
use tmem_serve::activation::{address, listener};
use tmem_serve::listen::ListenError;
use tmem_serve::{ConfigError, GuestConfig, Service, StartError};

use crate::host_memory::HostMemory;
use crate::own_process::OwnProcess;
use crate::source::store::OwnStore;

/// The statistics and operations of a service.
pub(crate) struct Operator {
    service: Service,
    store: OwnStore,
    memory: Arc<HostMemory>,
    process: Option<OwnProcess>,
    /// Where the control sockets of the process are, which are no guest's.
    own_sockets: Vec<PathBuf>,
}

impl Operator {
    pub(crate) fn new(
        service: Service,
        memory: Arc<HostMemory>,
        process: Option<OwnProcess>,
        own_sockets: Vec<PathBuf>,
    ) -> Self {
        let operator = Self {
            memory,
            store: OwnStore::new(service.store().clone()),
            service,
            process,
            own_sockets,
        };
        for guest in operator.service.report() {
            operator.show(&guest.config.name);
        }
        operator
    }

    pub(crate) fn service(&self) -> &Service {
        &self.service
    }

    /// Says so when the guests were promised what the host does not have.
    fn check_reserves(&self) {
        let domains = self.service.store().stats().domains;
        let reserved = domains.iter().map(|domain| domain.reserve).sum();
        crate::limits::warn_of_reserves(reserved, self.memory.memory_info());
    }

    /// Ends the service; statistics stay.
    pub(crate) fn stop(&self) {
        self.service.stop();
    }

    fn show(&self, name: &str) {
        if let Some(device) = self.service.device(name) {
            self.store.connect(name, device);
        }
    }

    fn add(&self, guest: GuestSpec, made: Option<UnixListener>) -> Result<Done, Refused> {
        // A relative one would be found from where the service runs, which the client cannot know.
        if made.is_none() && !guest.socket.starts_with('/') || guest.socket.contains('\0') {
            return Err(Refused::Invalid(
                "The path of the socket is not absolute".to_owned(),
            ));
        }
        // As for a change: each of the two is right by itself.
        if guest
            .limit
            .zip(guest.reserve)
            .is_some_and(|(limit, reserve)| reserve > limit)
        {
            return Err(Refused::Conflict(
                "The reserve is larger than the limit".to_owned(),
            ));
        }
        let config = GuestConfig::try_from(guest)
            .map_err(|error: ConfigError| Refused::Invalid(one_line(&error)))?;
        match made {
            None => self.add_guest(config)?,
            Some(listener) => self.add_guest_on(config, listener)?,
        }
        Ok(Done::Added)
    }

    /// Adds a guest that connects to a socket that the client made.
    fn add_on(&self, guest: GuestSpec, socket: Passed) -> Result<Done, Refused> {
        let listener = socket.into_owned().and_then(listener).ok_or_else(|| {
            Refused::Conflict("What was passed is not a listening unix stream socket".to_owned())
        })?;
        let path = address(&listener);
        if self.own_sockets.contains(&path) {
            return Err(Refused::Conflict(format!(
                "Socket {} is not one of a guest: the service answers its operator there",
                path.display()
            )));
        }
        let socket = path
            .into_os_string()
            .into_string()
            .map_err(|_| Refused::Conflict("The path of the socket is not UTF-8".to_owned()))?;
        self.add(GuestSpec { socket, ..guest }, Some(listener))
    }

    fn add_guest_on(&self, config: GuestConfig, listener: UnixListener) -> Result<(), Refused> {
        let name = config.name.clone();
        self.service
            .add_guest_on(config, listener)
            .map_err(|error| refused(&error))?;
        self.show(&name);
        Ok(())
    }

    /// Changes what the front end of a guest may do with memory.
    pub(crate) fn set_memory(&self, guest: &GuestConfig) {
        self.service
            .set_memory(&guest.name, guest.memory, guest.first_touch);
    }

    /// Adds a guest whose configuration was checked.
    pub(crate) fn add_guest(&self, config: GuestConfig) -> Result<(), Refused> {
        let name = config.name.clone();
        self.service
            .add_guest(config)
            .map_err(|error| refused(&error))?;
        self.show(&name);
        self.check_reserves();
        Ok(())
    }
}

impl Source for Operator {
    fn stats(&self) -> Stats {
        let mut stats = self.store.stats();
        stats.process = self.process.as_ref().and_then(OwnProcess::usage);
        stats.host = self.memory.report();
        let guests = self.service.report();
        for domain in &mut stats.domains {
            let guest = guests.iter().find(|guest| guest.config.name == domain.name);
            domain.connections = guest.map(|guest| guest.connections);
            if !guest.is_some_and(|guest| guest.connected) {
                domain.device = None;
            }
            domain.front_end = guest.map(|guest| FrontEnd {
                memory_bytes: guest.memory.described,
                touched_bytes: guest.memory.touched,
                touch_refusals: guest.memory.refused,
                stuck_mappings: guest.memory.stuck,
                panics: guest.memory.panics,
            });
        }
        stats
    }

    fn clients(&self) -> Option<&Clients> {
        self.store.clients()
    }

    fn operate(&self, operation: Operation) -> Result<Done, Refused> {
        match operation {
            Operation::AddGuest(guest) => self.add(guest, None),
            Operation::AddGuestOn { guest, socket } => self.add_on(guest, socket),
            Operation::RemoveGuest(name) => {
                self.store.disconnect(&name);
                if self.service.remove_guest(&name) {
                    Ok(Done::Removed)
                } else {
                    Err(Refused::Unknown(name))
                }
            }
            Operation::Change {
                ref domain,
                ref change,
            } => {
                let (name, raised) = (domain.clone(), change.reserve.is_some());
                let done = self.store.operate(operation)?;
                self.service.announce(&name);
                if raised {
                    self.service.populate(&name);
                    self.check_reserves();
                }
                Ok(done)
            }
            Operation::Flush { .. } => self.store.operate(operation),
        }
    }
}

fn refused(error: &StartError) -> Refused {
    let text = one_line(error);
    match error {
        StartError::Listen(ListenError::Io { source, .. })
            if !matches!(
                source.kind(),
                ErrorKind::NotFound
                    | ErrorKind::NotADirectory
                    | ErrorKind::PermissionDenied
                    | ErrorKind::ReadOnlyFilesystem
            ) =>
        {
            Refused::Failed(text)
        }
        StartError::Thread(_) => Refused::Failed(text),
        // Of another path, too: the folder is missing, or not ours.
        _ => Refused::Conflict(text),
    }
}
