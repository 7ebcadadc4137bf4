//! Taking pages away: one, those of an object, all of the pool. A lock is held for a few chunks at a time.

use super::{Locked, Pool, ShardCell};
use crate::entry::Entry;
use crate::index::Shard;
use crate::page::{Key, ObjectId};

/// Chunks that are emptied before a shard's lock is let go.
const CHUNKS_AT_A_TIME: u32 = 16;

impl Pool {
    /// Removes a page, if it is there.
    pub(crate) fn invalidate_page(&self, key: Key) {
        let (number, tags) = self.tags(key);
        let cell = &self.shards[number];
        let mut locked = cell.locked.lock();
        if self.take_out(cell, &mut locked, tags, key) {
            cell.counters.invalidates.add(1);
        }
    }

    /// Removes the pages of an object.
    pub(crate) fn invalidate_object(&self, object: ObjectId) {
        let (_, tags) = self.tags(Key { object, index: 0 });
        for cell in &self.shards {
            let mut more = true;
            while more {
                let mut guard = cell.locked.lock();
                let locked = &mut *guard;
                for _ in 0..CHUNKS_AT_A_TIME {
                    let Some(chunk) = locked.shard.first_of(tags, object) else {
                        more = false;
                        break;
                    };
                    let removed = self.empty_chunk(cell, locked, chunk);
                    cell.counters.invalidates.add(removed);
                }
                cell.counters.metadata.set(locked.shard.paid());
            }
        }
    }

    /// Removes all pages of a chunk, and the chunk.
    fn empty_chunk(&self, cell: &ShardCell, locked: &mut Locked, chunk: u32) -> u64 {
        let Some(found) = locked.shard.chunk(chunk) else {
            return 0;
        };
        let (object, number) = (found.object, found.number);
        let mut present = found.present();
        let removed = u64::from(present.count_ones());
        let (_, tags) = self.tags(Key {
            object,
            index: number << 6,
        });
        while present != 0 {
            let place = present.trailing_zeros() as u8;
            present &= present - 1;
            let entry = locked
                .shard
                .chunk(chunk)
                .map_or(Entry::EMPTY, |found| found.get(place));
            self.discard(cell, locked, entry);
            locked.shard.remove(self.purse(), chunk, place, tags);
        }
        removed
    }

    /// Ends the pool: removes all pages, and refuses those that are on their way.
    pub(crate) fn kill(&self) {
        for cell in &self.shards {
            let mut chunk = 0;
            while let Some(next) = self.kill_some(cell, chunk) {
                chunk = next;
            }
        }
    }

    /// Empties some chunks of a shard that is dead from now on. Returns the next one, `None` when the
    /// shard is empty.
    fn kill_some(&self, cell: &ShardCell, first: u32) -> Option<u32> {
        let mut guard = cell.locked.lock();
        let locked = &mut *guard;
        locked.dead = true;
        let next = first
            .saturating_add(CHUNKS_AT_A_TIME)
            .min(locked.shard.end());
        for chunk in first..next {
            self.empty_chunk(cell, locked, chunk);
        }
        if next < locked.shard.end() {
            cell.counters.metadata.set(locked.shard.paid());
            return Some(next);
        }
        // Tables that grew for a page that was refused.
        let left = locked.shard.paid();
        locked.shard = Shard::default();
        locked.queues = Vec::new();
        self.purse().refund(left);
        cell.counters.metadata.set(locked.shard.paid());
        None
    }
}
