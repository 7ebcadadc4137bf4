//! The service behind `tmem serve`: one page store, and many guests that reach it over vhost-user.
//!
//! | module | holds |
//! |---|---|
//! | [`access`] | who can connect to a socket: mode and group |
//! | [`activation`] | sockets that systemd made |
//! | [`config`] | what the operator asks for, checked |
//! | `keys` | keys and values of a configuration, read one by one |
//! | `spec` | the settings of a guest, read from such keys |
//! | `regular` | reads small files, and nothing that is no file |
//! | [`service`] | the store and its guests: adding, removing, reporting |
//! | `guest` | one guest: domain, device, thread; what happens between two connections |
//! | [`seccomp`] | what each kind of thread may ask of the kernel |
//! | `session` | one connection: messages and rings on one thread, spinning and sleeping |
//! | `peek` | whether there is room for the descriptors of the next message |
//! | `backend` | what a front end may ask for: the vhost-user messages |
//! | `round` | which ring is served next, and for how long |
//! | `ring` | one virtqueue with its kick and call descriptors |
//! | `memory` | the memory of a guest: which files are taken, mappings, pages that nobody has touched |
//! | `sigbus` | surviving a guest that takes that memory away; with `memory`, `guest`, `session` and `signals`, all `unsafe` code |
//! | [`signals`] | signals that do not end the process |
//! | `handle` | how other threads wake, stop or disconnect the thread of a guest |
//! | [`mod@listen`] | the sockets |
//! | `log` | the rate-limited log of one guest |
//!
//! README.md tells of threads, locks and assumptions.

pub mod access;
pub mod activation;
mod backend;
pub mod config;
mod guest;
mod handle;
mod keys;
pub mod listen;
mod log;
mod memory;
mod peek;
mod regular;
mod ring;
mod round;
pub mod seccomp;
pub mod service;
mod session;
mod sigbus;
pub mod signals;
mod spec;

pub use access::Access;
pub use config::file::{parse_guest, parse_guest_on};
pub use config::{Config, ConfigError, ConfigFile, GuestConfig};
pub use memory::MemoryReport;
pub use service::{GuestReport, Service, StartError};
pub use session::SPIN;
