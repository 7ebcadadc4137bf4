//! `tmem serve` as a process.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::paths::file;
use crate::process::{PATIENCE, Process, eventually, tail};
use crate::stats::Stats;

/// A running service; killed when dropped, and its log shown if the test fails.
pub struct Service {
    process: Process,
    folder: PathBuf,
    /// Removed with the service, unless the caller owns the folder.
    _own: Option<tempfile::TempDir>,
}

impl Drop for Service {
    fn drop(&mut self) {
        // Fails only when it has ended already.
        let _ = self.kill();
        // Shown by the test runner when the test fails.
        let log = self.process.drain();
        if !log.is_empty() {
            println!("the service's log:\n{}", tail(log));
        }
    }
}

impl Service {
    /// Starts a service of `memory` (as `--memory` takes it). Each guest is what follows `name=NAME,socket=PATH` of
    /// `--guest`: a name, then its settings (with their comma).
    pub fn start(memory: &str, guests: &[(&str, &str)]) -> Result<Self> {
        let own = tempfile::tempdir().context("cannot make a temporary folder")?;
        let mut service = Self::start_in(own.path(), memory, guests)?;
        service._own = Some(own);
        Ok(service)
    }

    /// The same with its sockets in `folder`, where another may have had them before.
    pub fn start_in(folder: &Path, memory: &str, guests: &[(&str, &str)]) -> Result<Self> {
        let mut command = Command::new(file("tmem")?);
        command
            .args(["serve", "--memory", memory, "--control"])
            .arg(folder.join("control"));
        for (name, settings) in guests {
            command
                .arg("--guest")
                .arg(format!("{}{settings}", described(folder, name)));
        }
        let mut process = Process::start("tmem serve", &command, Stdio::null())?;
        eventually(&mut [&mut process], "the service answers", || {
            Ok(stats(folder).is_ok())
        })?;
        Ok(Self {
            process,
            folder: folder.to_owned(),
            _own: None,
        })
    }

    /// The folder of its sockets.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The process id.
    pub fn process(&self) -> u32 {
        self.process.id()
    }

    /// The socket of a guest.
    pub fn socket(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Runs a subcommand of `tmem` against the service and returns what it wrote.
    ///
    /// # Errors
    /// It did not end with 0.
    pub fn operate(&self, arguments: &[&str]) -> Result<String> {
        operate(&self.folder, arguments)
    }

    /// `tmem guest add`, with settings as in [`Self::start`].
    pub fn add(&self, name: &str, settings: &str) -> Result<()> {
        let guest = format!("{}{settings}", described(&self.folder, name));
        self.operate(&["guest", "add", &guest]).map(drop)
    }

    /// The reply of `tmem stats --json`.
    pub fn stats(&self) -> Result<Value> {
        stats(&self.folder)
    }

    /// The statistics of one guest.
    pub fn domain_stats(&self, name: &str) -> Result<Stats> {
        domain_stats(&self.stats()?, name)
    }

    /// Stops all its threads where they are.
    pub fn hang(&self) -> Result<()> {
        self.process.signal(Signal::STOP)
    }

    /// Lets them go on.
    pub fn proceed(&self) -> Result<()> {
        self.process.signal(Signal::CONT)
    }

    /// Kills it.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        self.process.kill()
    }

    /// Sends SIGTERM and waits for the end. Returns how it ended, and the time from the signal.
    pub fn terminate(&mut self) -> Result<(ExitStatus, Duration)> {
        let start = Instant::now();
        self.process.signal(Signal::TERM)?;
        while start.elapsed() < PATIENCE {
            if let Some(status) = self.process.try_wait()? {
                return Ok((status, start.elapsed()));
            }
            thread::sleep(Duration::from_millis(2));
        }
        bail!("the service did not end")
    }
}

/// The statistics of one guest among those of all.
///
/// # Errors
/// There is no such guest.
pub fn domain_stats(stats: &Value, name: &str) -> Result<Stats> {
    let domains = stats.pointer("/domains").and_then(Value::as_array);
    let found = domains
        .into_iter()
        .flatten()
        .find(|domain| domain.pointer("/name").and_then(Value::as_str) == Some(name))
        .with_context(|| format!("the service knows no guest {name}"))?;
    Ok(Stats(json!({ "domains": [found] })))
}

/// Runs a subcommand of `tmem` against the control socket in `folder` and returns what it wrote.
pub(crate) fn operate(folder: &Path, arguments: &[&str]) -> Result<String> {
    let output = Command::new(file("tmem")?)
        .args(arguments)
        .arg("--control")
        .arg(folder.join("control"))
        .stdin(Stdio::null())
        .output()
        .context("cannot run tmem")?;
    ensure!(
        output.status.success(),
        "tmem {}: {}: {}",
        arguments.join(" "),
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn stats(folder: &Path) -> Result<Value> {
    let text = operate(folder, &["stats", "--json"])?;
    serde_json::from_str(&text).context("tmem stats --json wrote no JSON")
}

fn described(folder: &Path, name: &str) -> String {
    format!("name={name},socket={}", folder.join(name).display())
}

/// Nanoseconds that all threads of a process have been on a processor.
pub fn processor_time(process: u32) -> Result<u64> {
    let mut time = 0;
    for entry in fs::read_dir(format!("/proc/{process}/task"))? {
        let stat = fs::read_to_string(entry?.path().join("schedstat"))?;
        let first = stat.split_whitespace().next().context("empty schedstat")?;
        time += first.parse::<u64>()?;
    }
    Ok(time)
}
