//! Reading the configuration again, on SIGHUP.
//!
//! The changes in the file since it was last read are applied: guests are added, removed and changed. Changes that were
//! made over the control socket meanwhile stay, unless the file changes the same setting. A file that cannot be used
//! changes nothing.

use std::path::PathBuf;
use std::sync::Arc;

use tmem_base::error::one_line;
use tmem_control::api::Change;
use tmem_control::{Operation, Refused, Source};
use tmem_serve::{Config, ConfigError, ConfigFile, GuestConfig};

use crate::host_memory::HostMemory;
use crate::logger::NOTICE;
use crate::source::service::Operator;

/// The file, and what of it is in effect.
pub(super) struct Reload {
    file: Option<PathBuf>,
    now: Config,
    memory: Arc<HostMemory>,
}

/// The applied changes, for the line that reports them.
#[derive(Default)]
struct Count {
    added: usize,
    removed: usize,
    changed: usize,
}

impl Reload {
    pub(super) fn new(file: Option<PathBuf>, now: Config, memory: Arc<HostMemory>) -> Self {
        Self { file, now, memory }
    }

    /// Reads the file and does what it says. Each thing that cannot be done is a line, and is tried again the next time.
    pub(super) fn run(&mut self, operator: &Operator) {
        let Some(file) = &self.file else {
            log::warn!(
                "There is no configuration file to read again: tmem was started without --config"
            );
            return;
        };
        let read = || -> Result<Config, ConfigError> { ConfigFile::read(file)?.try_into() };
        let new = match read() {
            Ok(new) => new,
            Err(error) => {
                log::error!("Nothing is changed: {}", one_line(&error));
                return;
            }
        };
        for (key, differs) in [
            ("memory", new.memory != self.now.memory),
            ("control", new.control != self.now.control),
            (
                "reserve-populate",
                new.reserve_populate != self.now.reserve_populate,
            ),
            ("mlock", new.mlock != self.now.mlock),
        ] {
            if differs {
                log::warn!("A change of {key} waits for a restart");
            }
        }
        if new.host_reserve != self.now.host_reserve {
            self.memory.leave(new.host_reserve);
            self.now.host_reserve = new.host_reserve;
            crate::limits::warn_of_host(self.now.memory, self.memory.memory_info());
        }
        if (&new.statistics, new.statistics_access)
            != (&self.now.statistics, self.now.statistics_access)
        {
            log::warn!("A change of statistics waits for a restart");
        }
        let count = self.apply(new.guests, operator);
        log::info!(
            target: NOTICE,
            "Configuration read again: {} guests added, {} removed, {} changed",
            count.added, count.removed, count.changed
        );
    }

    fn apply(&mut self, new: Vec<GuestConfig>, operator: &Operator) -> Count {
        let mut count = Count::default();
        // Guests are removed first: others may need their memory.
        let is_new = |name: &str| new.iter().any(|guest| guest.name == name);
        self.now.guests.retain(|old| {
            if is_new(&old.name) {
                return true;
            }
            match operator.operate(Operation::RemoveGuest(old.name.clone())) {
                Ok(_) => count.removed += 1,
                // Somebody was faster.
                Err(Refused::Unknown(_)) => {}
                Err(error) => log::warn!("Guest {} cannot be removed: {error}", old.name),
            }
            false
        });
        let find =
            |guests: &[GuestConfig], name: &str| guests.iter().position(|guest| guest.name == name);
        // Then those that need less than before.
        let mut new: Vec<_> = new
            .into_iter()
            .map(|guest| (find(&self.now.guests, &guest.name), guest))
            .collect();
        new.sort_by_key(|(old, guest)| match old {
            Some(old) => self.now.guests[*old].reserve < guest.reserve,
            None => true,
        });
        for (old, guest) in new {
            let Some(old) = old else {
                match operator.add_guest(guest.clone()) {
                    Ok(()) => {
                        count.added += 1;
                        self.now.guests.push(guest);
                    }
                    Err(error) => log::warn!("Guest {} cannot be added: {error}", guest.name),
                }
                continue;
            };
            let old = &mut self.now.guests[old];
            let fixed = fixed(old, &guest);
            if !fixed.is_empty() {
                log::warn!(
                    "Guest {}: a change of {} waits until it is removed and added, or for a restart",
                    guest.name,
                    fixed.join(", ")
                );
            }
            let memory = (old.memory, old.first_touch) != (guest.memory, guest.first_touch);
            if memory {
                operator.set_memory(&guest);
                (old.memory, old.first_touch) = (guest.memory, guest.first_touch);
            }
            let change = change(old, &guest);
            if change == Change::default() {
                count.changed += usize::from(memory);
                continue;
            }
            let domain = guest.name.clone();
            match operator.operate(Operation::Change { domain, change }) {
                Ok(_) => {
                    count.changed += 1;
                    old.reserve = guest.reserve;
                    old.limit = guest.limit;
                    old.weight = guest.weight;
                    old.compression = guest.compression;
                    old.frozen = guest.frozen;
                }
                Err(error) => log::warn!("Guest {} cannot be changed: {error}", guest.name),
            }
        }
        count
    }
}

/// Keys whose values differ and that a guest keeps for its life.
fn fixed(old: &GuestConfig, new: &GuestConfig) -> Vec<&'static str> {
    let keys = [
        ("socket", old.socket != new.socket),
        ("socket-mode", old.access.mode != new.access.mode),
        ("socket-group", old.access.group != new.access.group),
        ("swap", old.swap != new.swap),
        ("queues", old.queues != new.queues),
        ("keep-seconds", old.keep != new.keep),
        ("groups", old.groups != new.groups),
        ("dedup", old.dedup != new.dedup),
        ("memory-backing", old.memory_backing != new.memory_backing),
    ];
    let keys = keys.into_iter().filter(|(_, differs)| *differs);
    keys.map(|(key, _)| key).collect()
}

/// The other keys whose values differ.
fn change(old: &GuestConfig, new: &GuestConfig) -> Change {
    Change {
        weight: (old.weight != new.weight).then_some(new.weight),
        reserve: (old.reserve != new.reserve).then_some(new.reserve),
        limit: (old.limit != new.limit).then_some(new.limit),
        compression: (old.compression != new.compression).then_some(new.compression),
        frozen: (old.frozen != new.frozen).then_some(new.frozen),
    }
}
