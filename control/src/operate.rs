//! What a client can have done: bodies of requests, their replies, and why they are refused.

use std::{
    collections::BTreeMap,
    os::fd::{AsRawFd, OwnedFd},
    sync::Arc,
};

use hyper::StatusCode;
use serde::{Deserialize, Deserializer, Serialize};

use crate::stats::Domain;

/// Reply of `GET /v1/domains`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Domains {
    /// The guests, in the order of their names.
    pub domains: Vec<Domain>,
}

/// Reply of `GET /v1/freeable`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Freeable {
    /// Bytes held by ephemeral pages of all guests, which the host can have back at once.
    pub freeable: u64,
    /// The same for each guest.
    pub domains: BTreeMap<String, u64>,
}

/// Body of `PATCH /v1/domains/{name}`. What is left out stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// Share in the memory that nobody reserved, at least 1.
    #[serde(
        default,
        deserialize_with = "some_whole",
        skip_serializing_if = "Option::is_none"
    )]
    pub weight: Option<u32>,
    /// Bytes of the budget that only this domain may use.
    #[serde(
        default,
        deserialize_with = "some_whole",
        skip_serializing_if = "Option::is_none"
    )]
    pub reserve: Option<u64>,
    /// Hard cap in bytes; `null` (here `Some(None)`) takes it away.
    #[serde(
        default,
        deserialize_with = "present",
        skip_serializing_if = "Option::is_none"
    )]
    pub limit: Option<Option<u64>>,
    /// How hard pages are compressed.
    #[serde(
        default,
        deserialize_with = "some",
        skip_serializing_if = "Option::is_none"
    )]
    pub compression: Option<Compression>,
    /// Whether new pages are refused.
    #[serde(
        default,
        deserialize_with = "some",
        skip_serializing_if = "Option::is_none"
    )]
    pub frozen: Option<bool>,
}

/// Tells `null` from a field that is left out.
fn present<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Option<u64>>, D::Error> {
    let number = Option::<serde_json::Number>::deserialize(from)?;
    number.map(|number| integer(&number)).transpose().map(Some)
}

/// A field that may be left out and is not `null`.
fn some<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Option<T>, D::Error> {
    T::deserialize(from).map(Some)
}

/// As [`some`], for integers.
fn some_whole<'de, D: Deserializer<'de>, T: TryFrom<u64>>(from: D) -> Result<Option<T>, D::Error> {
    whole(from).map(Some)
}

/// An integer, however it is written: JSON has no other numbers than `5` and `5.0`, which are one.
fn whole<'de, D: Deserializer<'de>, T: TryFrom<u64>>(from: D) -> Result<T, D::Error> {
    let number = serde_json::Number::deserialize(from)?;
    integer(&number)
}

fn integer<T: TryFrom<u64>, E: serde::de::Error>(number: &serde_json::Number) -> Result<T, E> {
    let value = number.as_u64().or_else(|| {
        let float = number.as_f64().filter(|f| f.fract() == 0.0 && *f >= 0.0)?;
        format!("{float:.0}").parse().ok()
    });
    value
        .and_then(|value| T::try_from(value).ok())
        .ok_or_else(|| E::custom(format!("{number} is not an integer in range")))
}

/// How hard the pages of a guest are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Once, when they are stored.
    #[default]
    Fast,
    /// Again, and denser, when nobody has used them for a while.
    Dense,
}

impl Compression {
    /// The word used in JSON and by the commands.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fast => "fast",
            Self::Dense => "dense",
        }
    }
}

/// Body of `POST /v1/domains/{name}/flush`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Flush {
    /// Bytes to free at least, if there are as many to be freed.
    #[serde(deserialize_with = "whole")]
    pub bytes: u64,
}

/// Reply of `POST /v1/domains/{name}/flush`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flushed {
    /// Bytes that were freed.
    pub flushed: u64,
}

/// Reply (202) to what takes longer than a client should wait.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// For people.
    pub message: String,
}

