//! Bringing a page back: a copy of its bytes under the lock, the codec without it.

use super::encode::with_scratch;
use super::{Locked, Pool, ShardCell};
use crate::entry::{Encoding, Entry, Kind, Slot};
use crate::error::LoadError;
use crate::evict::Policy;
use crate::index::Tags;
use crate::page::{Key, Page, fill_page};
use crate::stats::PoolKind;

/// What a load found under the lock.
enum Fetched {
    /// The page is in its place.
    Page,
    Fill(u64),
    /// The slot's bytes are in the scratch buffer.
    Bytes(Slot),
    /// They are, and the page at this place is to leave the cold tier.
    Warm(Slot, u32, u8),
}

impl Pool {
    /// Brings a page back.
    pub(crate) fn load(&self, key: Key, page: &mut Page) -> Result<(), LoadError> {
        let (number, tags) = self.tags(key);
        let cell = &self.shards[number];
        with_scratch(|scratch| {
            let found = self.fetch(cell, tags, key, scratch, page);
            let loaded = found.and_then(|fetched| match fetched {
                Fetched::Page => Ok(()),
                Fetched::Fill(word) => {
                    fill_page(page, word);
                    Ok(())
                }
                Fetched::Bytes(slot) => self.decode(slot, scratch, page),
                Fetched::Warm(slot, chunk, place) => {
                    self.decode(slot, scratch, page).inspect(|()| {
                        let bytes = &scratch[..usize::from(slot.len)];
                        self.warm(cell, (number, chunk, place), bytes, page);
                    })
                }
            });
            if loaded == Err(LoadError::Corrupt) {
                let _locked = cell.locked.lock();
                cell.counters.corrupt.add(1);
            }
            loaded
        })
    }

    fn decode(&self, slot: Slot, bytes: &[u8], page: &mut Page) -> Result<(), LoadError> {
        let bytes = &bytes[..usize::from(slot.len)];
        let decoded = match slot.encoding {
            Encoding::Raw => {
                page.copy_from_slice(bytes);
                true
            }
            Encoding::Hot => self.codecs.hot.decompress(bytes, page),
            Encoding::Cold => self.codecs.cold.decompress(bytes, page),
        };
        decoded.then_some(()).ok_or(LoadError::Corrupt)
    }

    /// The part of a load that needs the lock: a copy of the slot's bytes.
    fn fetch(
        &self,
        cell: &ShardCell,
        tags: Tags<'_>,
        key: Key,
        scratch: &mut [u8],
        page: &mut Page,
    ) -> Result<Fetched, LoadError> {
        let mut guard = cell.locked.lock();
        let locked = &mut *guard;
        let Some((chunk, indexed)) = locked.shard.get(tags, key) else {
            cell.counters.load_misses.add(1);
            return Err(LoadError::NotFound);
        };
        let (_, place) = key.chunk();
        let mut entry = indexed;
        if let Kind::Node(number) = indexed.kind() {
            let node = locked.shard.nodes.get(number).ok_or(LoadError::NotFound)?;
            let member = node.member;
            entry = node.entry;
            if !self.is_admitted(locked, member) {
                cell.counters.load_misses.add(1);
                return Err(LoadError::NotFound);
            }
            if self.kind == PoolKind::Shared
                && let Some((_, queue)) = locked.queues.iter_mut().find(|(m, _)| *m == member)
            {
                queue.touch(&mut locked.shard.nodes, number);
            }
        }
        let fetched = match entry.kind() {
            Kind::Fill(word) => Fetched::Fill(word),
            Kind::Slot(slot) if slot.encoding == Encoding::Raw => {
                if !self.space.fetch(slot, page) {
                    return Err(LoadError::Corrupt);
                }
                Fetched::Page
            }
            Kind::Slot(slot) => {
                if !self.space.fetch(slot, scratch) {
                    return Err(LoadError::Corrupt);
                }
                // Twice between two sweeps: see `cold`.
                if slot.encoding == Encoding::Cold && entry.age() == 0 {
                    Fetched::Warm(slot, chunk, place)
                } else {
                    Fetched::Bytes(slot)
                }
            }
            Kind::Record(record) => {
                let slot = self
                    .dedup
                    .as_ref()
                    .and_then(|dedup| dedup.fetch(record, &self.space, scratch))
                    .ok_or(LoadError::Corrupt)?;
                Fetched::Bytes(slot)
            }
            _ => return Err(LoadError::NotFound),
        };
        cell.counters.loads.add(1);
        if self.kind == PoolKind::Ephemeral {
            self.take_out(cell, locked, tags, key);
        } else if matches!(entry.kind(), Kind::Slot(_)) && entry.age() != 0 {
            self.set_entry(locked, chunk, place, indexed, entry.with_age(0));
        }
        Ok(fetched)
    }

    /// Changes the entry of a page where it is.
    fn set_entry(&self, locked: &mut Locked, chunk: u32, place: u8, indexed: Entry, entry: Entry) {
        match indexed.kind() {
            Kind::Node(node) => {
                if let Some(node) = locked.shard.nodes.get_mut(node) {
                    node.entry = entry;
                }
            }
            _ => locked.shard.set(chunk, place, entry),
        }
    }
}
