//! `cargo xtask build`: the static release binaries.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result};

use crate::{command, place};

const TARGET: &str = "x86_64-unknown-linux-gnu";
/// The product, and the binary that runs scenarios beside a guest.
const BINARIES: &[(&str, &str)] = &[("tmem", "tmem"), ("tmem-tests", "tmem-scenario")];

/// Cargo, as the one that started us.
pub(crate) fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(place::root());
    cargo
}

/// Builds them and puts them at `target/release`.
pub(crate) fn build() -> Result<()> {
    let mut build = cargo();
    // A target of its own keeps the flag away from procedural macros, which cannot be static. As --config,
    // because RUSTFLAGS of the environment would apply to everything.
    build.args(["build", "--release", "--target", TARGET, "--config"]);
    build.arg(format!(
        "target.{TARGET}.rustflags=['-C', 'target-feature=+crt-static']"
    ));
    for (package, binary) in BINARIES {
        build.args(["--package", package, "--bin", binary]);
    }
    command::run(&mut build)?;
    let from = place::target().join(TARGET).join("release");
    let to = place::target().join("release");
    fs::create_dir_all(&to).with_context(|| format!("cannot make {}", to.display()))?;
    for (_, binary) in BINARIES {
        place::copy(&from.join(binary), &to.join(binary))?;
    }
    println!("built {}", to.join("tmem").display());
    Ok(())
}
