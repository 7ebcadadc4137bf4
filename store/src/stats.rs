//! Statistics: a snapshot of counters, taken while everything runs on.

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

/// What kind of pool it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PoolKind {
    /// Accepted pages stay.
    #[default]
    Persistent,
    /// Pages may vanish; a load takes them out.
    Ephemeral,
    /// Pages may vanish and belong to a share group.
    Shared,
}

/// Counters of a pool. The first group are gauges, the rest only grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolStats {
    /// Id in the domain.
    pub id: u32,
    /// Kind of the pool. Numbers of a shared pool are those of all its members.
    pub kind: PoolKind,
    /// Pages that are there.
    pub pages: u64,
    /// Of them, pages of zeroes.
    pub zero: u64,
    /// Of them, pages that repeat another word.
    pub same_filled: u64,
    /// Of them, pages kept as they are.
    pub raw: u64,
    /// Of them, pages of the cold tier.
    pub cold: u64,
    /// Of them, pages whose bytes other keys share.
    pub deduplicated: u64,
    /// Bytes of compressed and raw pages.
    pub bytes_stored: u64,
    /// Bytes of their slots, and of the pool's metadata.
    pub bytes_used: u64,
    /// Bytes of the pool's index.
    pub metadata_bytes: u64,

    /// Pages accepted.
    pub stores: u64,
    /// Pages found and loaded.
    pub loads: u64,
    /// Loads that found no page.
    pub load_misses: u64,
    /// Pages removed by an invalidate.
    pub invalidates: u64,
    /// Pages evicted.
    pub evictions: u64,
    /// Stores refused at the limit or the budget.
    pub refused_no_space: u64,
    /// Stores refused because the domain was frozen.
    pub refused_frozen: u64,
    /// Stores refused because the host gave no memory.
    pub refused_no_memory: u64,
    /// Loads whose bytes were damaged.
    pub corrupt: u64,
    /// Pages recompressed by the cold tier.
    pub cooled: u64,
    /// Pages that came back from the cold tier.
    pub warmed: u64,
    /// Pages that compaction moved.
    pub moved: u64,
}

impl PoolStats {
    /// Adds what another pool counted, and not what it holds.
    pub(crate) fn count_in(&mut self, pool: &PoolStats) {
        self.stores += pool.stores;
        self.loads += pool.loads;
        self.load_misses += pool.load_misses;
        self.invalidates += pool.invalidates;
        self.evictions += pool.evictions;
        self.refused_no_space += pool.refused_no_space;
        self.refused_frozen += pool.refused_frozen;
        self.refused_no_memory += pool.refused_no_memory;
        self.corrupt += pool.corrupt;
        self.cooled += pool.cooled;
        self.warmed += pool.warmed;
        self.moved += pool.moved;
    }
}
