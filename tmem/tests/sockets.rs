//! Who can connect to the sockets of `tmem serve`, and what they can do there.

mod service;

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use rustix::process::{Pid, Signal, getegid, geteuid, kill_process};
use service::{Serve, command, configuration, eventually};
use tmem_control::Client;
use tmem_control::api::GuestSpec;
use tmem_protocol::Status;
use tmem_testkit::corpus::page;
use tmem_testkit::frontend::TestGuest;

/// A user and a group that own nothing.
const NOBODY: u32 = 65534;
/// A group that no file has.
const MONITORS: u32 = 4242;

const STATISTICS: &str = "statistics = 'DIR/stats'\nstatistics-mode = '0640'\n";

fn guest(name: &str) -> GuestSpec {
    GuestSpec {
        name: name.to_owned(),
        ..GuestSpec::default()
    }
}

/// Permission bits and group of a socket.
fn access(path: &Path) -> (u32, u32) {
    let found = path.symlink_metadata().expect("is there");
    (found.mode() & 0o7777, found.gid())
}

#[test]
fn the_statistics_socket_shows_all_and_changes_nothing() {
    let text = [STATISTICS, service::GUESTS].concat();
    let serve = Serve::configured("64M", &text, |_| {});
    let mut guest = TestGuest::boot(&serve.path("a"));
    let pool = guest.create_pool();
    assert_eq!(guest.store(pool, 0, &page(0)), Status::Ok);
    let stats = serve.path("stats");
    assert_eq!(access(&stats).0, 0o640);
    let ask = |words: &[&str]| {
        let output = command(words).arg("--control").arg(&stats).output();
        let output = output.expect("runs");
        let text = [output.stdout, output.stderr].concat();
        (
            output.status.code(),
            String::from_utf8_lossy(&text).into_owned(),
        )
    };
    for words in [
        &["stats"][..],
        &["list"],
        &["freeable"],
        &["top", "--once", "--interval=0.1"],
    ] {
        let (code, text) = ask(words);
        assert_eq!(code, Some(0), "{words:?}: {text}");
    }
    let added = format!("name=c,socket={}", serve.path("c").display());
    for words in [
        &["set", "a", "weight=7"][..],
        &["freeze", "a"],
        &["thaw", "a"],
        &["flush", "a", "1M"],
        &["guest", "add", &added],
        &["guest", "remove", "a"],
    ] {
        let (code, text) = ask(words);
        assert_eq!(code, Some(1), "{words:?}: {text}");
        assert!(
            text.contains("403") && text.contains("control socket"),
            "{text}"
        );
    }
    let figures = Client::new(&stats).stats().expect("answers");
    assert_eq!(figures.domains.len(), 2);
    assert_eq!(
        (figures.domains[0].weight, figures.domains[0].frozen),
        (100, false)
    );
    assert_eq!(figures.domains[0].connections, Some(1));
    assert_eq!(guest.load(pool, 0), Ok(page(0)));
    // Who asks for the process learns of both sockets.
    let process = figures.process.expect("may look");
    let open = std::fs::read_dir(format!("/proc/{}/fd", serve.child.id()));
    let open = open.expect("is ours").count();
    assert!(process.descriptors > 10 && open > 10, "{process:?}, {open}");
    assert!(
        process
            .descriptors_limit
            .is_none_or(|limit| limit > process.descriptors)
    );
    assert!(process.mappings > 10);
    assert!(figures.clients["statistics"].rejected["refused"] >= 6);
    assert_eq!(figures.clients["control"].rejected["refused"], 0);
    let metrics = Client::new(&stats).metrics().expect("answers");
    assert!(
        metrics.contains("tmem_control_rejected_total{socket=\"statistics\",reason=\"refused\"} 6"),
        "{metrics}"
    );
    ends(serve);
}

/// Ends it; its sockets are removed then.
fn ends(mut serve: Serve) {
    kill_process(Pid::from_child(&serve.child), Signal::TERM).expect("is running");
    let status = serve.child.wait().expect("ends");
    assert!(status.success(), "{status}");
    for name in ["control", "stats", "a", "b"] {
        assert!(!serve.path(name).exists(), "{name} is left behind");
    }
}

