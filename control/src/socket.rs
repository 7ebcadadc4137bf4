//! The listening socket in the file system.

use std::{
    io,
    os::unix::{fs::MetadataExt, net::UnixListener},
    path::{Path, PathBuf},
};

use rustix::{
    fs::Mode,
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType},
};

/// Longest path of a unix socket: `sun_path` of unix(7) is 108 bytes with its NUL.
const MAX_PATH_BYTES: usize = 107;

/// Connections the kernel keeps waiting while all slots of the server are taken.
const BACKLOG: i32 = 64;

/// Why the control socket could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Something is there already. It is never removed: another tmem may be listening on it.
    #[error("Control socket {} exists already; remove it if no tmem is using it", .0.display())]
    Exists(PathBuf),
    /// Longer than `sun_path`.
    #[error("Control socket path {} has {} bytes, the system takes {MAX_PATH_BYTES}", .0.display(), .0.as_os_str().len())]
    TooLong(PathBuf),
    /// Any other refusal of the system, such as a missing folder.
    #[error("Cannot make control socket {}", path.display())]
    Io {
        /// The path given.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The server thread or its event loop could not be started.
    #[error("Cannot start the control server")]
    Start(#[source] io::Error),
}

/// A socket file that goes away with this value, unless somebody replaced it.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

/// Refuses a path that does not fit `sun_path`.
pub(crate) fn path_fits(path: &Path) -> bool {
    path.as_os_str().len() <= MAX_PATH_BYTES
}

/// Makes a listening socket that only this user can connect to.
pub(crate) fn bind(path: &Path) -> Result<(UnixListener, SocketFile), BindError> {
    if !path_fits(path) {
        return Err(BindError::TooLong(path.to_owned()));
    }
    bind_errno(path).map_err(|errno| match errno {
        Errno::ADDRINUSE => BindError::Exists(path.to_owned()),
        errno => BindError::Io {
            path: path.to_owned(),
            source: errno.into(),
        },
    })
}

fn bind_errno(path: &Path) -> Result<(UnixListener, SocketFile), Errno> {
    let address = SocketAddrUnix::new(path)?;
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    // Linux gives the new file the mode of the unbound socket, less the umask: no moment passes in
    // which another user could connect, and the process-wide umask stays as it is.
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    rustix::net::bind(&socket, &address)?;
    let file = SocketFile::of(path);
    // With an umask that takes more than group and others, the mode would lack bits of ours.
    let ready = rustix::fs::chmod(path, Mode::RUSR | Mode::WUSR)
        .and_then(|()| rustix::net::listen(&socket, BACKLOG));
    let file = file?;
    ready?;
    Ok((UnixListener::from(socket), file))
}

impl SocketFile {
    fn of(path: &Path) -> Result<Self, Errno> {
        let stat = rustix::fs::lstat(path)?;
        Ok(Self {
            path: path.to_owned(),
            device: stat.st_dev,
            inode: stat.st_ino,
        })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let Ok(now) = self.path.symlink_metadata() else {
            return;
        };
        if (now.dev(), now.ino()) == (self.device, self.inode)
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            log::warn!(
                "Cannot remove control socket {}: {error}",
                self.path.display()
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().expect("temporary folder")
    }

    #[test]
    fn only_the_owner_can_connect() {
        let dir = folder();
        let path = dir.path().join("s");
        let (_listener, _file) = bind(&path).expect("binds");
        let mode = path
            .symlink_metadata()
            .expect("is there")
            .permissions()
            .mode();
        assert_eq!(mode & 0o7777, 0o600);
    }

    #[test]
    fn the_file_goes_with_its_owner() {
        let dir = folder();
        let path = dir.path().join("s");
        drop(bind(&path).expect("binds"));
        assert!(path.symlink_metadata().is_err());
    }

    #[test]
    fn a_file_put_in_its_place_stays() {
        let dir = folder();
        let path = dir.path().join("s");
        let bound = bind(&path).expect("binds");
        std::fs::rename(&path, dir.path().join("old")).expect("renames");
        std::fs::write(&path, b"not ours").expect("writes");
        drop(bound);
        assert_eq!(std::fs::read(&path).expect("still there"), b"not ours");
    }

    #[test]
    fn what_exists_is_refused_and_left_alone() {
        let dir = folder();
        let path = dir.path().join("s");
        std::fs::write(&path, b"a file").expect("writes");
        let error = bind(&path).expect_err("exists");
        assert!(matches!(error, BindError::Exists(_)));
        assert!(error.to_string().contains(path.to_str().expect("utf-8")));
        assert_eq!(std::fs::read(&path).expect("still there"), b"a file");

        let stale = dir.path().join("stale");
        drop(UnixListener::bind(&stale).expect("std leaves the file behind"));
        assert!(matches!(bind(&stale), Err(BindError::Exists(_))));
        assert!(stale.symlink_metadata().is_ok());

        let link = dir.path().join("dangling");
        std::os::unix::fs::symlink(dir.path().join("nowhere"), &link).expect("links");
        assert!(matches!(bind(&link), Err(BindError::Exists(_))));
    }

    #[test]
    fn a_path_longer_than_sun_path_is_refused_by_name() {
        let dir = folder();
        let path = dir.path().join("x".repeat(108));
        let error = bind(&path).expect_err("too long");
        assert!(matches!(error, BindError::TooLong(_)));
        let longest = MAX_PATH_BYTES - dir.path().as_os_str().len() - 1;
        bind(&dir.path().join("y".repeat(longest))).expect("107 bytes fit");
    }

    #[test]
    fn a_missing_folder_is_named() {
        let dir = folder();
        let path = dir.path().join("no").join("s");
        let error = bind(&path).expect_err("no such folder");
        assert!(error.to_string().contains(path.to_str().expect("utf-8")));
    }
}
