//! What clients of the control socket may see and do of a running service.

use std::io::ErrorKind;

use tmem_control::operate::{self, NewGuest};
use tmem_control::{Done, Live, Operation, Refused, Source, Stats};
use tmem_serve::listen::ListenError;
use tmem_serve::{
    Compression, ConfigError, Dedup, GuestConfig, GuestFile, Service, Size, StartError,
};

use crate::run::one_line;

/// A service and its figures.
#[derive(Debug)]
pub(super) struct Operator {
    service: Service,
    live: Live,
}

impl Operator {
    pub(super) fn new(service: Service) -> Self {
        let operator = Self {
            live: Live::new(service.store().clone()),
            service,
        };
        for guest in operator.service.report() {
            operator.show(&guest.config.name);
        }
        operator
    }

    fn show(&self, name: &str) {
        if let Some(device) = self.service.device(name) {
            self.live.connect(name, device);
        }
    }

    fn add(&self, guest: NewGuest) -> Result<Done, Refused> {
        // A relative one would be found from where the service runs, which the client cannot know.
        if !guest.socket.starts_with('/') || guest.socket.contains('\0') {
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
        let config = GuestConfig::try_from(GuestFile {
            name: guest.name,
            socket: guest.socket.into(),
            socket_mode: None,
            socket_group: None,
            reserve: guest.reserve.map(Size),
            limit: guest.limit.map(Size),
            weight: guest.weight,
            swap: guest.swap.map(Size),
            queues: guest.queues,
            keep_seconds: guest.keep_seconds,
            groups: guest.groups,
            compression: guest.compression.map(|compression| match compression {
                operate::Compression::Fast => Compression::Fast,
                operate::Compression::Dense => Compression::Dense,
            }),
            dedup: guest.dedup.map(|dedup| match dedup {
                operate::Dedup::Auto => Dedup::Auto,
                operate::Dedup::Off => Dedup::Off,
                operate::Dedup::On => Dedup::On,
                operate::Dedup::Adaptive => Dedup::Adaptive,
            }),
            frozen: guest.frozen,
        })
        .map_err(|error: ConfigError| Refused::Invalid(one_line(&error)))?;
        self.add_guest(config)?;
        Ok(Done::Added)
    }

    /// Adds a guest whose configuration was checked.
    pub(super) fn add_guest(&self, config: GuestConfig) -> Result<(), Refused> {
        let name = config.name.clone();
        self.service
            .add_guest(config)
            .map_err(|error| refused(&error))?;
        self.show(&name);
        Ok(())
    }
}

impl Source for Operator {
    fn stats(&self) -> Stats {
        let mut stats = self.live.stats();
        let guests = self.service.report();
        for domain in &mut stats.domains {
            let guest = guests.iter().find(|guest| guest.config.name == domain.name);
            if !guest.is_some_and(|guest| guest.connected) {
                domain.device = None;
            }
        }
        stats
    }

    fn operate(&self, operation: Operation) -> Result<Done, Refused> {
        match operation {
            Operation::AddGuest(guest) => self.add(guest),
            Operation::RemoveGuest(name) => {
                self.live.disconnect(&name);
                if self.service.remove_guest(&name) {
                    Ok(Done::Removed)
                } else {
                    Err(Refused::Unknown(name))
                }
            }
            Operation::Change { ref domain, .. } => {
                let name = domain.clone();
                let done = self.live.operate(operation)?;
                self.service.announce(&name);
                Ok(done)
            }
            Operation::Flush { .. } => self.live.operate(operation),
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
