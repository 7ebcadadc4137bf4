//! The sockets that guests connect to.

use std::io;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Gid, Mode};
use rustix::io::Errno;
use tmem_base::socket::{self, SocketFile, Taken};

use crate::access::Access;

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
    /// The process is not a member of the group, or its user namespace does not have it.
    #[error(
        "Cannot give socket {} to group {group}, of which the service is no member (Group= or SupplementaryGroups= of its unit)",
        path.display()
    )]
    Group {
        /// The path of the socket.
        path: PathBuf,
        /// The number of the group.
        group: u32,
        /// The error of the system.
        #[source]
        source: io::Error,
    },
    /// Another mode or group than was requested, or another file: another process changes them.
    #[error("Socket {} has not the mode and group that it was given", .0.display())]
    Changed(PathBuf),
    /// The system refused.
    #[error("Cannot listen on {}", path.display())]
    Io {
        /// The path of the socket.
        path: PathBuf,
        /// The error of the system.
        #[source]
        source: io::Error,
    },
}

/// Makes the listening socket of a guest. A socket that a dead process left behind is replaced.
///
/// # Errors
/// See [`ListenError`]. Nothing is left behind then.
pub fn listen(path: &Path, access: Access) -> Result<(UnixListener, SocketFile), ListenError> {
    listen_for(path, access, BACKLOG)
}

/// As [`listen`], with as many connections that may wait.
///
/// # Errors
/// See [`ListenError`]. Nothing is left behind then.
pub fn listen_for(
    path: &Path,
    access: Access,
    backlog: i32,
) -> Result<(UnixListener, SocketFile), ListenError> {
    remove_stale(path)?;
    let refused = |errno| match errno {
        Errno::ADDRINUSE => ListenError::InUse(path.to_owned()),
        errno => ListenError::Io {
            path: path.to_owned(),
            source: errno.into(),
        },
    };
    // `prepare` takes the umask away.
    let (socket, file) = socket::bind(path, Mode::from_raw_mode(access.mode)).map_err(refused)?;
    if let Some(group) = access.group {
        give(path, group).map_err(|errno| ListenError::Group {
            path: path.to_owned(),
            group,
            source: errno.into(),
        })?;
    }
    // A folder can have rules of its own for files that are made in it.
    let now = rustix::fs::lstat(path).map_err(refused)?;
    if !file.is(now.st_dev, now.st_ino)
        || now.st_mode & 0o7777 != access.mode
        || access.group.is_some_and(|group| group != now.st_gid)
    {
        return Err(ListenError::Changed(path.to_owned()));
    }
    // Only now can anybody connect.
    rustix::net::listen(&socket, backlog).map_err(refused)?;
    Ok((UnixListener::from(socket), file))
}

/// Gives the file to another group, and never what a link there points to.
fn give(path: &Path, group: u32) -> Result<(), Errno> {
    if rustix::fs::lstat(path)?.st_gid == group {
        return Ok(());
    }
    let group = Some(Gid::from_raw(group));
    rustix::fs::chownat(CWD, path, None, group, AtFlags::SYMLINK_NOFOLLOW)
}

/// Removes the socket of a process that has ended.
///
/// # Errors
/// [`ListenError::InUse`] and [`ListenError::NotASocket`] when there is something else.
pub fn remove_stale(path: &Path) -> Result<(), ListenError> {
    socket::remove_stale(path).map_err(|taken| match taken {
        Taken::InUse => ListenError::InUse(path.to_owned()),
        Taken::NotASocket => ListenError::NotASocket(path.to_owned()),
        Taken::Io(source) => ListenError::Io {
            path: path.to_owned(),
            source,
        },
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::seccomp::prepare;

    fn listen(path: &Path) -> Result<(UnixListener, SocketFile), ListenError> {
        super::listen(path, Access::default())
    }

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
        let mode = path.symlink_metadata().expect("is there").mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_socket_has_the_mode_and_group_that_it_is_given_whatever_the_umask() {
        prepare();
        let dir = tempfile::tempdir().expect("temporary folder");
        let path = dir.path().join("s");
        let own = rustix::process::getegid().as_raw();
        for mode in [0o600, 0o660, 0o666, 0o640] {
            for group in [None, Some(own)] {
                let access = Access::new(Some(mode), group);
                let (_listener, _file) = super::listen(&path, access).expect("listens");
                let found = path.symlink_metadata().expect("is there");
                assert_eq!((found.mode() & 0o7777, found.gid()), (mode, own));
            }
        }
    }

    #[test]
    fn a_group_that_the_process_is_not_in_is_an_error_that_says_so_and_leaves_nothing() {
        if rustix::process::geteuid().is_root() {
            // Only a process without privileges is refused: run again as another user.
            let here = std::env::current_exe().expect("own path");
            let folder = tempfile::tempdir().expect("temporary folder");
            std::os::unix::fs::chown(folder.path(), Some(65534), Some(65534)).expect("is root");
            // The program may be in a folder that other users cannot access.
            let program = folder.path().join("test");
            std::fs::copy(here, &program).expect("copies");
            let status = std::process::Command::new("setpriv")
                .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
                .arg(&program)
                .args(["--exact", "listen::tests::a_group_that_the_process_is_not_in_is_an_error_that_says_so_and_leaves_nothing"])
                .env("TMPDIR", folder.path())
                .status()
                .expect("starts");
            assert!(status.success(), "{status}");
            return;
        }
        let dir = tempfile::tempdir().expect("temporary folder");
        let path = dir.path().join("s");
        let error = super::listen(&path, Access::new(None, Some(0))).expect_err("is not root");
        assert!(matches!(error, ListenError::Group { group: 0, .. }));
        let text = error.to_string();
        assert!(
            text.contains("group 0") && text.contains("SupplementaryGroups"),
            "{text}"
        );
        assert!(path.symlink_metadata().is_err(), "it is left behind");
    }
}
