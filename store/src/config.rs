//! The settings that an operator chooses.

use std::sync::Arc;
use std::time::Duration;

use crate::codec::codecs::Codecs;

/// The purpose of a request for memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// Pages, and where they are.
    Pages,
    /// An empty pool: some kilobytes, which a guest that starts cannot do without.
    Pool,
}

/// Asked before memory is taken, with the bytes; `false` refuses as a host without memory would.
/// Called with locks held: it must not call the store.
pub trait Gate: Send + Sync + std::fmt::Debug {
    /// Whether the host grants the bytes.
    fn allow(&self, bytes: u64, want: Want) -> bool;

    /// Whether the host is so short of memory that pages which may vanish are not taken.
    fn is_short(&self) -> bool {
        false
    }

    /// The kernel has so many bytes of frames back: they can be had again.
    fn returned(&self, _bytes: u64) {}
}

/// Configuration of a store.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// Bytes that all domains together may use: payload, waste and metadata.
    pub budget: u64,
    /// How pages are compressed.
    pub codecs: Codecs,
    /// Whether a thread compacts, trims and recompresses. Without it, [`crate::Store::maintain`] does.
    pub background: bool,
    /// Called first on that thread, for example to confine it.
    pub background_start: Option<fn()>,
    /// How long a page is left alone before the cold tier takes it, at least.
    pub cold_after: Duration,
    /// Whether pages are locked in memory: the host may not swap them out.
    pub locked: bool,
    /// Grants memory; `None` grants all that the budget does.
    pub gate: Option<Arc<dyn Gate>>,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            budget: 1 << 30,
            codecs: Codecs::default(),
            background: true,
            background_start: None,
            cold_after: Duration::from_secs(60),
            locked: false,
            gate: None,
        }
    }
}

/// Configuration of a domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DomainConfig {
    /// Bytes of the budget that only this domain may use.
    pub reserve: u64,
    /// Most bytes the domain may use; `u64::MAX` for none.
    pub limit: u64,
    /// Share in the unreserved memory, relative to other domains. Not zero.
    pub weight: u32,
    /// Whether pages that are not touched for some time are recompressed to a smaller size.
    pub cold: bool,
    /// Share groups that the domain may join.
    pub groups: Vec<String>,
    /// Most pools the domain may have at a time, up to 255.
    pub max_pools: u8,
}

impl Default for DomainConfig {
    fn default() -> Self {
        Self {
            reserve: 0,
            limit: u64::MAX,
            weight: 100,
            cold: false,
            groups: Vec::new(),
            max_pools: 32,
        }
    }
}

/// Changes of a running domain; `None` leaves a value as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DomainChange {
    /// See [`DomainConfig::reserve`].
    pub reserve: Option<u64>,
    /// See [`DomainConfig::limit`].
    pub limit: Option<u64>,
    /// See [`DomainConfig::weight`].
    pub weight: Option<u32>,
    /// See [`DomainConfig::cold`].
    pub cold: Option<bool>,
}

/// What kind of pool to create.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolSpec<'a> {
    /// Accepted pages stay until they are overwritten or invalidated.
    Persistent,
    /// Pages may vanish, and a load takes them out.
    Ephemeral,
    /// Pages may vanish; every domain that joined the group sees them, and a load leaves them.
    Shared {
        /// Name of the share group.
        group: &'a str,
    },
}
