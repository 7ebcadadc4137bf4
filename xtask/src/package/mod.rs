//! `cargo xtask package`: the Debian package, with man pages and completions made from the command line.

pub(crate) mod check;
mod licenses;

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::build::{self, cargo};
use crate::{cache, command, paths};

/// Builds the static binary, the documents and the package.
pub(crate) fn build() -> Result<PathBuf> {
    build::build()?;
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
    build::install()?;
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

/// Man pages, completions and the licences of linked crates, in `target/release/documents`.
fn documents() -> Result<()> {
    let folder = paths::target().join("release/documents");
    let date = release_date()?;
    cache::publish(&folder, |part| {
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
        // cargo-deb does not compress files that a pattern matches. The archive has no time stamp, so it is the same
        // every time.
        let mut packed = paths::files_below(&part.join("man"))?;
        packed.push(licenses);
        command::run(Command::new("gzip").args(["-9", "--no-name"]).args(packed))
    })
}

/// When the version was made: pages of one version are the same, whenever they are built.
fn release_date() -> Result<String> {
    let changelog = paths::root().join("packaging/changelog");
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
