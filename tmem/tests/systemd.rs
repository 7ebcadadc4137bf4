//! `tmem serve` as systemd starts it: sockets passed to it, readiness, the filter of the unit.

use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{
    Pid, Signal, getegid, geteuid, kill_process, set_parent_process_death_signal,
};
use tmem_control::Client;
use tmem_control::api::GuestSpec;

const PATIENCE: Duration = Duration::from_secs(20);

/// A temporary folder, and in it the socket of a service manager.
struct Manager {
    dir: tempfile::TempDir,
    notify: UnixDatagram,
}

impl Manager {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("temporary folder");
        let notify = UnixDatagram::bind(dir.path().join("notify")).expect("binds");
        notify.set_read_timeout(Some(PATIENCE)).expect("is set");
        Self { dir, notify }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn listener(&self, name: &str) -> OwnedFd {
        UnixListener::bind(self.path(name)).expect("binds").into()
    }

    /// `--guest` for a guest whose configured socket is NAME.own.
    fn guest(&self, name: &str) -> String {
        let socket = self.path(&format!("{name}.own"));
        format!("--guest=name={name},socket={}", socket.display())
    }

    /// `tmem serve` with these options, and descriptors by name.
    fn serve(&self, options: &[String], passed: Vec<(&str, OwnedFd)>) -> Command {
        // The shell is the process that becomes tmem: LISTEN_PID must be its number, and WATCHDOG_PID.
        let script = "LISTEN_PID=$$ WATCHDOG_PID=$$ exec \"$0\" \"$@\"";
        let mut command = Command::new("sh");
        command
            .args(["-c", script, env!("CARGO_BIN_EXE_tmem"), "serve"])
            .arg("--memory=16M")
            .args(options)
            .env("NOTIFY_SOCKET", self.path("notify"))
            .stdin(Stdio::null());
        if !passed.is_empty() {
            let names: Vec<&str> = passed.iter().map(|(name, _)| *name).collect();
            command.env("LISTEN_FDS", passed.len().to_string());
            command.env("LISTEN_FDNAMES", names.join(":"));
        }
        let passed: Vec<OwnedFd> = passed.into_iter().map(|(_, fd)| fd).collect();
        let prepare = move || {
            // As `service::bound`, whose program needs calls that the filter of the unit does not allow.
            set_parent_process_death_signal(Some(Signal::KILL))?;
            renumber(&passed)
        };
        // SAFETY: between fork and exec only prctl, fcntl and dup2 are called, on descriptors that the
        // closure owns.
        unsafe { command.pre_exec(prepare) };
        command
    }

    fn started(&self, options: &[String], passed: Vec<(&str, OwnedFd)>) -> Serve {
        Serve(self.serve(options, passed).spawn().expect("starts"))
    }

    fn message(&self) -> String {
        let mut text = [0u8; 256];
        let len = self.notify.recv(&mut text).expect("a message in time");
        String::from_utf8_lossy(&text[..len]).into_owned()
    }
}

/// Descriptors from 3 on, as sd_listen_fds(3) wants them.
fn renumber(passed: &[OwnedFd]) -> std::io::Result<()> {
    const FIRST: i32 = 3;
    const ASIDE: i32 = 100;
    let count = i32::try_from(passed.len()).unwrap_or(i32::MAX);
    // First to higher numbers: the descriptor at 3 may be one that has to be moved later.
    for (target, fd) in (ASIDE..).zip(passed) {
        // SAFETY: plain system call on a descriptor that is open.
        if unsafe { libc::dup2(fd.as_raw_fd(), target) } < 0 {
            return Err(std::io::Error::last_os_error());
        }
    }
    for index in 0..count {
        // SAFETY: as above.
        if unsafe { libc::dup2(ASIDE + index, FIRST + index) } < 0 {
            return Err(std::io::Error::last_os_error());
        }
        // SAFETY: opened by the loop above, and owned by no other code.
        drop(unsafe { OwnedFd::from_raw_fd(ASIDE + index) });
    }
    Ok(())
}

struct Serve(Child);

