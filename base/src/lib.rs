//! Code that several crates of tmem share: access to the system, and the notation of sizes and names. It has no code
//! about pages.
//!
//! A module is here because two crates use it.
//!
//! | module | holds |
//! |---|---|
//! | [`error`] | an error with its causes, on one line |
//! | [`name`] | names of guests and share groups |
//! | [`rate_limit`] | how often something may happen, such as a line in the log |
//! | [`setting`] | values that the operator chooses or is shown, and the store acts on |
//! | [`size`] | numbers of bytes: how they are read and shown |
//! | [`socket`] | listening sockets in the file system |

pub mod error;
pub mod name;
pub mod rate_limit;
pub mod setting;
pub mod size;
pub mod socket;

pub use size::{Bytes, Size, SizeError};
