//! Where things are: the checkout, the target folder, the cache; and files there.

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The root of the checkout.
pub(crate) fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}

/// Cargo's target folder.
pub(crate) fn target() -> PathBuf {
    tmem_tests::paths::target()
}

/// `$TMEM_CACHE`, else `$XDG_CACHE_HOME/tmem`, else `~/.cache/tmem`; made if it is not there.
pub(crate) fn cache() -> Result<PathBuf> {
    let set = |name| {
        env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let path = match (set("TMEM_CACHE"), set("XDG_CACHE_HOME"), set("HOME")) {
        (Some(path), _, _) => path,
        (None, Some(base), _) => base.join("tmem"),
        (None, None, Some(home)) => home.join(".cache/tmem"),
        (None, None, None) => bail!("no place for a cache: set TMEM_CACHE to a folder"),
    };
    fs::create_dir_all(&path)
        .with_context(|| format!("cannot make the cache folder {}", path.display()))?;
    path.canonicalize()
        .with_context(|| format!("cannot use the cache folder {}", path.display()))
}

/// Every file below `path` (or `path` itself), sorted.
pub(crate) fn files_below(path: &Path) -> Result<Vec<PathBuf>> {
    if path.is_file() {
        return Ok(vec![path.to_path_buf()]);
    }
    let mut found = Vec::new();
    let mut folders = vec![path.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let entries =
            fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
        for entry in entries {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            } else {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Removes a folder if it is there.
pub(crate) fn remove(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Writes a file, and makes its folder if it is not there.
pub(crate) fn write(to: &Path, content: &str) -> Result<()> {
    let folder = to.parent().unwrap_or(to);
    fs::create_dir_all(folder)
        .and_then(|()| fs::write(to, content))
        .with_context(|| format!("cannot write {}", to.display()))
}

/// Copies a file so that its new name is never seen half written.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<()> {
    let part = to.with_extension("part");
    fs::copy(from, &part)
        .and_then(|_| fs::rename(&part, to))
        .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
}
