//! The configuration of `tmem serve`: a TOML file, or the same by flags.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tmem_base::name::{MAX_GUEST_NAME, is_guest_name, is_name};
use tmem_base::socket::MAX_PATH_BYTES;
use tmem_base::{Size, SizeError};
use tmem_control::api::{Compression, Dedup, GuestSpec, MAX_REQUEST_QUEUES, MemoryBacking};

use crate::access::{Access, AccessError};

pub(crate) mod file;

/// Most guests of one service.
pub const MAX_GUESTS: usize = 100;
/// Most memory of one guest, in bytes. Mapped memory uses address space of the process, in which [`MAX_GUESTS`] guests
/// of this size still fit.
pub const MAX_GUEST_BYTES: u64 = 1 << 40;

/// Most share groups of one guest.
pub const MAX_GROUPS: usize = 16;

/// A service, ready to be started. Everything in it has been checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Bytes that all guests together may use.
    pub memory: u64,
    /// Path of the control socket; without one there is no control plane.
    pub control: Option<PathBuf>,
    /// Path of a second control socket that only shows figures.
    pub statistics: Option<PathBuf>,
    /// Who can connect to it.
    pub statistics_access: Access,
    /// Memory of the host that is left alone, in bytes; `None` is a part of what it has.
    pub host_reserve: Option<u64>,
    /// Whether the reserves of guests are taken from the host before a guest needs them.
    pub reserve_populate: bool,
    /// Whether pages of guests stay in the memory of the host, which may else swap them out.
    pub mlock: bool,
    /// The guests to begin with.
    pub guests: Vec<GuestConfig>,
}

/// One guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestConfig {
    /// Name, for the operator. Unique.
    pub name: String,
    /// Path of its vhost-user socket, which is its identity. Unique.
    pub socket: PathBuf,
    /// Who can connect to it.
    pub access: Access,
    /// Bytes that only this guest may use.
    pub reserve: u64,
    /// Bytes that it may use at most; `None` is no limit.
    pub limit: Option<u64>,
    /// Its share in the unreserved memory.
    pub weight: u32,
    /// Size suggested for its swap disk in bytes; with 0 the guest decides.
    pub swap: u64,
    /// Number of load queues, at best one for each vCPU. The device has as many store queues in addition.
    pub queues: u16,
    /// How long its pools outlive a lost connection.
    pub keep: Duration,
    /// Share groups that it may join. A guest that names another one is refused.
    pub groups: Vec<String>,
    /// Whether pages that were not used for a while are recompressed to a smaller size.
    pub compression: Compression,
    /// When its pools keep one copy of pages with the same bytes.
    pub dedup: Dedup,
    /// Whether its pages are refused to begin with.
    pub frozen: bool,
    /// Bytes of memory that its front end may describe; `None` is [`MAX_GUEST_BYTES`].
    pub memory: Option<u64>,
    /// Bytes of it that the service may be the first to touch, as long as its files are there; `None` is no limit.
    pub first_touch: Option<u64>,
    /// The files that may back it.
    pub memory_backing: MemoryBacking,
}

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("Cannot read {}", path.display())]
    Read {
        /// The path given.
        path: PathBuf,
        /// The error of the system.
        #[source]
        source: std::io::Error,
    },
    /// The file is not TOML of the expected form.
    #[error("{}: {message}", path.display())]
    Parse {
        /// The path given.
        path: PathBuf,
        /// Line, column and the fault there, on one line.
        message: String,
    },
    /// A size is not a number with one of the known units.
    #[error(transparent)]
    Size(#[from] SizeError),
    /// Not a mode, or not a group.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// A `--guest` is not a list of `key=value`.
    #[error("Guest {0:?}: {1}")]
    GuestFlag(String, String),
    /// There is no budget.
    #[error("Memory is missing or 0: nothing could be stored")]
    NoMemory,
    /// A name that does not do.
    #[error("Guest name {0:?} is not 1 to {MAX_GUEST_NAME} letters, digits, '.', '_' and '-'")]
    Name(String),
    /// Two guests with one name.
    #[error("There are two guests named {0:?}")]
    SameName(String),
    /// Two sockets at one path.
    #[error("Socket {} is used twice", .0.display())]
    SameSocket(PathBuf),
    /// A path that no socket can have.
    #[error("Socket path {} is empty or longer than {MAX_PATH_BYTES} bytes", .0.display())]
    SocketPath(PathBuf),
    /// More guests than the service takes.
    #[error("{0} guests, at most {MAX_GUESTS}")]
    TooManyGuests(usize),
    /// A number that is invalid for a guest.
    #[error("Guest {name:?}: {what}")]
    Guest {
        /// Its name.
        name: String,
        /// The invalid value.
        what: &'static str,
    },
    /// The guests reserve more than there is.
    #[error("The guests reserve {reserved} bytes of {memory}")]
    Reserved {
        /// Sum of the reserves.
        reserved: u128,
        /// The budget.
        memory: u64,
    },
}

