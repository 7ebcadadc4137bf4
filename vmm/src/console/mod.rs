//! The console: what the guest writes to its serial port goes out, what is typed goes in.
//!
//! | module | holds |
//! |---|---|
//! | `backlog` | what was written and not taken yet, bounded: a vCPU never waits for a reader |
//! | `output` | the thread that takes it to standard output or a file |
//! | `file` | a file that keeps the newest output within a limit |
//! | `input` | standard input, raw while it is a terminal |

mod backlog;
mod file;
mod input;
mod output;

use std::path::PathBuf;

pub(crate) use backlog::Backlog;
pub(crate) use input::Input;
pub(crate) use output::Opened;

/// Smallest limit of a console file: two halves of which each holds what is written at a time.
pub const MIN_CONSOLE_LIMIT: u64 = 2 * output::CHUNK as u64;

/// Where the console is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ConsoleConfig {
    /// Standard input and output.
    #[default]
    Stdio,
    /// Output goes to a file, and there is no input.
    File {
        /// The file. What does not fit any more moves to the same name with `.1` behind it.
        path: PathBuf,
        /// Bytes that both have at most, from [`MIN_CONSOLE_LIMIT`].
        limit: u64,
    },
    /// Nowhere.
    None,
}
