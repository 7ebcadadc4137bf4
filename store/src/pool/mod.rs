//! A pool: what happens to a page under the lock of its key's shard.
//!
//! | file | holds |
//! |---|---|
//! | `mod` | puts pages in |
//! | `load` | brings them back |
//! | `remove` | removes pages, objects and whole pools |
//! | `encode`, `encoded` | the work on bytes that needs no lock, and its result |
//! | `evict`, `relocate` | what is done to pages without their guest asking: eviction, compaction |
//! | `recompress` | the cold tier |
//! | `members`, `admitted` | who may store to a shared pool |
//! | `dedup` | pages that share bytes |
//! | `pin` | slots that are read without a lock |
//! | `counters` | statistics |
//!
//! No byte of a slot is read or written while a lock is held.

mod admitted;
mod counters;
mod dedup;
mod encode;
pub(crate) mod encoded;
mod evict;
mod load;
mod members;
mod pin;
pub(crate) mod recompress;
mod relocate;
mod remove;

use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};

use arc_swap::ArcSwap;

use admitted::Admitted;
use counters::Counters;
use dedup::{DedupTable, Inserted};
use encoded::Encoded;
use pin::{HasPins, Pins};
use tmem_base::setting::{Dedup, PoolKind};

use crate::account::ledger::Account;
use crate::account::quota::{AllocError, Quota};
use crate::arena::Arena;
use crate::arena::hold::Held;
use crate::arena::size_class::{class_of, slot_bytes};
use crate::codec::codecs::Codecs;
use crate::config::Want;
use crate::entry::{Entry, Kind};
use crate::error::StoreError;
use crate::evict::Policy;
use crate::evict::s3fifo::S3Fifo;
use crate::index::SHARDS;
use crate::index::backref::{Backref, EntryId};
use crate::index::hash::KeyHash;
use crate::index::node::{Links, Node};
use crate::index::shard::Shard;
use crate::page::Key;
use crate::stats::PoolStats;
use crate::sync::{Counter, InnerMutex};

/// Cost of a page of a share group in addition to its slot: entry, node and their tables.
const SHARED_PAGE_METADATA: u64 = 40;
/// Most members of a shared pool at a time.
pub(crate) const MOST_MEMBERS: usize = 255;

/// A pool of one domain, or of one share group.
#[derive(Debug)]
pub(crate) struct Pool {
    pub(crate) kind: PoolKind,
    /// The index of the pool among those of its owner, for [`Backref`].
    pool_index: u8,
    pub(crate) arena: Arc<Arena>,
    codecs: Codecs,
    hasher: hashbrown::DefaultHashBuilder,
    shards: Box<[ShardCell]>,
    dedup: Option<DedupTable>,
    /// Bytes charged for the pool itself.
    base_bytes: u64,
    /// The domains that joined, of a shared pool; a private one has none.
    members: ArcSwap<Vec<Option<Arc<Account>>>>,
    /// Where the last eviction was.
    hand: AtomicUsize,
    /// For each member a bit for each shard where it has pages to evict. A bit is changed under the shard's lock.
    queued: Box<[AtomicU64]>,
    /// Bit per shard with objects that were cut loose. Written under the shard's lock.
    loose: AtomicU64,
    /// Shards of a pool that was killed are empty below this.
    emptied: AtomicUsize,
    /// The charge for the pool itself was given back.
    finished: AtomicBool,
}

/// A shard, its lock and its counters, on cache lines of their own.
#[derive(Debug, Default)]
#[repr(C, align(128))]
struct ShardCell {
    counters: Counters,
    locked: InnerMutex<Locked>,
}

#[derive(Debug, Default)]
struct Locked {
    shard: Shard,
    /// One order of eviction per domain that has pages here.
    queues: Vec<(u8, S3Fifo)>,
    /// Members of a shared pool that may store here.
    admitted: Admitted,
    pins: Pins,
    /// The pool was destroyed.
    dead: bool,
    /// Chunks of a destroyed pool are empty below this.
    next: u32,
}

impl HasPins for Locked {
    fn pins(&mut self) -> &mut Pins {
        &mut self.pins
    }
}

/// Why a page was not put under its key; nothing is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PutError {
    Alloc(AllocError),
    PoolGone,
}

impl From<AllocError> for PutError {
    fn from(error: AllocError) -> Self {
        PutError::Alloc(error)
    }
}

