//! `cargo xtask package`: the Debian package, with man pages and completions made from the command line.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::binaries::{self, cargo};
use crate::{command, licenses, place};

/// Builds the static binary, the documents and the package.
pub(crate) fn build() -> Result<PathBuf> {
    binaries::build()?;
    let package = assemble()?;
    println!("built {}", package.display());
    Ok(package)
}

/// The package from the static binary that was built last.
pub(crate) fn assemble() -> Result<PathBuf> {
    if !command::exists("cargo-deb") {
        println!("cargo-deb is missing: installing it from source, once");
        command::run(cargo().args(["install", "cargo-deb", "--locked", "--quiet"]))
            .context("install cargo-deb by hand, then try again")?;
    }
    documents()?;
    binaries::install()?;
    let said = command::output(cargo().args([
        "deb",
        "--quiet",
        "--package",
        "tmem",
        "--no-build",
        "--strip",
    ]))?;
    let path = said.lines().last().context("cargo-deb names no package")?;
    Ok(PathBuf::from(path.trim()))
}

/// Man pages, completions and the licences of what is linked in, at `target/release/documents`.
fn documents() -> Result<()> {
    let folder = place::target().join("release/documents");
    let date = release_date()?;
    place::publish(&folder, |part| {
        let mut documents = cargo();
        documents.args([
            "run",
            "--quiet",
            "--package",
            "tmem",
            "--example",
            "documents",
            "--",
        ]);
        command::run(documents.arg(part).arg(date.trim()))?;
        let licenses = part.join("third-party-licenses");
        fs::write(&licenses, licenses::of_the_binary()?)
            .with_context(|| format!("cannot write {}", licenses.display()))?;
        // cargo-deb does not pack what is matched by a pattern. No time in it: the same every time.
        let mut packed = place::files_below(&part.join("man"))?;
        packed.push(licenses);
        command::run(Command::new("gzip").args(["-9", "--no-name"]).args(packed))
    })
}

/// When the version was made: pages of one version are the same, whenever they are built.
fn release_date() -> Result<String> {
    let changelog = place::root().join("packaging/changelog");
    let text = fs::read_to_string(&changelog)
        .with_context(|| format!("cannot read {}", changelog.display()))?;
    let date = text
        .lines()
        .find(|line| line.starts_with(" -- "))
        .and_then(|line| line.split_once(">  "))
        .map(|(_, date)| date)
        .with_context(|| format!("{} has no date", changelog.display()))?;
    command::output(Command::new("date").args(["--utc", "+%F", "--date", date]))
}