/// Body of `POST /v1/guests`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewGuest {
    /// Its name.
    pub name: String,
    /// Path of the vhost-user socket to make; empty, or left out, where a socket is passed with the request.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub socket: String,
    /// Permission bits of the socket; 0600 when left out, or 0660 with a group.
    #[serde(default, with = "mode", skip_serializing_if = "Option::is_none")]
    pub socket_mode: Option<u32>,
    /// Number of the group of the socket; that of the service when left out.
    #[serde(
        default,
        deserialize_with = "some_whole",
        skip_serializing_if = "Option::is_none"
    )]
    pub socket_group: Option<u32>,
    /// Bytes of the budget that only this guest may use; 0 when left out.
    #[serde(
        default,
        deserialize_with = "some_whole",
        skip_serializing_if = "Option::is_none"
    )]
    pub reserve: Option<u64>,
    /// Hard cap in bytes; none when left out.
    #[serde(
        default,
        deserialize_with = "some_whole",
        skip_serializing_if = "Option::is_none"
    )]
    pub limit: Option<u64>,
    /// Share in the memory that nobody reserved.
    #[serde(
        default,
        deserialize_with = "some_whole",
        skip_serializing_if = "Option::is_none"
    )]
    pub weight: Option<u32>,
    /// Size suggested for its swap disk, in bytes.
    #[serde(
        default,
        deserialize_with = "some_whole",
        skip_serializing_if = "Option::is_none"
    )]
    pub swap: Option<u64>,
    /// Number of request queues.
    #[serde(
        default,
        deserialize_with = "some_whole",
        skip_serializing_if = "Option::is_none"
    )]
    pub queues: Option<u16>,
    /// Seconds that its pools outlive a lost connection.
    #[serde(
        default,
        deserialize_with = "some_whole",
        skip_serializing_if = "Option::is_none"
    )]
    pub keep_seconds: Option<u32>,
    /// Share groups that it may join.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// How hard its pages are compressed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compression: Option<Compression>,
    /// When its pools keep one copy of pages with the same bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dedup: Option<Dedup>,
    /// Whether its pages are refused to begin with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frozen: Option<bool>,
    /// Bytes of memory that its front end may describe.
    #[serde(
        default,
        deserialize_with = "some_whole",
        skip_serializing_if = "Option::is_none"
    )]
    pub memory: Option<u64>,
    /// Bytes of it that the service may be the first to touch; no limit when left out.
    #[serde(
        default,
        deserialize_with = "some_whole",
        skip_serializing_if = "Option::is_none"
    )]
    pub first_touch: Option<u64>,
    /// What may be behind it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_backing: Option<MemoryBacking>,
}

/// What may be behind the memory of a front end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MemoryBacking {
    /// The kernel alone: memfd, tmpfs, hugetlbfs.
    Kernel,
    /// Anything that can be mapped.
    Any,
}

/// A mode is text in octal: `"0660"`.
mod mode {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(mode: &Option<u32>, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&format_args!("{:04o}", mode.unwrap_or_default()))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u32>, D::Error> {
        let text = String::deserialize(from)?;
        let octal = (3..=4).contains(&text.len()) && text.bytes().all(|b| matches!(b, b'0'..=b'7'));
        let mode = octal.then(|| u32::from_str_radix(&text, 8).ok()).flatten();
        let bad = || D::Error::custom("a mode is 3 or 4 octal digits");
        mode.map(Some).ok_or_else(bad)
    }
}

/// A descriptor that came with a request. Nothing is known of it yet.
#[derive(Clone, Debug)]
pub struct Passed(Arc<OwnedFd>);

impl Passed {
    pub(crate) fn new(fd: OwnedFd) -> Self {
        Self(Arc::new(fd))
    }

    /// Its only owner; `None` while there is another.
    pub fn into_owned(self) -> Option<OwnedFd> {
        Arc::into_inner(self.0)
    }
}

