//! One copy of pages with the same bytes, inside a pool.
//!
//! A keyed 128-bit hash finds the page that may be the same; the bytes are compared in full before they
//! are shared. An entry then names a record, and the record names the slot and counts its entries.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use twox_hash::xxhash3_128::Hasher;

use super::pin::{HasPins, Pinned, Pins};
use tmem_base::setting::Dedup;

use crate::account::quota::{AllocError, Quota};
use crate::arena::Arena;
use crate::arena::hold::Held;
use crate::arena::size_class::{class_of, slot_bytes};
use crate::codec::codecs::Codecs;
use crate::entry::{Encoding, Slot, SlotId};
use crate::index::backref::Backref;
use crate::index::slab::Slab;
use crate::index::table::{Item, Table};
use crate::page::Page;
use crate::sync::{Counter, InnerMutex};

/// Locks of a table.
const SHARDS: usize = 16;
const SHARD_BITS: u32 = 4;
/// In the adaptive mode, one page in so many is looked at while sharing does not pay.
const SAMPLE: u64 = 32;
/// Looks between two decisions of the adaptive mode.
const WINDOW: u32 = 512;
/// A record costs about 50 bytes, a page that is found about 1200: sharing pays above one in 24, and is
/// given up a little below so that it does not flicker.
const STOP_BELOW: u32 = WINDOW / 32;
const START_ABOVE: u32 = WINDOW / 16;

/// The records of a pool.
#[derive(Debug)]
pub(crate) struct DedupTable {
    /// Random, so that no guest can choose pages whose hashes meet.
    secret: Box<[u8]>,
    adaptive: bool,
    /// All pages are looked at; if not, a sample is.
    full: AtomicBool,
    looks: AtomicU32,
    hits: AtomicU32,
    shards: Box<[InnerMutex<Records>]>,
    gauges: Box<[RecordGauges]>,
}

/// Written under the lock of the shard.
#[derive(Debug, Default)]
pub(crate) struct RecordGauges {
    pub(crate) records: Counter,
    pub(crate) payload: Counter,
    pub(crate) slots: Counter,
    pub(crate) metadata: Counter,
}

#[derive(Debug, Default)]
pub(super) struct Records {
    table: Table,
    records: Slab<Record>,
    pins: Pins,
}

/// The slot of a record, which stays where it is.
pub(super) type PinnedRecord<'a> = Pinned<'a, Records>;

impl HasPins for Records {
    fn pins(&mut self) -> &mut Pins {
        &mut self.pins
    }
}

impl Records {
    fn find(&self, hash: [u64; 2]) -> Option<u32> {
        self.table.find(hash[0] as u32, |record| {
            self.records.get(record).is_some_and(|r| r.hash == hash)
        })
    }
}

#[derive(Debug)]
struct Record {
    hash: [u64; 2],
    slot: Slot,
    /// Entries that name the record, and stores that are about to.
    references: u32,
}

/// The result of adding a new page.
pub(crate) enum Inserted {
    Record(u32),
    /// Another record has the hash: the page goes to a slot of its own.
    Taken,
}

impl DedupTable {
    pub(crate) fn new(dedup: Dedup, secret: Box<[u8]>) -> Self {
        Self {
            secret,
            adaptive: dedup != Dedup::On,
            full: AtomicBool::new(true),
            looks: AtomicU32::new(0),
            hits: AtomicU32::new(0),
            shards: (0..SHARDS).map(|_| InnerMutex::default()).collect(),
            gauges: (0..SHARDS).map(|_| RecordGauges::default()).collect(),
        }
    }

    /// The hash of a page that is to be looked up; `None` for those that are not.
    pub(crate) fn hash(&self, page: &Page) -> Option<[u64; 2]> {
        if self.adaptive && !self.full.load(Ordering::Relaxed) && !in_sample(page) {
            return None;
        }
        let hash = Hasher::oneshot_with_secret(&self.secret, page).ok()?;
        Some([hash as u64, (hash >> 64) as u64])
    }

    fn shard(hash: [u64; 2]) -> usize {
        hash[1] as usize % SHARDS
    }

    fn decide(&self, hit: bool) {
        if !self.adaptive {
            return;
        }
        if hit {
            self.hits.fetch_add(1, Ordering::Relaxed);
        }
        if self.looks.fetch_add(1, Ordering::Relaxed) + 1 == WINDOW {
            let hits = self.hits.swap(0, Ordering::Relaxed);
            self.looks.store(0, Ordering::Relaxed);
            if hits < STOP_BELOW {
                self.full.store(false, Ordering::Relaxed);
            } else if hits > START_ABOVE {
                self.full.store(true, Ordering::Relaxed);
            }
        }
    }

