//! The metrics page, as OpenMetrics for who asks for it and else as Prometheus text 0.0.4.
//!
//! [`METRICS`] is the one list of what there is; `docs/metrics.md` explains each, and a test
//! compares the two.
//!
//! | module | holds |
//! |---|---|
//! | `table` | every metric |
//! | `format` | the two formats, and which one a client asks for |

use std::{collections::BTreeMap, fmt};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text},
    metrics::MetricType,
    registry::{Registry, Unit},
};

use crate::api::{Connections, Device, Domain, Histogram, Host, Pool, Stats};

mod format;
mod table;

pub use format::Format;
pub use table::METRICS;

/// One exported metric family.
#[derive(Debug)]
pub struct Metric {
    /// Name without unit and without the suffix that the format adds (`_total`, `_bucket`).
    name: &'static str,
    unit: &'static str,
    help: &'static str,
    value: Value,
}

/// Where the samples of a family come from, which decides its labels.
#[derive(Debug)]
enum Value {
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
    fn family(&self) -> String {
        match self.unit {
            "" => self.name.to_owned(),
            unit => format!("{}_{unit}", self.name),
        }
    }

    /// What it measures, in one sentence.
    pub fn help(&self) -> &'static str {
        self.help
    }

    fn kind(&self) -> MetricType {
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

    fn encode(&self, stats: &Stats, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
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

#[derive(Debug)]
struct Page(Stats);

impl Collector for Page {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        METRICS
            .iter()
            .try_for_each(|metric| metric.encode(&self.0, &mut encoder))
    }
}

/// Renders the page.
///
/// # Errors
/// None that a `String` as the sink could cause; the encoder's signature has one.
pub fn render(stats: Stats, format: Format) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Page(stats)));
    let mut page = String::new();
    text::encode(&mut page, &registry)?;
    Ok(match format {
        Format::OpenMetrics => page,
        Format::Text => as_text(&page),
    })
}

/// OpenMetrics to the older format, which differs in the comments only: its families bear the names
/// of their samples, and it knows neither units, nor infos, nor an end.
fn as_text(page: &str) -> String {
    let mut text = String::with_capacity(page.len());
    for line in page.lines() {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some("EOF"), ..) | (Some("#"), Some("UNIT"), ..) => continue,
            (Some("#"), Some(what @ ("HELP" | "TYPE")), Some(name), Some(rest)) => {
                let metric = METRICS.iter().find(|metric| metric.family() == name);
                let name = metric.map_or_else(|| name.to_owned(), Metric::full_name);
                let rest = if what == "TYPE" && rest == "info" {
                    "gauge"
                } else {
                    rest
                };
                text.extend(["# ", what, " ", &name, " ", rest]);
            }
            _ => text.push_str(line),
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn full() -> Stats {
        Stats {
            version: "0.1.0".into(),
            budget: 1 << 20,
            used: 4096,
            clients: crate::clients::Clients::default().report(),
            process: Some(crate::api::Process {
                descriptors_limit: Some(1024),
                mappings_limit: Some(65530),
                ..Default::default()
            }),
            host: Some(Host::default()),
            domains: vec![Domain {
                name: "guest \"one\"\n".into(),
                limit: Some(77),
                connections: Some(1),
                counters: crate::api::Counters {
                    stores: 5,
                    refusals: BTreeMap::from([("no_space".into(), 3)]),
                    ..Default::default()
                },
                device: Some(Device {
                    refusals: BTreeMap::from([("no_space".into(), 1)]),
                    malformed: BTreeMap::from([("order".into(), 1)]),
                    store_latency: Histogram::new(vec![1000, 2500], vec![1, 2, 4], 9000),
                    ..Default::default()
                }),
                front_end: Some(crate::api::FrontEnd::default()),
                pools: vec![Pool {
                    id: 7,
                    ..Default::default()
                }],
                ..Default::default()
            }],
            ..Default::default()
        }
    }

    #[test]
    fn every_family_appears_with_its_unit_and_ends_the_page() {
        let page = render(full(), Format::OpenMetrics).expect("renders");
        for metric in METRICS {
            let name = metric.full_name();
            assert!(
                page.lines()
                    .any(|line| line.starts_with(&name) && !line.starts_with('#')),
                "{name} has no sample in\n{page}"
            );
        }
        assert!(page.ends_with("# EOF\n"));
    }

    #[test]
    fn the_text_format_has_a_type_for_each_sample_and_nothing_newer() {
        let page = render(full(), Format::Text).expect("renders");
        for metric in METRICS {
            let name = metric.full_name();
            let kind = match metric.kind() {
                MetricType::Info => "gauge",
                MetricType::Counter => "counter",
                MetricType::Histogram => "histogram",
                _ => "gauge",
            };
            assert!(
                page.contains(&format!("# TYPE {name} {kind}\n")),
                "{name}\n{page}"
            );
            assert!(page.contains(&format!("# HELP {name} ")), "{name}");
        }
        assert!(
            !page.contains("# UNIT") && !page.contains("# EOF"),
            "{page}"
        );
    }

    #[test]
    fn each_client_gets_the_format_that_it_asks_for() {
        let format = |accept: &str| Format::negotiated([accept]);
        // Prometheus 2.42, 3.0, curl, browsers.
        for open in [
            "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2,*/*;q=0.1",
            "application/openmetrics-text",
            "Application/OpenMetrics-Text; Version=\"1.0.0\"",
        ] {
            assert_eq!(format(open), Format::OpenMetrics, "{open}");
        }
        for text in [
            "",
            "*/*",
            "text/html,application/xhtml+xml,*/*;q=0.8",
            "text/plain;version=0.0.4,application/openmetrics-text;version=1.0.0;q=0.5",
            "application/openmetrics-text;version=0.0.1",
            "application/openmetrics-text;q=0",
            "application/openmetrics-text;q=x",
            ";;=,,q",
        ] {
            assert_eq!(format(text), Format::Text, "{text}");
        }
        assert_eq!(Format::negotiated([]), Format::Text);
    }

    #[test]
    fn histogram_is_cumulative_and_in_seconds() {
        let page = render(full(), Format::OpenMetrics).expect("renders");
        let of = |wanted: &str| {
            page.lines()
                .find(|line| {
                    line.starts_with("tmem_store_duration_seconds") && line.contains(wanted)
                })
                .and_then(|line| line.rsplit_once(' '))
                .map(|(_, value)| value.to_owned())
        };
        assert_eq!(of("+Inf").as_deref(), Some("7"));
        assert_eq!(of("_count").as_deref(), Some("7"));
        assert_eq!(of("_sum").as_deref(), Some("0.000009"), "{page}");
        assert_eq!(of("0.0000025").as_deref(), Some("3"));
    }

    #[test]
    fn names_from_operators_are_escaped() {
        let page = render(full(), Format::OpenMetrics).expect("renders");
        assert!(page.contains(r#"domain="guest \"one\"\n""#), "{page}");
    }

    #[test]
    fn documented_metrics_are_the_exported_ones() {
        let docs = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md");
        let docs = std::fs::read_to_string(docs).expect("docs/metrics.md");
        let documented: BTreeSet<String> = docs
            .lines()
            .filter_map(|line| line.strip_prefix("| `tmem_"))
            .filter_map(|line| line.split_once('`'))
            .map(|(name, _)| format!("tmem_{name}"))
            .collect();
        let exported: BTreeSet<String> = METRICS.iter().map(Metric::full_name).collect();
        assert_eq!(documented, exported);
    }
}