impl Serve {
    fn end(mut self) -> std::process::ExitStatus {
        kill_process(Pid::from_child(&self.0), Signal::TERM).expect("is running");
        self.0.wait().expect("ends")
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Asks for the features of the device behind a vhost-user socket.
fn is_served(path: PathBuf) {
    speaks(UnixStream::connect(path).expect("somebody listens"));
}

fn speaks(mut guest: UnixStream) {
    guest.set_read_timeout(Some(PATIENCE)).expect("is set");
    // GET_FEATURES, and 8 bytes of them.
    guest
        .write_all(&[1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0])
        .expect("asks");
    guest.read_exact(&mut [0u8; 20]).expect("answers");
}

#[test]
fn ready_is_said_when_every_socket_listens_and_stopping_on_sigterm() {
    let manager = Manager::new();
    let names: Vec<String> = (0..50).map(|number| format!("vm{number}")).collect();
    let mut options: Vec<String> = names.iter().map(|name| manager.guest(name)).collect();
    options.push(format!("--control={}", manager.path("control").display()));
    let serve = manager.started(&options, Vec::new());
    assert_eq!(manager.message(), "READY=1\n");
    for name in &names {
        let socket = manager.path(&format!("{name}.own"));
        UnixStream::connect(socket).expect("listens when ready");
    }
    UnixStream::connect(manager.path("control")).expect("listens when ready");
    assert!(serve.end().success());
    assert_eq!(manager.message(), "STOPPING=1\n");
}

#[test]
fn sockets_that_were_passed_are_used_by_name_and_left_in_place() {
    let manager = Manager::new();
    let passed = vec![
        ("vm2", manager.listener("second")),
        ("@control", manager.listener("control")),
        ("@statistics", manager.listener("statistics")),
        ("vm1", manager.listener("first")),
    ];
    let guests = ["vm1", "vm2", "vm3"].map(|name| manager.guest(name));
    // The one in the configuration does not count then.
    let control = format!("--control={}", manager.path("control.own").display());
    let statistics = format!("--statistics={}", manager.path("statistics.own").display());
    let options = [guests.as_slice(), &[control, statistics]].concat();
    let serve = manager.started(&options, passed);
    assert_eq!(manager.message(), "READY=1\n");
    let figures = Client::new(manager.path("statistics"));
    assert_eq!(figures.stats().expect("answers").domains.len(), 3);
    let refused = figures.remove_guest("vm1").expect_err("may not");
    assert!(refused.to_string().contains("403"), "{refused}");
    let client = Client::new(manager.path("control"));
    let connected = |name: &str| {
        let domains = client.stats().expect("answers").domains;
        let domain = domains.into_iter().find(|domain| domain.name == name);
        domain.expect("is configured").device.is_some()
    };
    for (socket, own) in [("first", "vm1"), ("second", "vm2"), ("vm3.own", "vm3")] {
        let mut guest = UnixStream::connect(manager.path(socket)).expect("listens");
        guest
            .write_all(&[1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0])
            .expect("asks");
        guest.read_exact(&mut [0u8; 20]).expect("answers");
        assert!(connected(own), "{socket} is the socket of {own}");
    }
    for own in ["vm1.own", "vm2.own", "control.own", "statistics.own"] {
        assert!(!manager.path(own).exists(), "{own} was not needed");
    }
    assert!(serve.end().success());
    assert_eq!(manager.message(), "STOPPING=1\n");
    for theirs in ["first", "second", "control", "statistics"] {
        assert!(manager.path(theirs).exists(), "{theirs} is systemd's");
    }
    assert!(!manager.path("vm3.own").exists());
}

#[test]
fn a_socket_without_a_use_ends_it_with_2_and_one_line() {
    let refused = |name: &str, fd: OwnedFd, part: &str| {
        let manager = Manager::new();
        let mut command = manager.serve(&[manager.guest("vm1")], vec![(name, fd)]);
        let mut serve = Serve(command.stderr(Stdio::piped()).spawn().expect("starts"));
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = serve.0.try_wait().expect("is a child") {
                break status;
            }
            assert!(Instant::now() < deadline, "{name} is taken");
            std::thread::sleep(Duration::from_millis(5));
        };
        let mut error = String::new();
        let stderr = serve.0.stderr.as_mut().expect("is piped");
        stderr.read_to_string(&mut error).expect("is text");
        assert_eq!(status.code(), Some(2), "{error}");
        assert!(
            error.starts_with("tmem: ") && error.contains(part),
            "{error}"
        );
        assert_eq!(error.trim_end().lines().count(), 1, "{error}");
        assert!(!manager.path("vm1.own").exists(), "nothing was started");
    };
    let dir = tempfile::tempdir().expect("temporary folder");
    let listener = |name: &str| UnixListener::bind(dir.path().join(name)).expect("binds");
    refused("vm2", listener("a").into(), "\"vm2\"");
    refused("control", listener("b").into(), "\"control\"");
    let (connected, _other) = UnixStream::pair().expect("a pair");
    refused("vm1", connected.into(), "not a listening");
    let network = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
    refused("vm1", network.into(), "not a listening");
}

#[test]
fn a_control_socket_is_no_socket_of_a_guest() {
    let manager = Manager::new();
    let control = manager.listener("control");
    let statistics = manager.listener("statistics");
    let first = manager.listener("first");
    let copy = |fd: &OwnedFd| fd.try_clone().expect("has room");
    let passed = vec![
        ("@control", copy(&control)),
        ("@statistics", copy(&statistics)),
        ("vm1", copy(&first)),
    ];
    let serve = manager.started(&[manager.guest("vm1")], passed);
    assert_eq!(manager.message(), "READY=1\n");
    let client = Client::new(manager.path("control"));
    let guest = GuestSpec {
        name: "vm2".to_owned(),
        ..GuestSpec::default()
    };
    for (socket, part) in [
        (control, "its operator"),
        (statistics, "its operator"),
        (first, "belongs to guest \"vm1\""),
    ] {
        let refused = client.add_guest_on(&guest, socket).expect_err("is taken");
        let refused = refused.to_string();
        assert!(
            refused.contains("409") && refused.contains(part),
            "{refused}"
        );
    }
    assert_eq!(client.stats().expect("answers").domains.len(), 1);
    is_served(manager.path("first"));
    assert!(serve.end().success());
}

/// The command of `tmem-guest@NAME.service`, which runs when a client connects to its socket.
#[test]
fn a_socket_that_systemd_activates_is_served_by_the_service_that_runs() {
    let manager = Manager::new();
    let control = manager.path("control").display().to_string();
    let options = [manager.guest("vm1"), format!("--control={control}")];
    let serve = manager.started(&options, Vec::new());
    assert_eq!(manager.message(), "READY=1\n");
    let unit = include_str!("../../packaging/tmem-guest@.service");
    let command = unit
        .lines()
        .find_map(|line| line.strip_prefix("ExecStart=/usr/bin/tmem "));
    let words = command
        .expect("has one")
        .replace("%i", "vm2")
        .replace("${GUEST}", "queues=1");
    let socket = manager.path("activated");
    let mut activate = Command::new("systemd-socket-activate");
    activate
        .arg(format!("--listen={}", socket.display()))
        .arg(env!("CARGO_BIN_EXE_tmem"))
        .args(words.split(' '))
        .args(["--control", &control])
        .stdin(Stdio::null());
    // SAFETY: one prctl between fork and exec.
    unsafe {
        activate.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?));
    }
    let Ok(activate) = activate.spawn() else {
        eprintln!("NOT TESTED: systemd-socket-activate is not installed");
        return;
    };
    let mut activate = Serve(activate);
    let deadline = Instant::now() + PATIENCE;
    let guest = loop {
        match UnixStream::connect(&socket) {
            Ok(guest) => break guest,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    // The one that waits since before there was a guest is answered.
    speaks(guest);
    assert!(activate.0.wait().expect("ends").success());
    let domains = Client::new(&control).stats().expect("answers").domains;
    let names: Vec<_> = domains.iter().map(|domain| domain.name.as_str()).collect();
    assert_eq!(names, ["vm1", "vm2"]);
    is_served(manager.path("vm1.own"));
    assert!(serve.end().success());
    assert!(socket.exists(), "it is systemd's");
}

/// The calls that the unit allows, as systemd expands its sets; `None` without systemd.
fn allowed_calls() -> Option<Vec<String>> {
    let unit = include_str!("../../packaging/tmem.service");
    let mut allowed = Vec::new();
    for line in unit.lines() {
        let Some(words) = line.strip_prefix("SystemCallFilter=") else {
            continue;
        };
        let (take, words) = match words.strip_prefix('~') {
            Some(words) => (false, words),
            None => (true, words),
        };
        for word in words.split_whitespace() {
            let calls = expand(word)?;
            allowed.retain(|call| !calls.contains(call));
            if take {
                allowed.extend(calls);
            }
        }
    }
    // The system calls that every unit may make.
    allowed.extend(expand("@default")?);
    allowed.sort();
    allowed.dedup();
    Some(allowed)
}

fn expand(word: &str) -> Option<Vec<String>> {
    if !word.starts_with('@') {
        return Some(vec![word.to_owned()]);
    }
    let output = Command::new("systemd-analyze")
        .args(["syscall-filter", "--no-pager", word])
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).expect("utf-8");
    assert!(output.status.success(), "{word}: {text}");
    let members = text.lines().map(str::trim).skip(1);
    let members = members.filter(|line| !line.is_empty() && !line.starts_with('#'));
    members
        .map(expand)
        .collect::<Option<Vec<_>>>()
        .map(|sets| sets.concat())
}