    /// Finds a record with the bytes of `page` and holds it. `Err` when its hash is that of other
    /// bytes.
    pub(crate) fn find(
        &self,
        hash: [u64; 2],
        page: &Page,
        (arena, codecs): (&Arena, &Codecs),
        scratch: &mut [u8],
    ) -> Result<Option<(u32, u16)>, ()> {
        let shard_index = Self::shard(hash);
        let found = {
            let mut shard = self.shards[shard_index].lock();
            shard.find(hash).and_then(|local| {
                shard.records.get_mut(local)?.references += 1;
                Some(local << SHARD_BITS | shard_index as u32)
            })
        };
        self.decide(found.is_some());
        let Some(record) = found else {
            return Ok(None);
        };
        let pinned = self.pin(record, arena);
        let same = pinned.as_ref().is_some_and(|pinned| {
            let slot = pinned.slot();
            let bytes = &mut scratch[..usize::from(slot.len)];
            pinned.read(bytes)
                && match slot.encoding {
                    Encoding::Raw => bytes == page,
                    _ => {
                        let mut other = [0; crate::page::PAGE_SIZE];
                        codecs.hot.decompress(bytes, &mut other) && other == *page
                    }
                }
        });
        match pinned {
            Some(pinned) if same => Ok(Some((record, pinned.slot().len))),
            pinned => {
                drop(pinned);
                self.release(record, arena);
                Err(())
            }
        }
    }

    /// Keeps the slot of a record where it is. `None` when there is no memory to note it.
    pub(super) fn pin<'a>(&'a self, record: u32, arena: &'a Arena) -> Option<PinnedRecord<'a>> {
        let lock = &self.shards[record as usize % SHARDS];
        let mut records = lock.lock();
        let slot = records.records.get(record >> SHARD_BITS)?.slot;
        Pinned::new(arena, lock, &mut records, slot)
    }

    /// Another entry names the record, which is held.
    pub(crate) fn retain(&self, record: u32) -> bool {
        let mut shard = self.shards[record as usize % SHARDS].lock();
        match shard.records.get_mut(record >> SHARD_BITS) {
            Some(record) if record.references < u32::MAX - 1 => {
                record.references += 1;
                true
            }
            _ => false,
        }
    }

    /// Makes a record of a new page, with one reference.
    pub(crate) fn insert(
        &self,
        hash: [u64; 2],
        (len, encoding): (u16, Encoding),
        pool: u8,
        arena: &Arena,
        held: &mut Option<Held<'_>>,
    ) -> Result<Inserted, AllocError> {
        let shard_index = Self::shard(hash);
        let gauges = &self.gauges[shard_index];
        let mut guard = self.shards[shard_index].lock();
        if guard.find(hash).is_some() {
            return Ok(Inserted::Taken);
        }
        let Records { table, records, .. } = &mut *guard;
        let tag = hash[0] as u32;
        let before = table.charged();
        let reserved = table.reserve(arena.quota(), tag);
        gauges.metadata.add(table.charged().wrapping_sub(before));
        reserved?;
        let growth = records.growth();
        arena.quota().charge(growth)?;
        let nowhere = Slot {
            segment: 0,
            index: 0,
            len: 1,
            encoding,
            check: 0,
        };
        let Ok(local) = records.insert(Record {
            hash,
            slot: nowhere,
            references: 1,
        }) else {
            arena.quota().uncharge(growth);
            return Err(AllocError::NoMemory);
        };
        gauges.metadata.add(growth);
        let record = local << SHARD_BITS | shard_index as u32;
        let backref = Backref::Record { pool, record };
        match arena.commit(len, encoding, backref.pack(), held) {
            Ok(slot) => {
                if let Some(record) = records.get_mut(local) {
                    record.slot = slot;
                }
                table.insert(Item {
                    hash: tag,
                    index: local,
                });
                gauges.records.add(1);
                gauges.payload.add(u64::from(slot.len));
                gauges.slots.add(slot_bytes(class_of(slot.len)) as u64);
                Ok(Inserted::Record(record))
            }
            Err(error) => {
                remove(records, local, gauges, arena.quota());
                Err(error)
            }
        }
    }