impl PartialEq for Passed {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_raw_fd() == other.0.as_raw_fd()
    }
}

impl Eq for Passed {}

/// When the pools of a guest keep one copy of pages with the same bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dedup {
    /// Always in shared pools, never in private ones.
    Auto,
    /// Never.
    Off,
    /// Always.
    On,
    /// While it pays.
    Adaptive,
}

/// Something to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Change what a domain may have.
    Change {
        /// Name of the domain.
        domain: String,
        /// What changes.
        change: Change,
    },
    /// Evict ephemeral pages.
    Flush {
        /// Name of the domain.
        domain: String,
        /// Bytes to free at least.
        bytes: u64,
    },
    /// Begin to serve a guest.
    AddGuest(NewGuest),
    /// Begin to serve a guest that connects to a socket that the client made.
    AddGuestOn {
        /// The guest, without a path.
        guest: NewGuest,
        /// The listening socket.
        socket: Passed,
    },
    /// End to serve a guest; its pages go.
    RemoveGuest(String),
}

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// The domain was changed.
    Changed,
    /// As many bytes were freed.
    Flushed(u64),
    /// There is a new guest.
    Added,
    /// The guest is gone.
    Removed,
}

/// Why something was not done. Nothing has changed then.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// There is no domain or guest of this name.
    #[error("There is no guest {0:?}")]
    Unknown(String),
    /// The values are wrong whatever the state.
    #[error("{0}")]
    Invalid(String),
    /// The values do not go with what there is.
    #[error("{0}")]
    Conflict(String),
    /// Not by this process.
    #[error("This process cannot do that: {0}")]
    Unsupported(&'static str),
    /// The host is short of something.
    #[error("{0}")]
    Failed(String),
}

impl Refused {
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::Unknown(_) => StatusCode::NOT_FOUND,
            Self::Invalid(_) => StatusCode::BAD_REQUEST,
            Self::Conflict(_) => StatusCode::CONFLICT,
            Self::Unsupported(_) => StatusCode::NOT_IMPLEMENTED,
            Self::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_that_is_left_out_stays_and_null_takes_it_away() {
        let parse = |text| serde_json::from_str::<Change>(text).expect(text).limit;
        assert_eq!(parse("{}"), None);
        assert_eq!(parse(r#"{"limit":null}"#), Some(None));
        assert_eq!(parse(r#"{"limit":5}"#), Some(Some(5)));
        for limit in [None, Some(None), Some(Some(5))] {
            let change = Change {
                limit,
                ..Change::default()
            };
            let text = serde_json::to_string(&change).expect("serializes");
            assert_eq!(
                serde_json::from_str::<Change>(&text).expect("parses"),
                change
            );
        }
    }

    #[test]
    fn numbers_are_whole_and_nothing_but_the_limit_is_null() {
        let parse = |text| serde_json::from_str::<Change>(text);
        assert_eq!(
            parse(r#"{"weight":5.0}"#).expect("an integer").weight,
            Some(5)
        );
        assert_eq!(
            parse(r#"{"limit":5e3}"#).expect("an integer").limit,
            Some(Some(5000))
        );
        for text in [
            r#"{"weight":5.5}"#,
            r#"{"weight":-1}"#,
            r#"{"weight":4294967296}"#,
            r#"{"reserve":1e30}"#,
            r#"{"weight":null}"#,
            r#"{"reserve":null}"#,
            r#"{"frozen":null}"#,
            r#"{"compression":null}"#,
            r#"{"limit":"5"}"#,
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert!(serde_json::from_str::<Flush>(r#"{"bytes":null}"#).is_err());
    }

    #[test]
    fn a_misspelt_field_is_refused() {
        assert!(serde_json::from_str::<Change>(r#"{"wieght":1}"#).is_err());
        assert!(serde_json::from_str::<NewGuest>(r#"{"name":"a","socket":"/a","x":1}"#).is_err());
    }
}
