//! Reading a small file whatever is at its path: no wait for a writer, and no end of memory.

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Bytes of a file at most.
const MAX: u64 = 4 << 20;

/// Text of a regular file.
///
/// # Errors
/// The system's, and where there is something else or more.
pub(crate) fn read(path: &Path) -> io::Result<String> {
    // Opening a pipe would wait for a writer, and a terminal would become the controlling terminal.
    let mut options = OpenOptions::new();
    let file = options
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("It is not a regular file"));
    }
    let mut text = String::new();
    file.take(MAX + 1).read_to_string(&mut text)?;
    if u64::try_from(text.len()).unwrap_or(u64::MAX) > MAX {
        return Err(io::Error::other("It has more than 4 MiB"));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    #[test]
    fn a_pipe_that_nobody_writes_to_is_refused_at_once() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let path = dir.path().join("pipe");
        mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("makes");
        let (done, result) = mpsc::channel();
        std::thread::spawn(move || done.send(read(&path)));
        let read = result.recv_timeout(Duration::from_secs(60));
        let error = read.expect("does not wait").expect_err("is no file");
        assert!(error.to_string().contains("regular"), "{error}");
    }

    #[test]
    fn a_folder_and_a_file_that_is_too_large_are_refused() {
        let dir = tempfile::tempdir().expect("temporary folder");
        read(dir.path()).expect_err("a folder");
        read(Path::new("/dev/zero")).expect_err("without end");
        let path = dir.path().join("file");
        let file = std::fs::File::create(&path).expect("makes");
        file.set_len(MAX).expect("grows");
        assert_eq!(read(&path).expect("is small enough").len(), 4 << 20);
        file.set_len(1 << 40).expect("grows");
        read(&path).expect_err("too large");
    }
}
