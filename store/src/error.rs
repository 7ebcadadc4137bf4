//! Why the store refuses: one enum per concern.

use std::io;

use thiserror::Error;

/// A configuration that is not accepted.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The budget holds nothing.
    #[error("The budget is zero")]
    NoBudget,
    /// All reserves together are above the budget.
    #[error("The reserves add up to {wanted} bytes, the budget is {budget}")]
    ReservesAboveBudget {
        /// Sum of the reserves, in bytes.
        wanted: u64,
        /// The budget, in bytes.
        budget: u64,
    },
    /// Others use memory that the reserve would need, and nothing of it can be evicted.
    #[error("Memory for the reserve is in use by other domains")]
    ReserveInUse,
    /// The reserve is above the limit.
    #[error("The reserve is above the limit")]
    ReserveAboveLimit,
    /// A weight of zero has no share.
    #[error("The weight is zero")]
    NoWeight,
    /// Another domain has the name.
    #[error("A domain of this name exists")]
    NameTaken,
    /// No domain has the name.
    #[error("No domain has this name")]
    UnknownDomain,
    /// The domain was removed.
    #[error("The domain was removed")]
    Removed,
    /// Memory that is to stay where it is would be beyond a limit of the process.
    #[error(
        "Pages cannot be locked in memory: the limit of locked memory (RLIMIT_MEMLOCK, LimitMEMLOCK= of a unit) has to be unlimited"
    )]
    Lock(#[source] io::Error),
    /// The host gave no memory or no thread.
    #[error("The host refused memory or a thread")]
    Host(#[source] io::Error),
}

/// Why a pool was not created.
#[derive(Debug, Error)]
pub enum CreatePoolError {
    /// The domain has as many pools as it may.
    #[error("The domain has too many pools")]
    TooMany,
    /// The domain may not join the share group.
    #[error("The domain may not join this share group")]
    Denied,
    /// The domain's limit or the budget does not hold another pool.
    #[error("No space for another pool")]
    NoSpace,
    /// The host gave no memory.
    #[error("The host refused memory")]
    NoMemory,
    /// The domain was removed.
    #[error("The domain was removed")]
    Removed,
}

/// The pool does not exist.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("The pool does not exist")]
pub struct UnknownPool;

/// Why a page was not stored. No page is under the key afterwards.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum StoreError {
    /// The domain's limit or the budget is reached, and nothing could be evicted.
    #[error("No space for the page")]
    NoSpace,
    /// The domain is frozen.
    #[error("The domain is frozen")]
    Frozen,
    /// The pool does not exist.
    #[error("The pool does not exist")]
    NoPool,
    /// The host gave no memory.
    #[error("The host refused memory")]
    NoMemory,
}

/// Why a page was not loaded.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum LoadError {
    /// No page is under the key.
    #[error("No page is under this key")]
    NotFound,
    /// The pool does not exist.
    #[error("The pool does not exist")]
    NoPool,
    /// The kept bytes are not those that were stored: the host's memory is damaged.
    #[error("The stored bytes are damaged")]
    Corrupt,
}