/// The parts of a pool.
pub(crate) struct PoolParts {
    pub(crate) kind: PoolKind,
    pub(crate) pool_index: u8,
    pub(crate) arena: Arc<Arena>,
    pub(crate) codecs: Codecs,
    pub(crate) hasher: hashbrown::DefaultHashBuilder,
    pub(crate) dedup: Dedup,
}

impl Pool {
    pub(crate) fn new(parts: PoolParts) -> Result<Self, AllocError> {
        let members = match parts.kind {
            PoolKind::Persistent => 0,
            PoolKind::Ephemeral => 1,
            PoolKind::Shared => MOST_MEMBERS,
        };
        let base_bytes = (SHARDS * size_of::<ShardCell>() + size_of::<Pool>() + members * 8) as u64;
        parts.arena.quota().charge_for(base_bytes, Want::Pool)?;
        Ok(Self {
            kind: parts.kind,
            pool_index: parts.pool_index,
            arena: parts.arena,
            codecs: parts.codecs,
            dedup: dedup_table(parts.kind, parts.dedup, &parts.hasher),
            hasher: parts.hasher,
            shards: (0..SHARDS).map(|_| ShardCell::default()).collect(),
            base_bytes,
            members: ArcSwap::default(),
            hand: AtomicUsize::new(0),
            queued: (0..members).map(|_| AtomicU64::new(0)).collect(),
            loose: AtomicU64::new(0),
            emptied: AtomicUsize::new(0),
            finished: AtomicBool::new(false),
        })
    }

    fn quota(&self) -> &Quota {
        self.arena.quota()
    }

    fn is_ephemeral(&self) -> bool {
        self.kind != PoolKind::Persistent
    }

    #[expect(clippy::cast_possible_truncation, reason = "parts of a hash")]
    fn key_hash(&self, key: Key) -> (usize, KeyHash<'_>) {
        let (chunk, _) = key.chunk();
        let hash = self.hasher.hash_one((key.object.0, chunk));
        let key_hash = KeyHash {
            chunk: hash as u32,
            hasher: &self.hasher,
        };
        ((hash >> 32) as usize % SHARDS, key_hash)
    }

    /// Puts an encoded page under a key, in place of what was there; in the slot that is held, to which its bytes were
    /// written. [`AllocError::Frames`] asks for such a slot.
    pub(crate) fn put(
        &self,
        member: u8,
        key: Key,
        encoded: &Encoded<'_>,
        held: &mut Option<Held<'_>>,
    ) -> Result<(), PutError> {
        let (shard_index, key_hash) = self.key_hash(key);
        let cell = &self.shards[shard_index];
        let mut guard = cell.locked.lock();
        let locked = &mut *guard;
        if locked.dead || !self.is_admitted(locked, member) {
            return Err(PutError::PoolGone);
        }
        self.help(cell, locked, shard_index);
        // The old page is freed first, whether or not the new one is stored; its entry in the chunk stays.
        let (_, offset) = key.chunk();
        let known = locked.shard.find(key_hash, key);
        if let Some(found) = known.and_then(|chunk| locked.shard.chunk(chunk)) {
            let old = found.get(offset);
            if !old.is_empty() {
                self.discard(cell, locked, old);
            }
        }
        let chunk = match locked.shard.prepare(self.quota(), key_hash, key, known) {
            Ok(chunk) => chunk,
            Err(error) => {
                cell.counters.metadata.set(locked.shard.charged());
                return Err(error.into());
            }
        };
        let id = EntryId {
            shard: shard_index,
            chunk,
            offset,
        };
        let put = if self.is_ephemeral() {
            let fingerprint = fingerprint(key_hash, offset);
            self.put_node(cell, locked, (member, fingerprint), id, (encoded, held))
        } else {
            let backref = id.backref(self.pool_index);
            self.entry(encoded, backref, held).inspect(|entry| {
                cell.counters.count(*entry, true);
            })
        };
        match put {
            Ok(entry) => {
                locked.shard.set(chunk, offset, entry);
                cell.counters.events.stores.add(1);
            }
            Err(_) => locked.shard.remove(self.quota(), chunk, offset, key_hash),
        }
        cell.counters.metadata.set(locked.shard.charged());
        put.map(drop).map_err(PutError::Alloc)
    }

