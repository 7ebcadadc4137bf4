//! One shard of a pool's index: the chunks whose keys hash to it, and the nodes of their pages in an
//! ephemeral pool. No locks in here; the pool holds the shard's.
//!
//! A chunk is found through a hash table of 8-byte items. The chunks of an object are also a list, so that the object
//! can be invalidated without knowing its pages. No key leads to an object that is cut loose; its chunks stay until
//! they are freed, a few at a time.

use super::chunk::{Chunk, NONE};
use super::hash::KeyHash;
use super::node::Node;
use super::slab::Slab;
use super::table::{Item, Table};
use crate::account::quota::{AllocError, Quota};
use crate::entry::Entry;
use crate::page::{Key, ObjectId};

/// An object that has chunks in the shard.
#[derive(Debug)]
struct Object {
    id: ObjectId,
    /// First of the list of its chunks.
    first: u32,
    /// The next object in the list of those that are cut loose.
    next: u32,
    loose: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Shard {
    table: Table,
    /// The objects that are not cut loose.
    names: Table,
    /// Few in most pools.
    objects: Slab<Object, 4>,
    chunks: Slab<Chunk>,
    pub(crate) nodes: Slab<Node>,
    /// First and last of the objects that are cut loose.
    loose: Option<(u32, u32)>,
    /// Bytes charged for all of this, beside what the tables charged.
    charged: u64,
}

impl Shard {
    /// Bytes of this shard's metadata that are charged.
    pub(crate) fn charged(&self) -> u64 {
        self.charged + self.table.charged() + self.names.charged()
    }

    pub(crate) fn find(&self, key_hash: KeyHash<'_>, key: Key) -> Option<u32> {
        let (number, _) = key.chunk();
        self.table.find(key_hash.chunk, |chunk| {
            self.chunks.get(chunk).is_some_and(|chunk| {
                chunk.number == number && self.is_object(chunk.object, key.object)
            })
        })
    }

    fn is_object(&self, index: u32, id: ObjectId) -> bool {
        self.objects
            .get(index)
            .is_some_and(|object| object.id == id && !object.loose)
    }

    pub(crate) fn chunk(&self, chunk: u32) -> Option<&Chunk> {
        self.chunks.get(chunk)
    }

    pub(crate) fn chunk_mut(&mut self, chunk: u32) -> Option<&mut Chunk> {
        self.chunks.get_mut(chunk)
    }

    /// The key of a chunk's first page.
    pub(crate) fn key(&self, chunk: u32) -> Option<Key> {
        let chunk = self.chunks.get(chunk)?;
        let object = self.objects.get(chunk.object)?;
        Some(Key {
            object: object.id,
            index: chunk.number << 6,
        })
    }

    /// Whether a chunk is one of an object that is cut loose.
    pub(crate) fn is_loose(&self, chunk: u32) -> bool {
        self.chunks
            .get(chunk)
            .and_then(|chunk| self.objects.get(chunk.object))
            .is_some_and(|object| object.loose)
    }

    /// Chunks are numbered below this.
    pub(crate) fn end(&self) -> u32 {
        self.chunks.end()
    }

    /// What the index says of a page: its chunk, and its entry (that of the node, if it has one).
    pub(crate) fn get(&self, key_hash: KeyHash<'_>, key: Key) -> Option<(u32, Entry)> {
        let (_, offset) = key.chunk();
        let chunk = self.find(key_hash, key)?;
        let entry = self.chunks.get(chunk)?.get(offset);
        (!entry.is_empty()).then_some((chunk, entry))
    }

    pub(crate) fn set(&mut self, chunk: u32, offset: u8, entry: Entry) {
        if let Some(chunk) = self.chunks.get_mut(chunk) {
            chunk.set(offset, entry);
        }
    }

    /// Takes an entry out, and the chunk with its last entry.
    pub(crate) fn remove(&mut self, quota: &Quota, chunk: u32, offset: u8, key_hash: KeyHash<'_>) {
        if let Some(chunk) = self.chunks.get_mut(chunk) {
            chunk.remove(offset);
            if chunk.present() != 0 {
                let freed = chunk.shrink();
                self.uncharge(quota, freed);
                return;
            }
        }
        self.remove_if_empty(quota, chunk, key_hash);
    }

