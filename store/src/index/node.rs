//! The node that a shard keeps for a page that may be evicted.

use crate::entry::Entry;

/// A page of an ephemeral pool: its entry and its place in the eviction order.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) entry: Entry,
    pub(crate) chunk: u32,
    pub(crate) links: Links,
    /// The domain that stored the page, as the pool numbers its members.
    pub(crate) member: u8,
    pub(crate) offset: u8,
}

/// No neighbour.
pub(crate) const END: u32 = u32::MAX;

/// A node's place in the order of eviction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Links {
    pub(crate) newer: u32,
    pub(crate) older: u32,
    /// Loads since the policy last looked, as far as it counts them.
    pub(crate) visits: u8,
    /// Which of the policy's queues the page is in.
    pub(crate) main: bool,
}

impl Default for Links {
    fn default() -> Self {
        Self {
            newer: END,
            older: END,
            visits: 0,
            main: false,
        }
    }
}
