//! The tmem device whose pages are at a service (`tmem serve`): we are the front end of its vhost-user socket.
//!
//! The service maps the guest's memory and serves the rings by itself. A doorbell is an ioeventfd, so it costs a
//! light exit and no system call of ours; an interrupt comes by way of the thread `tmem link`, which sets the
//! interrupt status that virtio-mmio asks for.
//!
//! | module | holds |
//! |---|---|
//! | `connection` | connecting, the handshake, starting and stopping rings: all messages |
//! | `device` | the device as the transport sees it, and what its threads share |
//! | `threads` | `tmem control` talks to the service, `tmem link` watches it |

mod connection;
mod device;
mod threads;

use std::path::PathBuf;
use std::time::Duration;

pub use device::{LinkFigures, VhostUser};

/// Entries of the event queue, as in the device of this process.
const EVENT_QUEUE_SIZE: u16 = 16;
/// Entries of a request queue.
const REQUEST_QUEUE_SIZE: u16 = 256;
/// Most request queues that are taken from a service: one for each processor is all a driver uses.
const MAX_REQUEST_QUEUES: u16 = 64;

/// How long the service may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// From the start of `tmem run` until the device is known.
    pub connect: Duration,
    /// From DRIVER_OK until the rings are served; then the device needs a reset.
    pub start: Duration,
    /// For the confirmation that nothing is served any more: as long does a vCPU wait in its reset. A service that
    /// confirms later is heard too.
    pub stop: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            start: Duration::from_secs(10),
            stop: Duration::from_secs(1),
        }
    }
}

/// Why the service cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServiceError {
    /// Nobody listens there.
    #[error(
        "Cannot connect to the tmem service at {}; start it with `tmem serve --guest name=NAME,socket={} ...`", path.display(), path.display()
    )]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Cause.
        #[source]
        source: std::io::Error,
    },
    /// It accepted, or its backlog did, and says nothing.
    #[error("The tmem service at {} does not answer within {} s; is it stopped, or another guest connected there?", path.display(), patience.as_secs_f32())]
    Silent {
        /// The socket.
        path: PathBuf,
        /// How long it was waited for.
        patience: Duration,
    },
    /// What it said broke the protocol, or it went away.
    #[error("The tmem service at {} failed in {step}", path.display())]
    Failed {
        /// The socket.
        path: PathBuf,
        /// The message that was under way.
        step: &'static str,
        /// Cause.
        #[source]
        source: vhost::Error,
    },
    /// It is something else, or of another version.
    #[error("At {} is no tmem service that this version can use: {what}", path.display())]
    Unsuitable {
        /// The socket.
        path: PathBuf,
        /// What is missing.
        what: String,
    },
    /// The operating system refused a descriptor or a thread.
    #[error("Cannot {what}")]
    System {
        /// What was asked.
        what: &'static str,
        /// Cause.
        #[source]
        source: std::io::Error,
    },
}

#[cfg(test)]
mod mock;
#[cfg(test)]
mod tests;
