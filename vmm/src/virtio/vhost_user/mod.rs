//! The tmem device whose pages are at a service (`tmem serve`): we are the front end of its vhost-user socket.
//!
//! The service maps the guest's memory and serves the rings by itself. A doorbell is an ioeventfd, so it costs a
//! light exit and no system call of ours; an interrupt comes by way of the thread `tmem link`, which sets the
//! interrupt status that virtio-mmio asks for.
//!
//! | module | holds |
//! |---|---|
//! | `connection` | connecting, the handshake, starting and stopping rings: all messages |
//! | `shared` | what the device and its threads share, and its lock |
//! | `control` | the thread that talks to the service |
//! | `link` | the thread that watches it |
//! | `device` | the device as the transport sees it |
//! | `timeouts`, `error` | how long the service may take; why it cannot be used |

mod connection;
mod control;
mod device;
mod error;
mod link;
mod shared;
mod timeouts;

pub use device::VhostUser;
pub use error::ServiceError;
pub use shared::FrontendStats;
pub use timeouts::Timeouts;

#[cfg(test)]
mod mock;
#[cfg(test)]
mod tests;
