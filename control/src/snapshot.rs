//! From a running store and its devices to the types of the replies.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use tmem_device::{
    TmemDevice,
    histogram::HistogramSnapshot,
    tmem::{Malformed, MetricsSnapshot},
};
use tmem_protocol::Status;
use tmem_store::{ConfigError, DomainChange, DomainStats, PoolStats, Store, StoreStats};

use crate::{
    api::{Compression, Counters, Device, Domain, Histogram, Pool, PoolKind, Stats},
    clients::Clients,
    operation::{Done, Operation, Refused},
    source::Source,
};

/// Buckets of a device histogram that are reported each for itself: from 128 ns to 8.6 s. What lies
/// below is added to the first, what lies above to the open one.
const FIRST_BUCKET: usize = 7;
const LAST_BUCKET: usize = 33;

/// The [`Source`] of a real process: a store, and the devices of its domains.
#[derive(Debug)]
pub struct Live {
    store: Store,
    started: Instant,
    devices: Mutex<BTreeMap<String, Arc<TmemDevice>>>,
    clients: Clients,
}

impl Live {
    /// Reports on `store`, from now on.
    pub fn new(store: Store) -> Self {
        Self {
            store,
            started: Instant::now(),
            devices: Mutex::default(),
            clients: Clients::default(),
        }
    }

    /// Reports on the device of a domain too. Replaces the domain's former device.
    pub fn connect(&self, domain: &str, device: Arc<TmemDevice>) {
        self.devices().insert(domain.to_owned(), device);
    }

    /// Forgets the device of a domain.
    pub fn disconnect(&self, domain: &str) {
        let gone = self.devices().remove(domain);
        // Outside the lock, since it may be the last owner.
        drop(gone);
    }

