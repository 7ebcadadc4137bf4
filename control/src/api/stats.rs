//! Replies that show what there is: `GET /v1/stats`, `GET /v1/domains`, `GET /v1/freeable`.
//!
//! Sizes are bytes, unless the name says pages (of 4096 bytes) or nanoseconds. A count
//! of events only grows while its pool, domain, device or process exists; that of a domain includes the
//! pools that were destroyed. Reading resets nothing.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tmem_base::setting::PoolKind;

use super::counters::Counters;
use super::guest::Compression;

/// Size of a guest page in bytes.
pub const PAGE_SIZE: u64 = 4096;

/// State of the whole process.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    /// Version of the tmem that answers.
    pub version: String,
    /// Seconds since this process started serving pages.
    pub uptime_seconds: f64,
    /// Bytes that all domains together may use.
    pub budget: u64,
    /// Bytes in use: payload, slab waste and metadata.
    pub used: u64,
    /// Bytes that domains are charged beyond `used`, because they share pages.
    pub saved: u64,
    /// Bytes of `used` held by ephemeral pages, which the host can have back at once.
    pub freeable: u64,
    /// The guests, in the order of their names.
    pub domains: Vec<Domain>,
    /// The memory of the host, as the process sees it that has the pages; `null` where nothing says what the host has.
    #[serde(default)]
    pub host: Option<Host>,
    /// The service that has the pages, where this process only runs a guest. Then the statistics above are empty: the
    /// service's control socket has them.
    #[serde(default)]
    pub service: Option<Service>,
    /// What the clients of each socket (`control`, `statistics`) came to.
    #[serde(default)]
    pub clients: BTreeMap<String, Connections>,
    /// What the process takes of its limits; `null` where it does not look.
    #[serde(default)]
    pub process: Option<Process>,
}

/// Connections to one control socket.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connections {
    /// Connections that were accepted.
    pub accepted: u64,
    /// Those that did not end with what was asked for, by reason.
    pub rejected: BTreeMap<String, u64>,
}

/// What a process takes of its limits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Descriptors that are open.
    pub descriptors: u64,
    /// Descriptors that may be (RLIMIT_NOFILE); `null` without a limit.
    pub descriptors_limit: Option<u64>,
    /// Mappings of memory.
    pub mappings: u64,
    /// Mappings that there may be (vm.max_map_count); `null` where it cannot be read.
    pub mappings_limit: Option<u64>,
}

/// The memory of the host: of the machine, or of the control group above the process that has the least to spare.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// Most that may be in use there, in bytes.
    pub limit: u64,
    /// Bytes that can be had there without ending a process or writing to swap.
    pub available: u64,
    /// Bytes of that which are left alone: pages that would need them are refused.
    pub floor: u64,
    /// Whether processes wait for memory there. Twice as much is left alone then.
    pub stalled: bool,
    /// Whether the host is short: ephemeral pages are being given up.
    pub short: bool,
    /// Times that memory was refused to keep the floor.
    pub refusals: u64,
    /// Pages of host memory that were found bad, with the guests' pages on them.
    pub bad_pages: u64,
}

/// What a VMM knows of the service that has its guest's pages.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Its vhost-user socket.
    pub socket: String,
    /// Whether it is connected.
    pub connected: bool,
    /// Connections made to it.
    pub connections: u64,
    /// Times a driver of the guest became ready.
    pub activations: u64,
    /// Times the device broke: the service went away or a ring made no sense.
    pub faults: u64,
    /// Interrupts that the service asked for.
    pub interrupts: u64,
    /// Doorbells that a vCPU thread had to handle. The service counts those that went straight to it.
    pub doorbell_exits: u64,
}

/// One guest.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Domain {
    /// Name that the operator gave.
    pub name: String,
    /// Bytes of the budget that only this domain may use.
    pub reserve: u64,
    /// Hard cap in bytes; `null` when there is none.
    pub limit: Option<u64>,
    /// Share in the memory that no guest has reserved.
    pub weight: u32,
    /// How hard pages are compressed.
    pub compression: Compression,
    /// Whether new pages are refused.
    pub frozen: bool,
    /// Bytes held by ephemeral pages, which the host can have back at once.
    pub freeable: u64,
    /// Bytes of memory behind own segments.
    pub segment_bytes: u64,
    /// Bytes of slots in use in own segments; the rest of `segment_bytes` is room for more pages.
    pub slot_bytes: u64,
    /// Connections of a VMM to its socket since it was added; `null` where the VMM is this process.
    #[serde(default)]
    pub connections: Option<u64>,
    /// Sums over the pools; `bytes_used` is all that is charged to the domain.
    #[serde(flatten)]
    pub counters: Counters,
    /// What its virtio device counted; `null` while no device is connected.
    pub device: Option<Device>,
    /// The memory of its front end, and its thread; `null` where this process runs the guest itself.
    #[serde(default)]
    pub front_end: Option<FrontEnd>,
    /// The pools, in the order of their ids.
    pub pools: Vec<Pool>,
}

