//! A real `tmem serve` in a folder of its own.

#![allow(dead_code, reason = "each test uses a part of it")]
#![allow(missing_docs, unreachable_pub, reason = "no public interface")]

use std::ffi::OsStr;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Two guests, `a` and `b`, for [`Serve::configured`].
pub const GUESTS: &str = "
[[guest]]
name = 'a'
socket = 'DIR/a'
queues = 1
[[guest]]
name = 'b'
socket = 'DIR/b'
queues = 1
";

pub struct Serve {
    pub child: Child,
    pub dir: tempfile::TempDir,
}

impl Serve {
    /// With one guest, `vm1`.
    pub fn start() -> Self {
        let dir = tempfile::tempdir().expect("temporary folder");
        let serve = Self {
            child: Self::launch(dir.path()),
            dir,
        };
        serve.answers();
        serve
    }

    fn launch(dir: &std::path::Path) -> Child {
        let at = |name: &str| dir.join(name).display().to_string();
        command(&[
            "serve",
            "--memory=64M",
            &format!("--control={}", at("control")),
            &format!("--guest=name=vm1,socket={},limit=4M", at("vm1")),
        ])
        .spawn()
        .expect("starts")
    }

    /// With a configuration file and the log in the file `log`. The file says `memory` and `control`, and then
    /// `guests`, in which `DIR` is the folder.
    pub fn configured(memory: &str, guests: &str, change: impl FnOnce(&mut Command)) -> Self {
        Self::configured_in(memory, guests, |command, _| change(command))
    }

    /// As [`Self::configured`], with the folder to change.
    pub fn configured_in(
        memory: &str,
        guests: &str,
        change: impl FnOnce(&mut Command, &std::path::Path),
    ) -> Self {
        let dir = tempfile::tempdir().expect("temporary folder");
        let log = std::fs::File::create(dir.path().join("log")).expect("makes");
        let file = dir.path().join("tmem.toml");
        let mut command = command(&["serve", "--config", file.to_str().expect("utf-8")]);
        command.stderr(log);
        std::fs::write(&file, configuration(dir.path(), memory, guests)).expect("writes");
        change(&mut command, dir.path());
        let serve = Self {
            child: command.spawn().expect("starts"),
            dir,
        };
        serve.answers();
        serve
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).expect("is there")
    }

    pub fn kill(&mut self) {
        self.child.kill().expect("is running");
        self.child.wait().expect("ends");
    }

    pub fn start_again(&mut self) {
        self.child = Self::launch(self.dir.path());
        self.answers();
    }

    fn answers(&self) {
        // The last thing to be made.
        eventually("control socket", || {
            UnixStream::connect(self.path("control")).is_ok()
        });
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs a subcommand against it: exit code, and standard output with error.
    pub fn ask(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let control = self.path("control");
        let Output {
            status,
            stdout,
            stderr,
        } = command(arguments)
            .arg("--control")
            .arg(control)
            .output()
            .expect("runs");
        let text = [stdout, stderr].concat();
        (status.code(), String::from_utf8_lossy(&text).into_owned())
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn configuration(dir: &std::path::Path, memory: &str, guests: &str) -> String {
    let dir = dir.display().to_string();
    format!("memory = '{memory}'\ncontrol = '{dir}/control'\n") + &guests.replace("DIR", &dir)
}

/// A program that ends when the test does, even when that is killed. `setpriv` becomes it, so the process is the same.
pub fn bound(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).arg(program);
    command
}

/// `tmem`, which ends when the test does.
pub fn command(arguments: &[&str]) -> Command {
    let mut command = bound(env!("CARGO_BIN_EXE_tmem"));
    command.args(arguments).stdin(Stdio::null());
    command
}

pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not in time");
        std::thread::sleep(Duration::from_millis(5));
    }
}
