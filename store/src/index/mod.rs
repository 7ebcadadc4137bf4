//! The index of a pool: keys to entries, in 64 shards with a lock each.

pub(crate) mod backref;
mod chunk;
pub(crate) mod hash;
pub(crate) mod node;
pub(crate) mod shard;
pub(crate) mod slab;
pub(crate) mod table;

/// Shards of a pool.
pub(crate) const SHARDS: usize = 64;
