//! What `tmem serve` is told: a TOML file, or the same by flags.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use toml::de::{DeTable, DeValue};

use crate::access::{self, Access};
use crate::keys::{Bad, Keys, SIZE, Value};
use crate::regular;

/// Most guests of one service.
pub const MAX_GUESTS: usize = 100;
/// Most request queues of one guest.
pub const MAX_REQUEST_QUEUES: u16 = 64;
/// Most memory of one guest, in bytes. What is mapped takes address space of the process, and [`MAX_GUESTS`] guests of
/// this size still fit.
pub const MAX_GUEST_BYTES: u64 = 1 << 40;
/// Longest name of a guest, in bytes.
pub const MAX_NAME: usize = 64;

/// Most share groups of one guest.
pub const MAX_GROUPS: usize = 16;
/// What fits `sun_path` with its terminator.
const MAX_SOCKET_PATH: usize = 107;

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
    /// Its share in the memory that nobody reserved.
    pub weight: u32,
    /// Size suggested for its swap disk in bytes; with 0 the guest decides.
    pub swap: u64,
    /// Number of request queues, at best one for each vCPU.
    pub queues: u16,
    /// How long its pools outlive a lost connection.
    pub keep: Duration,
    /// Share groups that it may join. A guest that names another one is refused.
    pub groups: Vec<String>,
    /// Whether pages that nobody has used for a while are compressed harder.
    pub compression: Compression,
    /// When its pools keep one copy of pages with the same bytes.
    pub dedup: Dedup,
    /// Whether its pages are refused to begin with.
    pub frozen: bool,
    /// Bytes of memory that its front end may describe; `None` is [`MAX_GUEST_BYTES`].
    pub memory: Option<u64>,
    /// Bytes of it that the service may be the first to touch, as long as its files are there; `None` is no limit.
    pub first_touch: Option<u64>,
    /// What may be behind it.
    pub memory_backing: MemoryBacking,
}

/// What may be behind the memory of a front end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MemoryBacking {
    /// The kernel alone: memfd, tmpfs, hugetlbfs.
    #[default]
    Kernel,
    /// Anything that can be mapped. Whoever answers for its pages, a disk, a server or a process, can stop the service.
    Any,
}

/// How hard the pages of a guest are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// Once, when they are stored.
    #[default]
    Fast,
    /// Again, and denser, when nobody has used them for a while.
    Dense,
}

/// When the pools of a guest keep one copy of pages with the same bytes. Within a share group, the choice
/// of the member that joined first holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dedup {
    /// Always in shared pools, and never in private ones.
    #[default]
    Auto,
    /// Never.
    Off,
    /// Always.
    On,
    /// While it pays.
    Adaptive,
}

