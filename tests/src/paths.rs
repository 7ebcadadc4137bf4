//! Where built things are.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Cargo's target folder.
pub fn target() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap_or(Path::new("."));
    match env::var_os("CARGO_TARGET_DIR") {
        Some(path) => root.join(path),
        None => root.join("target"),
    }
}

/// A file below the target folder; where it is missing, the error says what makes it.
pub fn built(name: &str) -> Result<PathBuf> {
    let path = target().join(name);
    if !path.is_file() {
        let task = if name.starts_with("images/") {
            "image"
        } else {
            "build"
        };
        bail!(
            "{} is missing: run `cargo xtask {task}` first",
            path.display()
        );
    }
    Ok(path)
}

/// A static binary, where `cargo xtask build` alone writes. At `release/` a benchmark or `cargo build` leaves one that
/// needs the libraries of this machine, which the outer machine does not have.
pub fn binary(name: &str) -> Result<PathBuf> {
    built(&format!("static/{name}"))
}

/// The program that is a [keeper](crate::keeper): the one that Cargo builds with a test, which fits it; otherwise where
/// `cargo xtask build` writes.
pub fn keeper() -> Result<PathBuf> {
    const NAME: &str = "tmem-scenario";
    let ourselves = env::current_exe().context("cannot find our own program")?;
    let folder = ourselves.parent().unwrap_or(Path::new("/"));
    if ourselves.ends_with(NAME) {
        return Ok(ourselves);
    }
    match folder.parent() {
        Some(above) if folder.ends_with("deps") => Ok(above.join(NAME)),
        _ => binary(NAME),
    }
}

/// Whether this is the outer machine: its first process sets a variable, and the files are in its root.
pub fn inside_outer() -> bool {
    env::var_os("TMEM_OUTER").is_some()
}

/// A file of the project, here or in the outer machine.
pub fn file(name: &str) -> Result<PathBuf> {
    if !inside_outer() {
        return if name == "tmem" {
            binary(name)
        } else {
            built(&format!("images/{name}"))
        };
    }
    Ok(if name == "tmem" {
        PathBuf::from("/bin/tmem")
    } else {
        Path::new("/").join(name)
    })
}