#[test]
fn a_service_with_a_watchdog_says_that_it_lives_again_and_again_and_one_without_does_not() {
    let manager = Manager::new();
    let mut command = manager.serve(&[manager.guest("vm1")], Vec::new());
    command.env("WATCHDOG_USEC", "200000");
    if let Some(allowed) = allowed_calls() {
        let filter = filter::compile(&allowed);
        let apply = move || seccompiler::apply_filter(&filter).map_err(std::io::Error::other);
        // SAFETY: one prctl and one seccomp call between fork and exec; the filter was made before.
        unsafe { command.pre_exec(apply) };
    }
    let serve = Serve(command.spawn().expect("starts"));
    assert_eq!(manager.message(), "READY=1\n");
    for _ in 0..5 {
        assert_eq!(manager.message(), "WATCHDOG=1\n");
    }
    assert!(serve.end().success());
    while manager.message() != "STOPPING=1\n" {}

    let serve = manager.started(&[manager.guest("vm1")], Vec::new());
    assert_eq!(manager.message(), "READY=1\n");
    std::thread::sleep(Duration::from_millis(300));
    assert!(serve.end().success());
    assert_eq!(manager.message(), "STOPPING=1\n");
}

/// The value of a key of the unit.
fn in_unit(key: &str) -> String {
    let unit = include_str!("../../packaging/tmem.service");
    let value = unit
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    value.unwrap_or_else(|| panic!("no {key}")).to_owned()
}

