//! One guest: User Mode Linux, a process.

use std::borrow::Cow;
use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use crate::console::Console;
use crate::paths;
use crate::process::{self, Process};

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

/// The guest's name, which is that of its socket.
fn name(socket: &Path) -> Result<Cow<'_, str>> {
    let name = socket.file_name().context("a socket has a name")?;
    Ok(name.to_string_lossy())
}

/// What [`Guest::start`] runs.
pub fn command(socket: &Path, folder: &Path, setup: &Setup<'_>) -> Result<Command> {
    let mut command = Command::new(paths::built("images/linux-uml")?);
    command
        .arg(format!("mem={}", setup.memory))
        .arg(format!(
            "initrd={}",
            paths::built("images/guest.cpio")?.display()
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
        let path = folder.join(format!("{}.disk", name(socket)?));
        File::create(&path)
            .and_then(|file| file.set_len(size))
            .context("cannot make the swap disk")?;
        command.arg(format!("ubd0={}", path.display()));
    }
    // Newer C libraries register restartable sequences, which the kernel then looks for in the address
    // spaces of the guest's processes.
    command.env("GLIBC_TUNABLES", "glibc.pthread.rseq=0");
    Ok(command)
}

/// A running guest; killed when dropped.
pub struct Guest {
    pub(crate) process: Process,
}

impl Guest {
    /// Starts a guest on `socket`. Its files go to `folder`.
    pub fn start(socket: &Path, folder: &Path, setup: &Setup<'_>) -> Result<Self> {
        let name = format!("guest {}", name(socket)?);
        let command = command(socket, folder, setup)?;
        Ok(Self {
            process: Process::start(&name, &command, Stdio::piped())?,
        })
    }

    /// Stops the guest's kernel where it is. What its processes do follows from that.
    pub fn stop(&self) -> Result<()> {
        self.process.signal(Signal::STOP)
    }

    /// Lets it go on.
    pub fn proceed(&self) -> Result<()> {
        self.process.signal(Signal::CONT)
    }

    /// Kills it and the processes it runs its own in, at once.
    pub fn kill(&mut self) {
        // Fails only when it has ended already.
        let _ = self.process.kill();
    }

    /// Reads the console up to a line that starts with `prefix`, and returns that line.
    pub fn wait_for(&mut self, prefix: &str) -> Result<String> {
        self.process.wait_for(prefix, |_| ())
    }

    /// Waits until `condition` is true, and not longer than the guest lives, see [`eventually_with`].
    pub fn eventually(
        &mut self,
        what: &str,
        condition: impl FnMut() -> Result<bool>,
    ) -> Result<()> {
        eventually_with(&mut [self], what, condition)
    }

    /// Sends a line to the console: a guest in `pause` goes on.
    pub fn go_on(&mut self) -> Result<()> {
        self.answer("")
    }

    /// Sends a line to the console: `$answer` of a guest in `pause`.
    pub fn answer(&mut self, line: &str) -> Result<()> {
        self.process.write(line)
    }

    /// Reads the console to its end; the guest must have powered itself off.
    pub fn finish(mut self) -> Result<Console> {
        let status = self.process.end(|_| ())?;
        ensure!(
            status.success() && self.process.log().iter().any(|line| line == "guest off"),
            "the guest ended with {status}; its console ends:\n{}",
            self.process.shown()
        );
        Ok(self.console())
    }

    /// What has been on the console so far.
    pub fn console(&self) -> Console {
        Console::new(self.process.log().to_vec())
    }
}

/// Waits until `condition` is true. It fails when a guest has ended, and has no time limit as long as one of the guests
/// prints new lines.
///
/// # Errors
/// One of the guests ended before, or all said nothing new for [`PATIENCE`].
pub fn eventually_with(
    guests: &mut [&mut Guest],
    what: &str,
    condition: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let mut processes: Vec<&mut Process> =
        guests.iter_mut().map(|guest| &mut guest.process).collect();
    process::eventually(&mut processes, what, condition)
}