impl From<Dedup> for tmem_store::Dedup {
    fn from(dedup: Dedup) -> Self {
        match dedup {
            Dedup::Auto => Self::Default,
            Dedup::Off => Self::Off,
            Dedup::On => Self::On,
            Dedup::Adaptive => Self::Adaptive,
        }
    }
}

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("Cannot read {}", path.display())]
    Read {
        /// The path given.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The file is not TOML of the expected form.
    #[error("{}: {message}", path.display())]
    Parse {
        /// The path given.
        path: PathBuf,
        /// Line, column and what is wrong there, on one line.
        message: String,
    },
    /// A size is not a number with one of the known units.
    #[error("{0:?} is not a size: write bytes, or a number with K, M, G or T")]
    Size(String),
    /// Not a mode, or not a group.
    #[error("{0:?} is not {1}")]
    Access(String, &'static str),
    /// A `--guest` is not a list of `key=value`.
    #[error("Guest {0:?}: {1}")]
    GuestFlag(String, String),
    /// There is no budget.
    #[error("Memory is missing or 0: nothing could be stored")]
    NoMemory,
    /// A name that does not do.
    #[error("Guest name {0:?} is not 1 to {MAX_NAME} letters, digits, '.', '_' and '-'")]
    Name(String),
    /// Two guests with one name.
    #[error("There are two guests named {0:?}")]
    SameName(String),
    /// Two sockets at one path.
    #[error("Socket {} is used twice", .0.display())]
    SameSocket(PathBuf),
    /// A path that no socket can have.
    #[error("Socket path {} is empty or longer than {MAX_SOCKET_PATH} bytes", .0.display())]
    SocketPath(PathBuf),
    /// More guests than the service takes.
    #[error("{0} guests, at most {MAX_GUESTS}")]
    TooManyGuests(usize),
    /// A number that makes no sense for a guest.
    #[error("Guest {name:?}: {what}")]
    Guest {
        /// Its name.
        name: String,
        /// What does not do.
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

/// A number of bytes: in TOML an integer, or a string as on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(
    /// Bytes.
    pub u64,
);

impl FromStr for Size {
    type Err = ConfigError;

    /// Reads `4096`, `64K`, `256M`, `4G`, `1T`; the units are powers of 1024, in either case, and may
    /// end with `iB` or `B`.
    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let bad = || ConfigError::Size(text.to_owned());
        let digits = text.trim().trim_end_matches(|c: char| !c.is_ascii_digit());
        let unit = text.trim().get(digits.len()..).unwrap_or_default();
        let shift = match unit.to_ascii_lowercase().as_str() {
            "" | "b" => 0,
            "k" | "kb" | "kib" => 10,
            "m" | "mb" | "mib" => 20,
            "g" | "gb" | "gib" => 30,
            "t" | "tb" | "tib" => 40,
            _ => return Err(bad()),
        };
        let number: u64 = digits.parse().map_err(|_| bad())?;
        number.checked_mul(1 << shift).map(Self).ok_or_else(bad)
    }
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
    pub guests: Vec<GuestFile>,
}

/// One `[[guest]]` of the file, or one `--guest`, before it is checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestFile {
    /// [`GuestConfig::name`].
    pub name: String,
    /// [`GuestConfig::socket`].
    pub socket: PathBuf,
    /// [`Access::mode`] of [`GuestConfig::access`]; 0600 when absent, or 0660 with a group.
    pub socket_mode: Option<u32>,
    /// [`Access::group`] of it; that of the process when absent.
    pub socket_group: Option<u32>,
    /// [`GuestConfig::reserve`]; 0 when absent.
    pub reserve: Option<Size>,
    /// [`GuestConfig::limit`].
    pub limit: Option<Size>,
    /// [`GuestConfig::weight`]; 100 when absent.
    pub weight: Option<u32>,
    /// [`GuestConfig::swap`]; 0 when absent.
    pub swap: Option<Size>,
    /// [`GuestConfig::queues`]; 4 when absent.
    pub queues: Option<u16>,
    /// [`GuestConfig::keep`] in seconds; 0 when absent.
    pub keep_seconds: Option<u32>,
    /// [`GuestConfig::groups`]; none when absent.
    pub groups: Vec<String>,
    /// [`GuestConfig::compression`]; fast when absent.
    pub compression: Option<Compression>,
    /// [`GuestConfig::dedup`]; auto when absent.
    pub dedup: Option<Dedup>,
    /// [`GuestConfig::frozen`]; not when absent.
    pub frozen: Option<bool>,
    /// [`GuestConfig::memory`].
    pub memory: Option<Size>,
    /// [`GuestConfig::first_touch`].
    pub first_touch: Option<Size>,
    /// [`GuestConfig::memory_backing`]; the kernel when absent.
    pub memory_backing: Option<MemoryBacking>,
}

impl ConfigFile {
    /// Reads the file.
    ///
    /// # Errors
    /// [`ConfigError::Read`] and [`ConfigError::Parse`].
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = regular::read(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        let bad = |at: Option<usize>, what: &str| {
            let before = at.and_then(|at| text.get(..at));
            let line = before.map(|before| format!("line {}: ", before.matches('\n').count() + 1));
            ConfigError::Parse {
                path: path.to_owned(),
                message: format!("{}{}", line.unwrap_or_default(), what.replace('\n', " ")),
            }
        };
        let table = DeTable::parse(&text)
            .map_err(|error| bad(error.span().map(|span| span.start), error.message()))?;
        Self::of_table(table.get_ref()).map_err(|error| bad(Some(error.at), &error.what))
    }

