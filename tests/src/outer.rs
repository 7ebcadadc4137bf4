//! The outer machine: QEMU emulates a machine with AMD's virtualization, a stock Debian kernel in it loads
//! kvm-amd, and its first process runs `tmem-scenario`. What that prints arrives here over the serial line.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::cpio::Archive;
use crate::place;
use crate::process::Process;

/// What to run in an outer machine.
pub struct Outer<'a> {
    /// Arguments of `tmem-scenario`.
    pub arguments: &'a str,
}

impl Outer<'_> {
    /// Boots, runs, and shows each line to `line`. Returns the exit status of `tmem-scenario`.
    ///
    /// # Errors
    /// Something is not built, QEMU is missing, the machine made no progress, or ended
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
            ));
        let mut machine = Process::start("the outer machine", &command, Stdio::null())
            .context("`cargo xtask image` installs QEMU")?;
        let mut status = None;
        machine.end(|text| {
            if let Some(number) = text.strip_prefix("outer end ") {
                status = number.trim().parse().ok();
            }
            line(text);
        })?;
        status.with_context(|| {
            format!(
                "the machine ended early; the serial log ends:\n{}",
                machine.shown()
            )
        })
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
