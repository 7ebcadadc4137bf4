//! The hashes that a key is found by.

use std::hash::BuildHasher;

use crate::page::ObjectId;

/// Hashes of a key: of its chunk, and of its object, which is only needed when a chunk is added or removed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KeyHash<'a> {
    pub(crate) chunk: u32,
    pub(crate) hasher: &'a hashbrown::DefaultHashBuilder,
}

impl KeyHash<'_> {
    pub(crate) fn of_object(self, object: ObjectId) -> u32 {
        self.hasher.hash_one(object.0) as u32
    }
}