    fn of_table(table: &DeTable<'_>) -> Result<Self, Bad> {
        let keys = Keys::of_table(0, table, SERVICE_KEYS)?;
        let tables = |value| match value {
            Value::Toml(DeValue::Array(tables)) => tables
                .iter()
                .map(|table| Some((table.span().start, table.get_ref().as_table()?)))
                .collect(),
            _ => None,
        };
        let guests: Vec<_> = keys
            .get("guest", "tables: write [[guest]]", tables)?
            .unwrap_or_default();
        Ok(Self {
            memory: keys.get("memory", SIZE, Value::size)?,
            control: keys.get("control", "the path of a socket", path)?,
            statistics: keys.get("statistics", "the path of a socket", path)?,
            statistics_mode: keys.get("statistics-mode", access::MODE, access::mode)?,
            statistics_group: keys.get("statistics-group", access::GROUP, access::group)?,
            host_reserve: keys.get("host-reserve", SIZE, Value::size)?,
            reserve_populate: keys.get("reserve-populate", "true or false", Value::boolean)?,
            mlock: keys.get("mlock", "true or false", Value::boolean)?,
            guests: guests
                .into_iter()
                .map(|(at, table)| GuestFile::of_keys(&Keys::of_table(at, table, GUEST_KEYS)?))
                .collect::<Result<_, _>>()?,
        })
    }
}

fn path(value: Value<'_>) -> Option<PathBuf> {
    value.text().map(PathBuf::from)
}

/// Keys of the service.
const SERVICE_KEYS: &[&str] = &[
    "memory",
    "control",
    "statistics",
    "statistics-mode",
    "statistics-group",
    "host-reserve",
    "reserve-populate",
    "mlock",
    "guest",
];

/// Keys of a guest, in the configuration and, but for `groups`, after `--guest`.
pub const GUEST_KEYS: &[&str] = &[
    "name",
    "socket",
    "socket-mode",
    "socket-group",
    "reserve",
    "limit",
    "weight",
    "swap",
    "queues",
    "keep-seconds",
    "groups",
    "compression",
    "dedup",
    "frozen",
    "memory",
    "first-touch",
    "memory-backing",
];

impl GuestFile {
    fn of_keys(keys: &Keys<'_>) -> Result<Self, Bad> {
        let compression = |value: Value<'_>| match value.text()? {
            "fast" => Some(Compression::Fast),
            "dense" => Some(Compression::Dense),
            _ => None,
        };
        let dedup = |value: Value<'_>| match value.text()? {
            "auto" => Some(Dedup::Auto),
            "off" => Some(Dedup::Off),
            "on" => Some(Dedup::On),
            "adaptive" => Some(Dedup::Adaptive),
            _ => None,
        };
        let backing = |value: Value<'_>| match value.text()? {
            "kernel" => Some(MemoryBacking::Kernel),
            "any" => Some(MemoryBacking::Any),
            _ => None,
        };
        let text = |value: Value<'_>| value.text().map(str::to_owned);
        let groups = keys.get("groups", "names of share groups", Value::texts)?;
        Ok(Self {
            name: keys.required("name", "the name of the guest", text)?,
            socket: keys.required("socket", "the path of a socket", path)?,
            socket_mode: keys.get("socket-mode", access::MODE, access::mode)?,
            socket_group: keys.get("socket-group", access::GROUP, access::group)?,
            reserve: keys.get("reserve", SIZE, Value::size)?,
            limit: keys.get("limit", SIZE, Value::size)?,
            weight: keys.number("weight", 1..=u32::MAX)?,
            swap: keys.get("swap", SIZE, Value::size)?,
            queues: keys.number("queues", 1..=MAX_REQUEST_QUEUES)?,
            keep_seconds: keys.number("keep-seconds", 0..=u32::MAX)?,
            groups: groups.unwrap_or_default(),
            compression: keys.get("compression", "\"fast\" or \"dense\"", compression)?,
            dedup: keys.get("dedup", "\"auto\", \"off\", \"on\" or \"adaptive\"", dedup)?,
            frozen: keys.get("frozen", "true or false", Value::boolean)?,
            memory: keys.get("memory", SIZE, Value::size)?,
            first_touch: keys.get("first-touch", SIZE, Value::size)?,
            memory_backing: keys.get("memory-backing", "\"kernel\" or \"any\"", backing)?,
        })
    }
}

impl FromStr for GuestFile {
    type Err = ConfigError;

    /// Reads `name=vm1,socket=/run/tmem/vm1.sock,reserve=256M,limit=1G,weight=200,swap=1G`. Each `group=NAME`
    /// adds one.
    fn from_str(text: &str) -> Result<Self, ConfigError> {
        Self::of_flag(text, None)
    }
}

