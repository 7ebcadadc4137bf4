//! The settings of a guest.

use serde::{Deserialize, Serialize};

use super::number::some_whole;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_field_is_refused() {
        assert!(serde_json::from_str::<NewGuest>(r#"{"name":"a","socket":"/a","x":1}"#).is_err());
    }
}
