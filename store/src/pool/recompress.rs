//! The cold tier: pages that were not touched for three sweeps are recompressed to a smaller size, and promoted to the
//! fast codec when they are loaded twice between sweeps.
//!
//! Codec work happens without a lock. The slot is pinned meanwhile: an entry that still names it has the same bytes.

use super::pin::Pinned;
use super::{Locked, Pool, ShardCell};
use tmem_base::setting::PoolKind;

use crate::arena::size_class::class_of;
use crate::codec::{COMPRESS_BUFFER, LONGEST_COMPRESSED};
use crate::entry::{Encoding, Entry, Kind, OLDEST};
use crate::index::SHARDS;
use crate::index::backref::EntryId;
use crate::page::{PAGE_SIZE, Page};

/// Buffers of the sweeping thread.
#[derive(Debug)]
pub(crate) struct ColdBuffers {
    kept: [u8; COMPRESS_BUFFER],
    out: [u8; COMPRESS_BUFFER],
    page: Page,
}

impl Default for ColdBuffers {
    fn default() -> Self {
        Self {
            kept: [0; COMPRESS_BUFFER],
            out: [0; COMPRESS_BUFFER],
            page: [0; PAGE_SIZE],
        }
    }
}

impl Pool {
    /// Ages all pages of a persistent pool by one sweep and recompresses those that are old. Calls
    /// `pause` between chunks with the pages of it that were old; `false` from it ends the sweep. Returns whether a
    /// page is on its way to be cold.
    pub(crate) fn sweep(
        &self,
        buffers: &mut ColdBuffers,
        mut pause: impl FnMut(usize) -> bool,
    ) -> bool {
        let mut coming = false;
        if self.kind != PoolKind::Persistent {
            return false;
        }
        for shard in 0..SHARDS {
            let cell = &self.shards[shard];
            let mut chunk = 0;
            while let Some(old) = self.age(cell, chunk, &mut coming) {
                let tried = old.count_ones() as usize;
                let mut old = old;
                while old != 0 {
                    let offset = old.trailing_zeros() as u8;
                    old &= old - 1;
                    self.demote(
                        cell,
                        EntryId {
                            shard,
                            chunk,
                            offset,
                        },
                        buffers,
                    );
                }
                chunk += 1;
                if !pause(tried) {
                    // The rest was not looked at.
                    return true;
                }
            }
        }
        coming
    }

    /// Ages the entries of a chunk. Returns those that are old, `None` beyond the last chunk.
    fn age(&self, cell: &ShardCell, chunk: u32, coming: &mut bool) -> Option<u64> {
        let mut locked = cell.locked.lock();
        if chunk >= locked.shard.end() {
            return None;
        }
        if locked.dead || locked.shard.is_loose(chunk) {
            return Some(0);
        }
        let Some(found) = locked.shard.chunk_mut(chunk) else {
            return Some(0);
        };
        let mut old = 0;
        let mut present = found.present();
        while present != 0 {
            let offset = present.trailing_zeros() as u8;
            present &= present - 1;
            let entry = found.get(offset);
            let Kind::Slot(slot) = entry.kind() else {
                continue;
            };
            if entry.age() < OLDEST {
                found.set(offset, entry.with_age(entry.age() + 1));
                *coming |= slot.encoding != Encoding::Cold && !entry.is_tried();
            } else if slot.encoding != Encoding::Cold && !entry.is_tried() {
                old |= 1 << offset;
            }
        }
        Some(old)
    }

    /// Recompresses a page, if it is still old and that saves a size class.
    fn demote(&self, cell: &ShardCell, id: EntryId, buffers: &mut ColdBuffers) {
        let ColdBuffers { kept, out, page } = buffers;
        let EntryId { chunk, offset, .. } = id;
        let pinned = {
            let mut locked = cell.locked.lock();
            let Some(found) = locked.shard.chunk_mut(chunk) else {
                return;
            };
            let entry = found.get(offset);
            let Kind::Slot(slot) = entry.kind() else {
                return;
            };
            if entry.age() < OLDEST || slot.encoding == Encoding::Cold {
                return;
            }
            // Whatever comes of it, the same bytes are not tried again.
            found.set(offset, entry.with_tried());
            Pinned::new(&self.arena, &cell.locked, &mut locked, slot)
        };
        let Some(pinned) = pinned else {
            return;
        };
        let slot = pinned.slot();
        if !pinned.read(kept) {
            return;
        }
        let bytes = &kept[..usize::from(slot.len)];
        if slot.encoding == Encoding::Raw {
            page.copy_from_slice(bytes);
        } else if !self.codecs.hot.decompress(bytes, page) {
            return;
        }
        let Some(len) = self.codecs.cold.compress(page, out) else {
            return;
        };
        if len == 0 || class_of(len as u16) >= class_of(slot.len) {
            return;
        }
        if self.replace_bytes(cell, id, &pinned, (&out[..len], Encoding::Cold)) {
            let _locked = cell.locked.lock();
            cell.counters.events.demoted.add(1);
        }
    }

    /// Recompresses a cold page that was loaded again with the fast codec.
    pub(super) fn promote(
        &self,
        cell: &ShardCell,
        pinned: &Pinned<'_, Locked>,
        id: EntryId,
        page: &Page,
    ) {
        let mut out = [0; COMPRESS_BUFFER];
        let hot = match self.codecs.hot.compress(page, &mut out) {
            Some(len) if len > 0 && len <= LONGEST_COMPRESSED => (&out[..len], Encoding::Hot),
            _ => (&page[..], Encoding::Raw),
        };
        if self.replace_bytes(cell, id, pinned, hot) {
            let _locked = cell.locked.lock();
            cell.counters.events.promoted.add(1);
        }
    }

    /// Replaces a slot by other bytes that encode the same page, if the entry still names that slot.
    fn replace_bytes(
        &self,
        cell: &ShardCell,
        id: EntryId,
        pinned: &Pinned<'_, Locked>,
        (bytes, encoding): (&[u8], Encoding),
    ) -> bool {
        let Ok(held) = self.arena.hold_for(bytes) else {
            return false;
        };
        let mut held = Some(held);
        let EntryId { chunk, offset, .. } = id;
        let mut locked = cell.locked.lock();
        let entry = locked.shard.chunk(chunk).map(|found| found.get(offset));
        let old = pinned.slot();
        if entry.map(Entry::kind) != Some(Kind::Slot(old)) {
            return false;
        }
        let backref = id.backref(self.pool_index);
        let len = bytes.len() as u16;
        let committed = self.arena.commit(len, encoding, backref.pack(), &mut held);
        let Ok(new) = committed else {
            return false;
        };
        cell.counters.count(Entry::slot(old), false);
        cell.counters.count(Entry::slot(new), true);
        locked.pins.free(old, &self.arena);
        let age = if encoding == Encoding::Cold {
            OLDEST
        } else {
            0
        };
        let entry = Entry::slot(new).with_age(age);
        locked.shard.set(chunk, offset, entry);
        true
    }
}
