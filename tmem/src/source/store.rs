//! The source of a process that has a store: from the store and its devices to the types of the replies.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tmem_control::api::{
    Compression, Counters, Device, Domain, Histogram, Pool, for_each_pool_counter,
};
use tmem_control::clients::Clients;
use tmem_control::{Done, Operation, Refused, Source, Stats};
use tmem_device::TmemDevice;
use tmem_device::histogram::HistogramSnapshot;
use tmem_device::tmem::{Malformed, MetricsSnapshot};
use tmem_protocol::Status;
use tmem_store::{ConfigError, DomainChange, DomainStats, PoolStats, Store, StoreStats};

/// Buckets of a device histogram that are reported each for itself: from 128 ns to 8.6 s. What lies
/// below is added to the first, what lies above to the open one.
const FIRST_BUCKET: usize = 7;
const LAST_BUCKET: usize = 33;

/// The statistics of a store and of the devices of its domains, and what can be changed there.
#[derive(Debug)]
pub(crate) struct OwnStore {
    store: Store,
    started: Instant,
    devices: Mutex<BTreeMap<String, Arc<TmemDevice>>>,
    clients: Clients,
}

impl OwnStore {
    /// Reports on `store`, from now on.
    pub(crate) fn new(store: Store) -> Self {
        Self {
            store,
            started: Instant::now(),
            devices: Mutex::default(),
            clients: Clients::default(),
        }
    }

    /// Reports on the device of a domain too. Replaces the domain's former device.
    pub(crate) fn connect(&self, domain: &str, device: Arc<TmemDevice>) {
        self.devices().insert(domain.to_owned(), device);
    }

    /// Forgets the device of a domain.
    pub(crate) fn disconnect(&self, domain: &str) {
        let gone = self.devices().remove(domain);
        // Outside the lock, since it may be the last owner.
        drop(gone);
    }

    fn devices(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Arc<TmemDevice>>> {
        self.devices.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Source for OwnStore {
    fn stats(&self) -> Stats {
        let store = self.store.stats();
        let devices = self.devices();
        let device_of = |name: &str| {
            devices
                .get(name)
                .map(|device| device_statistics(&device.metrics().snapshot()))
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
                    "it runs the guest of its command line, and no other",
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
                ..domain_statistics(domain)
            })
            .collect(),
    }
}

fn domain_statistics(stats: &DomainStats) -> Domain {
    let pools: Vec<Pool> = stats.pools.iter().map(pool_statistics).collect();
    let mut counters = Counters::default();
    for pool in &pools {
        counters.add(&pool.counters);
    }
    counters.add(&pool_statistics(&stats.destroyed).counters);
    counters.bytes_used = stats.used;
    Domain {
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

fn pool_statistics(stats: &PoolStats) -> Pool {
    macro_rules! counters {
        ($($(#[$_:meta])* $name:ident: $kind:ident($metric:literal, $unit:literal),)*) => {
            Counters {
                $($name: stats.$name,)*
                refusals: BTreeMap::from([
                    (Status::NoSpace.name().to_owned(), stats.refused_no_space),
                    (Status::Frozen.name().to_owned(), stats.refused_frozen),
                    (Status::NoMemory.name().to_owned(), stats.refused_no_memory),
                ]),
            }
        };
    }
    Pool {
        id: stats.id,
        kind: stats.kind,
        counters: for_each_pool_counter!(counters),
    }
}

fn device_statistics(metrics: &MetricsSnapshot) -> Device {
    let pages = metrics.pages_stored + metrics.pages_loaded + metrics.pages_invalidated;
    let refused = Status::ALL.iter().zip(&metrics.refusals).skip(1);
    let malformed = Malformed::ALL.iter().zip(&metrics.malformed);
    Device {
        doorbell_exits: metrics.doorbells,
        requests: metrics.chains,
        pages_stored: metrics.pages_stored,
        pages_loaded: metrics.pages_loaded,
        pages_invalidated: metrics.pages_invalidated,
        objects_invalidated: metrics.objects_invalidated,
        pages_per_exit: (metrics.doorbells > 0).then(|| pages as f64 / metrics.doorbells as f64),
        refusals: refused.map(|(s, &n)| (s.name().to_owned(), n)).collect(),
        malformed: malformed.map(|(m, &n)| (m.name().to_owned(), n)).collect(),
        queue_faults: metrics.queue_faults,
        resets: metrics.resets,
        store_latency: latencies(&metrics.store_ns),
        load_latency: latencies(&metrics.load_ns),
    }
}

fn latencies(snapshot: &HistogramSnapshot) -> Histogram {
    let bounds = (FIRST_BUCKET..=LAST_BUCKET)
        .filter_map(HistogramSnapshot::upper_bound)
        .collect();
    let buckets = &snapshot.buckets;
    let mut counts = vec![buckets[..=FIRST_BUCKET].iter().sum()];
    counts.extend_from_slice(&buckets[FIRST_BUCKET + 1..=LAST_BUCKET]);
    counts.push(buckets[LAST_BUCKET + 1..].iter().sum());
    Histogram::new(bounds, counts, snapshot.sum)
}

#[cfg(test)]
mod tests;
