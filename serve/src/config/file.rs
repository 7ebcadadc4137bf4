//! Reads the configuration as it is written: the keys of the file and of flags, before they are checked.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use toml::de::{DeTable, DeValue};

use super::{
    Compression, ConfigError, ConfigFile, Dedup, GuestFile, MAX_REQUEST_QUEUES, MemoryBacking,
};
use crate::access;
use crate::keys::{Bad, Keys, SIZE, Value};
use crate::regular;

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