/// A service of a user that owns nothing but the folder, and is in the group `MONITORS`. Without root, that is the user
/// of the test.
fn as_nobody(text: &str) -> Serve {
    Serve::configured_in("64M", text, |command, dir| {
        command.env("RUST_BACKTRACE", "0");
        if geteuid().is_root() {
            std::os::unix::fs::chown(dir, Some(NOBODY), Some(NOBODY)).expect("is root");
            let mut setpriv = Command::new("setpriv");
            setpriv
                .args(["--pdeathsig=KILL", "--reuid=65534", "--regid=65534"])
                .arg(format!("--groups={MONITORS}"))
                .arg(env!("CARGO_BIN_EXE_tmem"))
                .args(["serve", "--config"])
                .arg(dir.join("tmem.toml"))
                .stdin(std::process::Stdio::null())
                .stderr(std::fs::File::create(dir.join("log")).expect("makes"));
            *command = setpriv;
        }
    })
}

/// A group that the service of [`as_nobody`] is in.
fn monitors() -> u32 {
    if geteuid().is_root() {
        MONITORS
    } else {
        getegid().as_raw()
    }
}

#[test]
fn a_socket_is_given_to_a_group_that_the_service_is_in_and_to_no_other() {
    let group = monitors();
    let text = format!(
        "statistics = 'DIR/stats'\nstatistics-group = {group}\n{}socket-group = {group}\n",
        service::GUESTS
    );
    let serve = as_nobody(&text);
    assert_eq!(access(&serve.path("stats")), (0o660, group));
    assert_eq!(access(&serve.path("b")), (0o660, group));
    assert_eq!(access(&serve.path("a")).0, 0o600);
    assert_eq!(access(&serve.path("control")).0, 0o600);
    let add = |name: &str, more: &str| {
        let path = serve.path(name);
        let guest = format!("name={name},socket={}{more}", path.display());
        serve.ask(&["guest", "add", &guest])
    };
    let more = format!(",socket-group={group},socket-mode=0640");
    assert_eq!(add("c", &more).0, Some(0));
    assert_eq!(access(&serve.path("c")), (0o640, group));
    assert_eq!(add("d", ",socket-mode=0666").0, Some(0));
    assert_eq!(access(&serve.path("d")).0, 0o666);
    // By name, which this command looks up; and a group that the service is not in.
    let (code, said) = add("e", ",socket-group=root");
    if geteuid().is_root() || getegid().as_raw() != 0 {
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("409") && said.contains("group 0"), "{said}");
        assert!(said.contains("SupplementaryGroups="), "{said}");
        assert!(!serve.path("e").exists(), "it is left behind");
    }
    let (code, said) = add("e", ",socket-group=no-such-group");
    assert_eq!(code, Some(2), "{said}");
    // The file, read again, adds guests by the same rules, and says what waits.
    let more = "[[guest]]\nname = 'f'\nsocket = 'DIR/f'\nsocket-group = 'root'\n";
    let text = format!("{text}socket-mode = 0o666\n{more}");
    let text = configuration(serve.dir.path(), "64M", &text);
    std::fs::write(serve.path("tmem.toml"), text).expect("writes");
    kill_process(Pid::from_child(&serve.child), Signal::HUP).expect("is running");
    eventually("read", || serve.log().contains("Configuration read again"));
    let log = serve.log();
    assert!(
        log.contains("Guest b: a change of socket-mode waits"),
        "{log}"
    );
    if geteuid().is_root() {
        assert!(log.contains("Guest f cannot be added"), "{log}");
    }
    ends(serve);
}

#[test]
fn a_configured_group_that_the_service_is_not_in_is_one_line() {
    if !geteuid().is_root() {
        eprintln!("NOT TESTED: only root can start a service as somebody who is in no group");
        return;
    }
    let dir = tempfile::tempdir().expect("temporary folder");
    std::os::unix::fs::chown(dir.path(), Some(NOBODY), Some(NOBODY)).expect("is root");
    let output = Command::new("setpriv")
        .args([
            "--pdeathsig=KILL",
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
        ])
        .arg(env!("CARGO_BIN_EXE_tmem"))
        .args(["serve", "--memory=1M", "--guest"])
        .arg(format!(
            "name=a,socket={},socket-group={MONITORS}",
            dir.path().join("a").display()
        ))
        .output()
        .expect("starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(
        said.contains("group 4242") && said.contains("is no member"),
        "{said}"
    );
    assert!(!dir.path().join("a").exists(), "it is left behind");
}

/// `socket:[NUMBER]` of a descriptor.
fn socket_of(fd: &impl AsRawFd) -> String {
    let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    link.expect("is open").display().to_string()
}

/// Flags of the descriptors of the service that are this socket, in octal.
fn flags_in(serve: &Serve, socket: &str) -> Vec<String> {
    let process = format!("/proc/{}", serve.child.id());
    let fds = std::fs::read_dir(format!("{process}/fd")).expect("is ours");
    let of = |fd: std::io::Result<std::fs::DirEntry>| {
        let fd = fd.ok()?;
        let link = std::fs::read_link(fd.path()).ok()?;
        let number = fd.file_name().into_string().ok()?;
        let info = std::fs::read_to_string(format!("{process}/fdinfo/{number}")).ok()?;
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:"))?;
        (link.display().to_string() == socket).then(|| flags.trim().to_owned())
    };
    fds.filter_map(of).collect()
}

