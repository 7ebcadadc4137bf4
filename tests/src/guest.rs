//! A guest of a scenario: its console, its disks, and what the host says of it.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::console::Console;
use crate::paths::file;
use crate::process::Process;
use crate::service::{self, Service};
use crate::stats::{Stats, stats_of};
use crate::uml;

pub use crate::process::{PATIENCE, Poll};

/// Size of `/dev/tmemswap0`, unless a scenario sets another: a later parameter on the command line takes precedence.
const SWAP_DISK: &str = "tmem.swap=512M";

/// A guest that is a process, as its service calls it.
const NAME: &str = "vm1";

/// What a guest runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Machine {
    /// KVM, under `tmem run`, which has its pages too unless a service does.
    Kvm,
    /// Nothing but a process, User Mode Linux; a `tmem serve` of its own has its pages.
    Process,
    /// The same, and its driver has no staging pages.
    ProcessUnstaged,
}

impl Machine {
    /// The name of [`Setup::disk`] in the guest.
    pub fn disk(self) -> &'static str {
        match self {
            Self::Kvm => "vda",
            Self::Process | Self::ProcessUnstaged => "ubda",
        }
    }
}

/// How to start a guest.
pub struct Setup {
    /// What it runs on. A process takes its memory, limit, words and disk from here.
    pub machine: Machine,
    /// Memory, as `--memory` takes it.
    pub memory: String,
    /// Processors.
    pub cpus: u8,
    /// Limit of its domain, as `--tmem` takes it; without it the guest has no tmem device.
    pub tmem: Option<&'static str>,
    /// Socket of the service that has its pages, instead of `tmem`.
    pub service: Option<PathBuf>,
    /// Words for the kernel command line.
    pub kernel_words: &'static str,
    /// Size of a swap disk on a host file, see [`Machine::disk`].
    pub disk: Option<u64>,
    /// More arguments of `tmem run`.
    pub options: &'static [&'static str],
    /// Boot the compressed kernel.
    pub compressed: bool,
    /// A terminal to be the standard input; then [`Guest::go_on`] has no way to the guest.
    pub terminal: Option<OwnedFd>,
    /// Show the console on our own output.
    pub show: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self::on(Machine::Kvm)
    }
}

impl Setup {
    /// A guest on `machine`. On each it has about as much memory besides its kernel.
    pub fn on(machine: Machine) -> Self {
        let memory = match machine {
            Machine::Kvm => "40M",
            Machine::Process | Machine::ProcessUnstaged => "32M",
        };
        Self {
            machine,
            memory: memory.into(),
            cpus: 1,
            tmem: Some("256M"),
            service: None,
            kernel_words: "tmem=1",
            disk: None,
            options: &[],
            compressed: false,
            terminal: None,
            show: true,
        }
    }
}

/// A running guest; killed when dropped.
pub struct Guest {
    process: Process,
    /// What has the pages of a guest that is a process.
    service: Option<Service>,
    disk: PathBuf,
    folder: tempfile::TempDir,
    show: bool,
}

/// Shows a line of the console on our own output, if it is to be shown.
fn shown(show: bool) -> impl FnMut(&str) {
    move |line| {
        if show {
            println!("{line}");
        }
    }
}

impl Guest {
    /// Starts a guest that runs `commands` (see `images/init`).
    pub fn start(setup: &Setup, commands: &str) -> Result<Self> {
        let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
        if setup.machine != Machine::Kvm {
            return Self::start_process(setup, commands, folder);
        }
        let disk = folder.path().join("disk");
        let mut command = Command::new(file("tmem")?);
        command
            .arg("run")
            .arg("--kernel")
            .arg(file(if setup.compressed {
                "bzImage"
            } else {
                "vmlinux"
            })?)
            .arg("--initrd")
            .arg(file("guest.cpio")?)
            .args([
                "--memory",
                &setup.memory,
                "--cpus",
                &setup.cpus.to_string(),
                "--cmdline",
            ])
            .arg(format!(
                "quiet {SWAP_DISK} {} test.run=\"{commands}\"",
                setup.kernel_words
            ))
            .arg("--control")
            .arg(folder.path().join("control"))
            .args(setup.options);
        if let Some(socket) = &setup.service {
            command.arg("--tmem-socket").arg(socket);
        } else if let Some(limit) = setup.tmem {
            command.args(["--tmem", limit]);
        }
        if let Some(size) = setup.disk {
            File::create(&disk)
                .and_then(|file| file.set_len(size))
                .context("cannot make the swap disk")?;
            command
                .arg("--disk")
                .arg(format!("path={}", disk.display()));
        }
        let stdin = match &setup.terminal {
            Some(terminal) => {
                Stdio::from(terminal.try_clone().context("cannot share the terminal")?)
            }
            None => Stdio::piped(),
        };
        Ok(Self {
            process: Process::start("the guest", &command, stdin)?,
            service: None,
            disk,
            folder,
            show: setup.show,
        })
    }

