//! Taking pages away: one, those of an object, all of the pool.
//!
//! A set that may be millions of pages is cut loose, so that no key leads to them any more. They are freed later, a few
//! pages at a time, by the background thread and by stores that need memory.

use std::sync::atomic::Ordering;

use super::{Locked, Pool, ShardCell};
use crate::entry::Entry;
use crate::index::SHARDS;
use crate::page::{Key, ObjectId};

/// Pages that are freed while a lock is held that a store may wait for.
const AT_A_TIME: usize = 8;
/// Pages of a destroyed pool that are freed each time that a lock of it is held.
const DEAD_AT_A_TIME: usize = 64;
/// Pages of an object that the invalidation itself frees, before the rest is cut loose.
const INLINE: usize = 128;
/// Chunks that are dropped with their shard in the time that a page takes.
const CHUNKS_FOR_A_PAGE: usize = 8;
/// Pages that were cut loose that each store frees in its shard: there are never more of them than were stored.
const HELP: usize = 2;

impl Pool {
    /// Removes a page, if it is there.
    pub(crate) fn invalidate_page(&self, key: Key) {
        let (shard_index, key_hash) = self.key_hash(key);
        let cell = &self.shards[shard_index];
        let mut locked = cell.locked.lock();
        if self.take_out(cell, &mut locked, key_hash, key) {
            cell.counters.events.invalidates.add(1);
        }
    }

    /// Removes the pages of an object: some are freed at once, the rest is cut loose.
    pub(crate) fn invalidate_object(&self, object: ObjectId) {
        let (_, key_hash) = self.key_hash(Key { object, index: 0 });
        let mut left = INLINE;
        let mut loose = false;
        for (shard_index, cell) in self.shards.iter().enumerate() {
            loop {
                let mut guard = cell.locked.lock();
                let locked = &mut *guard;
                let Some(chunk) = locked.shard.first_of(key_hash, object) else {
                    break;
                };
                if left == 0 {
                    locked.shard.cut_loose(self.quota(), key_hash, object);
                    cell.counters.metadata.set(locked.shard.charged());
                    self.mark_loose(shard_index);
                    loose = true;
                    break;
                }
                let removed = self.empty_some(cell, locked, chunk, AT_A_TIME.min(left));
                cell.counters.metadata.set(locked.shard.charged());
                left -= removed.min(left);
            }
        }
        if loose {
            self.quota().wakes().background.ask_soon();
        }
    }

