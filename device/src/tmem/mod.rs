//! The transcendent memory device.
//!
//! | module | holds |
//! |---|---|
//! | `device` | [`TmemDevice`]: features, configuration space, events, reset |
//! | `execute` | one request: decoded, executed, answered |
//! | `pool_table` | the pools of the driver in the domain of its guest |
//! | `pools` | ids of pools that nobody can guess |
//! | `events` | what the host tells the guest |
//! | [`request`] | pure decoding of a request header into an enum |
//! | `pressure` | when the guest hears of a refusal, and of room |
//! | `metrics` | counters |

mod device;
mod events;
mod execute;
mod metrics;
mod pool_table;
mod pools;
mod pressure;
pub mod request;

pub use device::{StoreQueues, TmemConfig, TmemDevice};
pub use events::HostState;
pub use metrics::{MetricsSnapshot, TmemMetrics};
pub use request::Malformed;

/// Name of the device in messages.
pub const NAME: &str = "virtio-tmem";

/// Number of queues of a device with `request_queues` request queues.
#[must_use]
pub const fn num_queues(request_queues: u16) -> u16 {
    request_queues.saturating_add(tmem_protocol::FIRST_REQUEST_QUEUE)
}
