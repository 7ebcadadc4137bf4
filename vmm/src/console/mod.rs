//! The console: output of the guest's serial port, and typed input to it.
//!
//! | module | holds |
//! |---|---|
//! | `backlog` | what was written and not taken yet, bounded: a vCPU never waits for a reader |
//! | `config` | where it is: standard input and output, a file, nowhere |
//! | `output` | the thread that takes it to standard output or a file |
//! | `file` | a file that keeps the newest output within a limit |
//! | `input` | standard input, raw while it is a terminal |

mod backlog;
mod config;
mod file;
mod input;
mod output;

pub(crate) use backlog::Backlog;
pub use config::ConsoleConfig;
pub(crate) use input::Input;
pub(crate) use output::Opened;

/// Smallest limit of a console file: each of its two halves holds the bytes of one write.
pub const MIN_CONSOLE_LIMIT: u64 = 2 * output::CHUNK as u64;