    fn devices(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Arc<TmemDevice>>> {
        self.devices.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Source for Live {
    fn stats(&self) -> Stats {
        let store = self.store.stats();
        let devices = self.devices();
        let device_of = |name: &str| {
            devices
                .get(name)
                .map(|device| Device::from(&device.metrics().snapshot()))
        };
        Stats {
            clients: self.clients.report(),
            ..stats(&store, self.started.elapsed().as_secs_f64(), device_of)
        }
    }

    fn clients(&self) -> Option<&Clients> {
        Some(&self.clients)
    }

    /// Changes and flushes domains; guests are for those to add who serve them.
    fn operate(&self, operation: Operation) -> Result<Done, Refused> {
        let find = |name: String| self.store.domain(&name).ok_or(Refused::Unknown(name));
        match operation {
            Operation::Change { domain, change } => {
                let domain = find(domain)?;
                domain
                    .set(DomainChange {
                        reserve: change.reserve,
                        limit: change.limit.map(|limit| limit.unwrap_or(u64::MAX)),
                        weight: change.weight,
                        cold: change.compression.map(|c| c == Compression::Dense),
                    })
                    .map_err(refused)?;
                match change.frozen {
                    Some(true) => domain.freeze(),
                    Some(false) => domain.thaw(),
                    None => {}
                }
                Ok(Done::Changed)
            }
            Operation::Flush { domain, bytes } => Ok(Done::Flushed(find(domain)?.flush(bytes))),
            Operation::AddGuest(_) | Operation::AddGuestOn { .. } | Operation::RemoveGuest(_) => {
                Err(Refused::Unsupported(
                    "its guests come with its command line",
                ))
            }
        }
    }
}

/// Why the store does not take the values.
fn refused(error: ConfigError) -> Refused {
    let text = error.to_string();
    match error {
        ConfigError::NoWeight | ConfigError::NoBudget => Refused::Invalid(text),
        ConfigError::Host(_) | ConfigError::Lock(_) => Refused::Failed(text),
        // The other one may be what it was before.
        ConfigError::ReserveAboveLimit
        | ConfigError::ReservesAboveBudget { .. }
        | ConfigError::ReserveInUse
        | ConfigError::NameTaken
        | ConfigError::UnknownDomain
        | ConfigError::Removed => Refused::Conflict(text),
    }
}

fn stats(
    store: &StoreStats,
    uptime_seconds: f64,
    device_of: impl Fn(&str) -> Option<Device>,
) -> Stats {
    Stats {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        uptime_seconds,
        budget: store.budget,
        used: store.used,
        saved: store.saved,
        freeable: store.freeable,
        host: None,
        service: None,
        clients: BTreeMap::new(),
        process: None,
        domains: store
            .domains
            .iter()
            .map(|domain| Domain {
                device: device_of(&domain.name),
                ..Domain::from(domain)
            })
            .collect(),
    }
}

impl From<&DomainStats> for Domain {
    fn from(stats: &DomainStats) -> Self {
        let pools: Vec<Pool> = stats.pools.iter().map(Pool::from).collect();
        let mut counters = Counters::default();
        for pool in &pools {
            counters.add(&pool.counters);
        }
        counters.add(&Pool::from(&stats.destroyed).counters);
        counters.bytes_used = stats.used;
        Self {
            name: stats.name.clone(),
            reserve: stats.reserve,
            limit: (stats.limit != u64::MAX).then_some(stats.limit),
            weight: stats.weight,
            compression: if stats.cold {
                Compression::Dense
            } else {
                Compression::Fast
            },
            frozen: stats.frozen,
            freeable: stats.freeable,
            segment_bytes: stats.segment_bytes,
            slot_bytes: stats.slot_bytes,
            counters,
            connections: None,
            device: None,
            front_end: None,
            pools,
        }
    }
}

impl From<&PoolStats> for Pool {
    fn from(stats: &PoolStats) -> Self {
        Self {
            id: stats.id,
            kind: match stats.kind {
                tmem_store::PoolKind::Persistent => PoolKind::Persistent,
                tmem_store::PoolKind::Ephemeral => PoolKind::Ephemeral,
                tmem_store::PoolKind::Shared => PoolKind::Shared,
            },
            counters: Counters {
                pages: stats.pages,
                bytes_stored: stats.bytes_stored,
                bytes_used: stats.bytes_used,
                metadata_bytes: stats.metadata_bytes,
                zero: stats.zero,
                same_filled: stats.zero + stats.same_filled,
                raw: stats.raw,
                cold: stats.cold,
                deduplicated: stats.deduplicated,
                stores: stats.stores,
                loads: stats.loads,
                load_misses: stats.load_misses,
                corrupt: stats.corrupt,
                invalidates: stats.invalidates,
                evictions: stats.evictions,
                refusals: BTreeMap::from([
                    (Status::NoSpace.name().to_owned(), stats.refused_no_space),
                    (Status::Frozen.name().to_owned(), stats.refused_frozen),
                    (Status::NoMemory.name().to_owned(), stats.refused_no_memory),
                ]),
            },
        }
    }
}

impl From<&MetricsSnapshot> for Device {
    fn from(metrics: &MetricsSnapshot) -> Self {
        let pages = metrics.pages_stored + metrics.pages_loaded + metrics.pages_invalidated;
        let refused = Status::ALL.iter().zip(&metrics.refusals).skip(1);
        let malformed = Malformed::ALL.iter().zip(&metrics.malformed);
        Self {
            doorbell_exits: metrics.doorbells,
            requests: metrics.chains,
            pages_stored: metrics.pages_stored,
            pages_loaded: metrics.pages_loaded,
            pages_invalidated: metrics.pages_invalidated,
            objects_invalidated: metrics.objects_invalidated,
            pages_per_exit: (metrics.doorbells > 0)
                .then(|| pages as f64 / metrics.doorbells as f64),
            refusals: refused.map(|(s, &n)| (s.name().to_owned(), n)).collect(),
            malformed: malformed.map(|(m, &n)| (m.name().to_owned(), n)).collect(),
            queue_faults: metrics.queue_faults,
            resets: metrics.resets,
            store_latency: Histogram::from(&metrics.store_ns),
            load_latency: Histogram::from(&metrics.load_ns),
        }
    }
}

impl From<&HistogramSnapshot> for Histogram {
    fn from(snapshot: &HistogramSnapshot) -> Self {
        let bounds = (FIRST_BUCKET..=LAST_BUCKET)
            .filter_map(HistogramSnapshot::upper_bound)
            .collect();
        let buckets = &snapshot.buckets;
        let mut counts = vec![buckets[..=FIRST_BUCKET].iter().sum()];
        counts.extend_from_slice(&buckets[FIRST_BUCKET + 1..=LAST_BUCKET]);
        counts.push(buckets[LAST_BUCKET + 1..].iter().sum());
        Self::new(bounds, counts, snapshot.sum)
    }
}

#[cfg(test)]
mod tests {
    use tmem_store::StoreConfig;

    use super::*;

    #[test]
    fn histogram_keeps_every_event_and_the_bounds_of_the_device() {
        let mut snapshot = HistogramSnapshot::default();
        snapshot.buckets[0] = 1;
        snapshot.buckets[FIRST_BUCKET] = 2;
        snapshot.buckets[FIRST_BUCKET + 1] = 4;
        snapshot.buckets[LAST_BUCKET] = 8;
        snapshot.buckets[LAST_BUCKET + 1] = 16;
        let histogram = Histogram::from(&snapshot);
        assert_eq!(histogram.count(), snapshot.count());
        assert_eq!(histogram.counts.len(), histogram.bounds_ns.len() + 1);
        assert_eq!(histogram.bounds_ns.first(), Some(&127));
        assert_eq!(histogram.counts.first(), Some(&3));
        assert_eq!(histogram.counts[1], 4);
        assert_eq!(histogram.counts.last(), Some(&16));
    }

    #[test]
    fn what_the_store_and_the_device_count_arrives() {
        let store = Store::new(StoreConfig {
            budget: 8 << 20,
            background: false,
            ..StoreConfig::default()
        })
        .expect("a store");
        let domain = store
            .add_domain("guest", tmem_store::DomainConfig::default())
            .expect("a domain");
        let pool = domain
            .create_pool(tmem_store::PoolSpec::Persistent)
            .expect("a pool");
        let object = tmem_store::ObjectId([1, 2, 3]);
        let mut page = [0; tmem_store::PAGE_SIZE];
        for (index, fill) in [(0, 0), (1, 7)] {
            page.fill(fill);
            domain.store(pool, object, index, &page).expect("stores");
        }
        domain.load(pool, object, 1, &mut page).expect("loads");
        domain
            .load(pool, object, 2, &mut page)
            .expect_err("was never stored");

        let live = Live::new(store.clone());
        let device = TmemDevice::new(domain, tmem_device::TmemConfig::default());
        device.metrics().count_doorbell(1);
        live.connect("guest", Arc::new(device));

        let stats = live.stats();
        assert_eq!(stats.budget, 8 << 20);
        assert_eq!(stats.used, store.stats().used);
        let [domain] = stats.domains.as_slice() else {
            panic!("one domain: {stats:?}");
        };
        assert_eq!(domain.limit, None);
        let counters = &domain.counters;
        assert_eq!(
            (counters.pages, counters.zero, counters.same_filled),
            (2, 1, 2)
        );
        assert_eq!(
            (counters.stores, counters.loads, counters.load_misses),
            (2, 1, 1)
        );
        assert_eq!(domain.pools.len(), 1);
        let device = domain.device.as_ref().expect("a device");
        assert_eq!(device.doorbell_exits, 1);
        assert_eq!(device.pages_per_exit, Some(0.0));
        assert_eq!(device.refusals.get("no_space"), Some(&0));
        assert!(!device.refusals.contains_key("ok"));

        live.disconnect("guest");
        assert_eq!(live.stats().domains[0].device, None);
    }
}
