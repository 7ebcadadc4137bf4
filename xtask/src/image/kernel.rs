//! The guest kernel: Debian's source, `images/patches`, `guest-driver/` as `drivers/tmem`, a configuration.
//!
//! One build tree is kept for each (source version, patches, configuration), so that a change of the driver
//! is an incremental build. Results are published by a hash of all inputs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cache::{self, Inputs};
use crate::paths;
use crate::progress::Progress;
use crate::{apt, command};

/// Raised when this module builds something else from the same inputs.
const RECIPE: &str = "1";
/// Steps of a full build of the configuration in `images/kvm.config`, before one was counted here.
const USUAL_STEPS: u64 = 1100;
/// Build trees kept: this one, and the one before it.
const KEPT_TREES: usize = 2;
/// Published kernels kept.
const KEPT_KERNELS: usize = 6;
/// In a build tree: the source is complete and patched.
const READY: &str = ".tmem-ready";

/// A kernel to build.
pub(crate) struct Recipe {
    /// Name in the cache.
    pub(crate) name: &'static str,
    /// `ARCH` of the kernel's makefile.
    pub(crate) arch: &'static str,
    /// Configuration fragment below `images/`.
    pub(crate) config: &'static str,
    /// Folders of patches below `images/`, in the order they are applied.
    pub(crate) patches: &'static [&'static str],
    /// Targets of the kernel's makefile.
    pub(crate) targets: &'static [&'static str],
    /// The files to publish: path in the build tree, published name.
    pub(crate) products: &'static [(&'static str, &'static str)],
}

/// The guest of `tmem run`.
pub(crate) const KVM: Recipe = Recipe {
    name: "kvm",
    arch: "x86_64",
    config: "kvm.config",
    patches: &["patches"],
    targets: &["vmlinux", "bzImage"],
    products: &[("vmlinux", "vmlinux"), ("arch/x86/boot/bzImage", "bzImage")],
};

/// The guest that is a process: User Mode Linux.
pub(crate) const UML: Recipe = Recipe {
    name: "um",
    arch: "um",
    config: "um.config",
    patches: &["patches", "patches-um"],
    targets: &["linux"],
    products: &[("linux", "linux-uml")],
};

/// The source tree of a recipe, and whether its content is complete.
pub(crate) struct Tree {
    pub(crate) path: PathBuf,
    arch: &'static str,
}

impl Tree {
    /// `make` in the tree, with everything fixed that would change the result from run to run.
    pub(crate) fn make(&self) -> Command {
        let jobs = std::thread::available_parallelism().map_or(1, usize::from);
        let mut make = Command::new("nice");
        make.arg("make")
            .arg(format!("-j{jobs}"))
            .arg(format!("ARCH={}", self.arch))
            .args([
                "KBUILD_BUILD_TIMESTAMP=2026-01-01",
                "KBUILD_BUILD_USER=tmem",
                "KBUILD_BUILD_HOST=tmem",
                "KBUILD_BUILD_VERSION=1",
            ]);
        make.current_dir(&self.path)
            .env_remove("MAKEFLAGS")
            .env("LC_ALL", "C");
        make
    }
}

