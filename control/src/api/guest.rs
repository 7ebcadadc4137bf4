//! The settings of a guest, as a client or an operator writes them.

use serde::{Deserialize, Serialize};
use tmem_base::setting::Dedup;

use super::notation;

/// Most request queues of one guest.
pub const MAX_REQUEST_QUEUES: u32 = 64;

/// The settings of a guest before they are checked: body of `POST /v1/guests`, `[[guest]]` of the configuration, and what follows
/// `--guest`. There `-` stands for each `_`, and sizes, modes and groups have a notation of their own ([`notation`]).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestSpec {
    /// Its name.
    #[serde(deserialize_with = "notation::name")]
    pub name: String,
    /// Path of the vhost-user socket to make; empty, or left out, where a socket is passed with the request.
    #[serde(
        default,
        deserialize_with = "notation::path",
        skip_serializing_if = "String::is_empty"
    )]
    pub socket: String,
    /// Permission bits of the socket; 0600 when left out, or 0660 with a group.
    #[serde(
        default,
        deserialize_with = "notation::mode",
        serialize_with = "notation::octal",
        skip_serializing_if = "Option::is_none"
    )]
    pub socket_mode: Option<u32>,
    /// Number of the group of the socket; that of the service when left out.
    #[serde(
        default,
        deserialize_with = "notation::group",
        skip_serializing_if = "Option::is_none"
    )]
    pub socket_group: Option<u32>,
    /// Bytes of the budget that only this guest may use; 0 when left out.
    #[serde(
        default,
        deserialize_with = "notation::size",
        skip_serializing_if = "Option::is_none"
    )]
    pub reserve: Option<u64>,
    /// Hard cap in bytes; none when left out.
    #[serde(
        default,
        deserialize_with = "notation::size",
        skip_serializing_if = "Option::is_none"
    )]
    pub limit: Option<u64>,
    /// Share in the memory that no guest has reserved; 100 when left out.
    #[serde(
        default,
        deserialize_with = "notation::number::<1, { u32::MAX }, _, _>",
        skip_serializing_if = "Option::is_none"
    )]
    pub weight: Option<u32>,
    /// Size suggested for its swap disk, in bytes; the guest decides when left out.
    #[serde(
        default,
        deserialize_with = "notation::size",
        skip_serializing_if = "Option::is_none"
    )]
    pub swap: Option<u64>,
    /// Number of request queues; 4 when left out. Stores have as many again.
    #[serde(
        default,
        deserialize_with = "notation::number::<1, MAX_REQUEST_QUEUES, _, _>",
        skip_serializing_if = "Option::is_none"
    )]
    pub queues: Option<u16>,
    /// Seconds that its pools outlive a lost connection; 0 when left out.
    #[serde(
        default,
        deserialize_with = "notation::number::<0, { u32::MAX }, _, _>",
        skip_serializing_if = "Option::is_none"
    )]
    pub keep_seconds: Option<u32>,
    /// Share groups that it may join.
    #[serde(
        default,
        deserialize_with = "notation::groups",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub groups: Vec<String>,
    /// How hard its pages are compressed; fast when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compression: Option<Compression>,
    /// When its pools keep one copy of pages with the same bytes; auto when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dedup: Option<Dedup>,
    /// Whether its pages are refused to begin with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frozen: Option<bool>,
    /// Bytes of memory that its front end may describe.
    #[serde(
        default,
        deserialize_with = "notation::size",
        skip_serializing_if = "Option::is_none"
    )]
    pub memory: Option<u64>,
    /// Bytes of it that the service may be the first to touch; no limit when left out.
    #[serde(
        default,
        deserialize_with = "notation::size",
        skip_serializing_if = "Option::is_none"
    )]
    pub first_touch: Option<u64>,
    /// What may be behind it; the kernel when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_backing: Option<MemoryBacking>,
}

/// What may be behind the memory of a front end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MemoryBacking {
    /// The kernel alone: memfd, tmpfs, hugetlbfs.
    #[default]
    Kernel,
    /// Anything that can be mapped. Whoever answers for its pages, a disk, a server or a process, can stop the service.
    Any,
}

/// How hard the pages of a guest are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Once, when they are stored.
    #[default]
    Fast,
    /// Again, and denser, when they were not used for a while.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_field_is_refused() {
        assert!(serde_json::from_str::<GuestSpec>(r#"{"name":"a","socket":"/a","x":1}"#).is_err());
    }
}
