//! `tmem serve` as a process: sockets, signals, exit codes.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tmem_control::Client;

mod service;

use service::{bound, command, eventually};

struct Serve {
    child: Child,
    dir: tempfile::TempDir,
}

impl Serve {
    fn start() -> Self {
        let dir = tempfile::tempdir().expect("temporary folder");
        let at = |name: &str| dir.path().join(name).display().to_string();
        let text = format!(
            "memory = '64M'\ncontrol = '{}'\n[[guest]]\nname = 'vm1'\nsocket = '{}'\nlimit = '1M'\n",
            at("control"),
            at("vm1")
        );
        std::fs::write(dir.path().join("tmem.toml"), text).expect("writes");
        let child = command(&["serve", "--config", &at("tmem.toml")])
            .spawn()
            .expect("starts");
        let serve = Self { child, dir };
        // The last thing to be made.
        serve.eventually("control socket", || {
            UnixStream::connect(serve.path("control")).is_ok()
        });
        serve
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn eventually(&self, what: &str, condition: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !condition() {
            assert!(Instant::now() < deadline, "{what}: not in time");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn run(arguments: &[&str]) -> (Option<i32>, String) {
    let Output { status, stderr, .. } = command(arguments).output().expect("runs");
    (status.code(), String::from_utf8_lossy(&stderr).into_owned())
}

#[test]
fn sigterm_ends_it_within_a_second_with_success_and_without_sockets() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut serve = Serve::start();
        // A guest that sits in the middle of a message does not delay it.
        let _guest = UnixStream::connect(serve.path("vm1")).expect("connects");
        let pid = Pid::from_child(&serve.child);
        let before = Instant::now();
        kill_process(pid, signal).expect("is running");
        let status = serve.child.wait().expect("ends");
        assert!(status.success(), "{status}");
        assert!(
            before.elapsed() < Duration::from_secs(1),
            "{:?}",
            before.elapsed()
        );
        assert!(!serve.path("control").exists() && !serve.path("vm1").exists());
    }
}

/// Tells a test that it will be killed, and where it should write the control socket of its service.
const VICTIM: &str = "TMEM_VICTIM";

#[test]
#[ignore = "is run, and killed, by a_test_that_is_killed_leaves_no_service_behind"]
fn victim() {
    let Some(file) = std::env::var_os(VICTIM) else {
        return;
    };
    let serve = Serve::start();
    std::fs::write(file, format!("{}\n", serve.path("control").display())).expect("writes");
    loop {
        std::thread::park();
    }
}

#[test]
fn a_test_that_is_killed_leaves_no_service_behind() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let file = dir.path().join("runs");
    let mut victim = bound(std::env::current_exe().expect("has a path"))
        .args(["--exact", "victim", "--ignored"])
        .env(VICTIM, &file)
        .env("TMPDIR", dir.path())
        .stdin(Stdio::null())
        .spawn()
        .expect("starts");
    let mut socket = String::new();
    eventually("the service runs", || {
        socket = std::fs::read_to_string(&file).unwrap_or_default();
        socket.ends_with('\n')
    });
    let socket = Path::new(socket.trim_end());
    UnixStream::connect(socket).expect("is served");
    victim.kill().expect("is running");
    victim.wait().expect("ends");
    eventually("the service is gone", || {
        UnixStream::connect(socket).is_err()
    });
}

/// `NoNewPrivs` and `Seccomp` of each thread, by its name.
fn confinement(pid: u32) -> Vec<(String, String, String)> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("is running");
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split_once(':'))
            .map(|(_, value)| value.trim().to_owned())
            .expect("is in the status of every thread")
    };
    tasks
        .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("status")).ok())
        .map(|text| {
            (
                field(&text, "Name:"),
                field(&text, "NoNewPrivs:"),
                field(&text, "Seccomp:"),
            )
        })
        .collect()
}