    /// Drops one reference, and frees the slot with the last. Returns the payload's length and whether the slot was
    /// freed.
    pub(crate) fn release(&self, record: u32, arena: &Arena) -> (u16, bool) {
        let shard_index = record as usize % SHARDS;
        let gauges = &self.gauges[shard_index];
        let mut guard = self.shards[shard_index].lock();
        let Records {
            table,
            records,
            pins,
        } = &mut *guard;
        let local = record >> SHARD_BITS;
        let Some(found) = records.get_mut(local) else {
            return (0, false);
        };
        found.references -= 1;
        let (slot, hash) = (found.slot, found.hash);
        if found.references > 0 {
            return (slot.len, false);
        }
        remove(records, local, gauges, arena.quota());
        let before = table.charged();
        let item = Item {
            hash: hash[0] as u32,
            index: local,
        };
        table.remove(arena.quota(), item);
        gauges.metadata.sub(before - table.charged());
        gauges.records.sub(1);
        gauges.payload.sub(u64::from(slot.len));
        gauges.slots.sub(slot_bytes(class_of(slot.len)) as u64);
        pins.free(slot, arena);
        (slot.len, true)
    }

    /// Length of a record's payload.
    pub(crate) fn len(&self, record: u32) -> u16 {
        let shard = self.shards[record as usize % SHARDS].lock();
        shard
            .records
            .get(record >> SHARD_BITS)
            .map_or(0, |record| record.slot.len)
    }

    /// Copies a record's bytes out, for a caller that keeps its lock because it has no memory to pin the slot.
    pub(super) fn fetch_now(&self, record: u32, arena: &Arena, scratch: &mut [u8]) -> Option<Slot> {
        let shard = self.shards[record as usize % SHARDS].lock();
        let slot = shard.records.get(record >> SHARD_BITS)?.slot;
        arena.fetch_now(slot, scratch).then_some(slot)
    }

    /// Moves a record's slot to a slot that is held.
    pub(crate) fn relocate(
        &self,
        record: u32,
        from: SlotId,
        pool: u8,
        arena: &Arena,
        to: &mut Option<Held<'_>>,
    ) -> bool {
        let Some(pinned) = self.pin(record, arena) else {
            return false;
        };
        let slot = pinned.slot();
        if slot.id() != from || !arena.copy(slot, to) {
            return false;
        }
        let mut guard = self.shards[record as usize % SHARDS].lock();
        let Records { records, pins, .. } = &mut *guard;
        let Some(found) = records.get_mut(record >> SHARD_BITS) else {
            return false;
        };
        // What is pinned is no other page's: the same slot is the same bytes.
        if found.slot != slot || found.references == 0 {
            return false;
        }
        let backref = Backref::Record { pool, record };
        let Ok(moved) = arena.commit(slot.len, slot.encoding, backref.pack(), to) else {
            return false;
        };
        found.slot = moved;
        pins.free(slot, arena);
        true
    }

    pub(crate) fn gauges(&self) -> impl Iterator<Item = &RecordGauges> {
        self.gauges.iter()
    }

    /// Gives back the charge for the tables of a pool that is being freed. Remaining records are freed with the arena,
    /// if the whole arena is freed; otherwise they are those of pages that are being loaded.
    pub(crate) fn end(&self, arena: &Arena, whole: bool) {
        for (gauges, shard) in self.gauges.iter().zip(&self.shards) {
            let records = {
                let mut guard = shard.lock();
                let Records {
                    table,
                    records,
                    pins,
                } = &mut *guard;
                arena.quota().uncharge(gauges.metadata.get());
                gauges.metadata.set(0);
                let left = if whole { 0 } else { records.end() };
                for record in 0..left {
                    if let Some(record) = records.remove(record) {
                        pins.free(record.slot, arena);
                    }
                }
                (std::mem::take(table), std::mem::take(records))
            };
            drop(records);
        }
    }
}

fn remove(records: &mut Slab<Record>, local: u32, gauges: &RecordGauges, quota: &Quota) {
    let before = records.bytes();
    records.remove(local);
    let freed = before - records.bytes();
    gauges.metadata.sub(freed);
    quota.uncharge(freed);
    if let Some(spent) = records.spent() {
        quota.wakes().bury(spent);
    }
}

/// Whether a page is one of those looked at while sharing does not pay: by its bytes, so that pages that
/// are the same are in the sample together.
fn in_sample(page: &Page) -> bool {
    let (words, _) = page.as_chunks::<8>();
    let mut sum = 0u64;
    for word in words.iter().step_by(61) {
        sum = (sum.rotate_left(9) ^ u64::from_le_bytes(*word)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
    sum >> 32 & (SAMPLE - 1) == 0
}