impl Recipe {
    /// The published kernel of the present inputs; built if it is not there. Returns its folder.
    pub(crate) fn build(&self, cache: &Path) -> Result<PathBuf> {
        let (tarball, version) = apt::kernel_source(cache)?;
        let tree_key = self.tree_inputs(&version)?;
        let mut all = tree_key.clone();
        all.path(&paths::root().join("guest-driver"))?;
        let published = cache
            .join("kernels")
            .join(format!("{}-{}", self.name, all.key()));
        if published.exists() {
            return Ok(published);
        }
        let tree = self.prepare(cache, &tarball, &tree_key.key())?;
        let log = tree.path.join("tmem-build.log");
        self.configure(&tree, &log)?;
        let counted = tree.path.join(".tmem-steps");
        let expected = fs::read_to_string(&counted)
            .ok()
            .and_then(|text| text.trim().parse().ok());
        let fresh = !tree.path.join("vmlinux").exists();
        println!(
            "building the guest kernel {version} ({}); log: {}",
            self.name,
            log.display()
        );
        let usual = if fresh { USUAL_STEPS } else { 40 };
        let mut progress = Progress::start(
            &format!("guest kernel ({})", self.name),
            expected.unwrap_or(usual),
        );
        command::logged(tree.make().args(self.targets), &log, |line| {
            let line = line.trim();
            if line.starts_with(|first: char| first.is_ascii_uppercase()) {
                progress.step(line.split_whitespace().last().unwrap_or_default());
            }
        })?;
        let steps = progress.finish();
        if fresh && expected.is_none() {
            fs::write(&counted, steps.to_string())
                .context("cannot note the number of build steps")?;
        }
        cache::publish(&published, |part| {
            for (from, to) in self.products {
                paths::copy(&tree.path.join(from), &part.join(to))?;
            }
            paths::copy(&tree.path.join(".config"), &part.join("config"))
        })?;
        cache::keep_newest(
            &cache.join("kernels"),
            &format!("{}-", self.name),
            KEPT_KERNELS,
        )?;
        Ok(published)
    }

    /// The configured tree with the driver in it, for checks of the C code.
    pub(crate) fn tree(&self, cache: &Path) -> Result<Tree> {
        let (tarball, version) = apt::kernel_source(cache)?;
        let tree = self.prepare(cache, &tarball, &self.tree_inputs(&version)?.key())?;
        self.configure(&tree, &tree.path.join("tmem-build.log"))?;
        Ok(tree)
    }

    fn tree_inputs(&self, version: &str) -> Result<Inputs> {
        let images = paths::root().join("images");
        let mut inputs = Inputs::default();
        inputs
            .text("recipe", RECIPE)
            .text("source", version)
            .text("arch", self.arch)
            .path(&images.join(self.config))?;
        for folder in self.patches {
            inputs.path(&images.join(folder))?;
        }
        Ok(inputs)
    }

    /// The build tree: source, patches, driver. An interrupted unpacking starts over, an interrupted build
    /// goes on.
    fn prepare(&self, cache: &Path, tarball: &Path, key: &str) -> Result<Tree> {
        let trees = cache.join("build");
        let path = trees.join(format!("{}-{key}", self.name));
        if !path.join(READY).exists() {
            let prefix = format!("{}-", self.name);
            println!("unpacking the kernel source to {}", path.display());
            cache::publish(&path, |part| {
                command::run(
                    Command::new("tar")
                        .arg("-xf")
                        .arg(tarball)
                        .args(["--strip-components=1", "-C"])
                        .arg(part),
                )?;
                let mut patches = Vec::new();
                for folder in self.patches {
                    patches.extend(paths::files_below(
                        &paths::root().join("images").join(folder),
                    )?);
                }
                for patch in patches {
                    if patch
                        .extension()
                        .is_none_or(|extension| extension != "patch")
                    {
                        continue;
                    }
                    let mut apply = Command::new("patch");
                    apply
                        .args(["-p1", "--fuzz=0", "-s", "-i"])
                        .arg(&patch)
                        .current_dir(part);
                    command::run(&mut apply)?;
                }
                Ok(fs::write(part.join(READY), "")?)
            })?;
            cache::keep_newest(&trees, &prefix, KEPT_TREES)?;
        }
        place_driver(&paths::root().join("guest-driver"), &path)?;
        Ok(Tree {
            path,
            arch: self.arch,
        })
    }

