//! `tmem serve` as a child process, and what the kernel says about it.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use tmem_testkit::frontend::eventually;

/// A running service. Dropping it ends it.
pub(crate) struct Served {
    child: Child,
    dir: tempfile::TempDir,
}

impl Served {
    /// Starts `tmem serve` for guests of these names.
    pub(crate) fn start(names: &[String]) -> Self {
        let dir = tempfile::tempdir().expect("temporary folder");
        let mut command = Command::new(env!("CARGO_BIN_EXE_tmem"));
        command.args(["serve", "--memory=2G", "--control"]);
        command.arg(dir.path().join("control"));
        for name in names {
            let socket = dir.path().join(name);
            command.arg(format!(
                "--guest=name={name},socket={},queues=1",
                socket.display()
            ));
        }
        command.stdin(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().expect("tmem starts");
        let served = Self { child, dir };
        // Made last.
        eventually("control socket", || served.socket("control").exists());
        served
    }

    pub(crate) fn socket(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn tasks(&self) -> impl Iterator<Item = PathBuf> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id())).expect("it runs");
        tasks.map(|task| task.expect("it runs").path())
    }

    /// Keeps the thread that serves guest `name` on one processor.
    pub(crate) fn pin(&self, name: &str, cpu: usize) {
        let thread = self
            .tasks()
            .find(|task| {
                let comm = fs::read_to_string(task.join("comm")).unwrap_or_default();
                comm.trim_end() == format!("guest {name}")
            })
            .expect("the guest has a thread");
        let id = thread.file_name().and_then(|name| name.to_str());
        let id = id.and_then(|id| id.parse().ok()).and_then(Pid::from_raw);
        pin(Some(id.expect("a thread id")), cpu);
    }

    /// CPU time of all its threads, in nanoseconds.
    pub(crate) fn cpu_nanos(&self) -> u64 {
        self.tasks()
            .map(|task| {
                let stat = fs::read_to_string(task.join("schedstat")).expect("it runs");
                let nanos = stat.split(' ').next().and_then(|first| first.parse().ok());
                nanos.unwrap_or(0u64)
            })
            .sum()
    }

    /// Resident memory, in bytes: its own, and what is touched of guest memory.
    pub(crate) fn resident_bytes(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()));
        let status = status.expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.trim().split(' ').next()?.parse::<u64>().ok());
        kib.expect("a number") * 1024
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        let _ = kill_process(pid.expect("a process id"), Signal::TERM);
        let _ = self.child.wait();
    }
}

/// Keeps a thread (`None`: this one) on one processor, if there is such a processor.
pub(crate) fn pin(thread: Option<Pid>, cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu);
    match sched_setaffinity(thread, &set) {
        Ok(()) | Err(Errno::INVAL) => {}
        Err(error) => panic!("cannot pin a thread: {error}"),
    }
}

/// Runs `act` with this thread on one processor.
pub(crate) fn pinned<R>(cpu: usize, act: impl FnOnce() -> R) -> R {
    let before = sched_getaffinity(None).expect("own affinity");
    pin(None, cpu);
    let result = act();
    sched_setaffinity(None, &before).expect("as it was");
    result
}
