//! What the control sockets of a process report on: a source for each place where the pages can be.
//!
//! | module | holds |
//! |---|---|
//! | `none` | there are none |
//! | `remote` | at a service, for the VMM of one guest |
//! | `service` | here, those of the guests of a service |

pub(crate) mod none;
pub(crate) mod remote;
pub(crate) mod service;
