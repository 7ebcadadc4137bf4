//! One shard of a pool's index: the chunks whose keys hash to it, and the nodes of their pages in an
//! ephemeral pool. No locks in here; the pool holds the shard's.
//!
//! A chunk is found through a hash table of 8-byte items. The chunks of an object are also a list, so
//! that the object can be invalidated without knowing its pages.

use std::hash::BuildHasher;

use hashbrown::HashTable;

use super::chunk::{Chunk, NONE};
use super::slab::Slab;
use crate::entry::Entry;
use crate::evict::Links;
use crate::page::{Key, ObjectId};
use crate::segment::heap_bytes;
use crate::space::{Purse, Refusal};

/// A page of an ephemeral pool: its entry and its place in the eviction order.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) entry: Entry,
    pub(crate) chunk: u32,
    pub(crate) links: Links,
    /// The domain that stored the page, as the pool numbers its members.
    pub(crate) member: u8,
    pub(crate) place: u8,
}

/// Item of a table: 32 bits of the key's hash and a chunk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Item {
    pub(crate) tag: u32,
    pub(crate) chunk: u32,
}

/// The 64-bit hash that a tag stands for in a table.
pub(crate) fn spread(tag: u32) -> u64 {
    u64::from(tag) << 32 | u64::from(tag)
}

/// Hashes of a key: of its chunk, and of its object, which is only needed when a chunk comes or goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tags<'a> {
    pub(crate) chunk: u32,
    pub(crate) hasher: &'a hashbrown::DefaultHashBuilder,
}

impl Tags<'_> {
    fn object(self, object: ObjectId) -> u32 {
        self.hasher.hash_one(object.0) as u32
    }
}

#[derive(Debug, Default)]
pub(crate) struct Shard {
    table: HashTable<Item>,
    /// First chunk of each object's list.
    objects: HashTable<Item>,
    chunks: Slab<Chunk>,
    pub(crate) nodes: Slab<Node>,
    /// Bytes charged for all of this.
    paid: u64,
}

impl Shard {
    /// Bytes of this shard's metadata that are charged.
    pub(crate) fn paid(&self) -> u64 {
        self.paid
    }

    pub(crate) fn find(&self, tags: Tags<'_>, key: Key) -> Option<u32> {
        let (number, _) = key.chunk();
        self.table
            .find(spread(tags.chunk), |item| {
                item.tag == tags.chunk
                    && self
                        .chunks
                        .get(item.chunk)
                        .is_some_and(|chunk| chunk.number == number && chunk.object == key.object)
            })
            .map(|item| item.chunk)
    }

    pub(crate) fn chunk(&self, chunk: u32) -> Option<&Chunk> {
        self.chunks.get(chunk)
    }

    pub(crate) fn chunk_mut(&mut self, chunk: u32) -> Option<&mut Chunk> {
        self.chunks.get_mut(chunk)
    }

    /// Chunks are numbered below this.
    pub(crate) fn end(&self) -> u32 {
        self.chunks.end()
    }

    /// What the index says of a page: its place, and its entry (that of the node, if it has one).
    pub(crate) fn get(&self, tags: Tags<'_>, key: Key) -> Option<(u32, Entry)> {
        let (_, place) = key.chunk();
        let chunk = self.find(tags, key)?;
        let entry = self.chunks.get(chunk)?.get(place);
        (!entry.is_empty()).then_some((chunk, entry))
    }

    pub(crate) fn set(&mut self, chunk: u32, place: u8, entry: Entry) {
        if let Some(chunk) = self.chunks.get_mut(chunk) {
            chunk.set(place, entry);
        }
    }

    /// Takes an entry out, and the chunk with its last entry.
    pub(crate) fn remove(&mut self, purse: &Purse, chunk: u32, place: u8, tags: Tags<'_>) {
        if let Some(chunk) = self.chunks.get_mut(chunk) {
            chunk.remove(place);
            if chunk.present() != 0 {
                let freed = chunk.shrink();
                self.refund(purse, freed);
                return;
            }
        }
        self.tidy(purse, chunk, tags);
    }

    /// Makes room for an entry, and the chunk for it if there is none.
    pub(crate) fn prepare(
        &mut self,
        purse: &Purse,
        tags: Tags<'_>,
        key: Key,
        known: Option<u32>,
    ) -> Result<u32, Refusal> {
        let (number, place) = key.chunk();
        let chunk = match known {
            Some(chunk) => chunk,
            None => self.insert(purse, tags, key.object, number)?,
        };
        let Some(found) = self.chunks.get_mut(chunk) else {
            return Err(Refusal::NoMemory);
        };
        let growth = found.growth(place);
        if growth > 0 {
            let grown = purse.pay(growth).and_then(|()| {
                if found.grow(place) {
                    Ok(())
                } else {
                    purse.refund(growth);
                    Err(Refusal::NoMemory)
                }
            });
            if let Err(refusal) = grown {
                self.tidy(purse, chunk, tags);
                return Err(refusal);
            }
            self.paid += growth;
        }
        Ok(chunk)
    }

