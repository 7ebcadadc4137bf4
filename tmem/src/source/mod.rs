//! The sources of the control sockets of a process, one for each place where the pages can be.
//!
//! | module | holds |
//! |---|---|
//! | `inline` | in this process, with the guest |
//! | `none` | there are none |
//! | `remote` | at a service, for the VMM of one guest |
//! | `store` | in a store of this process: what `inline` and `service` have in common |
//! | `service` | in the store of a service, for its guests |

pub(crate) mod inline;
pub(crate) mod none;
pub(crate) mod remote;
pub(crate) mod service;
pub(crate) mod store;