    /// The entry of a page, with its bytes in a slot.
    fn entry(
        &self,
        encoded: &Encoded<'_>,
        backref: Backref,
        held: &mut Option<Held<'_>>,
    ) -> Result<Entry, AllocError> {
        match encoded {
            Encoded::Fill(entry) => Ok(*entry),
            Encoded::Bytes {
                bytes,
                encoding,
                hash,
            } => {
                let len = bytes.len() as u16;
                if let (Some(dedup), Some(hash)) = (&self.dedup, hash)
                    && let Inserted::Record(record) =
                        dedup.insert(*hash, (len, *encoding), self.pool_index, &self.arena, held)?
                {
                    return Ok(Entry::record(record));
                }
                let slot = self.arena.commit(len, *encoding, backref.pack(), held)?;
                Ok(Entry::slot(slot))
            }
            Encoded::Record { record, .. } => match &self.dedup {
                Some(dedup) if dedup.retain(*record) => Ok(Entry::record(*record)),
                _ => Err(AllocError::NoMemory),
            },
        }
    }

    /// A page of an ephemeral pool: its node, charged to its domain and queued for eviction.
    fn put_node(
        &self,
        cell: &ShardCell,
        locked: &mut Locked,
        (member, fingerprint): (u8, u32),
        id: EntryId,
        (encoded, held): (&Encoded<'_>, &mut Option<Held<'_>>),
    ) -> Result<Entry, AllocError> {
        let shared = self.member(member)?;
        let cost = shared_cost(encoded.len());
        if let Some(account) = &shared {
            self.quota().ledger.charge_shared(account, cost)?;
        }
        let put = self.put_charged(cell, locked, (member, fingerprint), id, (encoded, held));
        if let (Err(_), Some(account)) = (&put, &shared) {
            self.quota().ledger.release_shared(account, cost);
        }
        put
    }

    fn put_charged(
        &self,
        cell: &ShardCell,
        locked: &mut Locked,
        (member, fingerprint): (u8, u32),
        id: EntryId,
        (encoded, held): (&Encoded<'_>, &mut Option<Held<'_>>),
    ) -> Result<Entry, AllocError> {
        let node = locked.shard.add_node(
            self.quota(),
            Node {
                entry: Entry::EMPTY,
                chunk: id.chunk,
                links: Links::default(),
                member,
                offset: id.offset,
            },
        )?;
        let backref = Backref::Node {
            pool: self.pool_index,
            shard: id.shard as u8,
            node,
        };
        let entry = match self.entry(encoded, backref, held) {
            Ok(entry) => entry,
            Err(error) => {
                locked.shard.remove_node(self.quota(), node);
                return Err(error);
            }
        };
        if let Some(node) = locked.shard.nodes.get_mut(node) {
            node.entry = entry;
        }
        let queue = match locked.queues.iter().position(|(m, _)| *m == member) {
            Some(at) => at,
            None => {
                locked.queues.push((member, S3Fifo::default()));
                locked.queues.len() - 1
            }
        };
        let queue = &mut locked.queues[queue].1;
        let growth = queue.growth();
        if growth > 0 && locked.shard.charge(self.quota(), growth) {
            queue.grow();
        }
        if queue.is_empty() {
            self.mark_queued(member, id.shard, true);
        }
        queue.insert(&mut locked.shard.nodes, node, fingerprint);
        cell.counters.count(entry, true);
        Ok(Entry::node(node))
    }

    /// Removes what is under a key. Returns whether a page was there.
    fn take_out(
        &self,
        cell: &ShardCell,
        locked: &mut Locked,
        key_hash: KeyHash<'_>,
        key: Key,
    ) -> bool {
        let Some((chunk, entry)) = locked.shard.get(key_hash, key) else {
            return false;
        };
        let (_, offset) = key.chunk();
        self.discard(cell, locked, entry);
        locked.shard.remove(self.quota(), chunk, offset, key_hash);
        cell.counters.metadata.set(locked.shard.charged());
        true
    }

    /// Gives back all that an entry of the index holds.
    fn discard(&self, cell: &ShardCell, locked: &mut Locked, entry: Entry) {
        match self.detach(cell, locked, entry).kind() {
            Kind::Slot(slot) => locked.pins.free(slot, &self.arena),
            Kind::Record(record) => self.release(record),
            _ => {}
        }
    }

