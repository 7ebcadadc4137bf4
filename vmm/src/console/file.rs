//! A file for the console that keeps the newest output within a limit.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Two files of half the limit each. Output is written to the first; when it is full, it replaces the second. So at
/// least half the limit of the newest output is kept, and never more than the limit.
#[derive(Debug)]
pub(crate) struct LimitedFile {
    path: PathBuf,
    older: PathBuf,
    file: File,
    length: u64,
    half: u64,
}

impl LimitedFile {
    /// Opens the file, or makes it for its owner alone. Its contents stay, as far as the limit allows.
    pub(crate) fn open(path: &Path, limit: u64) -> io::Result<Self> {
        let mut older = path.as_os_str().to_owned();
        older.push(".1");
        let (file, length) = open(path)?;
        let mut limited = Self {
            path: path.to_owned(),
            older: older.into(),
            file,
            length,
            half: limit / 2,
        };
        if limited.length > limited.half {
            limited.turn_over()?;
        }
        Ok(limited)
    }

    /// Writes at most half the limit. On an error nothing or a part of it was written.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.length.saturating_add(bytes.len() as u64) > self.half {
            self.turn_over()?;
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            match self.file.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    self.length = self.length.saturating_add(count as u64);
                    rest = rest.get(count..).unwrap_or_default();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Makes the file the older one and begins a new one. Where that cannot be, the file itself begins anew: the limit
    /// holds in any case.
    fn turn_over(&mut self) -> io::Result<()> {
        let renamed = std::fs::rename(&self.path, &self.older).and_then(|()| open(&self.path));
        match renamed {
            Ok((file, length)) => (self.file, self.length) = (file, length),
            Err(_) => {
                self.file.set_len(0)?;
                self.length = 0;
            }
        }
        // Somebody else's file is at the place.
        if self.length > self.half {
            self.file.set_len(0)?;
            self.length = 0;
        }
        Ok(())
    }
}

/// Opens for appending; only a regular file, for nothing else can be renamed and cut. Returns its length, too.
fn open(path: &Path) -> io::Result<(File, u64)> {
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        // A pipe without a reader would be waited for.
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    Ok((file, metadata.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: u64 = 200;

    struct Folder(tempfile::TempDir);

    impl Folder {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn path(&self) -> PathBuf {
            self.0.path().join("console")
        }

        /// The older file and the newer one.
        fn content(&self) -> (String, String) {
            let read =
                |name: &str| std::fs::read_to_string(self.0.path().join(name)).unwrap_or_default();
            (read("console.1"), read("console"))
        }
    }

    #[test]
    fn the_newest_output_is_there_and_never_more_than_the_limit() {
        let folder = Folder::new();
        let mut file = LimitedFile::open(&folder.path(), LIMIT).unwrap();
        let mut all = String::new();
        for number in 0..500 {
            let line = format!("line {number}\n");
            file.write(line.as_bytes()).unwrap();
            all += &line;
            let (older, newer) = folder.content();
            let kept = older + &newer;
            assert!(all.ends_with(&kept), "{kept:?}");
            assert!(kept.len() as u64 <= LIMIT);
            let half = LIMIT / 2 - "line 100\n".len() as u64;
            let least = half.min(all.len() as u64);
            assert!(kept.len() as u64 >= least, "only {kept:?}");
        }
    }

    #[test]
    fn what_was_there_stays_in_front_within_the_limit() {
        let folder = Folder::new();
        std::fs::write(folder.path(), "before\n").unwrap();
        let mut file = LimitedFile::open(&folder.path(), LIMIT).unwrap();
        file.write(b"now\n").unwrap();
        assert_eq!(folder.content().1, "before\nnow\n");
        std::fs::write(folder.path(), "x".repeat(101)).unwrap();
        LimitedFile::open(&folder.path(), LIMIT).unwrap();
        assert_eq!(folder.content(), ("x".repeat(101), String::new()));
    }

    #[test]
    fn where_the_file_cannot_be_renamed_the_limit_holds_all_the_same() {
        let folder = Folder::new();
        let in_the_way = folder.0.path().join("console.1");
        std::fs::create_dir(&in_the_way).unwrap();
        let mut file = LimitedFile::open(&folder.path(), LIMIT).unwrap();
        for _ in 0..100 {
            file.write(b"0123456789").unwrap();
            assert!(folder.content().1.len() as u64 <= LIMIT);
        }
        assert!(in_the_way.is_dir());
    }

    #[test]
    fn a_file_that_is_renamed_and_replaced_meanwhile_makes_no_difference_to_the_limit() {
        let folder = Folder::new();
        let mut file = LimitedFile::open(&folder.path(), LIMIT).unwrap();
        for round in 0..50 {
            std::fs::write(folder.path(), "y".repeat(150)).unwrap();
            for _ in 0..=round % 7 {
                file.write(&[b'x'; 40]).unwrap();
            }
            let moved = folder.0.path().join("moved");
            std::fs::rename(folder.path(), &moved).unwrap();
            let length = std::fs::metadata(moved).unwrap().len();
            assert!(length <= 150 + LIMIT / 2, "{length}");
        }
    }

    #[test]
    fn what_is_no_regular_file_is_refused_and_left_alone() {
        let folder = Folder::new();
        let pipe = folder.0.path().join("pipe");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RUSR).unwrap();
        for path in [&pipe, Path::new("/dev/null"), folder.0.path()] {
            assert!(LimitedFile::open(path, LIMIT).is_err(), "{path:?}");
        }
        assert!(Path::new("/dev/null").exists());
    }

    #[test]
    fn the_console_is_for_its_owner_alone() {
        use std::os::unix::fs::PermissionsExt;
        let folder = Folder::new();
        let mut file = LimitedFile::open(&folder.path(), LIMIT).unwrap();
        for _ in 0..LIMIT {
            file.write(b"x").unwrap();
        }
        for name in ["console", "console.1"] {
            let mode = std::fs::metadata(folder.0.path().join(name)).unwrap();
            assert_eq!(mode.permissions().mode() & 0o77, 0);
        }
    }
}
