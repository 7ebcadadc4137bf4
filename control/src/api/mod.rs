//! Bodies and replies of the HTTP API: plain types that serialize to the JSON of `docs/control-api.yaml`.
//!
//! | module | holds |
//! |---|---|
//! | `stats` | replies that show what there is |
//! | `counters` | what a pool counts: the one list |
//! | `change` | bodies of requests that change something, and their replies |
//! | `guest` | the settings of a guest |
//! | [`notation`] | how the settings of a guest are read, from JSON and as an operator writes them |
//! | `number` | whole numbers of JSON |

mod change;
mod counters;
mod guest;
pub mod notation;
mod number;
mod stats;

pub use change::{Accepted, Change, ErrorReply, Flush, Flushed};
pub use counters::{Counters, for_each_pool_counter};
pub use guest::{Compression, GuestSpec, MAX_REQUEST_QUEUES, MemoryBacking};
pub use stats::{
    Connections, Device, Domain, Domains, Freeable, FrontEnd, Histogram, Host, PAGE_SIZE, Pool,
    Process, Service, Stats,
};
pub use tmem_base::setting::{Dedup, PoolKind};
