//! The sockets that guests connect to.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Connections that may wait for the one that is being served to end.
const BACKLOG: i32 = 4;

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another process listens there.
    #[error("Another process listens on {}", .0.display())]
    InUse(PathBuf),
    /// There is a file that is not a socket.
    #[error("{} exists and is not a socket", .0.display())]
    NotASocket(PathBuf),
    /// The system refused.
    #[error("Cannot listen on {}", path.display())]
    Io {
        /// The path of the socket.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// The file of a socket. Dropping this removes it, unless something else took its place.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let Ok(now) = self.path.symlink_metadata() else {
            return;
        };
        if (now.dev(), now.ino()) == (self.device, self.inode)
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            log::warn!("Cannot remove socket {}: {error}", self.path.display());
        }
    }
}

/// Makes a listening socket that only this user can connect to. A socket that a dead process left
/// behind is replaced.
///
/// # Errors
/// See [`ListenError`]. Nothing is left behind then.
pub fn listen(path: &Path) -> Result<(UnixListener, SocketFile), ListenError> {
    remove_stale(path)?;
    bind(path).map_err(|errno| match errno {
        Errno::ADDRINUSE => ListenError::InUse(path.to_owned()),
        errno => ListenError::Io {
            path: path.to_owned(),
            source: errno.into(),
        },
    })
}

/// Removes the socket of a process that is gone.
///
/// # Errors
/// [`ListenError::InUse`] and [`ListenError::NotASocket`] when there is something else.
pub fn remove_stale(path: &Path) -> Result<(), ListenError> {
    let Ok(found) = path.symlink_metadata() else {
        return Ok(());
    };
    if !found.file_type().is_socket() {
        return Err(ListenError::NotASocket(path.to_owned()));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(|source| ListenError::Io {
                path: path.to_owned(),
                source,
            })
        }
        // Listening, or not for us to say: in both cases not ours.
        _ => Err(ListenError::InUse(path.to_owned())),
    }
}

fn bind(path: &Path) -> Result<(UnixListener, SocketFile), Errno> {
    let address = SocketAddrUnix::new(path)?;
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    // Linux gives the new file the mode of the unbound socket, less the umask: at no time can
    // another user connect.
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    rustix::net::bind(&socket, &address)?;
    let stat = rustix::fs::lstat(path)?;
    let file = SocketFile {
        path: path.to_owned(),
        device: stat.st_dev,
        inode: stat.st_ino,
    };
    rustix::net::listen(&socket, BACKLOG)?;
    Ok((UnixListener::from(socket), file))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_socket_of_a_dead_process_is_replaced() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let path = dir.path().join("s");
        drop(UnixListener::bind(&path).expect("std leaves the file behind"));
        let (_listener, _file) = listen(&path).expect("listens");
        UnixStream::connect(&path).expect("connects");
    }

    #[test]
    fn a_socket_in_use_and_a_file_are_left_alone() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let path = dir.path().join("s");
        let first = listen(&path).expect("listens");
        assert!(matches!(listen(&path), Err(ListenError::InUse(_))));
        drop(first);
        std::fs::write(&path, b"a file").expect("the socket is gone");
        assert!(matches!(listen(&path), Err(ListenError::NotASocket(_))));
        assert_eq!(std::fs::read(&path).expect("still there"), b"a file");
    }

    #[test]
    fn only_the_owner_can_connect() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let path = dir.path().join("s");
        let (_listener, _file) = listen(&path).expect("listens");
        let mode = path
            .symlink_metadata()
            .expect("is there")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
