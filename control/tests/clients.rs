//! What clients of every temper see, and that none of them costs another its answer.

use std::{
    io::{ErrorKind, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use tmem_control::{
    Client, ClientError, Server, Source, Stats,
    api::{Device, Domain, Pool},
    client,
    server::{CONNECTION_TIMEOUT, HEADER_TIMEOUT, MAX_CONNECTIONS, MAX_HEADER_BYTES},
};

/// Counts how often it is asked; `domains` makes its replies as long as wanted.
#[derive(Default)]
struct Counting {
    domains: usize,
    asked: AtomicU64,
}

impl Source for Counting {
    fn stats(&self) -> Stats {
        self.asked.fetch_add(1, Ordering::Relaxed);
        Stats {
            version: "test".into(),
            domains: vec![Domain::default(); self.domains],
            ..Stats::default()
        }
    }
}

struct Fixture {
    server: Option<Server>,
    source: Arc<Counting>,
    path: PathBuf,
    _folder: tempfile::TempDir,
}

impl Fixture {
    fn new(domains: usize) -> Self {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("control");
        let source = Arc::new(Counting {
            domains,
            ..Counting::default()
        });
        let server = Server::start(&path, Arc::clone(&source) as Arc<dyn Source>).expect("starts");
        Self {
            server: Some(server),
            source,
            path,
            _folder: folder,
        }
    }

    fn connect(&self) -> UnixStream {
        connect(&self.path)
    }

    /// Sends `bytes`, and returns all that comes back until the server closes.
    fn talk(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect();
        // The server may answer and close before it has read everything.
        let _ = stream.write_all(bytes);
        read_all(&mut stream)
    }

    fn works(&self) {
        let stats = Client::new(&self.path).stats().expect("answers");
        assert_eq!(stats.version, "test");
    }
}

fn connect(path: &Path) -> UnixStream {
    let stream = UnixStream::connect(path).expect("connects");
    let limit = Some(CONNECTION_TIMEOUT * 2);
    stream.set_read_timeout(limit).expect("sets a deadline");
    stream.set_write_timeout(limit).expect("sets a deadline");
    stream
}

fn read_all(stream: &mut UnixStream) -> String {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        Err(error) => panic!("the server neither answered nor closed: {error}"),
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

const STATS: &[u8] = b"GET /v1/stats HTTP/1.1\r\nHost: x\r\n\r\n";

#[test]
fn stats_come_as_json_and_metrics_as_openmetrics() {
    let fixture = Fixture::new(1);
    let reply = fixture.talk(STATS);
    assert!(reply.starts_with("HTTP/1.1 200 OK\r\n"), "{reply}");
    assert!(
        reply.contains("content-type: application/json\r\n"),
        "{reply}"
    );
    assert!(reply.contains("connection: close\r\n"), "{reply}");
    let reply = fixture
        .talk(b"GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: application/openmetrics-text\r\n\r\n");
    assert!(
        reply.contains("application/openmetrics-text; version=1.0.0"),
        "{reply}"
    );
    assert!(reply.ends_with("# EOF\n"), "{reply}");
    let metrics = Client::new(&fixture.path).metrics().expect("answers");
    assert!(metrics.contains("tmem_build_info{version=\"test\"} 1"));
}

/// Every name of an object in `value`.
fn names(value: &serde_json::Value, found: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(fields) => {
            for (name, value) in fields {
                found.push(name.clone());
                names(value, found);
            }
        }
        serde_json::Value::Array(items) => items.iter().for_each(|item| names(item, found)),
        _ => {}
    }
}

#[test]
fn every_field_of_the_statistics_is_in_the_openapi_file() {
    let api = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/control-api.yaml");
    let api = std::fs::read_to_string(api).expect("docs/control-api.yaml");
    let stats = Stats {
        domains: vec![Domain {
            device: Some(Device::default()),
            pools: vec![Pool::default()],
            ..Domain::default()
        }],
        ..Stats::default()
    };
    let mut fields = Vec::new();
    names(
        &serde_json::to_value(stats).expect("serializes"),
        &mut fields,
    );
    for field in fields {
        let documented = api
            .lines()
            .any(|line| line.trim_start().starts_with(&format!("{field}:")));
        assert!(documented, "{field} is not in docs/control-api.yaml");
    }
}

#[test]
fn what_does_not_exist_is_404_and_what_is_not_allowed_405_both_in_json() {
    let fixture = Fixture::new(0);
    let reply = fixture.talk(b"GET /v2/stats HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(reply.starts_with("HTTP/1.1 404 "), "{reply}");
    assert!(reply.contains(r#"{"error":"#), "{reply}");
    let reply = fixture.talk(b"POST /v1/stats HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n");
    assert!(reply.starts_with("HTTP/1.1 405 "), "{reply}");
    assert!(reply.contains("allow: GET, HEAD\r\n"), "{reply}");
    assert!(reply.contains(r#"{"error":"#), "{reply}");
    let reply = fixture.talk(b"HEAD /v1/stats HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(
        reply.starts_with("HTTP/1.1 200 ") && reply.ends_with("\r\n\r\n"),
        "{reply}"
    );
}

#[test]
fn client_that_stalls_in_its_header_is_cut_off() {
    let fixture = Fixture::new(0);
    let start = Instant::now();
    let mut stalled: Vec<_> = [&b""[..], b"GET /v1/st", b"GET /v1/stats HTTP/1.1\r\nHo"]
        .iter()
        .map(|bytes| {
            let mut stream = fixture.connect();
            stream.write_all(bytes).expect("writes");
            stream
        })
        .collect();
    // One after the other they would hold it up for longer than the client waits.
    assert!(HEADER_TIMEOUT * 3 > client::DEADLINE);
    fixture.works();
    for stream in &mut stalled {
        read_all(stream);
    }
    assert!(
        start.elapsed() < CONNECTION_TIMEOUT,
        "the header timeout did not fire"
    );
    fixture.works();
}

#[test]
fn client_that_drips_its_header_is_cut_off() {
    let fixture = Fixture::new(0);
    let mut stream = fixture.connect();
    let start = Instant::now();
    while start.elapsed() < CONNECTION_TIMEOUT * 2 {
        if stream.write_all(b"x").is_err() {
            break;
        }
        thread::sleep(Duration::from_millis(50));
    }
    assert!(
        start.elapsed() < CONNECTION_TIMEOUT,
        "dripping bytes put the deadline off"
    );
}

#[test]
fn huge_header_is_431() {
    let fixture = Fixture::new(0);
    let huge = format!(
        "GET /v1/stats HTTP/1.1\r\nHost: x\r\nA: {}\r\n\r\n",
        "a".repeat(2 * MAX_HEADER_BYTES)
    );
    let reply = fixture.talk(huge.as_bytes());
    assert!(reply.starts_with("HTTP/1.1 431 "), "{reply}");
    let many = format!("GET /v1/stats HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(65));
    let reply = fixture.talk(many.as_bytes());
    assert!(reply.starts_with("HTTP/1.1 431 "), "{reply}");
    let path = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(1 << 20));
    let reply = fixture.talk(path.as_bytes());
    assert!(reply.starts_with("HTTP/1.1 4"), "{reply}");
    assert_eq!(fixture.source.asked.load(Ordering::Relaxed), 0);
    fixture.works();
}

#[test]
fn endless_body_is_not_read() {
    let fixture = Fixture::new(0);
    for head in [
        &b"GET /v1/stats HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"[..],
        b"POST /v1/stats HTTP/1.1\r\nHost: x\r\nContent-Length: 18446744073709551615\r\n\r\n",
        b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n",
    ] {
        let mut stream = fixture.connect();
        stream.write_all(head).expect("writes");
        let chunk = b"1000\r\n"
            .iter()
            .copied()
            .chain([b'x'; 4096])
            .chain(*b"\r\n");
        let chunk: Vec<u8> = chunk.collect();
        let start = Instant::now();
        let mut sent = 0usize;
        while stream.write_all(&chunk).is_ok() {
            sent += chunk.len();
            assert!(sent < 64 << 20, "the server reads a body without end");
            assert!(
                start.elapsed() < CONNECTION_TIMEOUT,
                "the server keeps the connection"
            );
        }
    }
    fixture.works();
}

#[test]
fn two_hundred_connections_are_all_answered() {
    let fixture = Fixture::new(0);
    let threads: Vec<_> = (0..200)
        .map(|_| {
            let path = fixture.path.clone();
            thread::spawn(move || {
                let mut stream = connect(&path);
                stream.write_all(STATS).expect("writes");
                read_all(&mut stream)
            })
        })
        .collect();
    for thread in threads {
        let reply = thread.join().expect("answered");
        assert!(reply.starts_with("HTTP/1.1 200 "), "{reply}");
    }
}

#[test]
fn clients_that_take_every_slot_lose_them_again() {
    let fixture = Fixture::new(0);
    let _hogs: Vec<_> = (0..MAX_CONNECTIONS).map(|_| fixture.connect()).collect();
    let start = Instant::now();
    fixture.works();
    assert!(start.elapsed() < client::DEADLINE);
}

#[test]
fn client_that_does_not_read_its_reply_blocks_nobody() {
    // About 4 MB, which fits no socket buffer.
    let fixture = Fixture::new(10_000);
    let mut lazy = fixture.connect();
    lazy.write_all(STATS).expect("writes");
    let mut first = [0; 16];
    lazy.read_exact(&mut first).expect("the reply begins");
    fixture.works();
    let mut killed = fixture.connect();
    killed.write_all(STATS).expect("writes");
    killed.read_exact(&mut first).expect("the reply begins");
    drop(killed);
    fixture.works();
    assert_eq!(
        fixture.source.asked.load(Ordering::Relaxed),
        4,
        "one snapshot a request"
    );
}

#[test]
fn garbage_is_answered_with_400_or_closed() {
    let fixture = Fixture::new(0);
    let mut random = vec![0u8; 8192];
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    for byte in &mut random {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        *byte = state.to_le_bytes()[0];
    }
    for bytes in [
        &random[..],
        b"\0\0\0\0\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /v1/stats HTTP/9.9\r\n\r\n",
        b"GET /v1/stats HTTP/1.1\r\nHost x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /v1/stats HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"GET /v1/stats HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    ] {
        let reply = fixture.talk(bytes);
        assert!(
            reply.is_empty() || reply.starts_with("HTTP/1.1 400 "),
            "{reply}"
        );
    }
    assert_eq!(fixture.source.asked.load(Ordering::Relaxed), 0);
    fixture.works();
}

#[test]
fn pipelined_requests_get_one_answer() {
    let fixture = Fixture::new(0);
    let reply = fixture.talk(&STATS.repeat(50));
    assert_eq!(reply.matches("HTTP/1.1").count(), 1, "{reply}");
    assert_eq!(fixture.source.asked.load(Ordering::Relaxed), 1);
    fixture.works();
}

#[test]
fn dropping_the_server_ends_clients_and_removes_the_socket() {
    let mut fixture = Fixture::new(10_000);
    let mut open = fixture.connect();
    open.write_all(STATS).expect("writes");
    open.read_exact(&mut [0; 16]).expect("the reply begins");
    let start = Instant::now();
    fixture.server = None;
    assert!(
        start.elapsed() < CONNECTION_TIMEOUT / 2,
        "the drop waited for a client"
    );
    read_all(&mut open);
    assert!(!fixture.path.exists());
    assert!(matches!(
        Client::new(&fixture.path).stats(),
        Err(ClientError::NoSocket(_))
    ));
}

#[test]
fn client_says_what_is_wrong_with_the_socket() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("stale");
    drop(std::os::unix::net::UnixListener::bind(&path).expect("binds"));
    assert!(matches!(
        Client::new(&path).stats(),
        Err(ClientError::NobodyListens(_))
    ));
    let long = folder.path().join("x".repeat(200));
    assert!(matches!(
        Client::new(long).stats(),
        Err(ClientError::PathTooLong(_))
    ));
    let file = folder.path().join("file");
    std::fs::write(&file, b"").expect("writes");
    assert!(Client::new(file).stats().is_err());
}

/// A server that sends `reply` to its first client and then does nothing.
fn impostor(folder: &Path, reply: Vec<u8>) -> PathBuf {
    let path = folder.join("impostor");
    let listener = std::os::unix::net::UnixListener::bind(&path).expect("binds");
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("accepts");
        let _ = stream.read(&mut [0; 4096]);
        let _ = stream.write_all(&reply);
        thread::sleep(client::DEADLINE * 2);
    });
    path
}

#[test]
fn client_gives_up_on_a_server_that_does_not_answer() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = impostor(folder.path(), Vec::new());
    let start = Instant::now();
    assert!(matches!(
        Client::new(path).stats(),
        Err(ClientError::TimedOut(_))
    ));
    assert!(start.elapsed() < client::DEADLINE * 2);
}

#[test]
fn client_does_not_read_a_reply_without_end() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let mut reply = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n".to_vec();
    reply.resize(reply.len() + client::MAX_REPLY_BYTES + 4096, b' ');
    let path = impostor(folder.path(), reply);
    assert!(matches!(
        Client::new(path).stats(),
        Err(ClientError::Http { .. })
    ));
}

#[test]
fn client_tells_json_from_something_else() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = impostor(
        folder.path(),
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno".to_vec(),
    );
    assert!(matches!(
        Client::new(path).stats(),
        Err(ClientError::Decode { .. })
    ));
}
