//! Where a console is.

use std::path::PathBuf;

/// Where the console is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ConsoleConfig {
    /// Standard input and output.
    #[default]
    Stdio,
    /// Output goes to a file, and there is no input.
    File {
        /// The file. When it is full, it is renamed to the same name with `.1` behind it.
        path: PathBuf,
        /// Bytes that both have at most, from [`MIN_CONSOLE_LIMIT`](super::MIN_CONSOLE_LIMIT).
        limit: u64,
    },
    /// Nowhere.
    None,
}
