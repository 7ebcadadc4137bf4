//! The cache. It is outside the checkout, so that a clean clone finds the kernel that an earlier one built.
//!
//! Whatever is there is named by a hash of what it was made from, and appears under its name only when complete.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::paths::{files_below, remove};

/// Held while the cache is changed: two runs do not collide. Given back when dropped, or when we die.
pub(crate) struct CacheLock {
    _file: File,
}

impl CacheLock {
    /// Takes the lock of `cache`, and prints a message when another run holds it.
    pub(crate) fn take(cache: &Path) -> Result<Self> {
        let path = cache.join("lock");
        let file =
            File::create(&path).with_context(|| format!("cannot open {}", path.display()))?;
        if file.try_lock().is_err() {
            println!("waiting for another run that uses {}", cache.display());
            file.lock()
                .with_context(|| format!("cannot lock {}", path.display()))?;
        }
        Ok(Self { _file: file })
    }
}

/// Hash of everything something is made from.
#[derive(Clone, Default)]
pub(crate) struct Inputs(Sha256);

impl Inputs {
    /// Adds a named value.
    pub(crate) fn text(&mut self, name: &str, value: &str) -> &mut Self {
        self.bytes(name, value.as_bytes())
    }

    fn bytes(&mut self, name: &str, value: &[u8]) -> &mut Self {
        for part in [name.as_bytes(), value] {
            self.0.update(part.len().to_le_bytes());
            self.0.update(part);
        }
        self
    }

    /// Adds a file's content, or every file below a folder, by its name relative to `path`.
    pub(crate) fn path(&mut self, path: &Path) -> Result<&mut Self> {
        for file in files_below(path)? {
            let name = file
                .strip_prefix(path)
                .unwrap_or(&file)
                .to_string_lossy()
                .into_owned();
            let mut content = Vec::new();
            File::open(&file)
                .and_then(|mut open| open.read_to_end(&mut content))
                .with_context(|| format!("cannot read {}", file.display()))?;
            self.bytes(&name, &content);
        }
        Ok(self)
    }

    /// Sixteen hexadecimal digits.
    pub(crate) fn key(&self) -> String {
        self.0
            .clone()
            .finalize()
            .iter()
            .take(8)
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }
}

/// Makes folder `to` by filling a temporary one beside it and renaming: it is there whole, or not at all.
pub(crate) fn publish(to: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let parent = to.parent().context("a published folder has a parent")?;
    fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    let mut name = to.file_name().unwrap_or_default().to_os_string();
    name.push(".part");
    let part = parent.join(name);
    remove(&part)?;
    fs::create_dir(&part).with_context(|| format!("cannot make {}", part.display()))?;
    fill(&part)?;
    remove(to)?;
    fs::rename(&part, to)
        .with_context(|| format!("cannot rename {} to {}", part.display(), to.display()))
}

/// Keeps the `keep` newest folders of `parent` whose names start with `prefix`.
pub(crate) fn keep_newest(parent: &Path, prefix: &str, keep: usize) -> Result<()> {
    let mut found = Vec::new();
    for entry in
        fs::read_dir(parent).with_context(|| format!("cannot read {}", parent.display()))?
    {
        let entry = entry?;
        let about = entry.metadata()?;
        if about.is_dir() && entry.file_name().to_string_lossy().starts_with(prefix) {
            found.push((about.modified()?, entry.path()));
        }
    }
    found.sort();
    for (_, path) in found.iter().rev().skip(keep) {
        remove(path)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    #[test]
    fn key_follows_names_and_contents() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let key = |folder: &Path| Inputs::default().path(folder).expect("readable").key();
        fs::write(folder.path().join("a"), "1").expect("write");
        let first = key(folder.path());
        assert_eq!(first, key(folder.path()));
        fs::write(folder.path().join("a"), "2").expect("write");
        let second = key(folder.path());
        assert_ne!(first, second);
        fs::rename(folder.path().join("a"), folder.path().join("b")).expect("rename");
        assert_ne!(second, key(folder.path()));
    }

    #[test]
    fn the_newest_folders_are_kept_and_files_beside_them_count_for_nothing() {
        let parent = tempfile::tempdir().expect("temporary folder");
        let path = |name: &str| parent.path().join(name);
        for (age, name) in (0..).zip(["um-4", "um-3", "um-2", "um-1"]) {
            fs::create_dir(path(name)).expect("made");
            let file = path(name).with_extension("steps");
            fs::write(&file, "1").expect("written");
            for path in [path(name), file] {
                let made = std::time::SystemTime::now() - std::time::Duration::from_secs(age);
                let opened = fs::File::open(path).expect("opens");
                opened.set_modified(made).expect("changed");
            }
        }
        fs::create_dir(path("kvm-1")).expect("made");
        keep_newest(parent.path(), "um-", 2).expect("removed");
        let there = ["um-1", "um-2", "um-3", "um-4", "kvm-1"].map(|name| path(name).exists());
        assert_eq!(there, [false, false, true, true, true]);
    }

    #[test]
    fn a_failed_fill_publishes_nothing_and_the_next_one_starts_clean() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let to = folder.path().join("result");
        let failed = publish(&to, |part| {
            fs::write(part.join("half"), "")?;
            bail!("interrupted")
        });
        assert!(failed.is_err());
        assert!(!to.exists());
        publish(&to, |part| {
            assert_eq!(fs::read_dir(part)?.count(), 0);
            Ok(fs::write(part.join("whole"), "")?)
        })
        .expect("published");
        assert!(to.join("whole").exists());
    }
}