impl GuestFile {
    /// As [`Self::from_str`], of a guest whose socket is there already, at this path.
    ///
    /// # Errors
    /// [`ConfigError::GuestFlag`].
    pub fn on_socket(text: &str, socket: &str) -> Result<Self, ConfigError> {
        Self::of_flag(text, Some(socket))
    }

    fn of_flag(text: &str, socket: Option<&str>) -> Result<Self, ConfigError> {
        let bad = |what: String| ConfigError::GuestFlag(text.to_owned(), what);
        let mut words: Vec<(&str, &str)> = Vec::new();
        words.extend(socket.map(|socket| ("socket", socket)));
        let mut groups = Vec::new();
        for pair in text.split(',') {
            let (key, value) = pair
                .split_once('=')
                .ok_or_else(|| bad(format!("{pair:?} is not key=value")))?;
            match key {
                "group" => groups.push(value.to_owned()),
                "groups" => return Err(bad("write group=NAME for each group".to_owned())),
                _ if words.iter().any(|(known, _)| *known == key) => {
                    return Err(bad(format!("{key} is given twice")));
                }
                _ => words.push((key, value)),
            }
        }
        let keys = Keys::of_words(words, GUEST_KEYS).map_err(|error| bad(error.what))?;
        let guest = Self::of_keys(&keys).map_err(|error| bad(error.what))?;
        Ok(Self { groups, ..guest })
    }
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

impl TryFrom<GuestFile> for GuestConfig {
    type Error = ConfigError;

