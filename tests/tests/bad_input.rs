//! What `tmem run` says to input that cannot work: one line that names the culprit, exit code 2 for usage and
//! 1 for the rest, nothing left behind. No guest is started, so KVM need not be usable.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use tmem_tests::{paths, platform};

/// A folder with a kernel and an initrd that are good as far as anyone can see without booting them.
struct Inputs {
    folder: TempDir,
}

impl Inputs {
    fn new() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        // Where another user may look too.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
        for image in ["vmlinux", "guest.cpio"] {
            fs::copy(
                paths::built(&format!("images/{image}"))?,
                folder.path().join(image),
            )?;
        }
        Ok(Self { folder })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn listing(&self) -> Result<Vec<PathBuf>> {
        let mut paths: Vec<PathBuf> = fs::read_dir(self.folder.path())?
            .flatten()
            .map(|entry| entry.path())
            .collect();
        paths.sort();
        Ok(paths)
    }

    /// `tmem run` with this kernel and initrd and further arguments.
    fn command(&self, program: &Path, kernel: &str, initrd: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command
            .arg("run")
            .arg("--kernel")
            .arg(self.path(kernel))
            .arg("--initrd")
            .arg(self.path(initrd));
        command.args(arguments);
        command
    }

    /// Must fail with `code`, one line on standard error that holds `culprit`, and no new file.
    fn refused(&self, command: &mut Command, code: i32, culprit: &str) -> Result<()> {
        let before = self.listing()?;
        let output = command
            .stdin(Stdio::null())
            .output()
            .context("cannot run tmem")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.code() == Some(code),
            "ended with {}, not {code}: {said}",
            output.status
        );
        ensure!(said.contains(culprit), "does not name {culprit:?}: {said}");
        // The argument parser adds a hint how to get help; what we say ourselves is one line.
        let lines = said.trim().lines().count();
        ensure!(code == 2 || lines == 1, "{lines} lines: {said}");
        ensure!(output.stdout.is_empty(), "it wrote to standard output");
        ensure!(
            self.listing()? == before,
            "left behind: {:?}",
            self.listing()?
        );
        Ok(())
    }

    fn run(
        &self,
        kernel: &str,
        initrd: &str,
        arguments: &[&str],
        code: i32,
        culprit: &str,
    ) -> Result<()> {
        let program = paths::binary("tmem")?;
        self.refused(
            &mut self.command(&program, kernel, initrd, arguments),
            code,
            culprit,
        )
    }
}

#[test]
fn a_missing_kernel_or_initrd_is_named() -> Result<()> {
    let inputs = Inputs::new()?;
    inputs.run("no-kernel", "guest.cpio", &[], 1, "no-kernel")?;
    inputs.run("vmlinux", "no-initrd", &[], 1, "no-initrd")
}

#[test]
fn a_truncated_kernel_is_named() -> Result<()> {
    let inputs = Inputs::new()?;
    for length in [0, 10, 64, 100_000] {
        let mut bytes = fs::read(inputs.path("vmlinux"))?;
        bytes.truncate(length);
        fs::write(inputs.path("short-kernel"), bytes)?;
        inputs.run("short-kernel", "guest.cpio", &[], 1, "short-kernel")?;
    }
    Ok(())
}

#[test]
fn an_initrd_bigger_than_memory_is_named() -> Result<()> {
    let inputs = Inputs::new()?;
    File::create(inputs.path("big-initrd"))?.set_len(65 << 20)?;
    inputs.run(
        "vmlinux",
        "big-initrd",
        &["--memory", "64M"],
        1,
        "big-initrd",
    )
}

#[test]
fn sizes_and_counts_that_do_not_parse_are_usage_errors() -> Result<()> {
    let inputs = Inputs::new()?;
    for (option, value) in [
        ("--memory", "12Q"),
        ("--memory", ""),
        ("--memory", "-1"),
        ("--memory", "99999999999999999999G"),
        ("--tmem", "much"),
        ("--cpus", "0"),
        ("--cpus", "9"),
        ("--cpus", "two"),
        ("--disk", "nothing"),
        ("--disk", "path="),
        ("--disk", "path=x,writable"),
    ] {
        let argument = format!("{option}={value}");
        inputs
            .run("vmlinux", "guest.cpio", &[&argument], 2, option)
            .with_context(|| argument.clone())?;
    }
    inputs.run("vmlinux", "guest.cpio", &["--unknown"], 2, "--unknown")
}

#[test]
fn a_disk_that_cannot_be_opened_is_named() -> Result<()> {
    let inputs = Inputs::new()?;
    let disk = format!("path={}", inputs.path("no-disk").display());
    inputs.run("vmlinux", "guest.cpio", &["--disk", &disk], 1, "no-disk")
}

#[test]
fn a_control_socket_that_exists_is_named_and_kept() -> Result<()> {
    let inputs = Inputs::new()?;
    let socket = inputs.path("taken");
    fs::write(&socket, "mine")?;
    inputs.run(
        "vmlinux",
        "guest.cpio",
        &["--control", &socket.display().to_string()],
        1,
        "taken",
    )?;
    ensure!(
        fs::read_to_string(&socket)? == "mine",
        "the file was changed"
    );
    Ok(())
}

#[test]
fn a_control_socket_path_that_is_too_long_is_named() -> Result<()> {
    let inputs = Inputs::new()?;
    let socket = inputs.path(&"s".repeat(120)).display().to_string();
    inputs.run(
        "vmlinux",
        "guest.cpio",
        &["--control", &socket],
        1,
        "sssssss",
    )
}

#[test]
fn no_permission_on_dev_kvm_is_said() -> Result<()> {
    let root =
        fs::metadata("/proc/self").map(|data| std::os::unix::fs::MetadataExt::uid(&data) == 0)?;
    let closed = fs::metadata("/dev/kvm").is_ok_and(|data| data.permissions().mode() & 0o006 == 0);
    if !root || !closed {
        println!("not checked: needs root, and a /dev/kvm that is not open to all");
        return Ok(());
    }
    let inputs = Inputs::new()?;
    // The target folder may be in a home that others cannot enter.
    fs::copy(paths::binary("tmem")?, inputs.path("tmem"))?;
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(inputs.path("tmem"));
    command
        .arg("run")
        .arg("--kernel")
        .arg(inputs.path("vmlinux"))
        .arg("--initrd")
        .arg(inputs.path("guest.cpio"));
    inputs.refused(&mut command, 1, "/dev/kvm")
}

#[test]
fn kvm_without_hardware_behind_it_is_said() -> Result<()> {
    if platform::kvm_is_usable() {
        println!("not checked: KVM is usable here");
        return Ok(());
    }
    let inputs = Inputs::new()?;
    let socket = inputs.path("control").display().to_string();
    inputs.run(
        "vmlinux",
        "guest.cpio",
        &["--tmem", "64M", "--control", &socket],
        1,
        "/dev/kvm",
    )
}