    fn insert(
        &mut self,
        purse: &Purse,
        tags: Tags<'_>,
        object: ObjectId,
        number: u32,
    ) -> Result<u32, Refusal> {
        self.paid += reserve(&mut self.table, purse)?;
        self.paid += reserve(&mut self.objects, purse)?;
        let growth = self.chunks.growth();
        purse.pay(growth)?;
        let Ok(chunk) = self.chunks.insert(Chunk::new(object, number)) else {
            purse.refund(growth);
            return Err(Refusal::NoMemory);
        };
        self.paid += growth;
        let item = Item {
            tag: tags.chunk,
            chunk,
        };
        self.table
            .insert_unique(spread(item.tag), item, |item| spread(item.tag));
        self.link(tags.object(object), chunk, object);
        Ok(chunk)
    }

    /// Puts a chunk at the head of its object's list.
    fn link(&mut self, tag: u32, chunk: u32, object: ObjectId) {
        let chunks = &self.chunks;
        let head = self.objects.find_mut(spread(tag), |item| {
            item.tag == tag && chunks.get(item.chunk).is_some_and(|c| c.object == object)
        });
        let next = match head {
            Some(item) => std::mem::replace(&mut item.chunk, chunk),
            None => {
                let item = Item { tag, chunk };
                self.objects
                    .insert_unique(spread(tag), item, |item| spread(item.tag));
                NONE
            }
        };
        if let Some(chunk) = self.chunks.get_mut(chunk) {
            chunk.next = next;
        }
        if let Some(next) = self.chunks.get_mut(next) {
            next.previous = chunk;
        }
    }

    /// Removes the chunk if it is empty.
    pub(crate) fn tidy(&mut self, purse: &Purse, chunk: u32, tags: Tags<'_>) {
        if self.chunks.get(chunk).is_none_or(|c| c.present() != 0) {
            return;
        }
        if let Ok(found) = self
            .table
            .find_entry(spread(tags.chunk), |item| item.chunk == chunk)
        {
            found.remove();
        }
        let before = self.chunks.bytes();
        let Some(removed) = self.chunks.remove(chunk) else {
            return;
        };
        if let Some(next) = self.chunks.get_mut(removed.next) {
            next.previous = removed.previous;
        }
        if let Some(previous) = self.chunks.get_mut(removed.previous) {
            previous.next = removed.next;
        } else if let Ok(mut head) = self
            .objects
            .find_entry(spread(tags.object(removed.object)), |item| {
                item.chunk == chunk
            })
        {
            if removed.next == NONE {
                head.remove();
            } else {
                head.get_mut().chunk = removed.next;
            }
        }
        let mut freed = removed.bytes() + before - self.chunks.bytes();
        if self.table.is_empty() {
            freed += table_bytes(&self.table) + table_bytes(&self.objects);
            self.table = HashTable::new();
            self.objects = HashTable::new();
        }
        self.refund(purse, freed);
    }

    /// Charges bytes that live and go with the shard. `false` when they are refused.
    pub(crate) fn pay(&mut self, purse: &Purse, bytes: u64) -> bool {
        let paid = purse.pay(bytes).is_ok();
        if paid {
            self.paid += bytes;
        }
        paid
    }

    pub(crate) fn refund(&mut self, purse: &Purse, bytes: u64) {
        self.paid -= bytes;
        purse.refund(bytes);
    }

    /// The first chunk of an object's list.
    pub(crate) fn first_of(&self, tags: Tags<'_>, object: ObjectId) -> Option<u32> {
        let tag = tags.object(object);
        self.objects
            .find(spread(tag), |item| {
                item.tag == tag
                    && self
                        .chunks
                        .get(item.chunk)
                        .is_some_and(|chunk| chunk.object == object)
            })
            .map(|item| item.chunk)
    }

    /// Adds a node; its memory is charged.
    pub(crate) fn add_node(&mut self, purse: &Purse, node: Node) -> Result<u32, Refusal> {
        let growth = self.nodes.growth();
        purse.pay(growth)?;
        match self.nodes.insert(node) {
            Ok(number) => {
                self.paid += growth;
                Ok(number)
            }
            Err(_) => {
                purse.refund(growth);
                Err(Refusal::NoMemory)
            }
        }
    }

    pub(crate) fn remove_node(&mut self, purse: &Purse, node: u32) -> Option<Node> {
        let before = self.nodes.bytes();
        let removed = self.nodes.remove(node);
        let freed = before - self.nodes.bytes();
        self.refund(purse, freed);
        removed
    }
}

pub(crate) fn table_bytes(table: &HashTable<Item>) -> u64 {
    heap_bytes(table.allocation_size())
}

/// Makes room for one more item and pays for it. Returns the bytes.
pub(crate) fn reserve(table: &mut HashTable<Item>, purse: &Purse) -> Result<u64, Refusal> {
    if table.len() < table.capacity() {
        return Ok(0);
    }
    let before = table_bytes(table);
    // A table of n items has at most 16/7 n places of 9 bytes, and a row of control bytes.
    let most = heap_bytes((table.len() * 2).max(4) * 16 / 7 * 9 + 64);
    purse.pay(most)?;
    if table.try_reserve(1, |item| spread(item.tag)).is_err() {
        purse.refund(most);
        return Err(Refusal::NoMemory);
    }
    let growth = table_bytes(table).saturating_sub(before).min(most);
    purse.refund(most - growth);
    Ok(growth)
}
