//! Moving pages to other slots, so that compaction frees frames.

use super::pin::Pinned;
use super::{Locked, Pool};
use crate::arena::hold::Held;
use crate::entry::{Entry, Kind, Slot, SlotId};
use crate::index::SHARDS;
use crate::index::backref::Backref;

impl Pool {
    /// Moves the page in a slot to a slot that is held. Returns whether it moved.
    pub(crate) fn relocate(
        &self,
        backref: Backref,
        from: SlotId,
        to: &mut Option<Held<'_>>,
    ) -> bool {
        if let (Backref::Record { record, .. }, Some(dedup)) = (backref, &self.dedup) {
            return dedup.relocate(record, from, self.pool_index, &self.arena, to);
        }
        let (Backref::Chunk { shard, .. } | Backref::Node { shard, .. }) = backref else {
            return false;
        };
        let cell = &self.shards[usize::from(shard) % SHARDS];
        let pinned = {
            let mut locked = cell.locked.lock();
            match entry_of(&locked, backref).kind() {
                Kind::Slot(slot) if slot.id() == from => {
                    Pinned::new(&self.arena, &cell.locked, &mut locked, slot)
                }
                _ => None,
            }
        };
        let Some(pinned) = pinned else {
            return false;
        };
        let slot = pinned.slot();
        if !self.arena.copy(slot, to) {
            return false;
        }
        let mut locked = cell.locked.lock();
        let entry = entry_of(&locked, backref);
        // What is pinned is no other page's: the same slot is the same bytes.
        if entry.kind() != Kind::Slot(slot) {
            return false;
        }
        let committed = self
            .arena
            .commit(slot.len, slot.encoding, backref.pack(), to);
        let Ok(moved) = committed else {
            return false;
        };
        let entry = keep_marks(entry, moved);
        match backref {
            Backref::Chunk { chunk, offset, .. } => locked.shard.set(chunk, offset, entry),
            Backref::Node { node, .. } => {
                if let Some(node) = locked.shard.nodes.get_mut(node) {
                    node.entry = entry;
                }
            }
            Backref::Record { .. } => {}
        }
        locked.pins.free(slot, &self.arena);
        cell.counters.events.moved.add(1);
        true
    }
}

/// The entry that names a slot, if it is one of the shard's.
fn entry_of(locked: &Locked, backref: Backref) -> Entry {
    let entry = match backref {
        Backref::Chunk { chunk, offset, .. } => {
            locked.shard.chunk(chunk).map(|chunk| chunk.get(offset))
        }
        Backref::Node { node, .. } => locked.shard.nodes.get(node).map(|node| node.entry),
        Backref::Record { .. } => None,
    };
    entry.unwrap_or(Entry::EMPTY)
}

/// The entry of a slot that moved, with the marks it had. The cold tier does not know the new slot.
fn keep_marks(entry: Entry, moved: Slot) -> Entry {
    Entry::slot(moved).with_age(entry.age())
}
