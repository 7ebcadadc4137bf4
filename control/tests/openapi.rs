//! `docs/control-api.yaml` and the server say the same, in both directions.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};
use tmem_control::api::{
    Change, Compression, Counters, Dedup, Device, Domain, Flush, GuestSpec, Histogram,
    MemoryBacking, Pool, Process, Service,
};
use tmem_control::clients::Clients;
use tmem_control::{Done, Operation, Refused, Role, Server, Source, Stats};

const METHODS: [&str; 5] = ["get", "put", "post", "patch", "delete"];

fn document() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/control-api.yaml");
    let text = std::fs::read_to_string(path).expect("is there");
    serde_saphyr::from_str(&text).expect("is YAML")
}

/// Follows `$ref`.
fn resolve<'a>(document: &'a Value, value: &'a Value) -> &'a Value {
    match value.get("$ref").and_then(Value::as_str) {
        Some(path) => {
            let pointer = path.strip_prefix('#').expect("is in this document");
            let found = document.pointer(pointer);
            resolve(
                document,
                found.unwrap_or_else(|| panic!("{path} is nowhere")),
            )
        }
        None => value,
    }
}

/// The properties of an object schema, and which of them it requires.
fn properties<'a>(
    document: &'a Value,
    schema: &'a Value,
) -> (BTreeMap<&'a str, &'a Value>, BTreeSet<&'a str>) {
    let schema = resolve(document, schema);
    let mut known = BTreeMap::new();
    let mut required = BTreeSet::new();
    for part in schema["allOf"].as_array().into_iter().flatten() {
        let (more, needed) = properties(document, part);
        known.extend(more);
        required.extend(needed);
    }
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        known.insert(name.as_str(), property);
    }
    let names = schema["required"].as_array().into_iter().flatten();
    required.extend(names.filter_map(Value::as_str));
    (known, required)
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// Fails where value and schema differ: a field too many or too few on either side, or a wrong type.
fn matches(document: &Value, schema: &Value, value: &Value, at: &str) {
    let schema = resolve(document, schema);
    if let Some(one) = schema["oneOf"].as_array() {
        let fitting = one.iter().find(|schema| {
            let null = resolve(document, schema)["type"] == "null";
            null == value.is_null()
        });
        return matches(document, fitting.expect("one fits"), value, at);
    }
    if let Some(values) = schema["enum"].as_array() {
        assert!(
            values.contains(value),
            "{at}: {value} is not among {values:?}"
        );
        return;
    }
    let kinds: Vec<&str> = match &schema["type"] {
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect(),
        kind => kind.as_str().into_iter().collect(),
    };
    let kind = type_of(value);
    let known = kinds.contains(&kind) || (kind == "integer" && kinds.contains(&"number"));
    assert!(
        known || schema.get("allOf").is_some(),
        "{at}: {value} is no {kinds:?}"
    );
    match value {
        Value::Array(items) => {
            for item in items {
                matches(document, &schema["items"], item, &format!("{at}[]"));
            }
        }
        Value::Object(fields) => {
            if let Some(each) = schema.get("additionalProperties").filter(|v| v.is_object()) {
                for (name, field) in fields {
                    matches(document, each, field, &format!("{at}.{name}"));
                }
                return;
            }
            let (known, required) = properties(document, schema);
            let sent: BTreeSet<&str> = fields.keys().map(String::as_str).collect();
            let documented: BTreeSet<&str> = known.keys().copied().collect();
            assert_eq!(
                sent, documented,
                "{at}: fields of the server and of the document"
            );
            assert_eq!(
                required, documented,
                "{at}: a reply always has all its fields"
            );
            for (name, field) in fields {
                matches(
                    document,
                    known[name.as_str()],
                    field,
                    &format!("{at}.{name}"),
                );
            }
        }
        _ => {}
    }
}

fn domain(name: &str) -> Domain {
    let reasons = BTreeMap::from([("no_space".to_owned(), 1)]);
    let latency = Histogram::new(vec![1, 2], vec![1, 1, 0], 3);
    Domain {
        name: name.into(),
        limit: Some(1),
        counters: Counters {
            refusals: reasons.clone(),
            ..Counters::default()
        },
        device: Some(Device {
            pages_per_exit: Some(1.5),
            refusals: reasons.clone(),
            malformed: reasons,
            store_latency: latency.clone(),
            load_latency: latency,
            ..Device::default()
        }),
        pools: vec![Pool::default()],
        ..Domain::default()
    }
}

/// Has `vm1`, with everything, and `vm2`, with nothing; refuses in the way that the name says.
struct Everything;

