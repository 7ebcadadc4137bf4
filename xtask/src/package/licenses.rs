//! The licences of the crates that are linked into the binary, from the crates themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::build::{self, TARGET, cargo};
use crate::{command, paths};

/// How the name of a file begins that holds a licence or a notice, in capitals.
const NAMES: &[&str] = &[
    "LICENSE",
    "LICENCE",
    "COPYING",
    "COPYRIGHT",
    "NOTICE",
    "UNLICENSE",
];

/// A third-party crate.
struct Crate {
    name: String,
    license: String,
    folder: PathBuf,
}

/// One text: the crates with their licences, then each text once, under the crates that have it.
pub(crate) fn of_the_binary() -> Result<String> {
    let mut list = String::new();
    let mut texts: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for Crate {
        name,
        license,
        folder,
    } in crates()?
    {
        let files = license_files(&folder)?;
        let remark = if files.is_empty() {
            " (no text of its own)"
        } else {
            ""
        };
        writeln!(list, "  {name:<36} {license}{remark}")?;
        for file in files {
            let bytes =
                fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
            let text = String::from_utf8_lossy(&bytes).replace('\r', "");
            let users = texts.entry(text.trim().to_owned()).or_default();
            users.insert(name.clone());
        }
    }
    let mut all = format!(
        "The binary of tmem has these crates linked in, each under the licence that it names:\n\n{list}\n\
         It also has the standard library of Rust linked in (MIT or Apache-2.0), and the GNU C library\n\
         (LGPL-2.1-or-later; the source of tmem is all that is needed to link it anew).\n\
         Where a crate has no text of its own, the texts of the same licence below are meant.\n"
    );
    for (text, users) in &texts {
        let rule = "=".repeat(78);
        let users: Vec<&str> = users.iter().map(String::as_str).collect();
        write!(all, "\n{rule}\n{}\n{rule}\n\n{text}\n", users.join(", "))?;
    }
    Ok(all)
}

/// The crates of others that `tmem` is linked with, by name.
fn crates() -> Result<Vec<Crate>> {
    let tree = command::output(cargo().args([
        "tree",
        "--locked",
        "--package",
        "tmem",
        "--target",
        TARGET,
        "--edges",
        "normal,no-proc-macro",
        "--prefix",
        "none",
        "--format",
        "{p}",
    ]))?;
    let linked: BTreeSet<(&str, &str)> = tree
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            Some((words.next()?, words.next()?.strip_prefix('v')?))
        })
        .collect();
    let metadata = build::metadata(&["--locked", "--filter-platform", TARGET])?;
    let packages = metadata.pointer("/packages").and_then(Value::as_array);
    let mut crates = Vec::new();
    for package in packages.into_iter().flatten() {
        let text = |key: &str| package.get(key).and_then(Value::as_str);
        let (Some(name), Some(version)) = (text("name"), text("version")) else {
            continue;
        };
        // A package without a source is part of this workspace.
        if !linked.contains(&(name, version)) || text("source").is_none() {
            continue;
        }
        let folder = text("manifest_path").and_then(|path| Path::new(path).parent());
        crates.push(Crate {
            name: format!("{name} {version}"),
            license: text("license")
                .with_context(|| format!("{name} names no licence"))?
                .to_owned(),
            folder: folder
                .with_context(|| format!("{name} is nowhere"))?
                .to_owned(),
        });
    }
    crates.sort_by(|a, b| a.name.cmp(&b.name));
    ensure!(!crates.is_empty(), "no crate is linked into tmem");
    Ok(crates)
}

/// In a crate's folder, and below it as for the C libraries that a crate brings along.
fn license_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = paths::files_below(folder)?;
    files.retain(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let name = name.to_uppercase();
        path.is_file() && NAMES.iter().any(|begin| name.starts_with(begin))
    });
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crates_of_others_are_named_with_their_texts_and_ours_are_not() {
        let text = of_the_binary().expect("cargo knows");
        let (list, texts) = text.split_once("\n=").expect("there are texts");
        for linked in ["  serde ", "  vm-memory ", "  zstd-sys "] {
            assert!(list.contains(linked), "{linked}");
        }
        // Ours, one that only runs at build time, one that only tests have.
        for other in ["  tmem-store ", "  cc ", "  proptest "] {
            assert!(!list.contains(other), "{other}");
        }
        assert!(texts.contains("Permission is hereby granted"));
        // The library inside of a crate.
        assert!(texts.contains("For Zstandard software"));
    }
}