#[test]
fn a_passed_socket_is_served_beside_the_others_and_closed_with_its_guest() {
    let serve = Serve::start();
    let mut first = TestGuest::boot(&serve.path("vm1"));
    let pool = first.create_pool();
    assert_eq!(first.store(pool, 0, &page(0)), Status::Ok);
    let path = serve.path("vm2");
    let listener = UnixListener::bind(&path).expect("binds");
    let socket = socket_of(&listener);
    let passed: OwnedFd = listener.try_clone().expect("has room").into();
    let mut add = command(&["guest", "add", "name=vm2,queues=1", "--socket-fd", "7"]);
    add.arg("--control").arg(serve.path("control"));
    let at_seven = move || {
        // SAFETY: plain system call on a descriptor that the closure owns.
        match unsafe { libc::dup2(passed.as_raw_fd(), 7) } {
            7 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    // SAFETY: one dup2 between fork and exec.
    unsafe { add.pre_exec(at_seven) };
    let output = add.output().expect("runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        format!("vm2: {}\n", path.display())
    );
    let flags = flags_in(&serve, &socket);
    let flags = u32::from_str_radix(&flags.concat(), 8).expect("one descriptor");
    assert_ne!(flags & libc::O_CLOEXEC.cast_unsigned(), 0);
    let mut second = TestGuest::boot(&path);
    let other = second.create_pool();
    for index in 0..64 {
        assert_eq!(second.store(other, index, &page(index.into())), Status::Ok);
        assert_eq!(second.load(other, index), Ok(page(index.into())));
    }
    assert_eq!(first.load(pool, 0), Ok(page(0)));
    // Names and numbers of guests are bounded as for every other.
    let client = Client::new(serve.path("control"));
    let again = UnixListener::bind(serve.path("vm3")).expect("binds");
    let again_socket = socket_of(&again);
    let taken = client.add_guest_on(&guest("vm2"), again.into());
    assert!(taken.expect_err("is taken").to_string().contains("409"));
    eventually("it is closed", || {
        flags_in(&serve, &again_socket).is_empty()
    });
    client.remove_guest("vm2").expect("removed");
    eventually("it is closed", || flags_in(&serve, &socket).is_empty());
    assert!(path.exists(), "it is of who made it");
    // And it can be passed again.
    client
        .add_guest_on(&guest("vm2"), listener.into())
        .expect("added");
    drop(second);
    TestGuest::boot(&path);
    assert_eq!(first.load(pool, 0), Ok(page(0)));
}

#[test]
fn what_is_passed_and_is_no_socket_of_a_guest_is_refused_and_closed() {
    let serve = Serve::start();
    let client = Client::new(serve.path("control"));
    let (connected, _other) = UnixStream::pair().expect("a pair");
    let network = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
    let datagram = std::os::unix::net::UnixDatagram::bind(serve.path("d")).expect("binds");
    let file = tempfile::tempfile().expect("a file");
    let before = client.stats().expect("answers").process.expect("may look");
    for fd in [
        connected.into(),
        network.into(),
        datagram.into(),
        file.into(),
    ] {
        let refused = client.add_guest_on(&guest("vm2"), fd).expect_err("refused");
        let refused = refused.to_string();
        assert!(
            refused.contains("409") && refused.contains("not a listening"),
            "{refused}"
        );
    }
    // Neither one that has a path beside it, nor none at all.
    let listener = || OwnedFd::from(UnixListener::bind(serve.path("l")).expect("binds"));
    let two = GuestSpec {
        socket: serve.path("x").display().to_string(),
        ..guest("vm2")
    };
    let refused = client.add_guest_on(&two, listener()).expect_err("two");
    assert!(refused.to_string().contains("two sockets"), "{refused}");
    let refused = client.add_guest(&guest("vm2")).expect_err("none");
    assert!(refused.to_string().contains("no socket"), "{refused}");
    // The command sees it before the service does.
    let (code, said) = serve.ask(&["guest", "add", "name=vm2", "--socket-fd", "0"]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("Descriptor 0 is not a listening"), "{said}");
    eventually("all are closed", || {
        let now = client.stats().expect("answers").process.expect("may look");
        now.descriptors <= before.descriptors
    });
    assert_eq!(client.stats().expect("answers").domains.len(), 1);
}