#[test]
fn every_thread_has_a_filter_and_can_gain_no_privileges() {
    let serve = Serve::start();
    let client = Client::new(serve.path("control"));
    let added = serve.path("vm2").display().to_string();
    let guest = format!("name=vm2,socket={added}");
    assert_eq!(ask(&serve, &["guest", "add", &guest]).0, Some(0));
    assert!(client.stats().is_ok());
    // The first thread confines itself last.
    serve.eventually("all are confined", || {
        let threads = confinement(serve.child.id());
        let names: Vec<_> = threads.iter().map(|(name, ..)| name.as_str()).collect();
        // Where there is another processor for it.
        let prefaults =
            std::thread::available_parallelism().is_ok_and(|processors| processors.get() > 1);
        for name in [
            "tmem",
            "tmem-control",
            "tmem-background",
            "tmem-cold",
            "tmem-memory",
            if prefaults { "tmem-prefault" } else { "tmem" },
            "guest vm1",
            "guest vm2",
        ] {
            // A new thread has the name of the one that made it until it runs.
            if !names.contains(&name) {
                return false;
            }
        }
        threads
            .iter()
            .all(|(_, privileges, seccomp)| privileges == "1" && seccomp == "2")
    });
}

#[test]
fn the_control_socket_knows_the_guests() {
    let serve = Serve::start();
    let stats = Client::new(serve.path("control")).stats().expect("answers");
    assert_eq!(stats.budget, 64 << 20);
    let names: Vec<_> = stats
        .domains
        .iter()
        .map(|domain| domain.name.as_str())
        .collect();
    assert_eq!(names, ["vm1"]);
    assert_eq!(stats.domains[0].limit, Some(1 << 20));
}

#[test]
fn it_starts_again_over_the_sockets_of_one_that_was_killed() {
    let mut serve = Serve::start();
    serve.child.kill().expect("is running");
    serve.child.wait().expect("ends");
    assert!(serve.path("vm1").exists(), "nobody removed it");
    let config = serve.path("tmem.toml");
    serve.child = command(&["serve", "--config", config.to_str().expect("utf-8")])
        .spawn()
        .expect("starts");
    serve.eventually("answers", || {
        Client::new(serve.path("control")).stats().is_ok()
    });
}

#[test]
fn a_socket_in_use_is_left_to_its_owner() {
    let serve = Serve::start();
    let socket = serve.path("vm1");
    let guest = format!("--guest=name=a,socket={}", socket.display());
    let (code, error) = run(&["serve", "--memory=1M", &guest]);
    assert_eq!(code, Some(1));
    assert!(
        error.contains("Another process") && error.trim_end().lines().count() == 1,
        "{error}"
    );
    assert!(Path::new(&socket).exists());
    UnixStream::connect(socket).expect("still served");
}

#[test]
fn arguments_that_cannot_be_meant_end_with_2_and_one_line() {
    let (code, error) = run(&["serve", "--memory=1M", "--guest=name=a/b,socket=/tmp/x"]);
    assert_eq!(code, Some(2));
    assert!(
        error.starts_with("tmem: Guest name") && error.trim_end().lines().count() == 1,
        "{error}"
    );
    let (code, _) = run(&["serve"]);
    assert_eq!(code, Some(2));
}

/// Runs a subcommand against the service and returns its output.
fn ask(serve: &Serve, arguments: &[&str]) -> (Option<i32>, String) {
    let control = serve.path("control");
    let output = command(arguments)
        .args(["--control", control.to_str().expect("utf-8")])
        .output()
        .expect("runs");
    let text = [output.stdout, output.stderr].concat();
    (
        output.status.code(),
        String::from_utf8_lossy(&text).into_owned(),
    )
}

#[test]
fn the_control_socket_comes_from_the_environment_or_is_the_packaged_one() {
    let serve = Serve::start();
    let output = command(&["list"])
        .env("TMEM_CONTROL", serve.path("control"))
        .output()
        .expect("runs");
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("vm1"));
    let help = command(&["list", "--help"])
        .env_remove("TMEM_CONTROL")
        .output()
        .expect("runs");
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    assert!(help.contains("[default: /run/tmem.sock]"), "{help}");
}

