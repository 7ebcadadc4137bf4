//! `test imports`: no file needs, over whatever others, a file that needs it; no crate needs one of a higher layer.
//!
//! | module | holds |
//! |---|---|
//! | [`graph`] | which file needs which, and the circles in that |
//! | [`rust`] | the imports of Rust: `use`, `mod` and paths |
//! | [`c`] | the imports of C: `#include`, and calls of functions of another file |

mod c;
mod graph;
mod rust;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::{build, paths};
use graph::Graph;

/// Crates that may need one another only downwards: each those of the lines above its own.
const LAYERS: &[&[&str]] = &[
    &["tmem-base", "tmem-protocol"],
    &["tmem-control", "tmem-testkit"],
    &["tmem-store"],
    &["tmem-device"],
    &["tmem-serve", "tmem-vmm"],
    &["tmem"],
    &["tmem-tests"],
    &["xtask"],
];

/// Folders of C files that are linked together.
const C_FOLDERS: &[&str] = &["guest-driver"];

/// Reads every file of the checkout.
///
/// # Errors
/// There is a circle, or a crate needs one that is not below it.
pub(crate) fn check() -> Result<()> {
    let root = paths::root();
    let mut graph = Graph::default();
    let workspace = packages(&root.join("Cargo.toml"))?;
    let fuzz = packages(&root.join("fuzz/Cargo.toml"))?;
    let layers = layers(&workspace);
    for package in workspace.iter().chain(&fuzz) {
        for source in &package.sources {
            rust::read(source, &mut graph)?;
        }
    }
    for folder in C_FOLDERS {
        c::read(&root.join(folder), &mut graph)?;
    }
    let circles = graph.circles();
    println!(
        "{} files, {} imports, {} circles",
        graph.files(),
        graph.imports(),
        circles.len()
    );
    let shown = |file: &Path| {
        file.strip_prefix(&root)
            .unwrap_or(file)
            .display()
            .to_string()
    };
    let circles: Vec<String> = circles
        .iter()
        .map(|circle| {
            let steps = circle.iter().map(|step| {
                format!(
                    "  {} needs {} ({})",
                    shown(&step.from),
                    shown(&step.to),
                    step.through
                )
            });
            steps.collect::<Vec<_>>().join("\n")
        })
        .collect();
    ensure!(
        circles.is_empty(),
        "files that need each other; move what both need to a third:\n{}",
        circles.join("\n\n")
    );
    layers
}

/// A package of a workspace.
struct Package {
    name: String,
    /// The first file of each library, program, test and benchmark.
    sources: Vec<PathBuf>,
    /// Packages of this checkout that it needs, but not those of its tests alone.
    needs: Vec<String>,
}

/// The packages of a workspace.
fn packages(manifest: &Path) -> Result<Vec<Package>> {
    let manifest = manifest.to_str().context("the path is not UTF-8")?;
    let metadata = build::metadata(&["--no-deps", "--manifest-path", manifest])?;
    let list = |value: &Value, name: &str| -> Result<Vec<Value>> {
        let list = value.get(name).and_then(Value::as_array);
        Ok(list.with_context(|| format!("no {name}"))?.clone())
    };
    let text = |value: &Value, name: &str| -> Result<String> {
        let text = value.get(name).and_then(Value::as_str);
        Ok(text.with_context(|| format!("no {name}"))?.to_owned())
    };
    let packages = list(&metadata, "packages")?;
    packages
        .iter()
        .map(|package| {
            let needs = list(package, "dependencies")?;
            let needs = needs.iter().filter(|needed| {
                needed.get("path").is_some_and(Value::is_string)
                    && needed.get("kind").is_none_or(Value::is_null)
            });
            Ok(Package {
                name: text(package, "name")?,
                sources: list(package, "targets")?
                    .iter()
                    .map(|target| text(target, "src_path").map(PathBuf::from))
                    .collect::<Result<_>>()?,
                needs: needs
                    .map(|needed| text(needed, "name"))
                    .collect::<Result<_>>()?,
            })
        })
        .collect()
}

/// Every crate needs crates of lower layers only.
fn layers(packages: &[Package]) -> Result<()> {
    let layer: BTreeMap<&str, usize> = LAYERS
        .iter()
        .enumerate()
        .flat_map(|(layer, names)| names.iter().map(move |name| (*name, layer)))
        .collect();
    for package in packages {
        let name = package.name.as_str();
        let Some(own) = layer.get(name) else {
            bail!("{name} has no layer: give it one in xtask/src/imports/mod.rs");
        };
        for needed in &package.needs {
            ensure!(
                layer.get(needed.as_str()).is_some_and(|layer| layer < own),
                "{name} needs {needed}, which is not of a lower layer"
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, needs: &[&str]) -> Package {
        Package {
            name: name.to_owned(),
            sources: Vec::new(),
            needs: needs.iter().map(|&name| name.to_owned()).collect(),
        }
    }

    #[test]
    fn a_crate_may_need_those_of_lower_layers_only() {
        assert!(layers(&[package("tmem-device", &["tmem-store", "tmem-protocol"])]).is_ok());
        for (name, needed) in [
            ("tmem-store", "tmem-device"),
            ("tmem-serve", "tmem-vmm"),
            ("tmem-store", "tmem-unknown"),
            ("tmem-unknown", "tmem-store"),
        ] {
            assert!(
                layers(&[package(name, &[needed])]).is_err(),
                "{name} needs {needed}"
            );
        }
    }
}
