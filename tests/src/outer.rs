//! The outer machine: QEMU emulates a machine with AMD's virtualization, a stock Debian kernel in it loads
//! kvm-amd, and its first process runs `tmem-scenario`. What that prints arrives here over the serial line. Scenarios
//! share a machine: [`run_each`].

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result};

use crate::cpio::Archive;
use crate::paths;
use crate::process::{PATIENCE, Process};
use crate::scenario::Verdict;

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
        let kernel = paths::built("images/outer-vmlinuz")?;
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
        let mut machine = Process::start("the outer machine", &command, Stdio::piped())
            .context("`cargo xtask image` installs QEMU")?;
        // A guest in it that says nothing is given up first: the machine is silent as long as its guest is.
        machine.have_patience(2 * PATIENCE);
        let mut status = None;
        while let Some(text) = machine.next_line_with(wake)? {
            if let Some(number) = text.strip_prefix("outer end ") {
                status = number.trim().parse().ok();
            }
            line(&text);
        }
        status.with_context(|| {
            format!(
                "the machine ended early; the serial log ends:\n{}",
                machine.shown()
            )
        })
    }
}

/// Interrupts a machine that says nothing, once a second. QEMU 7.2 now and then leaves a processor asleep whose interrupt
/// controller has a timer interrupt for it (HLT=1 and IF=1 with a vector in the IRR): it never wakes by itself, and any
/// other interrupt wakes it.
fn wake(machine: &mut Process) {
    // Fails only when the machine has ended, which the next line tells.
    let _ = machine.write("");
}

/// As [`crate::scenario::run_each`], in one outer machine; where that ends before its time, another has the rest.
///
/// # Errors
/// All have run, and the machine did not end as it should.
pub fn run_each(names: &[&str]) -> Result<Vec<Verdict>> {
    run_in(names, |names, verdicts| {
        let arguments = &names.join(" ");
        Outer { arguments }.run(|line| {
            println!("{line}");
            verdicts.extend(Verdict::read(line));
        })
    })
}

/// Runs scenarios in machines. A `machine` runs all it is given unless one of them ends it, which is then the first
/// without a verdict.
fn run_in(
    names: &[&str],
    mut machine: impl FnMut(&[&str], &mut Vec<Verdict>) -> Result<i32>,
) -> Result<Vec<Verdict>> {
    let mut verdicts = Vec::new();
    let mut left = names.to_vec();
    while !left.is_empty() {
        let start = Instant::now();
        let status = machine(&left, &mut verdicts);
        left.retain(|name| !verdicts.iter().any(|verdict| verdict.name == *name));
        let Some(&name) = left.first() else {
            status?;
            break;
        };
        let failure = match status {
            Ok(status) => format!("tmem-scenario ended with {status} and did not say how it went"),
            Err(error) => format!("{error:#}"),
        };
        verdicts.push(Verdict {
            name: name.to_owned(),
            failure: Some(failure),
            seconds: start.elapsed().as_secs(),
        });
        left.remove(0);
    }
    Ok(verdicts)
}

/// The base archive, followed by one with what runs in the machine. The kernel unpacks both.
fn write_initramfs(to: &Path) -> Result<()> {
    let base = fs::read(paths::built("images/outer.cpio")?)?;
    let mut archive = Archive::new(Vec::new());
    for (name, path) in [
        ("bin/tmem", paths::binary("tmem")?),
        ("bin/tmem-scenario", paths::binary("tmem-scenario")?),
        ("vmlinux", paths::built("images/vmlinux")?),
        ("bzImage", paths::built("images/bzImage")?),
        ("guest.cpio", paths::built("images/guest.cpio")?),
    ] {
        let content = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        archive.file(name, 0o755, &content)?;
    }
    let ours = archive.finish()?;
    let mut file = File::create(to).with_context(|| format!("cannot write {}", to.display()))?;
    file.write_all(&base)?;
    Ok(file.write_all(&ours)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::bail;

    fn ended(name: &str, failure: Option<&str>) -> Verdict {
        Verdict {
            name: name.to_owned(),
            failure: failure.map(str::to_owned),
            seconds: 0,
        }
    }

    #[test]
    fn what_ends_its_machine_does_not_keep_the_rest_from_running() {
        let mut machines = Vec::new();
        let verdicts = run_in(&["good", "bad", "worst", "last"], |names, verdicts| {
            machines.push(names.join(" "));
            for name in names {
                match *name {
                    "worst" => bail!("the machine ended early"),
                    "bad" => verdicts.push(ended(name, Some("wrong byte"))),
                    _ => verdicts.push(ended(name, None)),
                }
            }
            Ok(1)
        });
        assert_eq!(machines, ["good bad worst last", "last"]);
        let expected = [
            ended("good", None),
            ended("bad", Some("wrong byte")),
            ended("worst", Some("the machine ended early")),
            ended("last", None),
        ];
        assert_eq!(verdicts.expect("all have run"), expected);
    }

    #[test]
    fn a_machine_that_ends_without_a_word_fails_every_scenario() {
        let verdicts = run_in(&["a", "b"], |_, _| Ok(0)).expect("all have run");
        assert_eq!(verdicts.len(), 2);
        assert!(verdicts.iter().all(|verdict| verdict.failure.is_some()));
    }
}
