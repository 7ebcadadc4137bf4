//! One metric family: its names, and how its samples are taken from the statistics.

use std::{collections::BTreeMap, fmt};

use prometheus_client::{
    encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet},
    metrics::MetricType,
    registry::Unit,
};

use crate::api::{Connections, Device, Domain, Histogram, Host, Pool, Stats};

/// One exported metric family.
#[derive(Debug)]
pub struct Metric {
    /// Name without unit and without the suffix that the format adds (`_total`, `_bucket`).
    pub(super) name: &'static str,
    pub(super) unit: &'static str,
    pub(super) help: &'static str,
    pub(super) value: Value,
}

/// Where the samples of a family come from, which decides its labels.
#[derive(Debug)]
pub(super) enum Value {
    /// `tmem_build_info`, label `version`.
    Version,
    ProcessSeconds(fn(&Stats) -> f64),
    Process(fn(&Stats) -> Option<u64>),
    /// A counter for each control socket, label `socket`.
    Sockets(fn(&Connections) -> u64),
    /// The same for each reason, label `reason`.
    SocketReasons(fn(&Connections) -> &BTreeMap<String, u64>),
    /// No sample where nothing says what the host has.
    Host(fn(&Host) -> u64),
    HostCounter(fn(&Host) -> u64),
    Gauge(fn(&Domain) -> Option<u64>),
    Counter(fn(&Domain) -> Option<u64>),
    /// A counter for each reason, label `reason`.
    Reasons(fn(&Domain) -> Option<&BTreeMap<String, u64>>),
    Latency(fn(&Device) -> &Histogram),
    /// Labels `pool` and `kind`.
    PoolGauge(fn(&Pool) -> u64),
}

impl Metric {
    /// Name as documented and as queried: with unit, and with the suffix of counters and infos.
    pub fn full_name(&self) -> String {
        let mut name = self.family();
        name.push_str(match self.value {
            Value::Version => "_info",
            Value::Counter(_)
            | Value::Reasons(_)
            | Value::Sockets(_)
            | Value::SocketReasons(_)
            | Value::HostCounter(_) => "_total",
            _ => "",
        });
        name
    }

    /// Name of the family in OpenMetrics: with unit, without suffix.
    pub(super) fn family(&self) -> String {
        match self.unit {
            "" => self.name.to_owned(),
            unit => format!("{}_{unit}", self.name),
        }
    }

    /// What it measures, in one sentence.
    pub fn help(&self) -> &'static str {
        self.help
    }

    pub(super) fn kind(&self) -> MetricType {
        match self.value {
            Value::Version => MetricType::Info,
            Value::Counter(_)
            | Value::Reasons(_)
            | Value::Sockets(_)
            | Value::SocketReasons(_)
            | Value::HostCounter(_) => MetricType::Counter,
            Value::Latency(_) => MetricType::Histogram,
            _ => MetricType::Gauge,
        }
    }

    fn unit(&self) -> Option<Unit> {
        match self.unit {
            "" => None,
            "bytes" => Some(Unit::Bytes),
            "seconds" => Some(Unit::Seconds),
            other => Some(Unit::Other(other.to_owned())),
        }
    }

    pub(super) fn encode(&self, stats: &Stats, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let unit = self.unit();
        let mut family =
            encoder.encode_descriptor(self.name, self.help, unit.as_ref(), self.kind())?;
        match self.value {
            Value::Version => family.encode_info(&[("version", stats.version.as_str())]),
            Value::ProcessSeconds(value) => family.encode_gauge(&value(stats)),
            Value::Process(value) => match value(stats) {
                Some(value) => family.encode_gauge(&value),
                None => Ok(()),
            },
            Value::Sockets(value) => stats.clients.iter().try_for_each(|(socket, clients)| {
                let of = [("socket", socket.as_str())];
                encode_count(&mut family.encode_family(&of)?, value(clients))
            }),
            Value::SocketReasons(value) => {
                for (socket, clients) in &stats.clients {
                    for (reason, &count) in value(clients) {
                        let of = [("socket", socket.as_str()), ("reason", reason.as_str())];
                        encode_count(&mut family.encode_family(&of)?, count)?;
                    }
                }
                Ok(())
            }
            Value::Host(value) => match &stats.host {
                Some(host) => family.encode_gauge(&value(host)),
                None => Ok(()),
            },
            Value::HostCounter(value) => match &stats.host {
                Some(host) => encode_count(&mut family, value(host)),
                None => Ok(()),
            },
            _ => stats
                .domains
                .iter()
                .try_for_each(|domain| self.encode_domain(domain, &mut family)),
        }
    }

    fn encode_domain(&self, domain: &Domain, family: &mut MetricEncoder<'_>) -> fmt::Result {
        let of = [("domain", domain.name.as_str())];
        match self.value {
            Value::Gauge(value) => {
                if let Some(value) = value(domain) {
                    family.encode_family(&of)?.encode_gauge(&value)?;
                }
            }
            Value::Counter(value) => {
                if let Some(value) = value(domain) {
                    encode_count(&mut family.encode_family(&of)?, value)?;
                }
            }
            Value::Reasons(value) => {
                for (reason, &count) in value(domain).into_iter().flatten() {
                    let labels = [of[0], ("reason", reason.as_str())];
                    encode_count(&mut family.encode_family(&labels)?, count)?;
                }
            }
            Value::Latency(value) => {
                if let Some(device) = &domain.device {
                    encode_latency(&mut family.encode_family(&of)?, value(device))?;
                }
            }
            Value::PoolGauge(value) => {
                for pool in &domain.pools {
                    let id = pool.id.to_string();
                    let labels = [of[0], ("pool", &id), ("kind", pool.kind.as_str())];
                    family.encode_family(&labels)?.encode_gauge(&value(pool))?;
                }
            }
            Value::Version
            | Value::ProcessSeconds(_)
            | Value::Process(_)
            | Value::Sockets(_)
            | Value::SocketReasons(_)
            | Value::Host(_)
            | Value::HostCounter(_) => {}
        }
        Ok(())
    }
}

fn encode_count(encoder: &mut MetricEncoder<'_>, count: u64) -> fmt::Result {
    encoder.encode_counter::<NoLabelSet, u64, f64>(&count, None)
}

fn encode_latency(encoder: &mut MetricEncoder<'_>, latency: &Histogram) -> fmt::Result {
    let bounds = latency
        .bounds_ns
        .iter()
        .map(|&bound| seconds(bound))
        .chain([f64::INFINITY]);
    let buckets: Vec<(f64, u64)> = bounds.zip(latency.counts.iter().copied()).collect();
    encoder.encode_histogram::<NoLabelSet>(seconds(latency.sum_ns), latency.count(), &buckets, None)
}

fn seconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e9
}
