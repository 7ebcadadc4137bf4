//! What several crates of tmem need of the system, and of the operator's notation. Knows nothing of pages.
//!
//! A module is here because two crates use it.
//!
//! | module | holds |
//! |---|---|
//! | [`error`] | an error with its causes, on one line |
//! | [`name`] | names of guests and share groups |
//! | [`rate_limit`] | how often something may happen, such as a line in the log |
//! | [`size`] | numbers of bytes: how they are read and shown |
//! | [`socket`] | listening sockets in the file system |

pub mod error;
pub mod name;
pub mod rate_limit;
pub mod size;
pub mod socket;

pub use size::{Bytes, Size, SizeError};
