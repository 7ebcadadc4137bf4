//! Values that the operator chooses or is shown, and the store acts on.

use serde::{Deserialize, Serialize};

/// What a pool promises about its pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PoolKind {
    /// An accepted page is kept.
    #[default]
    Persistent,
    /// A page may vanish, but is never stale. A load takes it out.
    Ephemeral,
    /// As ephemeral, but shared by the members of a group: a load leaves the page.
    Shared,
}

impl PoolKind {
    /// The word used in JSON and in metric labels.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Persistent => "persistent",
            Self::Ephemeral => "ephemeral",
            Self::Shared => "shared",
        }
    }
}

/// When a pool keeps one copy of pages with the same bytes. Within a share group, the choice of the member that joined
/// first holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dedup {
    /// Always in shared pools, never in private ones.
    #[default]
    Auto,
    /// Never.
    Off,
    /// Always.
    On,
    /// While it pays: one store in 32 is tested to find out.
    Adaptive,
}
