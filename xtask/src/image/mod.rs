//! `cargo xtask image`: the guest images, and what the outer machine needs where KVM is not usable.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use tmem_tests::platform;

mod initramfs;
pub(crate) mod kernel;

use crate::{apt, cache, paths};

/// Builds what is missing in the cache and puts it at `target/images`; with `uml`, User Mode Linux too.
pub(crate) fn build(uml: bool) -> Result<()> {
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
    let kernels = [Some(kernel::KVM), uml.then_some(kernel::UML)];
    for recipe in kernels.into_iter().flatten() {
        let kernel = recipe.build(&cache)?;
        for (_, product) in recipe.products {
            put(&kernel.join(product), &to)?;
        }
    }
    println!("images are at {}", to.display());
    Ok(())
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
