//! `tmem serve` beside the guests.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::guest::{Figures, PATIENCE, file, stats_of};

/// A running service; killed when dropped.
pub struct Service {
    child: Child,
    control: PathBuf,
}

impl Drop for Service {
    fn drop(&mut self) {
        // Both fail only when it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Service {
    /// Starts a service with its sockets in `folder`, one for each of `guests`, and waits until it listens.
    pub fn start(folder: &Path, guests: &[&str]) -> Result<Self> {
        let control = folder.join("service");
        let mut command = Command::new(file("tmem")?);
        command.args(["serve", "--memory", "512M", "--control"]);
        command.arg(&control);
        for guest in guests {
            command.arg("--guest");
            command.arg(format!(
                "name={guest},socket={}",
                socket(folder, guest).display()
            ));
        }
        let child = command
            .stdin(Stdio::null())
            .spawn()
            .context("cannot run tmem serve")?;
        let mut service = Self { child, control };
        let end = Instant::now() + PATIENCE;
        while !service.control.exists() {
            if let Some(status) = service.child.try_wait()? {
                bail!("tmem serve ended with {status}");
            }
            ensure!(Instant::now() < end, "tmem serve makes no control socket");
            thread::sleep(Duration::from_millis(20));
        }
        Ok(service)
    }

    /// The process id.
    pub fn process(&self) -> u32 {
        self.child.id()
    }

    /// Its figures of one guest.
    pub fn stats(&self, guest: &str) -> Result<Figures> {
        let mut command = Command::new(file("tmem")?);
        command.args(["stats", "--json", "--control"]);
        command.arg(&self.control);
        let Figures(all) = stats_of(command)?;
        let domains = all.pointer("/domains").and_then(Value::as_array);
        let domain = domains
            .into_iter()
            .flatten()
            .find(|domain| domain.pointer("/name").and_then(Value::as_str) == Some(guest));
        let domain = domain.with_context(|| format!("the service does not know {guest}"))?;
        Ok(Figures(json!({ "domains": [domain] })))
    }

    /// SIGTERM. Returns the exit status and how long it took.
    pub fn terminate(mut self) -> Result<(ExitStatus, Duration)> {
        let start = Instant::now();
        Command::new("kill")
            .args(["-TERM", &self.child.id().to_string()])
            .status()
            .context("cannot run kill")?;
        let status = self.child.wait()?;
        Ok((status, start.elapsed()))
    }
}

/// The socket of a guest.
pub fn socket(folder: &Path, guest: &str) -> PathBuf {
    folder.join(guest)
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