    /// Makes room for an entry, and the chunk for it if there is none.
    pub(crate) fn prepare(
        &mut self,
        quota: &Quota,
        key_hash: KeyHash<'_>,
        key: Key,
        known: Option<u32>,
    ) -> Result<u32, AllocError> {
        let (number, offset) = key.chunk();
        let chunk = match known {
            Some(chunk) => chunk,
            None => self.insert(quota, key_hash, key.object, number)?,
        };
        let Some(found) = self.chunks.get_mut(chunk) else {
            return Err(AllocError::NoMemory);
        };
        let growth = found.growth(offset);
        if growth > 0 {
            let grown = quota.charge(growth).and_then(|()| {
                if found.grow(offset) {
                    Ok(())
                } else {
                    quota.uncharge(growth);
                    Err(AllocError::NoMemory)
                }
            });
            if let Err(error) = grown {
                self.remove_if_empty(quota, chunk, key_hash);
                return Err(error);
            }
            self.charged += growth;
        }
        Ok(chunk)
    }

    fn insert(
        &mut self,
        quota: &Quota,
        key_hash: KeyHash<'_>,
        id: ObjectId,
        number: u32,
    ) -> Result<u32, AllocError> {
        self.table.reserve(quota, key_hash.chunk)?;
        let object = self.object(quota, key_hash, id)?;
        let chunk = Chunk::new(object, number);
        let chunk = match add(&mut self.chunks, &mut self.charged, quota, chunk) {
            Ok(chunk) => chunk,
            Err(error) => {
                self.remove_object_if_empty(quota, object, key_hash);
                return Err(error);
            }
        };
        self.table.insert(Item {
            hash: key_hash.chunk,
            index: chunk,
        });
        self.link(object, chunk);
        Ok(chunk)
    }

    /// The object of this id, which is made if there is none.
    fn object(
        &mut self,
        quota: &Quota,
        key_hash: KeyHash<'_>,
        id: ObjectId,
    ) -> Result<u32, AllocError> {
        let hash = key_hash.of_object(id);
        if let Some(found) = self.named(hash, id) {
            return Ok(found);
        }
        self.names.reserve(quota, hash)?;
        let object = Object {
            id,
            first: NONE,
            next: NONE,
            loose: false,
        };
        let index = add(&mut self.objects, &mut self.charged, quota, object)?;
        self.names.insert(Item { hash, index });
        Ok(index)
    }

    fn named(&self, hash: u32, id: ObjectId) -> Option<u32> {
        self.names.find(hash, |index| self.is_object(index, id))
    }

    /// Puts a chunk at the head of its object's list.
    fn link(&mut self, object: u32, chunk: u32) {
        let next = match self.objects.get_mut(object) {
            Some(object) => std::mem::replace(&mut object.first, chunk),
            None => NONE,
        };
        if let Some(chunk) = self.chunks.get_mut(chunk) {
            chunk.next = next;
        }
        if let Some(next) = self.chunks.get_mut(next) {
            next.previous = chunk;
        }
    }

    /// Removes the chunk if it is empty.
    pub(crate) fn remove_if_empty(&mut self, quota: &Quota, chunk: u32, key_hash: KeyHash<'_>) {
        if self.chunks.get(chunk).is_none_or(|c| c.present() != 0) {
            return;
        }
        self.table.remove(
            quota,
            Item {
                hash: key_hash.chunk,
                index: chunk,
            },
        );
        let before = self.chunks.bytes();
        let Some(removed) = self.chunks.remove(chunk) else {
            return;
        };
        let freed = removed.bytes() + before - self.chunks.bytes();
        self.uncharge(quota, freed);
        if let Some(next) = self.chunks.get_mut(removed.next) {
            next.previous = removed.previous;
        }
        if let Some(previous) = self.chunks.get_mut(removed.previous) {
            previous.next = removed.next;
        } else if let Some(object) = self.objects.get_mut(removed.object) {
            object.first = removed.next;
            self.remove_object_if_empty(quota, removed.object, key_hash);
        }
    }

