//! Why a service cannot be used.

use std::path::PathBuf;
use std::time::Duration;

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
    #[error("The tmem service at {} does not answer within {} s; is it stopped, or another guest connected there?", path.display(), timeout.as_secs_f32())]
    Silent {
        /// The socket.
        path: PathBuf,
        /// How long it was waited for.
        timeout: Duration,
    },
    /// A message of it broke the protocol, or it closed the connection.
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
        /// The missing feature or value.
        what: String,
    },
    /// The operating system refused a descriptor or a thread.
    #[error("Cannot {what}")]
    System {
        /// The message.
        what: &'static str,
        /// Cause.
        #[source]
        source: std::io::Error,
    },
}
