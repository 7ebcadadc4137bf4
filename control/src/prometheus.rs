//! The metrics page, as OpenMetrics for who asks for it and else as Prometheus text 0.0.4.
//!
//! [`METRICS`] is the one list of what there is; `docs/metrics.md` explains each, and a test
//! compares the two.

use std::{collections::BTreeMap, fmt};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text},
    metrics::MetricType,
    registry::{Registry, Unit},
};

use crate::stats::{Connections, Device, Domain, Histogram, Host, Pool, Stats};

/// The text formats of the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Prometheus text exposition format 0.0.4, which everything reads.
    Text,
    /// OpenMetrics 1.0.0.
    OpenMetrics,
}

impl Format {
    /// What a client with these `Accept` headers gets (RFC 9110, 12.5.1): OpenMetrics where it is
    /// asked for by name and not liked less than plain text.
    pub fn negotiated<'a>(accept: impl IntoIterator<Item = &'a str>) -> Self {
        let mut open = None;
        let mut text = None;
        for range in accept.into_iter().flat_map(|header| header.split(',')) {
            let mut parts = range.split(';').map(str::trim);
            let kind = parts.next().unwrap_or_default().to_ascii_lowercase();
            let mut quality = 1.0;
            let mut known = true;
            for part in parts {
                let Some((key, value)) = part.split_once('=') else {
                    continue;
                };
                let value = value.trim().trim_matches('"');
                match key.trim().to_ascii_lowercase().as_str() {
                    "q" => quality = value.parse::<f32>().unwrap_or(0.0),
                    "version" if kind == "application/openmetrics-text" => {
                        known = value == "1.0.0";
                    }
                    "version" => known = value == "0.0.4",
                    _ => {}
                }
            }
            let best = match kind.as_str() {
                "application/openmetrics-text" if known => &mut open,
                "text/plain" if known => &mut text,
                _ => continue,
            };
            *best = Some(best.map_or(quality, |other: f32| other.max(quality)));
        }
        match (open, text) {
            (Some(open), text) if open > 0.0 && open >= text.unwrap_or(0.0) => Self::OpenMetrics,
            _ => Self::Text,
        }
    }

    /// Its content type.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

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

const fn metric(
    name: &'static str,
    unit: &'static str,
    help: &'static str,
    value: Value,
) -> Metric {
    Metric {
        name,
        unit,
        help,
        value,
    }
}

