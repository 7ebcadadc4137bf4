//! What a client can have done, over the socket.

use std::{
    collections::BTreeSet,
    path::Path,
    sync::{Arc, Condvar, Mutex},
    time::{Duration, Instant},
};

use tmem_control::{
    Client, ClientError, Done, MAX_OPERATIONS, Operation, Refused, Server, Source, Stats,
    api::{Change, Domain, GuestSpec},
};

fn status<T: std::fmt::Debug>(result: Result<T, ClientError>) -> u16 {
    match result {
        Err(ClientError::Refused { status, .. }) => status.as_u16(),
        other => panic!("not refused: {other:?}"),
    }
}

/// Has guests, and does what it is told.
struct Guests(std::sync::Mutex<BTreeSet<String>>);

impl Source for Guests {
    fn stats(&self) -> Stats {
        let names = self.0.lock().expect("not poisoned");
        let domains = names.iter().map(|name| tmem_control::api::Domain {
            name: name.clone(),
            ..Default::default()
        });
        Stats {
            domains: domains.collect(),
            ..Stats::default()
        }
    }

    fn operate(&self, operation: Operation) -> Result<Done, Refused> {
        let mut names = self.0.lock().expect("not poisoned");
        match operation {
            Operation::AddGuest(guest) if names.insert(guest.name.clone()) => Ok(Done::Added),
            Operation::AddGuest(_) => Err(Refused::Conflict("It is there".into())),
            Operation::RemoveGuest(name) if names.remove(&name) => Ok(Done::Removed),
            Operation::RemoveGuest(name) => Err(Refused::Unknown(name)),
            _ => Err(Refused::Failed("no".into())),
        }
    }
}

fn guests(dir: &Path) -> (Server, Client) {
    let path = dir.join("s");
    let server = Server::start(&path, Arc::new(Guests(Default::default()))).expect("starts");
    (server, Client::new(path))
}

fn vm1() -> GuestSpec {
    GuestSpec {
        name: "vm1".into(),
        socket: "/run/vm1".into(),
        ..GuestSpec::default()
    }
}

#[test]
fn guests_are_added_and_removed() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let (_server, client) = guests(dir.path());
    let guest = vm1();
    assert_eq!(client.add_guest(&guest).expect("added").name, "vm1");
    assert_eq!(status(client.add_guest(&guest)), 409);
    client.remove_guest("vm1").expect("removed");
    assert_eq!(status(client.remove_guest("vm1")), 404);
    assert_eq!(status(client.flush("vm1", 1)), 500);
}

