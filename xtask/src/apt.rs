//! Debian packages. Tools that run on the host are installed; packages that are only used in images (the kernel source,
//! the outer machine's kernel, busybox) are downloaded and unpacked into the cache, never installed.

use std::fs;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{cache, command, paths};

/// Packages for a kernel build and the workloads.
pub(crate) const BUILD: &[&str] = &[
    "bc",
    "bison",
    "flex",
    "gcc",
    "libc6-dev",
    "libelf-dev",
    "make",
    "patch",
    "perl",
    "xz-utils",
];
/// Further packages for the checks.
pub(crate) const CHECK: &[&str] = &["g++", "sparse", "valgrind"];
/// Packages that format man pages, for the checks of the package.
pub(crate) const PAGES: &[&str] = &["groff-base"];
/// Packages that run the outer machine where KVM is not usable.
pub(crate) const OUTER: &[&str] = &["qemu-system-x86"];

fn is_root() -> bool {
    command::output(Command::new("id").arg("-u")).is_ok_and(|id| id.trim() == "0")
}

/// Installed version of a package.
fn installed(package: &str) -> Option<String> {
    let answer = command::output(Command::new("dpkg-query").args([
        "-W",
        "-f",
        "${db:Status-Status} ${Version}",
        package,
    ]))
    .ok()?;
    Some(answer.strip_prefix("installed ")?.trim().to_owned())
}

/// Makes sure that `packages` are installed: says which are missing, and installs them as root or through
/// sudo. Where it may not, the error holds the command to run.
pub(crate) fn require(packages: &[&str]) -> Result<()> {
    if !command::exists("dpkg-query") {
        bail!(
            "this is not a Debian system (no dpkg-query); the images are built from Debian 12 packages"
        );
    }
    let missing: Vec<&str> = packages
        .iter()
        .copied()
        .filter(|package| installed(package).is_none())
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    println!("missing Debian packages: {}", missing.join(" "));
    if !lists_are_there() {
        update()?;
    }
    let mut arguments = vec!["install", "-y", "--no-install-recommends"];
    arguments.extend(&missing);
    if apt_as_root(&arguments).is_err() {
        // Old package lists name files that do not exist any more.
        update()?;
        apt_as_root(&arguments)?;
    }
    Ok(())
}

fn lists_are_there() -> bool {
    fs::read_dir("/var/lib/apt/lists").is_ok_and(|entries| {
        entries
            .flatten()
            .any(|entry| entry.file_name().to_string_lossy().ends_with("_Packages"))
            || command::output(Command::new("apt-cache").args(["show", "linux-source-6.1"])).is_ok()
    })
}

fn update() -> Result<()> {
    apt_as_root(&["update"])
}

fn apt_as_root(arguments: &[&str]) -> Result<()> {
    let by_hand = || {
        format!(
            "run this as root, then try again: apt-get {}",
            arguments.join(" ")
        )
    };
    let mut apt = if is_root() {
        Command::new("apt-get")
    } else if command::exists("sudo") {
        let mut sudo = Command::new("sudo");
        if !std::io::stderr().is_terminal() {
            sudo.arg("-n");
        }
        sudo.args(["DEBIAN_FRONTEND=noninteractive", "apt-get"]);
        sudo
    } else {
        bail!("not root, and there is no sudo; {}", by_hand());
    };
    println!("apt-get {}", arguments.join(" "));
    command::run(
        apt.env("DEBIAN_FRONTEND", "noninteractive")
            // A machine that just started may be updating itself.
            .args(["-q", "-o", "DPkg::Lock::Timeout=300"])
            .args(arguments),
    )
    .with_context(by_hand)
}

/// A package whose files are at hand without being installed.
pub(crate) struct Unpacked {
    /// Its version.
    pub(crate) version: String,
    /// The folder that would be `/` if the package were installed.
    pub(crate) root: PathBuf,
}

