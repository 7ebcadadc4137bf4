//! The outer machine: QEMU emulates a machine with AMD's virtualization, a stock Debian kernel in it loads
//! kvm-amd, and its first process runs `tmem-scenario`. What that prints arrives here over the serial line.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::cpio::Archive;
use crate::place;

/// How much of the serial log an error shows.
const SHOWN_LINES: usize = 60;

/// What to run in an outer machine.
pub struct Outer<'a> {
    /// Arguments of `tmem-scenario`.
    pub arguments: &'a str,
    /// Time until it is ended and called failed.
    pub deadline: Duration,
}

/// QEMU, killed and waited for when dropped.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        // Both fail only when it is gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Outer<'_> {
    /// Boots, runs, and shows each line to `line`. Returns the exit status of `tmem-scenario`.
    ///
    /// # Errors
    /// Something is not built, QEMU is missing, the machine did not get there before the deadline, or ended
    /// without an exit status. The error holds the end of the serial log.
    pub fn run(&self, mut line: impl FnMut(&str)) -> Result<i32> {
        let kernel = place::built("images/outer-vmlinuz")?;
        let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
        let initramfs = folder.path().join("outer.cpio");
        write_initramfs(&initramfs)?;
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args([
                "-accel",
                "tcg,thread=single",
                // Guests of two processors locked up on two: both waited in their timer interrupt for a write to the
                // clock that the interrupt had cut in two. On one they do not (QEMU 7.2).
                "-smp",
                "1",
                "-cpu",
                "max",
            ])
            .args([
                "-m", "1280", "-display", "none", "-monitor", "none", "-serial", "stdio",
            ])
            .args(["-nodefaults", "-no-reboot", "-kernel"])
            .arg(&kernel)
            .arg("-initrd")
            .arg(&initramfs)
            .arg("-append")
            .arg(format!(
                "console=ttyS0 panic=-1 quiet test.run=\"{}\"",
                self.arguments
            ))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut machine = Machine(
            command
                .spawn()
                .context("cannot run qemu-system-x86_64; `cargo xtask image` installs it")?,
        );
        let lines = lines_of(&mut machine.0)?;

        let end = Instant::now() + self.deadline;
        let mut log: Vec<String> = Vec::new();
        let mut status = None;
        loop {
            match lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(text) => {
                    if let Some(number) = text.strip_prefix("outer end ") {
                        status = number.trim().parse().ok();
                    }
                    line(&text);
                    log.push(text);
                }
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    bail!(
                        "not done after {} s; the serial log ends:\n{}",
                        self.deadline.as_secs(),
                        tail(&log)
                    );
                }
            }
        }
        status.with_context(|| {
            format!(
                "the machine ended early; the serial log ends:\n{}",
                tail(&log)
            )
        })
    }
}

/// The end of a log, indented.
pub fn tail(log: &[String]) -> String {
    let shown = log
        .get(log.len().saturating_sub(SHOWN_LINES)..)
        .unwrap_or_default();
    shown
        .iter()
        .map(|line| format!("    | {line}"))
        .collect::<Vec<_>>()
        .join("\n")
}

/// What a child with piped output writes, line by line.
///
/// # Errors
/// Its output is not piped.
pub fn lines_of(child: &mut Child) -> Result<mpsc::Receiver<String>> {
    let (sender, lines) = mpsc::channel();
    let stdout = child.stdout.take().context("standard output is piped")?;
    let stderr = child.stderr.take().context("standard error is piped")?;
    let to_stdout = sender.clone();
    thread::spawn(move || forward(stdout, &to_stdout));
    thread::spawn(move || forward(stderr, &sender));
    Ok(lines)
}

/// Sends each line of a stream, without the terminal's line ends.
pub fn forward(stream: impl io::Read, to: &mpsc::Sender<String>) {
    for line in BufReader::new(stream).split(b'\n') {
        let Ok(line) = line else { break };
        let text = String::from_utf8_lossy(&line)
            .trim_end_matches('\r')
            .to_owned();
        if to.send(text).is_err() {
            break;
        }
    }
}

/// The base archive, followed by one with what runs in the machine. The kernel unpacks both.
fn write_initramfs(to: &Path) -> Result<()> {
    let base = fs::read(place::built("images/outer.cpio")?)?;
    let mut archive = Archive::new(Vec::new());
    for (name, path) in [
        ("bin/tmem", place::binary("tmem")?),
        ("bin/tmem-scenario", place::binary("tmem-scenario")?),
        ("vmlinux", place::built("images/vmlinux")?),
        ("bzImage", place::built("images/bzImage")?),
        ("guest.cpio", place::built("images/guest.cpio")?),
    ] {
        let content = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        archive.file(name, 0o755, &content)?;
    }
    let ours = archive.finish()?;
    let mut file = File::create(to).with_context(|| format!("cannot write {}", to.display()))?;
    file.write_all(&base)?;
    Ok(file.write_all(&ours)?)
}
