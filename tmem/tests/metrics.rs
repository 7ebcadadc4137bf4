//! The metrics page of a real service with guests: as promtool sees it, and as the dashboard uses it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

mod service;

use service::Serve;
use tmem_testkit::corpus::page;
use tmem_testkit::frontend::TestGuest;

/// The header that Prometheus 2 sends.
const PROMETHEUS: &str = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
text/plain;version=0.0.4;q=0.5,*/*;q=0.1";

/// Header and body of the page.
fn metrics(control: &Path, accept: &str) -> (String, String) {
    let mut stream = UnixStream::connect(control).expect("is served");
    write!(
        stream,
        "GET /metrics HTTP/1.1\r\nHost: tmem\r\nAccept: {accept}\r\n\r\n"
    )
    .expect("asks");
    let mut reply = String::new();
    stream.read_to_string(&mut reply).expect("a reply");
    let (header, body) = reply.split_once("\r\n\r\n").expect("a header");
    (header.to_owned(), body.to_owned())
}

/// A service with guests that have pages, and one that never came.
fn busy_service() -> (Serve, Vec<TestGuest>) {
    let serve = Serve::start();
    for name in ["vm2", "vm3"] {
        let socket = serve.path(name);
        let flag = format!("name={name},socket={},reserve=1M", socket.display());
        let (code, said) = serve.ask(&["guest", "add", &flag]);
        assert_eq!(code, Some(0), "{said}");
    }
    let guests = ["vm1", "vm2"].map(|name| {
        let mut guest = TestGuest::boot(&serve.path(name));
        let pool = guest.create_pool();
        for index in 0..20 {
            guest.store(pool, index, &page(index.into()));
        }
        assert!(guest.load(pool, 3).is_ok());
        assert!(guest.load(pool, 99).is_err());
        guest
    });
    (serve, guests.into())
}

/// Names of samples, each with its labels.
fn samples(text: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, labels) = match line.split_once('{') {
            Some((name, rest)) => (name, rest.split_once('}').map_or("", |(labels, _)| labels)),
            None => (line.split(' ').next().unwrap_or_default(), ""),
        };
        let known = found.entry(name.to_owned()).or_default();
        known.extend(
            labels
                .split(',')
                .filter_map(|l| Some(l.split_once('=')?.0.to_owned())),
        );
    }
    found
}

#[test]
fn the_page_comes_in_the_format_that_is_asked_for() {
    let (serve, _guests) = busy_service();
    let control = serve.path("control");
    let (header, text) = metrics(&control, "*/*");
    assert!(header.contains("text/plain; version=0.0.4"), "{header}");
    assert!(text.contains("# TYPE tmem_stores_total counter") && !text.contains("# EOF"));
    let (header, open) = metrics(&control, PROMETHEUS);
    assert!(header.contains("application/openmetrics-text"), "{header}");
    assert!(open.contains("# TYPE tmem_stores counter") && open.ends_with("# EOF\n"));
    // The same families, whichever the format.
    let names = |text: &str| samples(text).into_keys().collect::<BTreeSet<_>>();
    assert_eq!(names(&text), names(&open));
}

/// Run by `cargo xtask test`, which has promtool.
#[test]
#[ignore = "needs promtool, whose path is in TMEM_PROMTOOL"]
fn promtool_accepts_the_page_and_has_no_complaint() {
    let promtool = std::env::var_os("TMEM_PROMTOOL").expect("path of promtool");
    let (serve, _guests) = busy_service();
    let (_, text) = metrics(&serve.path("control"), "text/plain");
    let mut child = Command::new(promtool)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool runs");
    let mut stdin = child.stdin.take().expect("is piped");
    stdin.write_all(text.as_bytes()).expect("reads it");
    drop(stdin);
    let output = child.wait_with_output().expect("ends");
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(
        output.status.success() && said.trim().is_empty(),
        "{}: {said}",
        output.status
    );
}

/// Metric names with the labels that stand in braces or after `by`.
fn used(expression: &str) -> Vec<(String, Vec<String>)> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut found: Vec<(String, Vec<String>)> = Vec::new();
    let by: Vec<String> = expression
        .split("by (")
        .skip(1)
        .filter_map(|rest| rest.split_once(')'))
        .flat_map(|(labels, _)| labels.split(',').map(|l| l.trim().to_owned()))
        .collect();
    for (at, _) in expression.match_indices("tmem_") {
        let rest = &expression[at..];
        let name: String = rest.chars().take_while(|c| word(*c)).collect();
        let mut labels = by.clone();
        if let Some(braces) = rest[name.len()..].strip_prefix('{') {
            let inner = braces.split_once('}').map_or("", |(inner, _)| inner);
            labels.extend(
                inner
                    .split(',')
                    .filter_map(|l| Some(l.split_once('=')?.0.trim().to_owned())),
            );
        }
        found.push((name, labels));
    }
    found
}

#[test]
fn every_expression_of_the_dashboard_finds_its_metrics() {
    let file = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../docs/grafana-dashboard.json"
    );
    let text = std::fs::read_to_string(file).expect("is there");
    let dashboard: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let (serve, _guests) = busy_service();
    let known = samples(&metrics(&serve.path("control"), "*/*").1);
    let panels = dashboard["panels"].as_array().expect("panels");
    let ids: BTreeSet<u64> = panels
        .iter()
        .filter_map(|panel| panel["id"].as_u64())
        .collect();
    assert_eq!(ids.len(), panels.len(), "ids are there and unique");
    let mut expressions = Vec::new();
    for panel in panels {
        let title = panel["title"].as_str().expect("a title");
        for target in panel["targets"].as_array().expect("targets") {
            expressions.push((title, target["expr"].as_str().expect("an expression")));
            let legend = target["legendFormat"].as_str().expect("a legend");
            let mut shown = legend
                .split("{{")
                .skip(1)
                .filter_map(|l| Some(l.split_once("}}")?.0));
            let metrics = used(target["expr"].as_str().expect("an expression"));
            let (name, _) = metrics.first().expect("a metric");
            assert!(
                shown.all(|l| l == "instance" || known[name].contains(l)),
                "{title}: {legend}"
            );
        }
    }
    for variable in dashboard["templating"]["list"]
        .as_array()
        .expect("variables")
    {
        if let Some(query) = variable["query"]["query"].as_str() {
            expressions.push(("variable", query));
        }
    }
    assert!(expressions.len() > 20, "{}", expressions.len());
    let all: String = expressions.iter().map(|(_, text)| *text).collect();
    let mut shown = known.keys();
    let missing = shown.find(|name| {
        let of_host = name.starts_with("tmem_host_") || name.starts_with("tmem_process_");
        of_host && !all.contains(&format!("{name}{{"))
    });
    assert_eq!(missing, None, "no panel shows it");
    for (title, expression) in expressions {
        let metrics = used(expression);
        assert!(!metrics.is_empty(), "{title}: {expression}");
        for (name, labels) in metrics {
            let has = known.get(&name);
            let has = has.unwrap_or_else(|| panic!("{title}: there is no {name}"));
            for label in labels {
                // Prometheus adds this one.
                assert!(
                    label == "instance" || has.contains(&label),
                    "{title}: {name} has no {label}"
                );
            }
        }
    }
}