/// Downloads and unpacks a package into the cache; one that is there already is used as it is.
pub(crate) fn unpacked(cache: &Path, package: &str) -> Result<Unpacked> {
    let home = cache.join("packages").join(package);
    if let Some(found) = newest_version(&home)? {
        return Ok(found);
    }
    if !lists_are_there() {
        update()?;
    }
    let download = home.join("download");
    println!("downloading the Debian package {package}");
    if fetch(package, &download).is_err() {
        update()?;
        fetch(package, &download).with_context(|| {
            format!("cannot download {package}; the package sources must be those of Debian 12 (bookworm)")
        })?;
    }
    let deb = paths::files_below(&download)?
        .into_iter()
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .with_context(|| format!("apt-get download left no package in {}", download.display()))?;
    let version = command::output(Command::new("dpkg-deb").arg("-f").arg(&deb).arg("Version"))?
        .trim()
        .to_owned();
    let root = home.join(format!("version-{}", version.replace([':', '/'], "_")));
    cache::publish(&root, |part| {
        command::run(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(part))
    })?;
    paths::remove(&download)?;
    Ok(Unpacked { version, root })
}

/// Unpacks packages as [`unpacked`] does, and returns a folder in the cache that has the files of all, as `/` would if
/// they were installed. It is called `name`, and a hash of the versions.
pub(crate) fn merged(cache: &Path, name: &str, packages: &[&str]) -> Result<PathBuf> {
    let mut inputs = cache::Inputs::default();
    let mut roots = Vec::new();
    for package in packages {
        let unpacked = unpacked(cache, package)?;
        inputs.text(package, &unpacked.version);
        roots.push(unpacked.root.join("."));
    }
    let parent = cache.join("merged");
    let merged = parent.join(format!("{name}-{}", inputs.key()));
    if !merged.exists() {
        // Hard links: the cache has the files once.
        cache::publish(&merged, |part| {
            command::run(Command::new("cp").arg("-al").args(&roots).arg(part))
        })?;
        cache::keep_newest(&parent, &format!("{name}-"), 2)?;
    }
    Ok(merged)
}

fn newest_version(home: &Path) -> Result<Option<Unpacked>> {
    let Ok(entries) = fs::read_dir(home) else {
        return Ok(None);
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Some(version) = name
            .strip_prefix("version-")
            .filter(|name| !name.ends_with(".part"))
        {
            found.push((
                entry.metadata()?.modified()?,
                version.to_owned(),
                entry.path(),
            ));
        }
    }
    found.sort();
    Ok(found
        .pop()
        .map(|(_, version, root)| Unpacked { version, root }))
}

fn fetch(package: &str, to: &Path) -> Result<()> {
    paths::remove(to)?;
    fs::create_dir_all(to).with_context(|| format!("cannot make {}", to.display()))?;
    command::output(
        Command::new("apt-get")
            .args(["-q", "download", package])
            .current_dir(to),
    )
    .map(drop)
}

/// The tarball of the guest kernel's source, and its version.
pub(crate) fn kernel_source(cache: &Path) -> Result<(PathBuf, String)> {
    const PACKAGE: &str = "linux-source-6.1";
    const TARBALL: &str = "usr/src/linux-source-6.1.tar.xz";
    let here = Path::new("/").join(TARBALL);
    if let (Some(version), true) = (installed(PACKAGE), here.is_file()) {
        return Ok((here, version));
    }
    let package = unpacked(cache, PACKAGE)?;
    Ok((package.root.join(TARBALL), package.version))
}

/// Debian's stock kernel for virtual machines, for the outer machine.
pub(crate) fn outer_kernel(cache: &Path) -> Result<Unpacked> {
    const META: &str = "linux-image-cloud-amd64";
    let home = cache.join("packages");
    if let Ok(entries) = fs::read_dir(&home) {
        let mut names: Vec<String> = entries
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        for name in names
            .iter()
            .rev()
            .filter(|name| name.ends_with("-cloud-amd64"))
        {
            if newest_version(&home.join(name))?.is_some() {
                return unpacked(cache, name);
            }
        }
    }
    if !lists_are_there() {
        update()?;
    }
    let depends = || command::output(Command::new("apt-cache").args(["depends", META]));
    let answer = depends().or_else(|_| update().and_then(|()| depends()))?;
    let package = answer
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|name| name.ends_with("-cloud-amd64"))
        .with_context(|| format!("{META} names no kernel package"))?;
    unpacked(cache, package)
}
