//! Control API of tmem: HTTP/1.1 with JSON over a unix socket, and its client.
//!
//! | module | holds |
//! |---|---|
//! | [`api`] | bodies and replies: plain types that serialize to the JSON of `docs/control-api.yaml` |
//! | [`operation`] | what a client can have done, and why it is refused |
//! | `role` | [`Role`]: what the clients of a socket may ask for |
//! | `source` | [`Source`]: what a server reports on, and acts on |
//! | [`server`] | [`Server`]: one thread, bounded connections, deadlines |
//! | `workers` | threads for what takes its time |
//! | [`clients`] | counts of connections and of what they came to |
//! | `stream` | a connection that carries a descriptor beside its bytes |
//! | `route` | method and path to a typed request, or to the refusal to send |
//! | [`prometheus`] | the metrics page, and the table of every metric |
//! | `socket` | makes the socket with mode 0600, removes it only while it is still ours |
//! | [`client`] | [`Client`]: blocking, with a deadline and a reply cap |
//!
//! See README.md for what is promised about slow and hostile clients.

pub mod api;
pub mod client;
pub mod clients;
pub mod operation;
pub mod prometheus;
mod role;
mod route;
pub mod server;
mod socket;
mod source;
mod stream;
mod workers;

pub use api::Stats;
pub use client::{Client, ClientError};
pub use operation::{Done, Operation, Refused};
pub use role::Role;
pub use server::{MAX_OPERATIONS, Server};
pub use socket::BindError;
pub use source::Source;
