//! Eviction: ephemeral pages are dropped so that other pages have memory.

use std::sync::atomic::Ordering;

use super::{Locked, Pool, ShardCell, fingerprint};
use tmem_base::setting::PoolKind;

use crate::account::ledger::PageOf;
use crate::arena::size_class::{class_of, slot_bytes};
use crate::entry::{Entry, Kind, SlotId};
use crate::evict::Policy;
use crate::index::SHARDS;
use crate::index::backref::Backref;

impl Pool {
    /// The shard to evict a page of a member from: the next in turn of those where it has some.
    pub(crate) fn next_shard(&self, member: u8) -> Option<usize> {
        let queued = self
            .queued
            .get(usize::from(member))?
            .load(Ordering::Relaxed);
        let from = self.hand.fetch_add(1, Ordering::Relaxed) % SHARDS;
        let next = queued.rotate_right(from as u32).trailing_zeros() as usize;
        (queued != 0).then_some((from + next) % SHARDS)
    }

    /// A member has pages to evict in a shard now, or has none any more. The caller holds the shard's lock.
    pub(super) fn mark_queued(&self, member: u8, shard: usize, some: bool) {
        let Some(queued) = self.queued.get(usize::from(member)) else {
            return;
        };
        let bit = 1 << (shard % SHARDS);
        if some {
            queued.fetch_or(bit, Ordering::Relaxed);
        } else {
            queued.fetch_and(!bit, Ordering::Relaxed);
        }
        let ledger = &self.quota().ledger;
        if self.kind == PoolKind::Shared {
            let account = self.member(member).ok().flatten();
            ledger.count_evictable(account.as_deref(), PageOf::Shared, some);
        } else {
            let account = &self.quota().account;
            ledger.count_evictable(Some(account), PageOf::Private, some);
        }
    }

    /// No member has pages to evict in a shard any more: they were freed with it. Its lock is held, or no other thread
    /// has the pool.
    pub(super) fn forget_queues(&self, shard: usize) {
        let bit = 1 << (shard % SHARDS);
        for (member, queued) in (0..=u8::MAX).zip(&self.queued) {
            if queued.load(Ordering::Relaxed) & bit != 0 {
                self.mark_queued(member, shard, false);
            }
        }
    }

    /// The shard of a node.
    pub(super) fn shard_of(&self, locked: &Locked, node: u32) -> usize {
        let chunk = locked.shard.nodes.get(node).map(|node| node.chunk);
        chunk
            .and_then(|chunk| locked.shard.key(chunk))
            .map_or(0, |key| self.key_hash(key).0)
    }

    /// Evicts pages of a member from one shard, `most` at most. Returns pages and bytes of slots.
    pub(crate) fn evict(&self, member: u8, shard: usize, most: usize) -> (u64, u64) {
        let cell = &self.shards[shard % SHARDS];
        let mut guard = cell.locked.lock();
        let mut evicted = (0, 0);
        for _ in 0..most {
            let Some(bytes) = self.evict_one(cell, &mut guard, member) else {
                break;
            };
            evicted.0 += 1;
            evicted.1 += bytes;
        }
        evicted
    }

    pub(super) fn evict_one(
        &self,
        cell: &ShardCell,
        locked: &mut Locked,
        member: u8,
    ) -> Option<u64> {
        let (_, queue) = locked.queues.iter_mut().find(|(m, _)| *m == member)?;
        let node_id = queue.victim(&mut locked.shard.nodes)?;
        self.evict_node(cell, locked, member, node_id)
    }

    /// Evicts a page that a member of the pool has, and counts it. Returns the bytes of its slot.
    fn evict_node(
        &self,
        cell: &ShardCell,
        locked: &mut Locked,
        member: u8,
        node_id: u32,
    ) -> Option<u64> {
        let node = locked.shard.nodes.get(node_id)?;
        let (chunk, offset, entry) = (node.chunk, node.offset, node.entry);
        let (_, key_hash) = self.key_hash(locked.shard.key(chunk)?);
        if let Some((_, queue)) = locked.queues.iter_mut().find(|(m, _)| *m == member) {
            queue.evicted(&locked.shard.nodes, node_id, fingerprint(key_hash, offset));
        }
        let bytes = match self.payload_len(entry) {
            0 => 0,
            len => slot_bytes(class_of(len)) as u64,
        };
        self.discard(cell, locked, Entry::node(node_id));
        locked.shard.remove(self.quota(), chunk, offset, key_hash);
        cell.counters.events.evictions.add(1);
        cell.counters.metadata.set(locked.shard.charged());
        Some(bytes)
    }

    /// Evicts the page in a slot of a private ephemeral pool. Returns whether it was there.
    pub(crate) fn evict_slot(&self, backref: Backref, id: SlotId) -> bool {
        let Backref::Node { shard, node, .. } = backref else {
            return false;
        };
        if self.kind != PoolKind::Ephemeral {
            return false;
        }
        let cell = &self.shards[usize::from(shard) % SHARDS];
        let mut locked = cell.locked.lock();
        let entry = locked.shard.nodes.get(node).map(|node| node.entry.kind());
        let Some(Kind::Slot(slot)) = entry else {
            return false;
        };
        slot.id() == id && self.evict_node(cell, &mut locked, 0, node).is_some()
    }
}