#[test]
fn bodies_that_are_no_request_are_refused() {
    use std::io::{Read, Write};
    let dir = tempfile::tempdir().expect("temporary folder");
    let (_server, _client) = guests(dir.path());
    let send = |path: &str, body: &str| {
        let mut stream = std::os::unix::net::UnixStream::connect(dir.path().join("s")).expect("up");
        let text = format!(
            "POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        // The server may answer and close before it has read all of it.
        let _ = stream.write_all(text.as_bytes());
        let mut reply = Vec::new();
        let _ = stream.read_to_end(&mut reply);
        String::from_utf8_lossy(&reply).into_owned()
    };
    for body in ["", "{", "[]", "{\"bytes\":-1}", "{\"bytes\":1,\"x\":1}"] {
        let reply = send("/v1/domains/a/flush", body);
        assert!(reply.starts_with("HTTP/1.1 400"), "{body}: {reply}");
    }
    let long = format!("{{\"bytes\":{}1}}", " ".repeat(20 << 10));
    assert!(send("/v1/domains/a/flush", &long).starts_with("HTTP/1.1 413"));
}

#[test]
fn the_server_knows_the_resources_of_the_openapi_document_and_no_other_method() {
    use std::io::{Read, Write};
    let text = std::fs::read_to_string(
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/control-api.yaml"),
    )
    .expect("is there");
    // Of the YAML only this is read: paths are indented by two spaces, methods by four.
    let paths = text
        .split("\npaths:\n")
        .nth(1)
        .and_then(|rest| rest.split("\ncomponents:").next());
    let mut path = "";
    let mut documented = BTreeSet::new();
    for line in paths.expect("has paths").lines() {
        if let Some(name) = line
            .strip_prefix("  /")
            .and_then(|rest| rest.strip_suffix(':'))
        {
            path = name;
        } else if let Some(method) = line.strip_prefix("    ").and_then(|m| m.strip_suffix(':'))
            && ["get", "put", "post", "patch", "delete"].contains(&method)
        {
            documented.insert((format!("/{path}"), method.to_uppercase()));
        }
    }
    assert_eq!(documented.len(), 9, "{documented:?}");
    let dir = tempfile::tempdir().expect("temporary folder");
    let (_server, client) = guests(dir.path());
    client.add_guest(&vm1()).expect("added");
    let socket = dir.path().join("s");
    for path in documented
        .iter()
        .map(|(path, _)| path)
        .collect::<BTreeSet<_>>()
    {
        for method in ["GET", "PUT", "POST", "PATCH", "DELETE"] {
            let mut stream = std::os::unix::net::UnixStream::connect(&socket).expect("up");
            let at = path.replace("{name}", "vm1");
            write!(
                stream,
                "{method} {at} HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"
            )
            .expect("writes");
            let mut reply = String::new();
            stream.read_to_string(&mut reply).expect("a reply");
            let status = reply.get(9..12).expect("a status");
            assert_ne!(status, "404", "{method} {path}");
            let known = documented.contains(&(path.clone(), method.to_owned()));
            assert_eq!(status != "405", known, "{method} {path}: {reply}");
        }
    }
}

/// Does what it is asked to when it is told to go on.
#[derive(Debug, Default)]
struct Patient {
    /// Operations that began, and whether they may end.
    state: Mutex<(usize, bool)>,
    changed: Condvar,
}

impl Patient {
    fn begun(&self) -> usize {
        self.state.lock().expect("no panic").0
    }

    fn go_on(&self) {
        self.state.lock().expect("no panic").1 = true;
        self.changed.notify_all();
    }
}

impl Source for Patient {
    fn stats(&self) -> Stats {
        Stats {
            domains: vec![Domain {
                name: "vm1".to_owned(),
                ..Domain::default()
            }],
            ..Stats::default()
        }
    }

    fn operate(&self, _operation: Operation) -> Result<Done, Refused> {
        let mut state = self.state.lock().expect("no panic");
        state.0 += 1;
        while !state.1 {
            state = self.changed.wait(state).expect("no panic");
        }
        Ok(Done::Changed)
    }
}

#[test]
fn what_takes_long_goes_on_and_holds_no_other_client_up() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let path = dir.path().join("s");
    let source = Arc::new(Patient::default());
    let server = Server::start(&path, Arc::clone(&source) as Arc<dyn Source>).expect("starts");
    let client = Client::new(&path);
    let change = Change::default();
    std::thread::scope(|scope| {
        let slow: Vec<_> = (0..MAX_OPERATIONS)
            .map(|_| scope.spawn(|| client.change("vm1", &change)))
            .collect();
        while source.begun() == 0 {
            std::thread::yield_now();
        }
        // Nothing of it is done, and everybody else is answered.
        assert_eq!(client.stats().expect("answers").domains.len(), 1);
        client.metrics().expect("answers");
        for slow in slow {
            let told = slow.join().expect("no panic");
            assert!(matches!(told, Err(ClientError::GoesOn(_))), "{told:?}");
        }
    });
    // Clients that do not wait cannot have more and more of it done.
    assert_eq!(status(client.change("vm1", &change)), 503);
    source.go_on();
    let end = Instant::now() + Duration::from_secs(60);
    while client.change("vm1", &change).is_err() {
        assert!(Instant::now() < end, "not in a minute");
    }
    drop(server);
    assert!(!path.exists());
}

#[test]
fn a_server_ends_though_an_operation_does_not() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let path = dir.path().join("s");
    let source = Arc::new(Patient::default());
    let server = Server::start(&path, Arc::clone(&source) as Arc<dyn Source>).expect("starts");
    let client = Client::new(&path);
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| client.change("vm1", &Change::default()));
        while source.begun() == 0 {
            std::thread::yield_now();
        }
        drop(server);
        assert!(slow.join().expect("no panic").is_err());
    });
    source.go_on();
}
