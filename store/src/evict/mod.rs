//! The order in which pages of an ephemeral pool are evicted.

pub(crate) mod s3fifo;

use crate::index::node::Node;
use crate::index::slab::Slab;

/// The order in which the pages of one domain in one shard are evicted.
///
/// A policy MUST link every node between `insert` and `remove`, and only those; `victim` MUST name a
/// linked node while there is one, leaves it linked, and MUST look at a bounded number of nodes: it runs
/// under the shard's lock. `fingerprint` is a hash of the page's key.
pub(crate) trait Policy: Default {
    /// Whether no node is linked.
    fn is_empty(&self) -> bool;
    /// The page came.
    fn insert(&mut self, nodes: &mut Slab<Node>, node: u32, fingerprint: u32);
    /// The page was loaded and stays.
    fn touch(&mut self, nodes: &mut Slab<Node>, node: u32);
    /// The page is removed, whatever the reason.
    fn remove(&mut self, nodes: &mut Slab<Node>, node: u32);
    /// The page that should be evicted next.
    fn victim(&mut self, nodes: &mut Slab<Node>) -> Option<u32>;
    /// The page is evicted, and removed next.
    fn evicted(&mut self, nodes: &Slab<Node>, node: u32, fingerprint: u32);
    /// Bytes by which [`Policy::grow`] would enlarge what the policy remembers; 0 when it is enough.
    fn growth(&self) -> u64;
    /// Bytes of what the policy remembers.
    fn bytes(&self) -> u64;
    /// Enlarges what the policy remembers; the caller has charged it.
    fn grow(&mut self);
}
