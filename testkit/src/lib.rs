//! The other side of every test and bench: what a guest, its VMM and its pages look like. For tests only; it panics where
//! a test would.
//!
//! | module | holds |
//! |---|---|
//! | [`corpus`] | pages: of real processes, and made from a seed |
//! | [`request`] | requests of the tmem device as bytes, and their answers |
//! | [`driver`] | the driver's side of a split ring, over any guest memory: where its parts lie, and all that writes them |
//! | [`guest`] | guest memory with one ring in it, for a device in the same process |
//! | [`frontend`] | a guest and its VMM in one, with memory in a file and two rings, over a vhost-user socket |
//! | [`lane`] | one request at a time over the ring of either, as lean as a driver is: for benches |
//! | [`raw`] | a connection that sends any bytes as vhost-user messages |
//! | [`report`] | what a bench found: rows, medians, a JSON file |

#![allow(
    missing_docs,
    reason = "each name says what it holds, and only tests use it"
)]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "what a test makes is small"
)]

pub mod corpus;
pub mod driver;
pub mod frontend;
pub mod guest;
pub mod lane;
pub mod raw;
pub mod report;
pub mod request;

/// Bytes of a page.
pub const PAGE_SIZE: usize = tmem_protocol::PAGE_SIZE;

/// A page.
pub type Page = [u8; PAGE_SIZE];
