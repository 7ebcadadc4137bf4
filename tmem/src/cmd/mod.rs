//! The subcommands: a file for each, of its name.

mod change;
pub(crate) mod flush;
pub(crate) mod freeable;
pub(crate) mod freeze;
pub(crate) mod guest;
pub(crate) mod list;
pub(crate) mod run;
pub(crate) mod serve;
pub(crate) mod set;
mod statistics;
pub(crate) mod stats;
pub(crate) mod thaw;
pub(crate) mod top;