    /// Takes an entry of the index off all counts and queues. The returned value names the bytes, which now belong to
    /// the caller.
    fn detach(&self, cell: &ShardCell, locked: &mut Locked, entry: Entry) -> Entry {
        let mut entry = entry;
        if let Kind::Node(node_id) = entry.kind() {
            let Some(member) = locked.shard.nodes.get(node_id).map(|node| node.member) else {
                return Entry::EMPTY;
            };
            if let Some((_, queue)) = locked.queues.iter_mut().find(|(m, _)| *m == member) {
                queue.remove(&mut locked.shard.nodes, node_id);
                if queue.is_empty() {
                    self.mark_queued(member, self.shard_of(locked, node_id), false);
                }
            }
            let Some(node) = locked.shard.remove_node(self.quota(), node_id) else {
                return Entry::EMPTY;
            };
            entry = node.entry;
            if let Ok(Some(account)) = self.member(member) {
                self.quota()
                    .ledger
                    .release_shared(&account, shared_cost(self.payload_len(entry)));
            }
        }
        cell.counters.count(entry, false);
        entry
    }

    fn release(&self, record: u32) {
        if let Some(dedup) = &self.dedup {
            dedup.release(record, &self.arena);
        }
    }

    /// Bytes of an entry's payload.
    fn payload_len(&self, entry: Entry) -> u16 {
        match (entry.kind(), &self.dedup) {
            (Kind::Slot(slot), _) => slot.len,
            (Kind::Record(record), Some(dedup)) => dedup.len(record),
            _ => 0,
        }
    }

    /// A store that ends in a refusal: nothing stays under the key.
    pub(crate) fn refuse(&self, key: Key, error: StoreError) {
        let (shard_index, key_hash) = self.key_hash(key);
        let cell = &self.shards[shard_index];
        let mut locked = cell.locked.lock();
        self.take_out(cell, &mut locked, key_hash, key);
        match error {
            StoreError::NoSpace => cell.counters.events.refused_no_space.add(1),
            StoreError::Frozen => cell.counters.events.refused_frozen.add(1),
            StoreError::NoMemory => cell.counters.events.refused_no_memory.add(1),
            StoreError::NoPool => {}
        }
    }

    /// Sums for statistics.
    pub(crate) fn stats(&self, id: u32) -> PoolStats {
        let mut stats = PoolStats {
            id,
            kind: self.kind,
            bytes_used: self.base_bytes,
            metadata_bytes: self.base_bytes,
            ..PoolStats::default()
        };
        for cell in &self.shards {
            cell.counters.add_to(&mut stats);
        }
        for gauges in self.dedup.iter().flat_map(DedupTable::gauges) {
            stats.deduplicated = stats.deduplicated.saturating_sub(gauges.records.get());
            stats.bytes_stored += gauges.payload.get();
            stats.bytes_used += gauges.slots.get() + gauges.metadata.get();
            stats.metadata_bytes += gauges.metadata.get();
        }
        stats
    }

    /// Bytes of the slots of the pool's pages.
    pub(crate) fn slot_bytes(&self) -> u64 {
        let own = self.shards.iter().map(|cell| &cell.counters.slot_bytes);
        let shared = self.dedup.iter().flat_map(DedupTable::gauges);
        own.chain(shared.map(|gauges| &gauges.slots))
            .map(Counter::get)
            .sum()
    }
}

fn dedup_table(
    kind: PoolKind,
    dedup: Dedup,
    hasher: &hashbrown::DefaultHashBuilder,
) -> Option<DedupTable> {
    let dedup = match (dedup, kind) {
        (Dedup::Auto, PoolKind::Shared) => Dedup::On,
        (Dedup::Auto, _) => Dedup::Off,
        (chosen, _) => chosen,
    };
    if dedup == Dedup::Off {
        return None;
    }
    // A secret of its own for each table, from what the operating system seeded.
    let seeded = std::collections::hash_map::RandomState::new();
    let secret = (0..24u64)
        .flat_map(|word| seeded.hash_one((word, hasher.hash_one(word))).to_ne_bytes())
        .collect();
    Some(DedupTable::new(dedup, secret))
}

/// Names a page to the eviction policy; not zero.
fn fingerprint(key_hash: KeyHash<'_>, offset: u8) -> u32 {
    key_hash
        .chunk
        .wrapping_add(u32::from(offset))
        .wrapping_mul(0x9e37_79b1)
        | 1
}

/// The charge for a page of a share group: its cost if it were not shared.
fn shared_cost(len: u16) -> u64 {
    let slot = if len == 0 {
        0
    } else {
        slot_bytes(class_of(len)) as u64
    };
    slot + SHARED_PAGE_METADATA
}
