//! `cargo xtask build`: the static release binaries, and what else is built as they are.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::{command, paths};

pub(crate) const TARGET: &str = "x86_64-unknown-linux-gnu";
/// The product, and the binary that runs scenarios beside a guest.
const BINARIES: &[(&str, &str)] = &[("tmem", "tmem"), ("tmem-tests", "tmem-scenario")];

/// Cargo, as the one that started us.
pub(crate) fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(paths::root());
    cargo
}

/// The output of `cargo metadata` with these arguments.
pub(crate) fn metadata(arguments: &[&str]) -> Result<Value> {
    let output = command::output(
        cargo()
            .args(["metadata", "--format-version", "1"])
            .args(arguments),
    )?;
    serde_json::from_str(&output).context("cargo metadata wrote no JSON")
}

/// Cargo, for a static and optimized build. It lands in a folder of [`TARGET`], so that no build of ours writes the
/// binaries at `target/release` but [`install`].
pub(crate) fn optimized(verb: &str) -> Command {
    let mut cargo = cargo();
    // A target of its own also keeps the flag away from procedural macros, which cannot be static. As --config,
    // because RUSTFLAGS of the environment would apply to everything.
    cargo.args([verb, "--target", TARGET, "--config"]);
    cargo.arg(format!(
        "target.{TARGET}.rustflags=['-C', 'target-feature=+crt-static']"
    ));
    cargo
}

/// Builds them and puts them into `target/static` and into the usual place: see [`install`].
pub(crate) fn build() -> Result<()> {
    let mut build = optimized("build");
    build.arg("--release");
    for (package, binary) in BINARIES {
        build.args(["--package", package, "--bin", binary]);
    }
    command::run(&mut build)?;
    let from = paths::target().join(TARGET).join("release");
    copy(&from, &paths::target().join("static"))?;
    install()?;
    println!("built {}", paths::target().join("release/tmem").display());
    Ok(())
}

/// Puts the static binaries at `target/release`, which is Cargo's too: `cargo build --release` by hand replaces them by
/// dynamically linked ones.
pub(crate) fn install() -> Result<()> {
    copy(
        &paths::target().join("static"),
        &paths::target().join("release"),
    )
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("cannot make {}", to.display()))?;
    for (_, binary) in BINARIES {
        paths::copy(&from.join(binary), &to.join(binary))?;
    }
    Ok(())
}