/// The front end of a guest of a service. What counts outlives a connection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrontEnd {
    /// Bytes of memory that it describes now.
    pub memory_bytes: u64,
    /// Bytes that were granted to touch that memory before the guest did, page tables included.
    pub touched_bytes: u64,
    /// Accesses to such memory that were refused.
    pub touch_refusals: u64,
    /// Mappings of it that could not be undone; with one the guest gets no more.
    pub stuck_mappings: u64,
    /// Panics of the guest's thread.
    pub panics: u64,
}

/// One pool of a domain.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Pool {
    /// Id, as the guest knows it.
    pub id: u32,
    /// `persistent`, `ephemeral` or `shared`.
    pub kind: PoolKind,
    /// Its counters.
    #[serde(flatten)]
    pub counters: Counters,
}

/// One virtio device. Its counters also outlive a reset by the guest.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Device {
    /// Doorbell writes of request queues, each one an exit of the guest.
    pub doorbell_exits: u64,
    /// Request chains taken from the queues and returned.
    pub requests: u64,
    /// Pages that store requests put into a pool.
    pub pages_stored: u64,
    /// Pages that load requests found.
    pub pages_loaded: u64,
    /// Pages that invalidate requests named.
    pub pages_invalidated: u64,
    /// Objects that were invalidated as a whole.
    pub objects_invalidated: u64,
    /// Pages stored, loaded and invalidated for each doorbell exit; `null` before the first exit.
    pub pages_per_exit: Option<f64>,
    /// Requests and entries of requests that were not granted, by the status they were given.
    pub refusals: BTreeMap<String, u64>,
    /// Request chains that broke a rule of the protocol, by rule.
    pub malformed: BTreeMap<String, u64>,
    /// Times the device had to stop because a ring made no sense.
    pub queue_faults: u64,
    /// Resets by the guest.
    pub resets: u64,
    /// Time from the copy of a page out of guest memory to its outcome.
    pub store_latency: Histogram,
    /// Time from looking a page up to the end of its copy into guest memory.
    pub load_latency: Histogram,
}

/// Latencies in nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Histogram {
    /// Upper bounds of the buckets, inclusive, growing. One more bucket than bounds: the last is open.
    pub bounds_ns: Vec<u64>,
    /// Events in each bucket (not cumulative).
    pub counts: Vec<u64>,
    /// Sum of all events.
    pub sum_ns: u64,
    /// Upper bound of the bucket that holds the median; `null` without events or in the open bucket.
    pub p50_ns: Option<u64>,
    /// As `p50_ns`, for the 99th percentile.
    pub p99_ns: Option<u64>,
}

impl Histogram {
    /// Takes bucket bounds and counts, and derives the percentiles.
    pub fn new(bounds_ns: Vec<u64>, counts: Vec<u64>, sum_ns: u64) -> Self {
        let mut histogram = Self {
            bounds_ns,
            counts,
            sum_ns,
            p50_ns: None,
            p99_ns: None,
        };
        histogram.p50_ns = histogram.percentile(50);
        histogram.p99_ns = histogram.percentile(99);
        histogram
    }

    /// Number of events.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Upper bound of the bucket where the `percent`th percentile lies.
    ///
    /// `None` without events, and when that bucket is the open one.
    pub fn percentile(&self, percent: u8) -> Option<u64> {
        let total = u128::from(self.count());
        if total == 0 {
            return None;
        }
        let rank = (total * u128::from(percent)).div_ceil(100).max(1);
        let mut seen = 0u128;
        let bucket = self.counts.iter().position(|&count| {
            seen += u128::from(count);
            seen >= rank
        })?;
        self.bounds_ns.get(bucket).copied()
    }
}

/// Reply of `GET /v1/domains`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Domains {
    /// The guests, in the order of their names.
    pub domains: Vec<Domain>,
}

/// Reply of `GET /v1/freeable`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Freeable {
    /// Bytes held by ephemeral pages of all guests, which the host can have back at once.
    pub freeable: u64,
    /// The same for each guest.
    pub domains: BTreeMap<String, u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentile_is_the_bound_of_the_bucket_that_holds_it() {
        let h = Histogram::new(vec![10, 20, 40], vec![50, 48, 1, 1], 0);
        assert_eq!(h.count(), 100);
        assert_eq!(h.p50_ns, Some(10));
        assert_eq!(h.p99_ns, Some(40));
        assert_eq!(h.percentile(100), None, "the open bucket has no bound");
    }

    #[test]
    fn percentile_of_nothing_is_nothing() {
        assert_eq!(Histogram::new(vec![10], vec![0, 0], 0).p50_ns, None);
        assert_eq!(Histogram::default().percentile(99), None);
    }

    #[test]
    fn stats_survive_json() {
        let stats = Stats {
            version: "1".into(),
            domains: vec![Domain {
                name: "a".into(),
                device: Some(Device::default()),
                pools: vec![Pool::default()],
                ..Domain::default()
            }],
            ..Stats::default()
        };
        let json = serde_json::to_string(&stats).expect("serializes");
        assert!(
            json.contains(r#""bytes_stored":0"#),
            "counters are flat: {json}"
        );
        assert_eq!(serde_json::from_str::<Stats>(&json).expect("parses"), stats);
    }
}
