//! What a client can have done, what comes of it, and why it is refused.

use std::{
    os::fd::{AsRawFd, OwnedFd},
    sync::Arc,
};

use hyper::StatusCode;

use crate::api::{Change, GuestSpec};

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
    AddGuest(GuestSpec),
    /// Begin to serve a guest that connects to a socket that the client made.
    AddGuestOn {
        /// The guest, without a path.
        guest: GuestSpec,
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