#[test]
fn an_operator_can_list_change_freeze_and_flush() {
    let serve = Serve::start();
    let done = |arguments: &[&str], part: &str| {
        let (code, text) = ask(&serve, arguments);
        assert!(
            code == Some(0) && text.contains(part),
            "{arguments:?}: {code:?} {text}"
        );
    };
    done(&["list"], "vm1       waiting");
    done(
        &["set", "vm1", "weight=7", "limit=2M"],
        "weight 7, reserve 0 B, limit 2.0 MiB",
    );
    done(&["set", "vm1", "limit=none", "--json"], "\"limit\": null");
    done(&["freeze", "vm1"], "frozen");
    done(&["list"], "vm1       frozen");
    done(&["thaw", "vm1"], "weight 7");
    done(&["flush", "vm1", "1M"], "0 B freed");
    done(&["freeable", "--json"], "\"freeable\": 0");
    assert_eq!(ask(&serve, &["set", "vm1", "weight=0"]).0, Some(1));
    assert_eq!(ask(&serve, &["set", "vm1", "height=0"]).0, Some(2));
    done(&["set", "vm1", "compression=dense"], "compression dense");
    done(&["list"], "dense");
    done(
        &["set", "vm1", "compression=fast", "--json"],
        "\"compression\": \"fast\"",
    );
    done(&["stats"], "vm1");
    done(&["stats", "--json"], "\"budget\": 67108864");
    for json in [
        &["list"][..],
        &["freeze", "vm1"],
        &["thaw", "vm1"],
        &["flush", "vm1", "4K"],
    ] {
        let (code, text) = ask(&serve, &[json, &["--json"]].concat());
        assert_eq!(code, Some(0), "{text}");
        serde_json::from_str::<serde_json::Value>(&text).expect("JSON");
    }
    let (code, text) = ask(&serve, &["freeze", "vm2"]);
    assert!(
        code == Some(1) && text.contains("There is no guest \"vm2\"; tmem list"),
        "{text}"
    );
    let (code, text) = ask(&serve, &["freeze", "a b"]);
    assert!(
        code == Some(1) && text.contains("cannot be the name of a guest"),
        "{text}"
    );
}

/// Errors that an HTTP client can make about a new guest, and the answers.
#[test]
fn a_new_guest_that_cannot_be_is_refused_with_the_right_status() {
    use tmem_control::{ClientError, api::GuestSpec};
    let serve = Serve::start();
    let client = Client::new(serve.path("control"));
    let refused = |socket: &str, reserve, limit| {
        let guest = GuestSpec {
            name: "vm2".into(),
            socket: socket.into(),
            reserve,
            limit,
            ..GuestSpec::default()
        };
        match client.add_guest(&guest) {
            Err(ClientError::Refused { status, .. }) => status.as_u16(),
            other => panic!("{socket}: {other:?}"),
        }
    };
    assert_eq!(refused("relative", None, None), 400);
    assert_eq!(refused("/a\0b", None, None), 400);
    assert_eq!(refused("/no/such/folder/s", None, None), 409);
    assert_eq!(refused("/tmp/x", Some(2), Some(1)), 409);
    assert_eq!(refused("/tmp/x", None, Some(0)), 400);
}

#[test]
fn a_guest_can_be_added_and_removed() {
    let serve = Serve::start();
    let socket = serve.path("vm2");
    let guest = format!("name=vm2,socket={},weight=3", socket.display());
    assert_eq!(ask(&serve, &["guest", "add", &guest]).0, Some(0));
    UnixStream::connect(&socket).expect("is served");
    let (code, text) = ask(&serve, &["guest", "add", &guest]);
    assert!(code == Some(1) && text.contains("409"), "{code:?} {text}");
    assert!(ask(&serve, &["list"]).1.contains("vm2"));
    assert_eq!(ask(&serve, &["guest", "remove", "vm2"]).0, Some(0));
    assert!(!socket.exists());
    assert_eq!(ask(&serve, &["guest", "remove", "vm2"]).0, Some(1));
}
