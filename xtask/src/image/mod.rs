//! `cargo xtask image`: the guest images, and what the outer machine needs where KVM is not usable.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use tmem_tests::platform;

mod initramfs;
pub(crate) mod kernel;
mod programs;

use crate::{apt, cache, paths};

/// What is built besides the images of a guest under KVM.
#[derive(Clone, Copy, Default, clap::Args)]
pub(crate) struct More {
    /// Also build target/images/linux-uml, the guest kernel that is a process
    #[arg(long)]
    pub(crate) uml: bool,
    /// Also unpack what benchmarks run in guests, a compiler and Redis, to target/images/programs
    #[arg(long)]
    pub(crate) programs: bool,
}

/// Builds what is missing in the cache and puts it at `target/images`.
pub(crate) fn build(more: More) -> Result<()> {
    let nested = !platform::kvm_is_usable();
    apt::require(apt::BUILD)?;
    if nested {
        apt::require(apt::OUTER)?;
    }
    let cache = paths::cache()?;
    let _lock = cache::CacheLock::take(&cache)?;
    let to = paths::target().join("images");
    fs::create_dir_all(&to).with_context(|| format!("cannot make {}", to.display()))?;

    put(&initramfs::guest(&cache)?, &to)?;
    if nested {
        let outer = initramfs::outer(&cache)?;
        put(&outer.join("outer-vmlinuz"), &to)?;
        put(&outer.join("outer.cpio"), &to)?;
    }
    let kernels = [Some(kernel::KVM), more.uml.then_some(kernel::UML)];
    for recipe in kernels.into_iter().flatten() {
        let kernel = recipe.build(&cache)?;
        for (_, product) in recipe.products {
            put(&kernel.join(product), &to)?;
        }
    }
    if more.programs {
        link(&programs::folder(&cache)?, &to.join("programs"))?;
    }
    println!("images are at {}", to.display());
    Ok(())
}

/// Makes `name` a link to a folder.
fn link(folder: &Path, name: &Path) -> Result<()> {
    match fs::remove_file(name) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => std::os::unix::fs::symlink(folder, name),
    }
    .with_context(|| format!("cannot make the link {}", name.display()))
}

/// Copies a file into a folder unless it is there already, whole and no older.
fn put(from: &Path, folder: &Path) -> Result<()> {
    let to = folder.join(from.file_name().context("an image has a name")?);
    let same = fs::metadata(&to).and_then(|have| {
        let want = fs::metadata(from)?;
        Ok(have.len() == want.len() && fs::read(&to)? == fs::read(from)?)
    });
    if same.is_ok_and(|same| same) {
        return Ok(());
    }
    paths::copy(from, &to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_to_an_older_folder_is_replaced() {
        let parent = tempfile::tempdir().expect("temporary folder");
        let name = parent.path().join("programs");
        for version in ["1", "2"] {
            let folder = parent.path().join(version);
            fs::create_dir(&folder).expect("made");
            link(&folder, &name).expect("linked");
            assert_eq!(fs::read_link(&name).expect("a link"), folder);
        }
    }
}