/// The TOML file, before it is checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfigFile {
    /// [`Config::memory`].
    pub memory: Option<Size>,
    /// [`Config::control`].
    pub control: Option<PathBuf>,
    /// [`Config::statistics`].
    pub statistics: Option<PathBuf>,
    /// [`Access::mode`] of [`Config::statistics_access`].
    pub statistics_mode: Option<u32>,
    /// [`Access::group`] of it.
    pub statistics_group: Option<u32>,
    /// [`Config::host_reserve`].
    pub host_reserve: Option<Size>,
    /// [`Config::reserve_populate`]; not when absent.
    pub reserve_populate: Option<bool>,
    /// [`Config::mlock`]; not when absent.
    pub mlock: Option<bool>,
    /// [`Config::guests`].
    pub guests: Vec<GuestSpec>,
}

impl TryFrom<ConfigFile> for Config {
    type Error = ConfigError;

    fn try_from(file: ConfigFile) -> Result<Self, ConfigError> {
        let memory = file.memory.map_or(0, |size| size.0);
        if memory == 0 {
            return Err(ConfigError::NoMemory);
        }
        if file.guests.len() > MAX_GUESTS {
            return Err(ConfigError::TooManyGuests(file.guests.len()));
        }
        if let Some(path) = &file.control {
            check_socket(path)?;
        }
        let mut names = BTreeSet::new();
        let mut sockets: BTreeSet<PathBuf> = file.control.iter().cloned().collect();
        if let Some(path) = &file.statistics {
            check_socket(path)?;
            if !sockets.insert(path.clone()) {
                return Err(ConfigError::SameSocket(path.clone()));
            }
        }
        let mut guests = Vec::with_capacity(file.guests.len());
        for guest in file.guests {
            let guest = GuestConfig::try_from(guest)?;
            if !names.insert(guest.name.clone()) {
                return Err(ConfigError::SameName(guest.name));
            }
            if !sockets.insert(guest.socket.clone()) {
                return Err(ConfigError::SameSocket(guest.socket));
            }
            guests.push(guest);
        }
        let reserved = guests.iter().map(|guest| u128::from(guest.reserve)).sum();
        if reserved > u128::from(memory) {
            return Err(ConfigError::Reserved { reserved, memory });
        }
        Ok(Self {
            memory,
            control: file.control,
            statistics: file.statistics,
            statistics_access: Access::new(file.statistics_mode, file.statistics_group),
            host_reserve: file.host_reserve.map(|size| size.0),
            reserve_populate: file.reserve_populate.unwrap_or(false),
            mlock: file.mlock.unwrap_or(false),
            guests,
        })
    }
}

impl GuestConfig {
    /// Request queues of the device: those for loads and those for stores.
    pub(crate) fn request_queues(&self) -> u16 {
        self.queues.saturating_mul(2)
    }
}

impl TryFrom<GuestSpec> for GuestConfig {
    type Error = ConfigError;

    fn try_from(spec: GuestSpec) -> Result<Self, ConfigError> {
        if !is_guest_name(&spec.name) {
            return Err(ConfigError::Name(spec.name));
        }
        check_socket(Path::new(&spec.socket))?;
        let config = Self {
            reserve: spec.reserve.unwrap_or(0),
            limit: spec.limit,
            weight: spec.weight.unwrap_or(100),
            swap: spec.swap.unwrap_or(0),
            queues: spec.queues.unwrap_or(4),
            keep: Duration::from_secs(spec.keep_seconds.unwrap_or(0).into()),
            groups: spec.groups,
            compression: spec.compression.unwrap_or_default(),
            dedup: spec.dedup.unwrap_or_default(),
            frozen: spec.frozen.unwrap_or(false),
            access: Access::new(spec.socket_mode, spec.socket_group),
            memory: spec.memory,
            first_touch: spec.first_touch,
            memory_backing: spec.memory_backing.unwrap_or_default(),
            name: spec.name,
            socket: spec.socket.into(),
        };
        let what = if !Access::is_mode(config.access.mode) {
            "the mode of its socket is not 0600 to 0777"
        } else if !config.access.group.is_none_or(Access::is_group) {
            "the group of its socket has a number that no group has"
        } else if config.weight == 0 {
            "weight is 0; the least is 1"
        } else if config.queues == 0 || u32::from(config.queues) > MAX_REQUEST_QUEUES {
            "queues is not 1 to 64"
        } else if config.limit == Some(0) {
            "limit is 0; leave it out for no limit"
        } else if config.limit.is_some_and(|limit| limit < config.reserve) {
            "limit is less than reserve"
        } else if config.groups.len() > MAX_GROUPS {
            "more than 16 share groups"
        } else if !config.groups.iter().all(|group| is_group(group)) {
            "a share group is not 1 to 24 letters, digits, '.', '_' and '-'"
        } else if config
            .memory
            .is_some_and(|memory| memory == 0 || memory > MAX_GUEST_BYTES)
        {
            "memory is 0 or more than 1T; leave it out for 1T"
        } else {
            return Ok(config);
        };
        Err(ConfigError::Guest {
            name: config.name,
            what,
        })
    }
}

/// A name that fits into a request ([`tmem_protocol::GROUP_LEN`]), and that an operator can read.
fn is_group(name: &str) -> bool {
    is_name(name, tmem_protocol::GROUP_LEN)
}

fn check_socket(path: &Path) -> Result<(), ConfigError> {
    let len = path.as_os_str().len();
    if len == 0 || len > MAX_PATH_BYTES {
        return Err(ConfigError::SocketPath(path.to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
