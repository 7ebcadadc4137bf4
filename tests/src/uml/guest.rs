//! One guest: User Mode Linux, a process.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process_group};

use super::PATIENCE;
use crate::guest::Console;
use crate::outer::lines_of;
use crate::place;

/// How much of the console an error shows.
const SHOWN_LINES: usize = 100;

/// How to start a guest.
pub struct Setup<'a> {
    /// Memory, as the kernel's `mem=` takes it.
    pub memory: &'a str,
    /// Words for the kernel command line.
    pub words: &'a str,
    /// Size of a swap disk on a host file, `/dev/ubda`.
    pub disk: Option<u64>,
    /// Shell commands, see `images/init`. What ends them resets the guest, and a guest of this kind boots again in
    /// place; so the last is [`END`] unless that is wanted.
    pub commands: &'a str,
}

/// Ends a guest.
pub const END: &str = "echo guest off; poweroff -f";

impl Default for Setup<'_> {
    fn default() -> Self {
        Self {
            memory: "32M",
            words: "tmem=1",
            disk: None,
            commands: END,
        }
    }
}

/// A running guest; killed when dropped.
pub struct Guest {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    log: Vec<String>,
    name: String,
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Guest {
    /// Starts a guest on `socket`. Its files go to `folder`.
    pub fn start(socket: &Path, folder: &Path, setup: &Setup<'_>) -> Result<Self> {
        let name = socket
            .file_name()
            .context("a socket has a name")?
            .to_string_lossy()
            .into_owned();
        let mut command = Command::new(place::built("images/linux-uml")?);
        command
            .arg(format!("mem={}", setup.memory))
            .arg(format!(
                "initrd={}",
                place::built("images/guest.cpio")?.display()
            ))
            .args([
                "con=null",
                "con0=fd:0,fd:1",
                "root=/dev/ram0",
                "rdinit=/init",
            ])
            .arg(format!("uml_dir={}/", folder.display()))
            .arg(format!("virtio_uml.device={}:60", socket.display()))
            .args(setup.words.split_whitespace())
            .arg(format!("test.run=\"{}\"", setup.commands));
        if let Some(size) = setup.disk {
            let path = folder.join(format!("{name}.disk"));
            File::create(&path)
                .and_then(|file| file.set_len(size))
                .context("cannot make the swap disk")?;
            command.arg(format!("ubd0={}", path.display()));
        }
        command
            // Newer C libraries register restartable sequences, which the kernel then looks for in the address
            // spaces of the guest's processes.
            .env("GLIBC_TUNABLES", "glibc.pthread.rseq=0")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().context("cannot run linux-uml")?;
        let stdin = child.stdin.take();
        let lines = lines_of(&mut child)?;
        Ok(Self {
            child,
            stdin,
            lines,
            log: Vec::new(),
            name,
        })
    }

    /// The process id of the guest's kernel.
    pub fn process(&self) -> u32 {
        self.child.id()
    }

    /// Kills it and the processes it runs its own in, at once.
    pub fn kill(&mut self) {
        // It leads a session of its own. Until it does, it has no other process.
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }

    /// Reads the console up to a line that starts with `prefix`, and returns that line.
    pub fn wait_for(&mut self, prefix: &str) -> Result<String> {
        let end = Instant::now() + PATIENCE;
        loop {
            match self.next(end)? {
                Some(line) if line.starts_with(prefix) => return Ok(line),
                Some(_) => (),
                None => bail!(
                    "guest {} ended before a line {prefix:?}; its console:\n{}",
                    self.name,
                    self.shown()
                ),
            }
        }
    }

    fn next(&mut self, end: Instant) -> Result<Option<String>> {
        let left = end.saturating_duration_since(Instant::now());
        match self.lines.recv_timeout(left) {
            Ok(line) => {
                self.log.push(line.clone());
                Ok(Some(line))
            }
            Err(RecvTimeoutError::Disconnected) => Ok(None),
            Err(RecvTimeoutError::Timeout) => bail!(
                "guest {} is not done in time; its console ends:\n{}",
                self.name,
                self.shown()
            ),
        }
    }

    fn shown(&self) -> String {
        let from = self.log.len().saturating_sub(SHOWN_LINES);
        self.log.get(from..).unwrap_or_default().join("\n")
    }

    /// Sends a line to the console: a guest in `pause` goes on.
    pub fn go_on(&mut self) -> Result<()> {
        self.answer("")
    }

    /// Sends a line to the console: `$answer` of a guest in `pause`.
    pub fn answer(&mut self, line: &str) -> Result<()> {
        let stdin = self.stdin.as_mut().context("the console is open")?;
        stdin
            .write_all(format!("{line}\n").as_bytes())
            .and_then(|()| stdin.flush())
            .context("cannot write to the console")
    }

    /// Reads the console to its end; the guest must have powered itself off.
    pub fn finish(mut self) -> Result<Console> {
        let end = Instant::now() + PATIENCE;
        while self.next(end)?.is_some() {}
        let status = self.child.wait()?;
        ensure!(
            status.success() && self.log.iter().any(|line| line == "guest off"),
            "guest {} ended with {status}; its console ends:\n{}",
            self.name,
            self.shown()
        );
        Ok(Console::new(std::mem::take(&mut self.log)))
    }

    /// What has been on the console so far.
    pub fn console(&self) -> Console {
        Console::new(self.log.clone())
    }
}