/// Every family that the page has.
pub const METRICS: &[Metric] = &[
    metric("tmem_build", "", "Version of tmem.", Value::Version),
    metric(
        "tmem_uptime",
        "seconds",
        "Time since the process started serving pages.",
        Value::ProcessSeconds(|s| s.uptime_seconds),
    ),
    metric(
        "tmem_budget",
        "bytes",
        "Memory that all domains together may use.",
        Value::Process(|s| Some(s.budget)),
    ),
    metric(
        "tmem_used",
        "bytes",
        "Memory in use: payload, slab waste and metadata.",
        Value::Process(|s| Some(s.used)),
    ),
    metric(
        "tmem_saved",
        "bytes",
        "Memory charged to domains beyond what is used, because they share pages.",
        Value::Process(|s| Some(s.saved)),
    ),
    metric(
        "tmem_freeable",
        "bytes",
        "Memory held by ephemeral pages, which the host can have back at once.",
        Value::Process(|s| Some(s.freeable)),
    ),
    metric(
        "tmem_process_descriptors",
        "",
        "Descriptors that the process has open.",
        Value::Process(|s| s.process.as_ref().map(|p| p.descriptors)),
    ),
    metric(
        "tmem_process_descriptors_limit",
        "",
        "Descriptors that the process may have open; no sample without a limit.",
        Value::Process(|s| s.process.as_ref()?.descriptors_limit),
    ),
    metric(
        "tmem_process_mappings",
        "",
        "Mappings of memory that the process has.",
        Value::Process(|s| s.process.as_ref().map(|p| p.mappings)),
    ),
    metric(
        "tmem_process_mappings_limit",
        "",
        "Mappings of memory that a process may have (vm.max_map_count).",
        Value::Process(|s| s.process.as_ref()?.mappings_limit),
    ),
    metric(
        "tmem_control_connections",
        "",
        "Connections to a control socket that were accepted.",
        Value::Sockets(|c| c.accepted),
    ),
    metric(
        "tmem_control_rejected",
        "",
        "Connections to a control socket without the reply that they asked for, by reason.",
        Value::SocketReasons(|c| &c.rejected),
    ),
    metric(
        "tmem_host_limit",
        "bytes",
        "Memory of the machine, or limit of the control group above the process that has the least to spare.",
        Value::Host(|h| h.limit),
    ),
    metric(
        "tmem_host_available",
        "bytes",
        "Memory that can be had there without ending a process or writing to swap.",
        Value::Host(|h| h.available),
    ),
    metric(
        "tmem_host_floor",
        "bytes",
        "Part of that which is left alone: pages that would need it are refused.",
        Value::Host(|h| h.floor),
    ),
    metric(
        "tmem_host_stalled",
        "",
        "1 while processes wait for memory there, and twice as much is left alone.",
        Value::Host(|h| h.stalled.into()),
    ),
    metric(
        "tmem_host_short",
        "",
        "1 while ephemeral pages are given up because the host is short of memory.",
        Value::Host(|h| h.short.into()),
    ),
    metric(
        "tmem_host_refusals",
        "",
        "Times that memory was refused to keep the floor.",
        Value::HostCounter(|h| h.refusals),
    ),
    metric(
        "tmem_host_bad",
        "pages",
        "Pages of host memory that were found bad, with the guests' pages on them.",
        Value::HostCounter(|h| h.bad_pages),
    ),
    metric(
        "tmem_domain_used",
        "bytes",
        "Memory charged to the domain.",
        Value::Gauge(|d| Some(d.counters.bytes_used)),
    ),
    metric(
        "tmem_domain_stored",
        "bytes",
        "Contents of the pages held, as compressed.",
        Value::Gauge(|d| Some(d.counters.bytes_stored)),
    ),
    metric(
        "tmem_domain_metadata",
        "bytes",
        "Index of the pools; part of what is charged.",
        Value::Gauge(|d| Some(d.counters.metadata_bytes)),
    ),
    metric(
        "tmem_domain_segment",
        "bytes",
        "Memory behind own segments.",
        Value::Gauge(|d| Some(d.segment_bytes)),
    ),
    metric(
        "tmem_domain_slot",
        "bytes",
        "Slots in use in own segments.",
        Value::Gauge(|d| Some(d.slot_bytes)),
    ),
    metric(
        "tmem_domain_reserve",
        "bytes",
        "Part of the budget that only this domain may use.",
        Value::Gauge(|d| Some(d.reserve)),
    ),
    metric(
        "tmem_domain_limit",
        "bytes",
        "Hard cap of the domain; no sample when there is none.",
        Value::Gauge(|d| d.limit),
    ),
    metric(
        "tmem_domain_freeable",
        "bytes",
        "Memory held by ephemeral pages, which the host can have back at once.",
        Value::Gauge(|d| Some(d.freeable)),
    ),
    metric(
        "tmem_domain_weight",
        "",
        "Share in the memory that nobody reserved.",
        Value::Gauge(|d| Some(d.weight.into())),
    ),
    metric(
        "tmem_domain_frozen",
        "",
        "1 while new pages are refused.",
        Value::Gauge(|d| Some(d.frozen.into())),
    ),
    metric(
        "tmem_domain",
        "pages",
        "Pages held.",
        Value::Gauge(|d| Some(d.counters.pages)),
    ),
    metric(
        "tmem_domain_zero",
        "pages",
        "Pages held that are zero throughout.",
        Value::Gauge(|d| Some(d.counters.zero)),
    ),
    metric(
        "tmem_domain_same_filled",
        "pages",
        "Pages held that are one repeated word and take no slot.",
        Value::Gauge(|d| Some(d.counters.same_filled)),
    ),
    metric(
        "tmem_domain_raw",
        "pages",
        "Pages held that did not compress.",
        Value::Gauge(|d| Some(d.counters.raw)),
    ),
    metric(
        "tmem_domain_cold",
        "pages",
        "Pages held that nobody touched for long and that were compressed harder.",
        Value::Gauge(|d| Some(d.counters.cold)),
    ),
    metric(
        "tmem_domain_deduplicated",
        "pages",
        "Pages held that share their bytes with another key.",
        Value::Gauge(|d| Some(d.counters.deduplicated)),
    ),
    metric(
        "tmem_stores",
        "",
        "Pages accepted.",
        Value::Counter(|d| Some(d.counters.stores)),
    ),
    metric(
        "tmem_loads",
        "",
        "Pages found and given back.",
        Value::Counter(|d| Some(d.counters.loads)),
    ),
    metric(
        "tmem_load_misses",
        "",
        "Loads of a page that was not there.",
        Value::Counter(|d| Some(d.counters.load_misses)),
    ),
    metric(
        "tmem_corrupt_loads",
        "",
        "Loads of a page whose bytes were found damaged.",
        Value::Counter(|d| Some(d.counters.corrupt)),
    ),
    metric(
        "tmem_invalidates",
        "",
        "Pages removed by an invalidate, of the page, its object or its pool.",
        Value::Counter(|d| Some(d.counters.invalidates)),
    ),
    metric(
        "tmem_evictions",
        "",
        "Ephemeral pages that were dropped to make room.",
        Value::Counter(|d| Some(d.counters.evictions)),
    ),
    metric(
        "tmem_refusals",
        "",
        "Pages refused, by reason.",
        Value::Reasons(|d| Some(&d.counters.refusals)),
    ),
    metric(
        "tmem_guest_connections",
        "",
        "Connections of a VMM to the socket of the guest.",
        Value::Counter(|d| d.connections),
    ),
    metric(
        "tmem_doorbell_exits",
        "",
        "Doorbell writes of request queues, each one an exit of the guest.",
        Value::Counter(|d| d.device.as_ref().map(|v| v.doorbell_exits)),
    ),
    metric(
        "tmem_requests",
        "",
        "Request chains taken from the queues and returned.",
        Value::Counter(|d| d.device.as_ref().map(|v| v.requests)),
    ),
    metric(
        "tmem_device_stored",
        "pages",
        "Pages that store requests put into a pool.",
        Value::Counter(|d| d.device.as_ref().map(|v| v.pages_stored)),
    ),
    metric(
        "tmem_device_loaded",
        "pages",
        "Pages that load requests found.",
        Value::Counter(|d| d.device.as_ref().map(|v| v.pages_loaded)),
    ),
    metric(
        "tmem_device_invalidated",
        "pages",
        "Pages that invalidate requests named.",
        Value::Counter(|d| d.device.as_ref().map(|v| v.pages_invalidated)),
    ),
    metric(
        "tmem_device_invalidated_objects",
        "",
        "Objects that were invalidated as a whole.",
        Value::Counter(|d| d.device.as_ref().map(|v| v.objects_invalidated)),
    ),
    metric(
        "tmem_request_refusals",
        "",
        "Requests and entries of requests that were not granted, by status.",
        Value::Reasons(|d| d.device.as_ref().map(|v| &v.refusals)),
    ),
    metric(
        "tmem_malformed_requests",
        "",
        "Request chains that broke a rule of the protocol, by rule.",
        Value::Reasons(|d| d.device.as_ref().map(|v| &v.malformed)),
    ),
    metric(
        "tmem_queue_faults",
        "",
        "Times the device had to stop because a ring made no sense.",
        Value::Counter(|d| d.device.as_ref().map(|v| v.queue_faults)),
    ),
    metric(
        "tmem_front_end_memory",
        "bytes",
        "Memory that the front end of the guest describes.",
        Value::Gauge(|d| d.front_end.as_ref().map(|v| v.memory_bytes)),
    ),
    metric(
        "tmem_front_end_touched",
        "bytes",
        "Granted to touch that memory before the guest did, page tables included.",
        Value::Counter(|d| d.front_end.as_ref().map(|v| v.touched_bytes)),
    ),
    metric(
        "tmem_front_end_touch_refusals",
        "",
        "Accesses to memory that nobody had touched which were refused.",
        Value::Counter(|d| d.front_end.as_ref().map(|v| v.touch_refusals)),
    ),
    metric(
        "tmem_front_end_stuck_mappings",
        "",
        "Mappings of that memory that could not be undone.",
        Value::Counter(|d| d.front_end.as_ref().map(|v| v.stuck_mappings)),
    ),
    metric(
        "tmem_guest_panics",
        "",
        "Panics of the thread of the guest.",
        Value::Counter(|d| d.front_end.as_ref().map(|v| v.panics)),
    ),
    metric(
        "tmem_device_resets",
        "",
        "Resets by the guest.",
        Value::Counter(|d| d.device.as_ref().map(|v| v.resets)),
    ),
    metric(
        "tmem_store_duration",
        "seconds",
        "Time from the copy of a page out of guest memory to its outcome.",
        Value::Latency(|v| &v.store_latency),
    ),
    metric(
        "tmem_load_duration",
        "seconds",
        "Time from looking a page up to the end of its copy into guest memory.",
        Value::Latency(|v| &v.load_latency),
    ),
    metric(
        "tmem_pool",
        "pages",
        "Pages held by the pool.",
        Value::PoolGauge(|p| p.counters.pages),
    ),
    metric(
        "tmem_pool_stored",
        "bytes",
        "Contents of the pages held by the pool, as compressed.",
        Value::PoolGauge(|p| p.counters.bytes_stored),
    ),
    metric(
        "tmem_pool_used",
        "bytes",
        "Memory charged for the pages of the pool.",
        Value::PoolGauge(|p| p.counters.bytes_used),
    ),
];

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
            process: Some(crate::stats::Process {
                descriptors_limit: Some(1024),
                mappings_limit: Some(65530),
                ..Default::default()
            }),
            host: Some(Host::default()),
            domains: vec![Domain {
                name: "guest \"one\"\n".into(),
                limit: Some(77),
                connections: Some(1),
                counters: crate::stats::Counters {
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
                front_end: Some(crate::stats::FrontEnd::default()),
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