    /// Removes an object without chunks; one that is cut loose is removed when it is the first of those.
    fn remove_object_if_empty(&mut self, quota: &Quota, index: u32, key_hash: KeyHash<'_>) {
        let Some(object) = self.objects.get(index) else {
            return;
        };
        if object.first != NONE || object.loose {
            return;
        }
        let hash = key_hash.of_object(object.id);
        self.names.remove(quota, Item { hash, index });
        self.remove_object(quota, index);
    }

    fn remove_object(&mut self, quota: &Quota, index: u32) {
        let before = self.objects.bytes();
        self.objects.remove(index);
        let freed = before - self.objects.bytes();
        self.uncharge(quota, freed);
    }

    /// Charges bytes that are freed with the shard. `false` when they are refused.
    pub(crate) fn charge(&mut self, quota: &Quota, bytes: u64) -> bool {
        let charged = quota.charge(bytes).is_ok();
        if charged {
            self.charged += bytes;
        }
        charged
    }

    pub(crate) fn uncharge(&mut self, quota: &Quota, bytes: u64) {
        self.charged -= bytes;
        quota.uncharge(bytes);
    }

    /// The first chunk of an object's list.
    pub(crate) fn first_of(&self, key_hash: KeyHash<'_>, id: ObjectId) -> Option<u32> {
        let object = self.named(key_hash.of_object(id), id)?;
        self.objects.get(object).map(|object| object.first)
    }

    /// Cuts an object loose, however many pages it has: no key leads to them from now on, and pages that are stored
    /// under the same keys belong to a new object.
    pub(crate) fn cut_loose(&mut self, quota: &Quota, key_hash: KeyHash<'_>, id: ObjectId) {
        let hash = key_hash.of_object(id);
        let Some(index) = self.named(hash, id) else {
            return;
        };
        self.names.remove(quota, Item { hash, index });
        if let Some(object) = self.objects.get_mut(index) {
            object.loose = true;
        }
        self.loose = match self.loose {
            None => Some((index, index)),
            Some((first, last)) => {
                if let Some(last) = self.objects.get_mut(last) {
                    last.next = index;
                }
                Some((first, index))
            }
        };
    }

    /// Whether there are objects that were cut loose.
    pub(crate) fn has_loose(&self) -> bool {
        self.loose.is_some()
    }

    /// A chunk of the first object that was cut loose. If that object has no chunks, it is removed instead, one at a
    /// call.
    pub(crate) fn loose_chunk(&mut self, quota: &Quota) -> Option<u32> {
        let (index, last) = self.loose?;
        let object = self.objects.get(index)?;
        if object.first != NONE {
            return Some(object.first);
        }
        self.loose = (index != last).then_some((object.next, last));
        self.remove_object(quota, index);
        None
    }

    /// Adds a node; its memory is charged.
    pub(crate) fn add_node(&mut self, quota: &Quota, node: Node) -> Result<u32, AllocError> {
        add(&mut self.nodes, &mut self.charged, quota, node)
    }

    pub(crate) fn remove_node(&mut self, quota: &Quota, node: u32) -> Option<Node> {
        let before = self.nodes.bytes();
        let removed = self.nodes.remove(node);
        let freed = before - self.nodes.bytes();
        self.uncharge(quota, freed);
        if let Some(spent) = self.nodes.spent() {
            quota.wakes().bury(spent);
        }
        removed
    }
}

/// Puts a value into a slab and charges it.
fn add<T, const PAGE: usize>(
    slab: &mut Slab<T, PAGE>,
    charged: &mut u64,
    quota: &Quota,
    value: T,
) -> Result<u32, AllocError> {
    let growth = slab.growth();
    quota.charge(growth)?;
    match slab.insert(value) {
        Ok(index) => {
            *charged += growth;
            Ok(index)
        }
        Err(_) => {
            quota.uncharge(growth);
            Err(AllocError::NoMemory)
        }
    }
}
