//! Listening unix sockets in the file system: made with a mode, removed only while they are still ours.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Longest path of a unix socket: `sun_path` of unix(7) is 108 bytes with its NUL.
pub const MAX_PATH_BYTES: usize = 107;

/// The file of a socket. Dropping this removes it, unless something else took its place.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl SocketFile {
    /// The file that is at `path` now.
    fn of(path: &Path) -> Result<Self, Errno> {
        let stat = rustix::fs::lstat(path)?;
        Ok(Self {
            path: path.to_owned(),
            device: stat.st_dev,
            inode: stat.st_ino,
        })
    }

    /// Whether a file with this device and inode is this one.
    pub fn is(&self, device: u64, inode: u64) -> bool {
        (device, inode) == (self.device, self.inode)
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let Ok(now) = self.path.symlink_metadata() else {
            return;
        };
        if self.is(now.dev(), now.ino())
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            log::warn!("Cannot remove socket {}: {error}", self.path.display());
        }
    }
}

/// Makes a socket with a name, to which no process can connect until it listens. It is non-blocking.
///
/// The file has `mode` less the umask: Linux gives a new file the mode of the unbound socket, so there is no moment at which another
/// user could connect, and the process-wide umask stays as it is.
///
/// # Errors
/// The system's; [`Errno::ADDRINUSE`] where there is a file.
pub fn bind(path: &Path, mode: Mode) -> Result<(OwnedFd, SocketFile), Errno> {
    let address = SocketAddrUnix::new(path)?;
    let socket = unbound()?;
    rustix::fs::fchmod(&socket, mode)?;
    rustix::net::bind(&socket, &address)?;
    let file = SocketFile::of(path)?;
    Ok((socket, file))
}

/// Connects to a socket, if a process listens. A listener whose queue is full is not waited for.
///
/// # Errors
/// Those of the system: [`Errno::CONNREFUSED`] if no process listens, [`Errno::AGAIN`] if the queue is full.
pub fn connect(path: &Path) -> Result<OwnedFd, Errno> {
    let socket = unbound()?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

fn unbound() -> Result<OwnedFd, Errno> {
    rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )
}

/// Why a path cannot be taken.
#[derive(Debug)]
pub enum Taken {
    /// A process listens there, or it is not known whether one does.
    InUse,
    /// Something else is there. It is never removed.
    NotASocket,
    /// The socket of a process that has ended cannot be removed.
    Io(io::Error),
}

/// Removes the socket of a process that has ended.
///
/// # Errors
/// See [`Taken`].
pub fn remove_stale(path: &Path) -> Result<(), Taken> {
    let Ok(found) = path.symlink_metadata() else {
        return Ok(());
    };
    if !found.file_type().is_socket() {
        return Err(Taken::NotASocket);
    }
    match connect(path) {
        Err(Errno::CONNREFUSED) => std::fs::remove_file(path).map_err(Taken::Io),
        // Removed meanwhile.
        Err(Errno::NOENT) => Ok(()),
        // Listening, too busy to say so, or not for us to know.
        _ => Err(Taken::InUse),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().expect("temporary folder")
    }

    #[test]
    fn the_file_has_its_mode_and_goes_with_its_owner() {
        let dir = folder();
        let path = dir.path().join("s");
        let bound = bind(&path, Mode::from_raw_mode(0o600)).expect("binds");
        let mode = path.symlink_metadata().expect("is there").mode();
        assert_eq!(mode & 0o7777, 0o600);
        assert_eq!(
            connect(&path).expect_err("nobody listens"),
            Errno::CONNREFUSED
        );
        rustix::net::listen(&bound.0, 1).expect("listens");
        UnixStream::connect(&path).expect("connects");
        drop(bound);
        assert!(path.symlink_metadata().is_err());
    }

    #[test]
    fn a_file_put_in_its_place_stays() {
        let dir = folder();
        let path = dir.path().join("s");
        let bound = bind(&path, Mode::from_raw_mode(0o600)).expect("binds");
        std::fs::rename(&path, dir.path().join("old")).expect("renames");
        std::fs::write(&path, b"not ours").expect("writes");
        drop(bound);
        assert_eq!(std::fs::read(&path).expect("still there"), b"not ours");
    }

    #[test]
    fn only_a_socket_on_which_nobody_listens_is_removed() {
        let dir = folder();
        let path = dir.path().join("s");
        remove_stale(&path).expect("there is nothing");
        let listener = UnixListener::bind(&path).expect("binds");
        assert!(matches!(remove_stale(&path), Err(Taken::InUse)));
        drop(listener);
        remove_stale(&path).expect("std leaves the file behind");
        assert!(path.symlink_metadata().is_err());
        std::fs::write(&path, b"a file").expect("writes");
        assert!(matches!(remove_stale(&path), Err(Taken::NotASocket)));
        assert_eq!(std::fs::read(&path).expect("still there"), b"a file");
    }
}