    fn configure(&self, tree: &Tree, log: &Path) -> Result<()> {
        let fragment = paths::root().join("images").join(self.config);
        let mut make = tree.make();
        make.arg("allnoconfig").env("KCONFIG_ALLCONFIG", &fragment);
        let _ = fs::remove_file(log);
        command::logged(&mut make, log, |_| ())?;
        let wanted = fs::read_to_string(&fragment)?;
        let got = fs::read_to_string(tree.path.join(".config"))
            .context("no .config after allnoconfig")?;
        let lost = lost_options(&wanted, &got);
        if !lost.is_empty() {
            bail!(
                "{}: the kernel did not take {}",
                fragment.display(),
                lost.join(", ")
            );
        }
        Ok(())
    }
}

/// Options of the fragment that are not so in the result: a dependency is missing, or a name is wrong.
fn lost_options<'a>(wanted: &'a str, got: &str) -> Vec<&'a str> {
    let has = |line: &str| got.lines().any(|other| other == line);
    let wanted = wanted
        .lines()
        .map(str::trim)
        .filter(|line| line.starts_with("CONFIG_"));
    wanted
        .filter(|line| match line.strip_suffix("=n") {
            Some(name) => got
                .lines()
                .any(|other| other.starts_with(&format!("{name}="))),
            None => !has(line),
        })
        .collect()
}

/// Puts the driver into the tree. Only what changed is written, so that `make` builds only that.
fn place_driver(driver: &Path, tree: &Path) -> Result<()> {
    let to = tree.join("drivers/tmem");
    let header = Path::new("include/uapi/linux/virtio_tmem.h");
    let source = |name: &str| {
        name.ends_with(".c")
            || name.ends_with(".h")
            || name.starts_with("Kconfig")
            || name == "Makefile"
    };
    let mut kept = Vec::new();
    for file in paths::files_below(driver)? {
        let relative = file.strip_prefix(driver)?;
        let name = relative.file_name().unwrap_or_default().to_string_lossy();
        if relative.starts_with("include") || !source(&name) {
            continue;
        }
        write_if_changed(&file, &to.join(relative))?;
        kept.push(to.join(relative));
    }
    for file in paths::files_below(&to)? {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        if source(&name) && !name.ends_with(".mod.c") && !kept.contains(&file) {
            fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))?;
        }
    }
    write_if_changed(&driver.join(header), &tree.join(header))
}

fn write_if_changed(from: &Path, to: &Path) -> Result<()> {
    let content = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
    if fs::read(to).is_ok_and(|old| old == content) {
        return Ok(());
    }
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    fs::write(to, content).with_context(|| format!("cannot write {}", to.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_that_did_not_take_effect_are_named() {
        let wanted = "# remark\nCONFIG_A=y\nCONFIG_B=y\nCONFIG_C=n\nCONFIG_D=n\nCONFIG_E=\"x\"\n";
        let got = "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_D=y\nCONFIG_E=\"x\"\n";
        assert_eq!(lost_options(wanted, got), ["CONFIG_B=y", "CONFIG_D=n"]);
    }

    #[test]
    fn an_unchanged_driver_file_keeps_its_time_and_a_removed_one_goes() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let (driver, tree) = (folder.path().join("driver"), folder.path().join("tree"));
        let header = "include/uapi/linux/virtio_tmem.h";
        fs::create_dir_all(driver.join("include/uapi/linux")).expect("folder");
        for (name, content) in [
            ("core.c", "1"),
            ("old.c", "2"),
            ("README.md", "3"),
            (header, "4"),
        ] {
            fs::write(driver.join(name), content).expect("write");
        }
        place_driver(&driver, &tree).expect("placed");
        assert!(!tree.join("drivers/tmem/README.md").exists());
        assert!(tree.join(header).exists());
        let time = |name: &str| {
            fs::metadata(tree.join(name))
                .and_then(|data| data.modified())
                .expect("time")
        };
        let before = time("drivers/tmem/core.c");
        fs::remove_file(driver.join("old.c")).expect("remove");
        place_driver(&driver, &tree).expect("placed");
        assert_eq!(before, time("drivers/tmem/core.c"));
        assert!(!tree.join("drivers/tmem/old.c").exists());
    }
}