impl Source for Everything {
    fn stats(&self) -> Stats {
        let empty = Domain {
            name: "vm2".into(),
            ..Domain::default()
        };
        Stats {
            version: "1".into(),
            domains: vec![domain("vm1"), empty],
            service: Some(Service::default()),
            clients: Clients::default().report(),
            process: Some(Process {
                descriptors_limit: Some(1),
                mappings_limit: Some(1),
                ..Process::default()
            }),
            ..Stats::default()
        }
    }

    fn operate(&self, operation: Operation) -> Result<Done, Refused> {
        let (name, done) = match operation {
            Operation::Change { domain, .. } => (domain, Done::Changed),
            Operation::Flush { domain, .. } => (domain, Done::Flushed(1)),
            Operation::AddGuest(guest) | Operation::AddGuestOn { guest, .. } => {
                (guest.name, Done::Added)
            }
            Operation::RemoveGuest(name) => (name, Done::Removed),
        };
        match name.as_str() {
            "vm1" => Ok(done),
            "conflict" => Err(Refused::Conflict("x".into())),
            "invalid" => Err(Refused::Invalid("x".into())),
            "unsupported" => Err(Refused::Unsupported("x")),
            "failed" => Err(Refused::Failed("x".into())),
            _ => Err(Refused::Unknown(name)),
        }
    }
}

/// Status, content type and body.
fn send(
    socket: &Path,
    method: &str,
    path: &str,
    body: &str,
    accept: &str,
) -> (u16, String, String) {
    let mut stream = UnixStream::connect(socket).expect("up");
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: a\r\nAccept: {accept}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    // The server may answer and close before it has read all of it.
    let _ = stream.write_all(head.as_bytes());
    let mut reply = Vec::new();
    let _ = stream.read_to_end(&mut reply);
    let reply = String::from_utf8_lossy(&reply).into_owned();
    let (head, body) = reply.split_once("\r\n\r\n").expect("a header");
    let status = head
        .get(9..12)
        .and_then(|s| s.parse().ok())
        .expect("a status");
    let kind = head
        .lines()
        .find_map(|line| line.strip_prefix("content-type: "));
    (status, kind.unwrap_or_default().to_owned(), body.to_owned())
}

#[test]
fn every_operation_answers_with_the_documented_statuses_and_fields_and_no_others() {
    let document = document();
    let dir = tempfile::tempdir().expect("temporary folder");
    let socket = dir.path().join("s");
    let _server = Server::start(&socket, Arc::new(Everything)).expect("starts");
    let figures = dir.path().join("figures");
    let listener = std::os::unix::net::UnixListener::bind(&figures).expect("binds");
    let monitor = Server::start_as(Role::Monitor, listener, Arc::new(Everything), || {});
    let _monitor = monitor.expect("starts");
    let long = format!("{{\"bytes\":{}1}}", " ".repeat(20 << 10));
    let paths = document["paths"].as_object().expect("paths");
    let mut operations = 0;
    for (path, item) in paths {
        for method in METHODS {
            let Some(operation) = item.get(method) else {
                let (status, _, body) = send(
                    &socket,
                    &method.to_uppercase(),
                    &path.replace("{name}", "vm1"),
                    "",
                    "*/*",
                );
                assert_eq!(status, 405, "{method} {path}: {body}");
                continue;
            };
            operations += 1;
            let documented = operation["responses"].as_object().expect("responses");
            let named = path.contains("{name}");
            let names = [
                "vm1",
                "vm2",
                "absent",
                "conflict",
                "invalid",
                "unsupported",
                "failed",
            ];
            let mut seen = BTreeSet::new();
            for name in names
                .iter()
                .take(if named || method == "post" { 7 } else { 1 })
            {
                let bodies = match (method, path.as_str()) {
                    ("patch", _) => vec!["{}".to_owned(), "{\"x\":1}".into(), long.clone()],
                    ("post", "/v1/guests") => vec![
                        json!({"name": name, "socket": "/a"}).to_string(),
                        "{}".into(),
                        long.clone(),
                    ],
                    ("post", _) => vec!["{\"bytes\":1}".to_owned(), "{".into(), long.clone()],
                    _ => vec![String::new()],
                };
                for body in bodies {
                    let at = path.replace("{name}", name);
                    for accept in ["*/*", "application/openmetrics-text"] {
                        let (status, kind, reply) =
                            send(&socket, &method.to_uppercase(), &at, &body, accept);
                        let place = format!("{method} {at} {status}");
                        // Refusals that this operation has no use for: only a double can give them.
                        if matches!(
                            (path.as_str(), *name, status),
                            ("/v1/domains/{name}/flush", "conflict" | "unsupported", _)
                                | ("/v1/domains/{name}", "unsupported", 501)
                                | ("/v1/guests", "absent" | "vm2", 404)
                                | ("/v1/guests/{name}", "conflict" | "invalid", _)
                        ) {
                            continue;
                        }
                        let response = documented.get(&status.to_string());
                        let response = response
                            .unwrap_or_else(|| panic!("{place} is not documented: {reply}"));
                        seen.insert(status.to_string());
                        let content = resolve(&document, response)["content"].as_object();
                        let Some(content) = content else {
                            assert!(reply.is_empty(), "{place}: {reply}");
                            continue;
                        };
                        let media = content
                            .get(&kind)
                            .unwrap_or_else(|| panic!("{place}: {kind}"));
                        if kind == "application/json" {
                            let value = serde_json::from_str(&reply).expect("JSON");
                            matches(&document, &media["schema"], &value, &place);
                        }
                    }
                }
            }
            // The socket for figures shows the same and changes nothing.
            let at = path.replace("{name}", "vm1");
            let (status, _, reply) = send(&figures, &method.to_uppercase(), &at, "", "*/*");
            assert_eq!(status, if method == "get" { 200 } else { 403 }, "{at}");
            if status == 403 {
                seen.insert(status.to_string());
                let schema = &document["components"]["schemas"]["Error"];
                let reply = serde_json::from_str(&reply).expect("JSON");
                matches(&document, schema, &reply, &at);
            }
            if method != "get" {
                // For those a source has to take its time: `what_takes_long_goes_on_and_holds_no_other_client_up`.
                seen.extend(["202", "503"].map(str::to_owned));
            }
            let expected: BTreeSet<String> = documented.keys().cloned().collect();
            assert_eq!(seen, expected, "{method} {path}: statuses");
        }
    }
    assert_eq!(operations, 9);
}

