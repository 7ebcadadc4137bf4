//! Initramfs archives: the guest's (busybox, the workloads, `images/init`) and the base of the outer
//! machine's (busybox, the KVM modules, `images/outer-init`), to which a test adds what it runs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use tmem_tests::cpio::Archive;

use crate::cache::{self, Inputs};
use crate::paths;
use crate::{apt, command};

/// Raised when this module builds something else from the same inputs.
const RECIPE: &str = "2";
/// Warnings are errors: the workloads judge everything else.
const COMPILER_FLAGS: &[&str] = &[
    "-static", "-O2", "-s", "-Wall", "-Wextra", "-Werror", "-pthread",
];
/// In the order they are loaded.
const MODULES: &[&str] = &["irqbypass.ko", "kvm.ko", "kvm-amd.ko"];
/// Archives kept of each kind.
const KEPT: usize = 4;

fn busybox(cache: &Path) -> Result<(Vec<u8>, String)> {
    let package = apt::unpacked(cache, "busybox-static")?;
    let path = package.root.join("bin/busybox");
    let path = if path.exists() {
        path
    } else {
        package.root.join("usr/bin/busybox")
    };
    Ok((
        fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?,
        package.version,
    ))
}

fn skeleton(archive: &mut Archive<Vec<u8>>, busybox: &[u8], init: &Path) -> Result<()> {
    for folder in ["bin", "dev", "proc", "sys", "tmp"] {
        archive.folder(folder)?;
    }
    archive.character_device("dev/console", 5, 1)?;
    archive.file("bin/busybox", 0o755, busybox)?;
    let script = fs::read(init).with_context(|| format!("cannot read {}", init.display()))?;
    Ok(archive.file("init", 0o755, &script)?)
}

/// The guest's initramfs; returns the path of `guest.cpio`.
pub(crate) fn guest(cache: &Path) -> Result<PathBuf> {
    let images = paths::root().join("images");
    let (busybox, version) = busybox(cache)?;
    let compiler = command::output(Command::new("gcc").arg("--version"))?;
    let mut inputs = Inputs::default();
    inputs
        .text("recipe", RECIPE)
        .text("busybox", &version)
        .text("gcc", compiler.lines().next().unwrap_or_default())
        .path(&images.join("init"))?
        .path(&images.join("workload"))?;
    let published = cache
        .join("initramfs")
        .join(format!("guest-{}", inputs.key()));
    if !published.exists() {
        cache::publish(&published, |part| {
            let mut archive = Archive::new(Vec::new());
            skeleton(&mut archive, &busybox, &images.join("init"))?;
            for source in paths::files_below(&images.join("workload"))? {
                if source.extension().is_none_or(|extension| extension != "c") {
                    continue;
                }
                let name = source
                    .file_stem()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into_owned();
                let program = part.join(&name);
                command::run(
                    Command::new("gcc")
                        .args(COMPILER_FLAGS)
                        .arg("-o")
                        .arg(&program)
                        .arg(&source),
                )?;
                archive.file(&format!("bin/{name}"), 0o755, &fs::read(&program)?)?;
                fs::remove_file(&program)?;
            }
            Ok(fs::write(part.join("guest.cpio"), archive.finish()?)?)
        })?;
        cache::keep_newest(&cache.join("initramfs"), "guest-", KEPT)?;
    }
    Ok(published.join("guest.cpio"))
}

/// The outer machine's kernel and the base of its initramfs; returns the folder with `outer-vmlinuz` and
/// `outer.cpio`.
pub(crate) fn outer(cache: &Path) -> Result<PathBuf> {
    let init = paths::root().join("images/outer-init");
    let kernel = apt::outer_kernel(cache)?;
    let (busybox, version) = busybox(cache)?;
    let mut inputs = Inputs::default();
    inputs
        .text("recipe", RECIPE)
        .text("busybox", &version)
        .text("kernel", &kernel.version)
        .path(&init)?;
    let published = cache
        .join("initramfs")
        .join(format!("outer-{}", inputs.key()));
    if !published.exists() {
        cache::publish(&published, |part| {
            let files = paths::files_below(&kernel.root)?;
            let find = |matches: &dyn Fn(&str) -> bool, what: &str| {
                let named = |path: &&PathBuf| {
                    matches(&path.file_name().unwrap_or_default().to_string_lossy())
                };
                files
                    .iter()
                    .find(named)
                    .with_context(|| format!("no {what} in the stock kernel's package"))
            };
            paths::copy(
                find(&|name| name.starts_with("vmlinuz-"), "kernel")?,
                &part.join("outer-vmlinuz"),
            )?;
            let mut archive = Archive::new(Vec::new());
            skeleton(&mut archive, &busybox, &init)?;
            archive.folder("modules")?;
            for (number, module) in MODULES.iter().enumerate() {
                let content = fs::read(find(&|name| name == *module, module)?)?;
                archive.file(&format!("modules/{number}-{module}"), 0o644, &content)?;
            }
            Ok(fs::write(part.join("outer.cpio"), archive.finish()?)?)
        })?;
        cache::keep_newest(&cache.join("initramfs"), "outer-", KEPT)?;
    }
    Ok(published)
}
