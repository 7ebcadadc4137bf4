//! Statistics: a snapshot of counters, taken while everything runs on.

use tmem_base::setting::PoolKind;

use crate::sync::Counter;

/// Sums over a store.
#[derive(Clone, Debug, Default)]
pub struct StoreStats {
    /// Bytes that all domains together may use.
    pub budget: u64,
    /// Bytes really used: frames of segments and metadata of all domains and share groups.
    pub used: u64,
    /// Bytes that sharing saved: what domains are charged for pages in share groups beyond what the
    /// groups use.
    pub saved: u64,
    /// Bytes that share groups use beyond what their domains are charged: segment waste.
    pub shared_overhead: u64,
    /// Bytes of ephemeral pages.
    pub freeable: u64,
    /// The domains, by name.
    pub domains: Vec<DomainStats>,
}

/// Sums over a domain.
#[derive(Clone, Debug, Default)]
pub struct DomainStats {
    /// Name given by the operator.
    pub name: String,
    /// Bytes that only this domain may use.
    pub reserve: u64,
    /// Most bytes it may use; `u64::MAX` for none.
    pub limit: u64,
    /// Share in the unreserved memory.
    pub weight: u32,
    /// New pages are refused.
    pub frozen: bool,
    /// The cold tier is on.
    pub cold: bool,
    /// Bytes charged: own frames and metadata, and pages in share groups as if they were alone there.
    pub used: u64,
    /// The part of `used` that is charged for pages in share groups.
    pub used_shared: u64,
    /// Bytes of frames of own segments.
    pub segment_bytes: u64,
    /// Bytes of slots in use in own segments.
    pub slot_bytes: u64,
    /// Bytes of the domain's ephemeral pages.
    pub freeable: u64,
    /// The pools, by id.
    pub pools: Vec<PoolStats>,
    /// What the domain's private pools that were destroyed had counted: the sums over `pools` and
    /// this only grow. Gauges are zero.
    pub destroyed: PoolStats,
}

/// Makes [`PoolStats`], and [`Events`] of which a shard has one, from the one list of what a pool counts.
macro_rules! pool_stats {
    (
        held { $($(#[$held_doc:meta])* $held:ident,)* }
        events { $($(#[$event_doc:meta])* $event:ident,)* }
    ) => {
        /// Counters of a pool: what it holds, and what happened. The latter only grows.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct PoolStats {
            /// Id in the domain.
            pub id: u32,
            /// Kind of the pool. Numbers of a shared pool are those of all its members.
            pub kind: PoolKind,
            $($(#[$held_doc])* pub $held: u64,)*
            $($(#[$event_doc])* pub $event: u64,)*
        }

        impl PoolStats {
            /// Adds what happened in another pool, and not what it holds.
            pub(crate) fn add_events(&mut self, pool: &PoolStats) {
                $(self.$event += pool.$event;)*
            }
        }

        /// What happened in a shard.
        #[derive(Debug, Default)]
        #[repr(C)]
        pub(crate) struct Events {
            $(pub(crate) $event: Counter,)*
        }

        impl Events {
            pub(crate) fn add_to(&self, stats: &mut PoolStats) {
                $(stats.$event += self.$event.get();)*
            }
        }
    };
}

pool_stats! {
    held {
        /// Pages that are there.
        pages,
        /// Of them, pages of zeroes.
        zero,
        /// Of them, pages that repeat one word, zero included.
        same_filled,
        /// Of them, pages kept as they are.
        raw,
        /// Of them, pages of the cold tier.
        cold,
        /// Of them, pages whose bytes other keys share.
        deduplicated,
        /// Bytes of compressed and raw pages.
        bytes_stored,
        /// Bytes of their slots, and of the pool's metadata.
        bytes_used,
        /// Bytes of the pool's index.
        metadata_bytes,
    }
    // First what most operations count: it shares a cache line with the pages that are there.
    events {
        /// Pages accepted.
        stores,
        /// Pages found and loaded.
        loads,
        /// Pages removed by an invalidate.
        invalidates,
        /// Loads that found no page.
        load_misses,
        /// Pages evicted.
        evictions,
        /// Stores refused at the limit or the budget.
        refused_no_space,
        /// Stores refused because the domain was frozen.
        refused_frozen,
        /// Stores refused because the host gave no memory.
        refused_no_memory,
        /// Loads whose bytes were damaged.
        corrupt,
        /// Pages recompressed by the cold tier.
        demoted,
        /// Pages that came back from the cold tier.
        promoted,
        /// Pages that compaction moved.
        moved,
    }
}