/// Fields that the server takes are the documented ones, and no others.
#[test]
fn bodies_have_the_documented_fields_and_no_others() {
    let document = document();
    let change = Change {
        weight: Some(1),
        reserve: Some(1),
        limit: Some(Some(1)),
        compression: Some(Compression::Fast),
        frozen: Some(true),
    };
    let guest = GuestSpec {
        name: "a".into(),
        socket: "/a".into(),
        socket_mode: Some(0o660),
        socket_group: Some(1),
        reserve: Some(1),
        limit: Some(1),
        weight: Some(1),
        swap: Some(1),
        queues: Some(1),
        keep_seconds: Some(1),
        groups: vec!["web".into()],
        compression: Some(Compression::Dense),
        dedup: Some(Dedup::On),
        frozen: Some(true),
        memory: Some(1),
        first_touch: Some(1),
        memory_backing: Some(MemoryBacking::Any),
    };
    let of = |path: &str, method: &str| {
        &document["paths"][path][method]["requestBody"]["content"]["application/json"]["schema"]
    };
    for (schema, full) in [
        (of("/v1/domains/{name}", "patch"), json!(change)),
        (
            of("/v1/domains/{name}/flush", "post"),
            json!(Flush { bytes: 1 }),
        ),
        (of("/v1/guests", "post"), json!(guest)),
    ] {
        let (known, _) = properties(&document, schema);
        let fields = full.as_object().expect("an object");
        let sent: BTreeSet<&str> = fields.keys().map(String::as_str).collect();
        assert_eq!(known.keys().copied().collect::<BTreeSet<_>>(), sent);
        assert_eq!(resolve(&document, schema)["additionalProperties"], false);
        for (name, field) in fields {
            let property = resolve(&document, known[name.as_str()]);
            if property.get("enum").is_none() {
                let kinds = property["type"].to_string();
                assert!(kinds.contains(type_of(field)), "{name}: {kinds}");
            }
        }
    }
    // What is required by the server is by the document.
    let (_, required) = properties(&document, of("/v1/guests", "post"));
    assert_eq!(required, BTreeSet::from(["name"]));
    assert!(serde_json::from_value::<GuestSpec>(json!({"socket": "/a"})).is_err());
    assert!(serde_json::from_value::<GuestSpec>(json!({"name": "a"})).is_ok());
}

#[test]
fn what_a_pool_counts_is_described_in_the_document_with_the_same_words() {
    let document = document();
    let (known, _) = properties(&document, &document["components"]["schemas"]["Counters"]);
    for (name, description) in Counters::DESCRIPTIONS {
        assert_eq!(known[name]["description"], *description, "{name}");
    }
}
