//! Two sockets of one process: one for everything, one for figures. And descriptors that come with a request.

use std::io::{ErrorKind, IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::{FdFlags, fcntl_getfd};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use tmem_control::api::{Domain, GuestSpec};
use tmem_control::clients::Clients;
use tmem_control::{Client, Done, Operation, Refused, Role, Server, Source, Stats};

const PATIENCE: Duration = Duration::from_secs(60);

/// Keeps whoever calls from the thread of this name, until it is let go.
struct Gate {
    thread: &'static str,
    reached: SyncSender<()>,
    go: Mutex<Receiver<()>>,
}

#[derive(Default)]
struct Process {
    clients: Clients,
    gate: Option<Gate>,
    operations: Mutex<Vec<Operation>>,
}

impl Process {
    fn pass(&self) {
        let Some(gate) = &self.gate else { return };
        if thread::current().name() == Some(gate.thread) {
            gate.reached.send(()).expect("the test waits");
            let go = gate.go.lock().expect("not poisoned");
            go.recv_timeout(PATIENCE).expect("let go");
        }
    }
}

impl Source for Process {
    fn stats(&self) -> Stats {
        self.pass();
        let domain = Domain {
            name: "vm1".to_owned(),
            ..Domain::default()
        };
        Stats {
            domains: vec![domain],
            clients: self.clients.report(),
            ..Stats::default()
        }
    }

    fn operate(&self, operation: Operation) -> Result<Done, Refused> {
        self.operations
            .lock()
            .expect("not poisoned")
            .push(operation);
        Ok(Done::Added)
    }

    fn clients(&self) -> Option<&Clients> {
        Some(&self.clients)
    }
}

struct Both {
    process: Arc<Process>,
    dir: tempfile::TempDir,
    _servers: [Server; 2],
}

impl Both {
    fn new(gate: Option<Gate>) -> Self {
        let dir = tempfile::tempdir().expect("temporary folder");
        let process = Arc::new(Process {
            gate,
            ..Process::default()
        });
        let start = |role, name| {
            let listener = UnixListener::bind(dir.path().join(name)).expect("binds");
            let source = Arc::clone(&process) as Arc<dyn Source>;
            Server::start_as(role, listener, source, || {}).expect("starts")
        };
        let _servers = [
            start(Role::Operator, "control"),
            start(Role::Monitor, "figures"),
        ];
        Self {
            process,
            dir,
            _servers,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What was done so far.
    fn operations(&self) -> Vec<Operation> {
        std::mem::take(&mut self.process.operations.lock().expect("not poisoned"))
    }
}

/// Sends `parts`, each with descriptors, and returns the reply.
fn send(path: &Path, parts: &[(&str, &[BorrowedFd<'_>])]) -> String {
    let mut stream = UnixStream::connect(path).expect("connects");
    stream.set_read_timeout(Some(PATIENCE)).expect("is set");
    for (text, fds) in parts {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut passing = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(passing.push(SendAncillaryMessage::ScmRights(fds)));
        }
        let text = [IoSlice::new(text.as_bytes())];
        sendmsg(&stream, &text, &mut passing, SendFlags::NOSIGNAL).expect("sends");
    }
    let mut reply = Vec::new();
    match stream.read_to_end(&mut reply) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        Err(error) => panic!("{error}"),
    }
    String::from_utf8_lossy(&reply).into_owned()
}

fn post(body: &str) -> String {
    let len = body.len();
    format!("POST /v1/guests HTTP/1.1\r\nHost: a\r\nContent-Length: {len}\r\n\r\n{body}")
}

#[test]
fn a_monitor_is_shown_everything_and_nothing_is_done_for_it() {
    let both = Both::new(None);
    let figures = both.path("figures");
    for path in [
        "/v1/stats",
        "/metrics",
        "/v1/domains",
        "/v1/domains/vm1",
        "/v1/freeable",
    ] {
        for method in ["GET", "HEAD"] {
            let request = format!("{method} {path} HTTP/1.1\r\nHost: a\r\n\r\n");
            let reply = send(&figures, &[(&request, &[])]);
            assert!(
                reply.starts_with("HTTP/1.1 200 "),
                "{method} {path}: {reply}"
            );
        }
    }
    for (method, path, body) in [
        ("PATCH", "/v1/domains/vm1", r#"{"weight":1}"#),
        ("PATCH", "/v1/domains/vm1", ""),
        ("POST", "/v1/domains/vm1/flush", r#"{"bytes":1}"#),
        ("POST", "/v1/guests", r#"{"name":"a","socket":"/a"}"#),
        ("DELETE", "/v1/guests/vm1", ""),
    ] {
        let len = body.len();
        let request =
            format!("{method} {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {len}\r\n\r\n{body}");
        let reply = send(&figures, &[(&request, &[])]);
        assert!(
            reply.starts_with("HTTP/1.1 403 "),
            "{method} {path}: {reply}"
        );
        assert!(
            reply.contains("content-type: application/json\r\n"),
            "{reply}"
        );
        assert!(reply.contains(r#"{"error":"#), "{reply}");
    }
    assert_eq!(both.operations(), []);
    let wrong = send(
        &figures,
        &[("POST /v1/stats HTTP/1.1\r\nHost: a\r\n\r\n", &[])],
    );
    assert!(wrong.starts_with("HTTP/1.1 405 "), "{wrong}");
    let wrong = send(
        &figures,
        &[("GET /v1/guests/a/b HTTP/1.1\r\nHost: a\r\n\r\n", &[])],
    );
    assert!(wrong.starts_with("HTTP/1.1 404 "), "{wrong}");
}

#[test]
fn who_is_kept_waiting_at_one_socket_keeps_nobody_waiting_at_the_other() {
    for (thread, stuck, other) in [
        ("tmem-control", "control", "figures"),
        ("tmem-statistics", "figures", "control"),
    ] {
        let (reached, is_reached) = sync_channel(1);
        let (go, receiver) = sync_channel(1);
        let both = Both::new(Some(Gate {
            thread,
            reached,
            go: Mutex::new(receiver),
        }));
        let path = both.path(stuck);
        let waits = thread::spawn(move || Client::new(path).stats());
        is_reached.recv_timeout(PATIENCE).expect("asks");
        // More than the slots of the one that is stuck.
        let _more: Vec<_> = (0..40)
            .map(|_| UnixStream::connect(both.path(stuck)).expect("connects"))
            .collect();
        for _ in 0..20 {
            Client::new(both.path(other)).stats().expect("answers");
        }
        go.send(()).expect("waits");
        // The test may have been too slow for its patience; what counts is above.
        let _ = waits.join().expect("ends");
    }
}

#[test]
fn what_clients_come_to_is_counted_for_each_socket() {
    let both = Both::new(None);
    let count = |socket: &str, reason: &str| both.process.clients.report()[socket].rejected[reason];
    for (path, socket) in [("control", "control"), ("figures", "statistics")] {
        let at = both.path(path);
        send(&at, &[("GET /nowhere HTTP/1.1\r\nHost: a\r\n\r\n", &[])]);
        send(&at, &[("\0\0\0\0\r\n\r\n", &[])]);
        // Cut off after its time.
        send(&at, &[("GET /v1/st", &[])]);
        let deadline = Instant::now() + PATIENCE;
        for reason in ["refused", "broken", "timed_out"] {
            while count(socket, reason) != 1 {
                assert!(
                    Instant::now() < deadline,
                    "{socket}: {reason}: {}",
                    count(socket, reason)
                );
                thread::sleep(Duration::from_millis(5));
            }
        }
        let before = both.process.clients.report()[socket].accepted;
        Client::new(&at).stats().expect("answers");
        assert_eq!(both.process.clients.report()[socket].accepted, before + 1);
        assert_eq!(count(socket, "refused"), 1);
    }
}

#[test]
fn a_socket_that_is_passed_with_a_request_arrives_whole() {
    let both = Both::new(None);
    let listener = UnixListener::bind(both.path("vm1")).expect("binds");
    let guest = GuestSpec {
        name: "vm1".to_owned(),
        weight: Some(7),
        ..GuestSpec::default()
    };
    let client = Client::new(both.path("control"));
    client.add_guest_on(&guest, listener.into()).expect("added");
    let mut operations = both.operations();
    let Some(Operation::AddGuestOn {
        guest: came,
        socket,
    }) = operations.pop()
    else {
        panic!("{operations:?}");
    };
    assert_eq!(came, guest);
    let socket = socket.into_owned().expect("is the only one");
    assert!(
        fcntl_getfd(&socket)
            .expect("is open")
            .contains(FdFlags::CLOEXEC)
    );
    let address = UnixListener::from(socket).local_addr().expect("has one");
    assert_eq!(address.as_pathname(), Some(both.path("vm1").as_path()));
    // With any byte of it.
    let body = r#"{"name":"vm1"}"#;
    let request = post(body);
    for at in [0, 1, 20, request.len() - body.len(), request.len() - 1] {
        let (one, other) = request.split_at(at);
        let listener = UnixListener::bind(both.path(&format!("s{at}"))).expect("binds");
        let fds = [listener.as_fd()];
        let parts: &[(&str, &[BorrowedFd<'_>])] = if one.is_empty() {
            &[(other, &fds)]
        } else {
            &[(one, &[]), (other, &fds)]
        };
        let reply = send(&both.path("control"), parts);
        assert!(reply.starts_with("HTTP/1.1 201 "), "{at}: {reply}");
    }
    assert_eq!(both.operations().len(), 5);
}

/// The other end of a descriptor that was passed on: closed when nobody has it any more.
fn is_closed(mut end: UnixStream) {
    end.set_read_timeout(Some(PATIENCE)).expect("is set");
    match end.read(&mut [0]) {
        Ok(0) => {}
        other => panic!("somebody keeps it: {other:?}"),
    }
}

#[test]
fn descriptors_without_a_use_are_closed_on_every_path() {
    let both = Both::new(None);
    let get = "GET /v1/stats HTTP/1.1\r\nHost: a\r\n\r\n";
    let add = post(r#"{"name":"vm1"}"#);
    let two = post(r#"{"name":"vm1","socket":"/a"}"#);
    let bad = post("{");
    for (socket, text, copies, status) in [
        ("control", get, 1, "200"),
        ("control", &two, 1, "409"),
        ("control", &bad, 1, "400"),
        ("control", &add, 2, "409"),
        ("control", &add, 8, "409"),
        ("control", "\0\r\n\r\n", 1, "400"),
        ("figures", get, 8, "200"),
        ("figures", &add, 1, "403"),
    ] {
        let (passed, end) = UnixStream::pair().expect("a pair");
        let copies: Vec<OwnedFd> = (0..copies)
            .map(|_| passed.try_clone().expect("has room").into())
            .collect();
        drop(passed);
        let fds: Vec<_> = copies.iter().map(AsFd::as_fd).collect();
        let reply = send(&both.path(socket), &[(text, &fds)]);
        assert!(
            reply.starts_with(&format!("HTTP/1.1 {status} ")),
            "{socket} {text}: {reply}"
        );
        drop(copies);
        is_closed(end);
    }
    // One with each byte, in a request that never ends.
    let (passed, end) = UnixStream::pair().expect("a pair");
    let fds = [passed.as_fd()];
    let byte: (&str, &[BorrowedFd<'_>]) = ("x", &fds);
    drop(send(&both.path("control"), &[byte; 100]));
    drop(passed);
    is_closed(end);
    assert_eq!(both.operations(), []);
}
