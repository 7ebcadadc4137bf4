//! What a server reports on, and acts on.

use crate::{
    api::Stats,
    clients::Clients,
    operation::{Done, Operation, Refused},
};

/// What the server reports on.
pub trait Source: Send + Sync + 'static {
    /// Takes a snapshot. MUST NOT hold a lock that a guest's request waits on for longer than it
    /// takes to copy a few counters.
    fn stats(&self) -> Stats;

    /// Does something. Changes nothing when it refuses. The same rule for locks. It may take its time: several
    /// threads call it, and [`Self::stats`] meanwhile.
    ///
    /// # Errors
    /// See [`Refused`].
    fn operate(&self, operation: Operation) -> Result<Done, Refused> {
        drop(operation);
        Err(Refused::Unsupported("the process has no page store"))
    }

    /// Where the servers of a process count their clients; `None` if they are not counted.
    fn clients(&self) -> Option<&Clients> {
        None
    }
}