    fn try_from(file: GuestFile) -> Result<Self, ConfigError> {
        if file.name.is_empty() || file.name.len() > MAX_NAME || !file.name.chars().all(is_plain) {
            return Err(ConfigError::Name(file.name));
        }
        check_socket(&file.socket)?;
        let config = Self {
            reserve: file.reserve.map_or(0, |size| size.0),
            limit: file.limit.map(|size| size.0),
            weight: file.weight.unwrap_or(100),
            swap: file.swap.map_or(0, |size| size.0),
            queues: file.queues.unwrap_or(4),
            keep: Duration::from_secs(file.keep_seconds.unwrap_or(0).into()),
            groups: file.groups,
            compression: file.compression.unwrap_or_default(),
            dedup: file.dedup.unwrap_or_default(),
            frozen: file.frozen.unwrap_or(false),
            access: Access::new(file.socket_mode, file.socket_group),
            memory: file.memory.map(|size| size.0),
            first_touch: file.first_touch.map(|size| size.0),
            memory_backing: file.memory_backing.unwrap_or_default(),
            name: file.name,
            socket: file.socket,
        };
        let what = if !Access::is_mode(config.access.mode) {
            "the mode of its socket is not 0600 to 0777"
        } else if !config.access.group.is_none_or(Access::is_group) {
            "the group of its socket has a number that no group has"
        } else if config.weight == 0 {
            "weight is 0; the least is 1"
        } else if config.queues == 0 || config.queues > MAX_REQUEST_QUEUES {
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

fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')
}

/// What a guest can name in a request ([`tmem_protocol::GROUP_LEN`]), and an operator can read.
fn is_group(name: &str) -> bool {
    (1..=tmem_protocol::GROUP_LEN).contains(&name.len()) && name.chars().all(is_plain)
}

fn check_socket(path: &Path) -> Result<(), ConfigError> {
    let len = path.as_os_str().len();
    if len == 0 || len > MAX_SOCKET_PATH {
        return Err(ConfigError::SocketPath(path.to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        let dir = tempfile::tempdir().expect("temporary folder");
        let path = dir.path().join("tmem.toml");
        std::fs::write(&path, text).expect("writes");
        Config::try_from(ConfigFile::read(&path)?)
    }

    fn refusal(text: &str) -> String {
        let error = parse(text).expect_err(text).to_string();
        assert!(!error.contains('\n'), "one line: {error:?}");
        error
    }

    #[test]
    fn file_and_flags_give_the_same() {
        let file = parse(
            r#"
            memory = "4G"
            control = "/run/tmem.sock"
            statistics = "/run/tmem/stats.sock"
            statistics-mode = 0o666
            statistics-group = 7
            host-reserve = "2G"
            reserve-populate = true
            mlock = true
            [[guest]]
            name = "vm1"
            socket = "/run/tmem/vm1.sock"
            socket-mode = "0640"
            socket-group = "root"
            reserve = "256M"
            limit = 1073741824
            weight = 200
            swap = "1G"
            queues = 2
            keep-seconds = 30
            groups = ["web", "db"]
            compression = "dense"
            dedup = "off"
            frozen = true
            memory = "8G"
            first-touch = "64M"
            memory-backing = "any"
            "#,
        )
        .expect("valid");
        let flags = Config::try_from(ConfigFile {
            memory: Some("4096MiB".parse().expect("a size")),
            control: Some("/run/tmem.sock".into()),
            statistics: Some("/run/tmem/stats.sock".into()),
            statistics_mode: Some(0o666),
            statistics_group: Some(7),
            host_reserve: Some("2G".parse().expect("a size")),
            reserve_populate: Some(true),
            mlock: Some(true),
            guests: vec![
                "name=vm1,socket=/run/tmem/vm1.sock,socket-mode=0640,socket-group=0,reserve=256M,limit=1G,weight=200,swap=1G,queues=2,keep-seconds=30,group=web,compression=dense,group=db,dedup=off,frozen=true,memory=8G,first-touch=64M,memory-backing=any"
                    .parse()
                    .expect("a guest"),
            ],
        })
        .expect("valid");
        assert_eq!(file, flags);
        assert_eq!(file.host_reserve, Some(2 << 30));
        assert!(file.reserve_populate && file.mlock);
        assert_eq!(file.guests[0].limit, Some(1 << 30));
        assert_eq!(file.guests[0].keep, Duration::from_secs(30));
        assert_eq!(file.guests[0].groups, ["web", "db"]);
        assert_eq!(file.guests[0].access, Access::new(Some(0o640), Some(0)));
        assert_eq!(file.guests[0].compression, Compression::Dense);
        assert_eq!(file.guests[0].dedup, Dedup::Off);
        assert!(file.guests[0].frozen);
        assert_eq!(file.guests[0].memory, Some(8 << 30));
        assert_eq!(file.guests[0].first_touch, Some(64 << 20));
        assert_eq!(file.guests[0].memory_backing, MemoryBacking::Any);
    }

    #[test]
    fn the_packaged_configuration_is_valid_with_its_example_too() {
        let packaged = include_str!("../../packaging/tmem.toml");
        assert!(parse(packaged).expect("valid").guests.is_empty());
        let example = packaged.replace("\n#", "\n").replace("\n ", "\n# ");
        assert_eq!(parse(&example).expect("valid").guests.len(), 1);
    }

    /// The keys that a refusal of an unknown one lists.
    fn known_keys(refusal: &str) -> BTreeSet<String> {
        let (_, expected) = refusal.split_once("expected").expect(refusal);
        let keys = expected.split('`').skip(1).step_by(2);
        keys.map(str::to_owned).collect()
    }

    #[test]
    fn the_manual_has_every_key_and_no_other() {
        let manual = include_str!("../../packaging/tmem.toml.5");
        let keys_of = |section: &str| -> BTreeSet<String> {
            let (_, text) = manual.split_once(section).expect(section);
            let text = text.split("\n.SH").next().unwrap_or_default();
            let tags = text.split(".TP\n.B ").skip(1);
            let tags = tags.filter_map(|tag| tag.lines().next());
            tags.map(|tag| tag.replace('\\', "")).collect()
        };
        let service = known_keys(&refusal("memory = 1\nnonsense = 1"));
        assert!(service.contains("memory"), "{service:?}");
        assert_eq!(keys_of(".SH KEYS OF THE SERVICE"), service);
        let guest = "name=a,socket=/a,nonsense=1".parse::<GuestFile>();
        let guest = known_keys(&guest.expect_err("no such key").to_string());
        assert!(guest.contains("keep-seconds"), "{guest:?}");
        assert_eq!(keys_of(".SH KEYS OF A GUEST"), guest);
    }

    #[test]
    fn the_example_of_the_manual_is_valid() {
        let manual = include_str!("../../packaging/tmem.toml.5");
        let (_, example) = manual.split_once(".EX\n").expect("has one");
        let (example, _) = example.split_once(".EE").expect("has an end");
        let example = example.replace("\\(dq", "\"").replace("\\-", "-");
        assert_eq!(parse(&example).expect("valid").guests.len(), 1);
    }

    #[test]
    fn what_is_left_out_has_a_default() {
        let config = parse("memory = 4096\n[[guest]]\nname='a'\nsocket='/a'").expect("valid");
        assert_eq!(config.control, None);
        assert_eq!(config.statistics, None);
        assert_eq!(config.host_reserve, None);
        assert!(!config.reserve_populate && !config.mlock);
        let guest = &config.guests[0];
        assert_eq!(guest.access, Access::default());
        assert_eq!((guest.reserve, guest.limit, guest.weight), (0, None, 100));
        assert_eq!(
            (guest.swap, guest.queues, guest.keep),
            (0, 4, Duration::ZERO)
        );
        assert!(guest.groups.is_empty() && !guest.frozen);
        assert_eq!(
            (guest.memory, guest.first_touch, guest.memory_backing),
            (None, None, MemoryBacking::Kernel)
        );
        assert_eq!(
            (guest.compression, guest.dedup),
            (Compression::Fast, Dedup::Auto)
        );
    }

    #[test]
    fn a_refusal_says_on_one_line_what_is_wrong() {
        assert!(refusal("memory = 0").contains("Memory"));
        assert!(refusal("memory = '4X'").contains("4X"));
        assert!(
            refusal("memory = 1\ncontroll = '/x'").contains("line 2"),
            "typo in a key"
        );
        let guest = |rest: &str| format!("memory='1G'\n[[guest]]\nname='a'\nsocket='/a'\n{rest}");
        assert!(refusal(&guest("weight=0")).contains("weight"));
        assert!(refusal(&guest("queues=65")).contains("queues"));
        assert!(refusal(&guest("limit=0")).contains("limit"));
        assert!(refusal(&guest("reserve='2M'\nlimit='1M'")).contains("reserve"));
        assert!(refusal(&guest("reserve='2G'")).contains("reserve"));
        assert!(refusal(&guest("groups=['web','']")).contains("share group"));
        assert!(refusal(&guest("groups=['a/b']")).contains("share group"));
        assert!(refusal(&guest("groups=['abcdefghijklmnopqrstuvwxy']")).contains("24"));
        assert!(refusal(&guest("compression='more'")).contains("dense"));
        assert!(refusal(&guest("memory=0")).contains("memory"));
        assert!(refusal(&guest("memory='2T'")).contains("1T"));
        assert!(refusal(&guest("memory-backing='disk'")).contains("kernel"));
        assert!(refusal(&guest("dedup=1")).contains("line 5"));
        assert!(refusal(&guest("[[guest]]\nname='a'\nsocket='/b'")).contains("two guests"));
        assert!(refusal(&guest("[[guest]]\nname='b'\nsocket='/a'")).contains("twice"));
        assert!(refusal("memory = 1\ncontrol = '/a'\nstatistics = '/a'").contains("twice"));
        assert!(refusal(&format!("statistics = '/a'\n{}", guest(""))).contains("twice"));
        assert!(refusal(&guest("[[guest]]\nname='a/b'\nsocket='/b'")).contains("a/b"));
        assert!(refusal(&guest("[[guest]]\nname='b'\nsocket=''")).contains("Socket path"));
    }

    #[test]
    fn a_value_of_the_wrong_kind_is_refused_by_its_key_with_what_it_takes() {
        let guest = |key: &str, value: &str| {
            let mut keys = vec![("name", "'a'"), ("socket", "'/a'")];
            keys.retain(|(known, _)| *known != key);
            let keys = keys.iter().map(|(key, value)| format!("{key} = {value}\n"));
            format!(
                "memory = 1\n[[guest]]\n{key} = {value}\n{}",
                keys.collect::<String>()
            )
        };
        let wrong = ["1.5", "true", "[[1]]", "{}", "1979-05-27", "-1", "''"];
        for (key, takes, fine) in [
            ("name", "the name of the guest", &["''"][..]),
            ("socket", "the path of a socket", &["''"]),
            ("socket-mode", "a mode in octal", &[]),
            ("socket-group", "the name of a group", &[]),
            ("reserve", "a size", &[]),
            ("limit", "a size", &[]),
            ("swap", "a size", &[]),
            ("weight", "a number from 1 to 4294967295", &[]),
            ("queues", "a number from 1 to 64", &[]),
            ("keep-seconds", "a number from 0 to 4294967295", &[]),
            ("groups", "names of share groups", &[]),
            ("compression", "\"fast\" or \"dense\"", &[]),
            ("dedup", "\"auto\", \"off\", \"on\" or \"adaptive\"", &[]),
            ("frozen", "true or false", &["true"]),
            ("memory", "a size", &[]),
            ("first-touch", "a size", &[]),
            ("memory-backing", "\"kernel\" or \"any\"", &[]),
        ] {
            for value in wrong.iter().filter(|value| !fine.contains(value)) {
                let error = refusal(&guest(key, value));
                assert!(error.contains(&format!("line 3: {key} is ")), "{error}");
                assert!(error.contains(&format!("; it takes {takes}")), "{error}");
            }
        }
        let error = refusal("memory = 1.5");
        assert!(
            error.contains("line 1: memory is 1.5; it takes a size: bytes, or"),
            "{error}"
        );
        for (key, takes) in [
            ("host-reserve", "a size"),
            ("reserve-populate", "true or false"),
            ("mlock", "true or false"),
        ] {
            let error = refusal(&format!("memory = 1\n{key} = 'much'"));
            assert!(
                error.contains(&format!("line 2: {key} is \"much\"; it takes {takes}")),
                "{error}"
            );
        }
        assert!(
            refusal("memory = 1\ncontrol = 2").contains("line 2: control is 2; it takes the path")
        );
        assert!(refusal("memory = 1\nguest = 2").contains("guest is 2; it takes tables"));
        for (key, text) in [("socket", "name = 'a'"), ("name", "socket = '/a'")] {
            let error = refusal(&format!("memory = 1\n[[guest]]\n{text}"));
            assert!(
                error.contains(&format!("line 2: {key} is missing; it takes the")),
                "{error}"
            );
        }
        let long = refusal(&format!("memory = '{}'", "9".repeat(5000)));
        assert!(long.len() < 300, "{long}");
    }

    #[test]
    fn bad_guest_flags_are_named() {
        for (flag, part) in [
            ("name=a", "socket"),
            ("name=a,socket=/a,weight=many", "many"),
            ("name=a,socket=/a,colour=red", "colour"),
            ("name=a,socket=/a,socket-mode=u+w", "u+w"),
            ("name=a,socket=/a,socket-mode=02660", "02660"),
            (
                "name=a,socket=/a,socket-group=no-such-group",
                "no-such-group",
            ),
            ("name=a,name=b,socket=/a", "twice"),
            ("name=a,socket=/a,frozen=maybe", "maybe"),
            ("name=a,socket=/a,groups=web", "group"),
            ("name=a,socket=/a,compression=most", "most"),
            ("name", "key=value"),
        ] {
            let error = flag.parse::<GuestFile>().expect_err(flag).to_string();
            assert!(error.contains(part) && !error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn a_mode_that_is_not_written_in_octal_is_refused() {
        let guest =
            |mode: &str| format!("memory=1\n[[guest]]\nname='a'\nsocket='/a'\nsocket-mode={mode}");
        for mode in ["660", "0x1b0", "0o60", "'rw-rw----'"] {
            assert!(refusal(&guest(mode)).contains("in octal"), "{mode}");
        }
    }

    #[test]
    fn a_guest_on_a_socket_that_is_there_names_no_other() {
        let guest = GuestFile::on_socket("name=a,weight=7", "/run/a,b").expect("valid");
        assert_eq!((guest.socket, guest.weight), ("/run/a,b".into(), Some(7)));
        let error = GuestFile::on_socket("name=a,socket=/b", "/a").expect_err("two");
        assert!(error.to_string().contains("twice"), "{error}");
    }

    #[test]
    fn sizes_have_binary_units_and_do_not_wrap() {
        let size = |text: &str| text.parse::<Size>().map(|size| size.0).ok();
        assert_eq!(size("1k"), Some(1024));
        assert_eq!(size("3 G"), None);
        assert_eq!(size("16T"), Some(16 << 40));
        assert_eq!(size("99999999T"), None);
        assert_eq!(size("-1"), None);
        assert_eq!(size(""), None);
        assert_eq!(size("G"), None);
    }
}