    /// The shard has objects that were cut loose. Its lock is held.
    fn mark_loose(&self, shard_index: usize) {
        let bit = 1 << shard_index;
        if self.loose.fetch_or(bit, Ordering::Relaxed) & bit == 0 {
            self.quota().wakes().dying.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The shard has no more of them. Its lock is held.
    fn clear_loose(&self, shard_index: usize) {
        let bit = 1 << shard_index;
        if self.loose.fetch_and(!bit, Ordering::Relaxed) & bit != 0 {
            self.quota().wakes().dying.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Frees pages of objects that were cut loose, about `most` of them at most. Returns whether there were any.
    pub(crate) fn free_loose(&self, most: usize) -> bool {
        let mut left = most;
        let mut any = false;
        while left > 0 {
            let shards = self.loose.load(Ordering::Relaxed);
            if shards == 0 {
                break;
            }
            let shard_index = shards.trailing_zeros() as usize;
            let cell = &self.shards[shard_index];
            self.free_loose_in(
                cell,
                &mut cell.locked.lock(),
                shard_index,
                AT_A_TIME.min(left),
            );
            left -= AT_A_TIME.min(left);
            any = true;
        }
        any
    }

    /// A store frees a little of what was cut loose in its shard.
    pub(super) fn help(&self, cell: &ShardCell, locked: &mut Locked, shard_index: usize) {
        if locked.shard.has_loose() {
            self.free_loose_in(cell, locked, shard_index, HELP);
        }
    }

    fn free_loose_in(
        &self,
        cell: &ShardCell,
        locked: &mut Locked,
        shard_index: usize,
        most: usize,
    ) {
        let mut left = most;
        while left > 0 {
            match locked.shard.loose_chunk(self.quota()) {
                Some(chunk) => left -= self.empty_some(cell, locked, chunk, left).clamp(1, left),
                None if locked.shard.has_loose() => left -= 1,
                None => {
                    self.clear_loose(shard_index);
                    break;
                }
            }
        }
        cell.counters.metadata.set(locked.shard.charged());
    }

    /// Removes pages of a chunk, `most` at most, and the chunk with its last one. Returns how many, which count as
    /// invalidated.
    fn empty_some(&self, cell: &ShardCell, locked: &mut Locked, chunk: u32, most: usize) -> usize {
        let Some(key) = locked.shard.key(chunk) else {
            return 0;
        };
        let (_, key_hash) = self.key_hash(key);
        let mut present = locked.shard.chunk(chunk).map_or(0, |found| found.present());
        let mut removed = 0;
        while present != 0 && removed < most {
            let offset = present.trailing_zeros() as u8;
            present &= present - 1;
            let entry = locked
                .shard
                .chunk(chunk)
                .map_or(Entry::EMPTY, |found| found.get(offset));
            self.discard(cell, locked, entry);
            locked.shard.remove(self.quota(), chunk, offset, key_hash);
            removed += 1;
        }
        cell.counters.events.invalidates.add(removed as u64);
        removed
    }

    /// Ends the pool: no page is stored to it any more. Its pages stay until [`Pool::free_dead`].
    pub(crate) fn kill(&self) {
        for cell in &self.shards {
            cell.locked.lock().dead = true;
        }
    }

    /// Frees about `most` pages of a pool that was killed. With `whole` the slots are freed with the arena as a whole,
    /// and not one by one. Returns whether nothing is left.
    pub(crate) fn free_dead(&self, most: usize, whole: bool) -> bool {
        let mut left = most;
        loop {
            let shard_index = self.emptied.load(Ordering::Relaxed);
            let Some(cell) = self.shards.get(shard_index) else {
                self.finish(whole);
                return true;
            };
            if left == 0 {
                return false;
            }
            let gone = {
                let mut guard = cell.locked.lock();
                let locked = &mut *guard;
                let mut here = if whole {
                    (locked.shard.end() as usize / CHUNKS_FOR_A_PAGE).clamp(1, left)
                } else {
                    DEAD_AT_A_TIME.min(left)
                };
                left -= here;
                while !whole && here > 0 && locked.next < locked.shard.end() {
                    let removed = self.empty_some(cell, locked, locked.next, here);
                    here -= removed.clamp(1, here);
                    if locked.shard.chunk(locked.next).is_none() {
                        locked.next += 1;
                    }
                }
                if !whole && locked.next < locked.shard.end() {
                    cell.counters.metadata.set(locked.shard.charged());
                    continue;
                }
                self.clear_loose(shard_index);
                self.forget_queues(shard_index);
                // This also drops tables that grew for a page that was refused.
                self.quota().uncharge(locked.shard.charged());
                cell.counters.metadata.set(0);
                (
                    std::mem::take(&mut locked.shard),
                    std::mem::take(&mut locked.queues),
                )
            };
            drop(gone);
            self.emptied.fetch_max(shard_index + 1, Ordering::Relaxed);
        }
    }

    /// Gives back what the pool itself cost, once.
    fn finish(&self, whole: bool) {
        if self.finished.swap(true, Ordering::Relaxed) {
            return;
        }
        if let Some(dedup) = &self.dedup {
            dedup.end(&self.arena, whole);
        }
        self.quota().uncharge(self.base_bytes);
    }
}

impl Drop for Pool {
    /// Remaining pages are freed with the arena.
    fn drop(&mut self) {
        for shard_index in 0..SHARDS {
            let charged = self.shards[shard_index].locked.lock().shard.charged();
            self.clear_loose(shard_index);
            self.forget_queues(shard_index);
            self.quota().uncharge(charged);
        }
        self.finish(true);
    }
}
