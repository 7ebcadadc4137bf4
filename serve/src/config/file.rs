//! Reads the configuration as it is written: the keys of the file and of flags, before they are checked.

use std::path::{Path, PathBuf};

use tmem_control::api::GuestSpec;
use toml::de::{DeTable, DeValue};

use super::{ConfigError, ConfigFile};
use crate::access;
use crate::keys::{Bad, Keys, SIZE, Value};
use crate::{regular, spec};

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
        let keys = Keys::of_table(0, table);
        keys.only(SERVICE_KEYS)?;
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
                .map(|(at, table)| spec::guest(&Keys::of_table(at, table)))
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

/// Reads a guest as it follows `--guest`: `name=vm1,socket=/run/tmem/vm1.sock,reserve=256M,limit=1G,weight=200,swap=1G`. Each
/// `group=NAME` adds one.
///
/// # Errors
/// [`ConfigError::GuestFlag`].
pub fn parse_guest(text: &str) -> Result<GuestSpec, ConfigError> {
    guest_of_flag(text, None)
}

/// As [`parse_guest`], of a guest whose socket is there already, at this path.
///
/// # Errors
/// [`ConfigError::GuestFlag`].
pub fn parse_guest_on(text: &str, socket: &str) -> Result<GuestSpec, ConfigError> {
    guest_of_flag(text, Some(socket))
}

fn guest_of_flag(text: &str, socket: Option<&str>) -> Result<GuestSpec, ConfigError> {
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
    let guest = spec::guest(&Keys::of_words(words)).map_err(|error| bad(error.what))?;
    Ok(GuestSpec { groups, ..guest })
}
