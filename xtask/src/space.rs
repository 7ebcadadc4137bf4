//! Free disk space: a build that fills the disk fails with messages that do not name the cause.

use std::path::Path;

use anyhow::{Context, Result, ensure};

const GIB: u64 = 1 << 30;
/// What a run from nothing takes: crates 3 GiB, kernels 4 GiB.
const FROM_NOTHING: u64 = 8 * GIB;
/// Less than this is too little for a run after which nothing has to be built.
const LEAST: u64 = GIB;

/// Fails where the file system of `folder`, or of its nearest parent that exists, has too little space for a run.
///
/// # Errors
/// There is less than 1 GiB.
pub(crate) fn check(folder: &Path) -> Result<()> {
    let folder = folder
        .ancestors()
        .find(|folder| folder.exists())
        .unwrap_or(folder);
    let found = rustix::fs::statvfs(folder)
        .with_context(|| format!("cannot read the free space of {}", folder.display()))?;
    let free = found.f_bavail.saturating_mul(found.f_frsize);
    if let Some(warning) = judge(free, folder)? {
        println!("{warning}");
    }
    Ok(())
}

/// What to say of so many free bytes.
fn judge(free: u64, folder: &Path) -> Result<Option<String>> {
    let state = format!(
        "{:.1} GiB are free at {}, a run from nothing takes {}",
        free as f64 / GIB as f64,
        folder.display(),
        FROM_NOTHING / GIB,
    );
    ensure!(free >= LEAST, "{state}: make room");
    Ok((free < FROM_NOTHING).then_some(state))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_little_space_is_an_error_and_little_a_warning() {
        let at = Path::new("/x");
        let error = judge(LEAST - 1, at).expect_err("too little");
        assert_eq!(
            error.to_string(),
            "1.0 GiB are free at /x, a run from nothing takes 8: make room"
        );
        let warned = judge(FROM_NOTHING - 1, at).expect("may do");
        assert!(warned.is_some_and(|text| text.starts_with("8.0 GiB")));
        assert!(judge(LEAST, at).expect("may do").is_some());
        assert_eq!(judge(FROM_NOTHING, at).expect("plenty"), None);
    }

    #[test]
    fn a_folder_that_is_not_there_has_the_space_of_its_parent() {
        check(&std::env::temp_dir().join("not/there")).expect("has space, as these tests need it");
    }
}