#[test]
fn the_unit_keeps_the_pages_of_guests_in_memory_and_notices_a_service_that_hangs() {
    let score: i32 = in_unit("OOMScoreAdjust").parse().expect("a number");
    assert!((-1000..0).contains(&score));
    assert_eq!(in_unit("MemorySwapMax"), "0");
    assert_eq!(in_unit("LimitMEMLOCK"), "infinity");
    assert_eq!(in_unit("LimitCORE"), "0");
    // Long enough for a busy machine: a quarter of it lies between two signs of life.
    let watchdog: u64 = in_unit("WatchdogSec").parse().expect("seconds");
    assert!((60..=300).contains(&watchdog));
}

#[test]
fn the_filter_of_the_unit_allows_all_that_the_service_does() {
    let Some(allowed) = allowed_calls() else {
        eprintln!("systemd-analyze is not installed: the filter is not tried");
        return;
    };
    let filter = filter::compile(&allowed);
    let manager = Manager::new();
    let passed = vec![
        ("@control", manager.listener("control")),
        ("@statistics", manager.listener("statistics")),
        ("vm1", manager.listener("first")),
    ];
    let guests = ["vm1", "vm2"].map(|name| manager.guest(name));
    let mut command = manager.serve(&guests, passed);
    let apply = move || seccompiler::apply_filter(&filter).map_err(std::io::Error::other);
    // SAFETY: one prctl and one seccomp call between fork and exec; the filter was made before.
    unsafe { command.pre_exec(apply) };
    let serve = Serve(command.spawn().expect("starts"));
    assert_eq!(manager.message(), "READY=1\n");
    is_served(manager.path("first"));
    is_served(manager.path("vm2.own"));
    let client = Client::new(manager.path("control"));
    let added = manager.path("vm3");
    let guest = GuestSpec {
        name: "vm3".to_owned(),
        socket: added.display().to_string(),
        // Another than that of a new file, where the test may choose.
        socket_group: Some(if geteuid().is_root() {
            4242
        } else {
            getegid().as_raw()
        }),
        ..GuestSpec::default()
    };
    client.add_guest(&guest).expect("is added");
    is_served(added);
    client.remove_guest("vm3").expect("is removed");
    let guest = GuestSpec {
        name: "vm4".to_owned(),
        ..GuestSpec::default()
    };
    let passed = manager.listener("vm4");
    client.add_guest_on(&guest, passed).expect("is added");
    is_served(manager.path("vm4"));
    let figures = Client::new(manager.path("statistics")).stats();
    assert!(figures.expect("answers").process.is_some());
    let status = serve.end();
    assert!(status.success(), "{status}");
    assert_eq!(manager.message(), "STOPPING=1\n");
}

/// The filter that systemd would make.
mod filter {
    use seccompiler::{BpfProgram, compile_from_json};

    fn try_compile(calls: &[String]) -> Result<BpfProgram, seccompiler::Error> {
        let rules: Vec<_> = calls
            .iter()
            .map(|call| serde_json::json!({ "syscall": call }))
            .collect();
        let json = serde_json::json!({
            "unit": {
                "mismatch_action": "kill_process",
                "match_action": "allow",
                "filter": rules,
            }
        });
        let arch = std::env::consts::ARCH.try_into().expect("is known");
        let mut filters = compile_from_json(json.to_string().as_bytes(), arch)?;
        Ok(filters.remove("unit").expect("was made"))
    }

    /// Of the calls that this architecture has.
    pub(super) fn compile(calls: &[String]) -> BpfProgram {
        let here = |call: &&String| try_compile(std::slice::from_ref(*call)).is_ok();
        let known: Vec<String> = calls.iter().filter(here).cloned().collect();
        assert!(known.len() > 100, "only {known:?}");
        try_compile(&known).expect("each of them compiles")
    }
}
