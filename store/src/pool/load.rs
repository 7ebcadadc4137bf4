//! Loading a page. The slot is pinned under the lock; its bytes are read without it.

use super::dedup::PinnedRecord;
use super::encode::with_scratch;
use super::pin::Pinned;
use super::{Locked, Pool, ShardCell};
use tmem_base::setting::PoolKind;

use crate::entry::{Encoding, Entry, Kind, Slot};
use crate::error::LoadError;
use crate::evict::Policy;
use crate::index::backref::EntryId;
use crate::index::hash::KeyHash;
use crate::page::{Key, Page, fill_page};

/// Where a page is.
enum Found<'a> {
    Fill(u64),
    Slot(Pinned<'a, Locked>, Location),
    /// The record, and whether the page's reference to it must be dropped.
    Record(PinnedRecord<'a>, Option<u32>),
    /// A slot that no entry names any more.
    Detached(Slot),
    /// There was no memory to pin the slot: its bytes are in the scratch buffer, if they are whole.
    Copied(Option<Slot>),
}

/// Where the entry of a page is, and whether the page is to leave the cold tier.
struct Location {
    chunk: u32,
    offset: u8,
    promote: bool,
}

impl Pool {
    /// Brings a page back.
    pub(crate) fn load(&self, key: Key, page: &mut Page) -> Result<(), LoadError> {
        let (shard_index, key_hash) = self.key_hash(key);
        let cell = &self.shards[shard_index];
        with_scratch(|scratch| {
            let whole = match self.find(cell, key_hash, key, scratch)? {
                Found::Fill(word) => {
                    fill_page(page, word);
                    true
                }
                Found::Slot(pinned, location) => {
                    let slot = pinned.slot();
                    let whole = self.read(slot, |bytes| pinned.read(bytes), scratch, page);
                    if whole && location.promote {
                        let id = EntryId {
                            shard: shard_index,
                            chunk: location.chunk,
                            offset: location.offset,
                        };
                        self.promote(cell, &pinned, id, page);
                    }
                    whole
                }
                Found::Record(pinned, detached) => {
                    let copy = |bytes: &mut [u8]| pinned.read(bytes);
                    let whole = self.read(pinned.slot(), copy, scratch, page);
                    if let Some(record) = detached {
                        self.release(record);
                    }
                    whole
                }
                Found::Detached(slot) => {
                    let copy = |bytes: &mut [u8]| self.arena.fetch(slot, bytes);
                    let whole = self.read(slot, copy, scratch, page);
                    self.arena.free(slot);
                    whole
                }
                Found::Copied(slot) => slot.is_some_and(|slot| self.decode(slot, scratch, page)),
            };
            if whole {
                return Ok(());
            }
            let _locked = cell.locked.lock();
            cell.counters.events.loads.sub(1);
            cell.counters.events.corrupt.add(1);
            Err(LoadError::Corrupt)
        })
    }

    /// Reads the bytes of a slot, and the page from them. `false` when they are damaged.
    fn read(
        &self,
        slot: Slot,
        copy: impl FnOnce(&mut [u8]) -> bool,
        scratch: &mut [u8],
        page: &mut Page,
    ) -> bool {
        if slot.encoding == Encoding::Raw {
            copy(page)
        } else {
            copy(scratch) && self.decode(slot, scratch, page)
        }
    }

    fn decode(&self, slot: Slot, bytes: &[u8], page: &mut Page) -> bool {
        let bytes = &bytes[..usize::from(slot.len)];
        match slot.encoding {
            Encoding::Raw => {
                page.copy_from_slice(bytes);
                true
            }
            Encoding::Hot => self.codecs.hot.decompress(bytes, page),
            Encoding::Cold => self.codecs.cold.decompress(bytes, page),
        }
    }

    /// The part of a load that needs the lock.
    fn find<'a>(
        &'a self,
        cell: &'a ShardCell,
        key_hash: KeyHash<'_>,
        key: Key,
        scratch: &mut [u8],
    ) -> Result<Found<'a>, LoadError> {
        let mut guard = cell.locked.lock();
        let locked = &mut *guard;
        let Some((chunk, indexed)) = locked.shard.get(key_hash, key) else {
            cell.counters.events.load_misses.add(1);
            return Err(LoadError::NotFound);
        };
        let (_, offset) = key.chunk();
        let mut entry = indexed;
        if let Kind::Node(node_id) = indexed.kind() {
            let node = locked.shard.nodes.get(node_id).ok_or(LoadError::NotFound)?;
            let member = node.member;
            entry = node.entry;
            if !self.is_admitted(locked, member) {
                cell.counters.events.load_misses.add(1);
                return Err(LoadError::NotFound);
            }
            if self.kind == PoolKind::Shared
                && let Some((_, queue)) = locked.queues.iter_mut().find(|(m, _)| *m == member)
            {
                queue.touch(&mut locked.shard.nodes, node_id);
            }
        }
        cell.counters.events.loads.add(1);
        if self.kind == PoolKind::Ephemeral {
            let detached = self.detach(cell, locked, indexed);
            locked.shard.remove(self.quota(), chunk, offset, key_hash);
            cell.counters.metadata.set(locked.shard.charged());
            return Ok(match detached.kind() {
                Kind::Fill(word) => Found::Fill(word),
                Kind::Slot(slot) => Found::Detached(slot),
                Kind::Record(record) => match self.find_record(record, scratch) {
                    Found::Record(pinned, _) => Found::Record(pinned, Some(record)),
                    copied => {
                        self.release(record);
                        copied
                    }
                },
                Kind::Empty | Kind::Node(_) => Found::Copied(None),
            });
        }
        match entry.kind() {
            Kind::Fill(word) => Ok(Found::Fill(word)),
            Kind::Slot(slot) => {
                if entry.age() != 0 {
                    self.set_entry(locked, chunk, offset, indexed, entry.with_age(0));
                }
                let promote = slot.encoding == Encoding::Cold && entry.age() == 0;
                if let Some(pinned) = Pinned::new(&self.arena, &cell.locked, locked, slot) {
                    // Twice between two sweeps: see `recompress`.
                    return Ok(Found::Slot(
                        pinned,
                        Location {
                            chunk,
                            offset,
                            promote,
                        },
                    ));
                }
                let whole = self.arena.fetch_now(slot, scratch);
                Ok(Found::Copied(whole.then_some(slot)))
            }
            Kind::Record(record) => Ok(self.find_record(record, scratch)),
            Kind::Empty | Kind::Node(_) => Err(LoadError::NotFound),
        }
    }

    fn find_record<'a>(&'a self, record: u32, scratch: &mut [u8]) -> Found<'a> {
        let Some(dedup) = &self.dedup else {
            return Found::Copied(None);
        };
        match dedup.pin(record, &self.arena) {
            Some(pinned) => Found::Record(pinned, None),
            None => Found::Copied(dedup.fetch_now(record, &self.arena, scratch)),
        }
    }

    /// Changes the entry of a page where it is.
    fn set_entry(&self, locked: &mut Locked, chunk: u32, offset: u8, indexed: Entry, entry: Entry) {
        match indexed.kind() {
            Kind::Node(node) => {
                if let Some(node) = locked.shard.nodes.get_mut(node) {
                    node.entry = entry;
                }
            }
            _ => locked.shard.set(chunk, offset, entry),
        }
    }
}