    fn start_process(setup: &Setup, commands: &str, folder: tempfile::TempDir) -> Result<Self> {
        let limit = setup.tmem.context("a process has its tmem device")?;
        let service =
            Service::start_in(folder.path(), "512M", &[(NAME, &format!(",limit={limit}"))])?;
        let stage = match setup.machine {
            Machine::ProcessUnstaged => "tmem.stage=0",
            _ => "",
        };
        let words = format!("{SWAP_DISK} {stage} {}", setup.kernel_words);
        let guest = uml::guest::Guest::start(
            &service.socket(NAME),
            folder.path(),
            &uml::guest::Setup {
                memory: &setup.memory,
                words: &words,
                disk: setup.disk,
                commands,
            },
        )?;
        Ok(Self {
            process: guest.process,
            service: Some(service),
            disk: folder.path().join(format!("{NAME}.disk")),
            folder,
            show: setup.show,
        })
    }

    /// The process id of `tmem run`, or of the process that the guest is.
    pub fn process(&self) -> u32 {
        self.process.id()
    }

    /// The folder of its control socket and its disk.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The next console line, or `None` when there is none within `patience`. For those who watch.
    pub fn poll(&mut self, patience: Duration) -> Result<Poll> {
        Ok(self.process.listen(patience))
    }

    /// Reads the console up to a line that starts with `prefix`, and returns that line.
    pub fn wait_for(&mut self, prefix: &str) -> Result<String> {
        let show = shown(self.show);
        self.process.wait_for(prefix, show)
    }

    /// Sends a line to the console: a guest in `pause` goes on.
    pub fn go_on(&mut self) -> Result<()> {
        self.process.write("")
    }

    /// Waits for `pause NAME` of the guest, takes the statistics meanwhile, and lets the guest go on.
    pub fn stats_at_pause(&mut self, name: &str) -> Result<Stats> {
        self.wait_for(&format!("guest pause {name}"))?;
        let host = self.stats()?;
        self.go_on()?;
        Ok(host)
    }

    /// Reads the console to its end. The guest must power itself off, so that `tmem` ends with code 0.
    pub fn finish(mut self) -> Result<Console> {
        let status = self.ended()?;
        ensure!(
            status.success(),
            "tmem ended with {status}; the console ends:\n{}",
            self.process.shown()
        );
        Ok(self.console())
    }

    /// Reads the console to its end and returns the exit status of `tmem`.
    pub fn ended(&mut self) -> Result<ExitStatus> {
        let show = shown(self.show);
        self.process.end(show)
    }

    /// What has been on the console so far.
    pub fn console(&self) -> Console {
        Console::new(self.process.log().to_vec())
    }

    /// `tmem stats --json`, as an operator would run it.
    pub fn stats_command(&self) -> Result<Command> {
        let mut command = Command::new(file("tmem")?);
        command
            .arg("stats")
            .arg("--control")
            .arg(self.folder.path().join("control"))
            .arg("--json");
        command.stdin(Stdio::null());
        Ok(command)
    }

    /// Runs a subcommand of `tmem` against its control socket. `tmem run` calls its guest `guest`.
    ///
    /// # Errors
    /// It did not end with 0.
    pub fn operate(&self, arguments: &[&str]) -> Result<()> {
        service::operate(self.folder(), arguments).map(drop)
    }

    /// The host's statistics.
    pub fn stats(&self) -> Result<Stats> {
        if let Some(service) = &self.service {
            return service.domain_stats(NAME);
        }
        stats_of(self.stats_command()?)
    }

    /// The size of the blocks the swap disk's file really has.
    pub fn disk_used(&self) -> Result<u64> {
        use std::os::unix::fs::MetadataExt;
        Ok(fs::metadata(&self.disk)?.blocks() * 512)
    }

    /// Memory of `tmem run` and its files, in bytes.
    pub fn host_memory(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id()))?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .context("no VmRSS")?;
        let kilobytes: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
        Ok(kilobytes * 1024)
    }
}
