//! Counters of a shard. They are written under the shard's lock and read without it.

use crate::arena::size_class::{class_of, slot_bytes};
use crate::entry::{Encoding, Entry, Kind};
use crate::stats::{Events, PoolStats};
use crate::sync::Counter;

#[derive(Debug, Default)]
#[repr(C)]
pub(crate) struct Counters {
    pub(crate) pages: Counter,
    pub(crate) bytes_stored: Counter,
    /// Bytes of the slots of the shard's own pages.
    pub(crate) slot_bytes: Counter,
    pub(crate) metadata: Counter,
    /// One cache line up to the first of them: what every operation counts.
    pub(crate) events: Events,
    /// Pages of zeroes.
    pub(crate) zero: Counter,
    /// Pages that repeat another word.
    pub(crate) filled: Counter,
    pub(crate) raw: Counter,
    pub(crate) cold: Counter,
    /// Pages whose entry names a record.
    pub(crate) records: Counter,
}

impl Counters {
    /// A page came, or with `add` false, went.
    pub(crate) fn count(&self, entry: Entry, add: bool) {
        let change = |counter: &Counter, n: u64| {
            if add {
                counter.add(n);
            } else {
                counter.sub(n);
            }
        };
        change(&self.pages, 1);
        match entry.kind() {
            Kind::Fill(0) => change(&self.zero, 1),
            Kind::Fill(_) => change(&self.filled, 1),
            Kind::Slot(slot) => {
                change(&self.bytes_stored, u64::from(slot.len));
                change(&self.slot_bytes, slot_bytes(class_of(slot.len)) as u64);
                match slot.encoding {
                    Encoding::Raw => change(&self.raw, 1),
                    Encoding::Cold => change(&self.cold, 1),
                    Encoding::Hot => {}
                }
            }
            Kind::Record(_) => change(&self.records, 1),
            Kind::Empty | Kind::Node(_) => {}
        }
    }

    pub(crate) fn add_to(&self, stats: &mut PoolStats) {
        stats.pages += self.pages.get();
        stats.zero += self.zero.get();
        stats.same_filled += self.zero.get() + self.filled.get();
        stats.raw += self.raw.get();
        stats.cold += self.cold.get();
        stats.deduplicated += self.records.get();
        stats.bytes_stored += self.bytes_stored.get();
        stats.bytes_used += self.slot_bytes.get() + self.metadata.get();
        stats.metadata_bytes += self.metadata.get();
        self.events.add_to(stats);
    }
}
