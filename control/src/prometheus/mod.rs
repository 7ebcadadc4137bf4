//! The metrics page, as OpenMetrics for who asks for it and else as Prometheus text 0.0.4.
//!
//! [`metrics`] is the one list of what there is; `docs/metrics.md` explains each, and a test
//! compares the two.
//!
//! | module | holds |
//! |---|---|
//! | `table` | every metric |
//! | `metric` | one metric family |
//! | `format` | the two formats, and which one a client asks for |

use std::fmt;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, text},
    registry::Registry,
};

use crate::api::Stats;

mod format;
mod metric;
mod table;

pub use format::Format;
pub use metric::Metric;
pub use table::metrics;

#[derive(Debug)]
struct Page(Stats);

impl Collector for Page {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        metrics().try_for_each(|metric| metric.encode(&self.0, &mut encoder))
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
                let metric = metrics().find(|metric| metric.family() == name);
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
    use std::collections::{BTreeMap, BTreeSet};

    use prometheus_client::metrics::MetricType;

    use super::*;
    use crate::api::{Device, Domain, Histogram, Host, Pool};

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
        for metric in metrics() {
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
        for metric in metrics() {
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
    fn every_counter_of_a_pool_has_a_metric() {
        let mut stats = full();
        let counters = &mut stats.domains[0].counters;
        let mut names = Vec::new();
        for (number, (name, counter)) in (7_000_001..).zip(counters.each()) {
            *counter = number;
            names.push((name, number));
        }
        let page = render(stats, Format::OpenMetrics).expect("renders");
        for (name, number) in names {
            let sample = format!(" {number}");
            assert!(
                page.lines().any(|line| line.ends_with(&sample)),
                "{name}\n{page}"
            );
        }
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

    fn documentation() -> String {
        let docs = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md");
        std::fs::read_to_string(docs).expect("docs/metrics.md")
    }

    #[test]
    fn what_a_pool_counts_is_documented_with_its_type_and_description() {
        let docs = documentation();
        for metric in table::POOL_COUNTERS {
            let kind = match metric.kind() {
                MetricType::Counter => "counter",
                _ => "gauge",
            };
            let row = format!(
                "| `{}` | {kind} | `domain` | {}",
                metric.full_name(),
                metric.help()
            );
            assert!(
                docs.lines().any(|line| line.starts_with(&row)),
                "docs/metrics.md has no row\n{row}"
            );
        }
    }

    #[test]
    fn documented_metrics_are_the_exported_ones() {
        let docs = documentation();
        let documented: BTreeSet<String> = docs
            .lines()
            .filter_map(|line| line.strip_prefix("| `tmem_"))
            .filter_map(|line| line.split_once('`'))
            .map(|(name, _)| format!("tmem_{name}"))
            .collect();
        let exported: BTreeSet<String> = metrics().map(Metric::full_name).collect();
        assert_eq!(documented, exported);
    }
}
