//! How much the bench does.

use std::time::Duration;

/// How much to do.
pub(crate) struct Scale {
    /// Pages that are stored and loaded.
    pub(crate) pages: usize,
    /// Times that each side has its turn.
    pub(crate) rounds: usize,
    /// Requests of one turn.
    pub(crate) requests: usize,
    /// How long idle guests are watched.
    pub(crate) idle: Duration,
    /// How long a neighbour is watched in one turn.
    pub(crate) neighbour: Duration,
}
