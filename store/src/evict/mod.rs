//! Which page of an ephemeral pool goes first.

mod sieve;

pub(crate) use sieve::Sieve;

use crate::index::{Node, Slab};

/// No neighbour.
pub(crate) const END: u32 = u32::MAX;

/// A node's place in the order of eviction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Links {
    pub(crate) previous: u32,
    pub(crate) next: u32,
    /// Loaded since the policy last looked.
    pub(crate) visited: bool,
}

impl Default for Links {
    fn default() -> Self {
        Self {
            previous: END,
            next: END,
            visited: false,
        }
    }
}

/// The order in which the pages of one domain in one shard are evicted.
///
/// A policy MUST link every node between `insert` and `remove`, and only those; `victim` MUST name a
/// linked node while there is one, and leaves it linked.
pub(crate) trait Policy: Default {
    /// The page came.
    fn insert(&mut self, nodes: &mut Slab<Node>, node: u32);
    /// The page was loaded and stays.
    fn touch(&mut self, nodes: &mut Slab<Node>, node: u32);
    /// The page goes, whatever the reason.
    fn remove(&mut self, nodes: &mut Slab<Node>, node: u32);
    /// The page that should go next.
    fn victim(&mut self, nodes: &mut Slab<Node>) -> Option<u32>;
}
