//! The listening socket in the file system.

use std::{
    io,
    os::fd::OwnedFd,
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::{
    fs::{FlockOperation, Mode, OFlags},
    io::Errno,
};
use tmem_base::socket::{self, MAX_PATH_BYTES, SocketFile, Taken};

/// Connections the kernel keeps waiting while all slots of the server are taken.
const BACKLOG: i32 = 64;

/// Longest wait for others that make their sockets in the same folder, and the time between two looks.
const TURN: Duration = Duration::from_secs(5);
const GLANCE: Duration = Duration::from_millis(5);

/// Why the control socket could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// A process listens there, or it cannot be found out whether one does.
    #[error("Control socket {} is in use by another process", .0.display())]
    InUse(PathBuf),
    /// Something else is there. It is never removed.
    #[error("Control socket {} exists already and is not a socket", .0.display())]
    NotASocket(PathBuf),
    /// Others make their sockets in the same folder, and do not come to an end.
    #[error("Control socket {} cannot be made: its folder stays locked", .0.display())]
    Busy(PathBuf),
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

/// Refuses a path that does not fit `sun_path`.
pub(crate) fn path_fits(path: &Path) -> bool {
    path.as_os_str().len() <= MAX_PATH_BYTES
}

/// Makes a listening socket that only this user can connect to. One that a dead process left behind is replaced.
pub(crate) fn bind(path: &Path) -> Result<(UnixListener, SocketFile), BindError> {
    if !path_fits(path) {
        return Err(BindError::TooLong(path.to_owned()));
    }
    // Held from the check of the path until this process listens: a socket that another process is making looks like a
    // stale one.
    let _turn = take_turn(path)?;
    // Where no process listens, none is about to: this one holds the lock.
    socket::remove_stale(path).map_err(|taken| match taken {
        Taken::InUse => BindError::InUse(path.to_owned()),
        Taken::NotASocket => BindError::NotASocket(path.to_owned()),
        Taken::Io(source) => BindError::Io {
            path: path.to_owned(),
            source,
        },
    })?;
    bind_errno(path).map_err(|errno| match errno {
        Errno::ADDRINUSE => BindError::InUse(path.to_owned()),
        errno => BindError::Io {
            path: path.to_owned(),
            source: errno.into(),
        },
    })
}

/// Keeps other processes from making control sockets in the same folder, until it is dropped. `None` where the folder
/// cannot be locked: then no process can lock it, and making the socket fails with the cause.
fn take_turn(path: &Path) -> Result<Option<OwnedFd>, BindError> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(folder) = rustix::fs::open(folder, flags, Mode::empty()) else {
        return Ok(None);
    };
    let deadline = Instant::now() + TURN;
    loop {
        match rustix::fs::flock(&folder, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(Some(folder)),
            Err(Errno::WOULDBLOCK) if Instant::now() < deadline => std::thread::sleep(GLANCE),
            Err(Errno::WOULDBLOCK) => return Err(BindError::Busy(path.to_owned())),
            Err(_) => return Ok(None),
        }
    }
}

fn bind_errno(path: &Path) -> Result<(UnixListener, SocketFile), Errno> {
    let mode = Mode::RUSR | Mode::WUSR;
    let (socket, file) = socket::bind(path, mode)?;
    // With an umask that takes more than group and others, the mode would lack bits of ours.
    rustix::fs::chmod(path, mode)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok((UnixListener::from(socket), file))
}

#[cfg(test)]
mod tests {
    use std::os::unix::{
        fs::{MetadataExt, PermissionsExt},
        net::UnixStream,
    };
    use std::sync::Barrier;

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
    fn what_is_no_socket_is_refused_and_left_alone() {
        let dir = folder();
        let path = dir.path().join("s");
        std::fs::write(&path, b"a file").expect("writes");
        let error = bind(&path).expect_err("exists");
        assert!(matches!(error, BindError::NotASocket(_)));
        assert!(error.to_string().contains(path.to_str().expect("utf-8")));
        assert_eq!(std::fs::read(&path).expect("still there"), b"a file");

        let link = dir.path().join("link");
        let dead = dir.path().join("dead");
        drop(UnixListener::bind(&dead).expect("std leaves the file behind"));
        for target in [dir.path().join("nowhere"), dead.clone()] {
            std::os::unix::fs::symlink(target, &link).expect("links");
            assert!(matches!(bind(&link), Err(BindError::NotASocket(_))));
            std::fs::remove_file(&link).expect("still there");
        }
        assert!(dead.symlink_metadata().is_ok());
    }

    #[test]
    fn the_socket_of_a_dead_process_is_replaced() {
        let dir = folder();
        let path = dir.path().join("s");
        drop(UnixListener::bind(&path).expect("std leaves the file behind"));
        let (_listener, _file) = bind(&path).expect("replaced");
        UnixStream::connect(&path).expect("connects");
    }

    #[test]
    fn a_socket_on_which_somebody_listens_is_left_alone_even_with_a_full_queue() {
        let dir = folder();
        let path = dir.path().join("s");
        let bound = bind(&path).expect("binds");
        let refused = || {
            let error = bind(&path).expect_err("somebody listens");
            assert!(matches!(error, BindError::InUse(_)), "{error}");
        };
        refused();
        let mut waiting = Vec::new();
        while let Ok(socket) = socket::connect(&path) {
            waiting.push(socket);
        }
        assert!(!waiting.is_empty());
        refused();
        let now = path.symlink_metadata().expect("still there");
        assert!(bound.1.is(now.dev(), now.ino()));
    }

    #[test]
    fn of_many_who_replace_a_dead_socket_at_once_one_succeeds_and_is_reached() {
        for _ in 0..20 {
            let dir = folder();
            let path = dir.path().join("s");
            drop(UnixListener::bind(&path).expect("std leaves the file behind"));
            let start = Barrier::new(4);
            let bound: Vec<_> = std::thread::scope(|threads| {
                let racers: Vec<_> = (0..4)
                    .map(|_| {
                        threads.spawn(|| {
                            start.wait();
                            bind(&path)
                        })
                    })
                    .collect();
                let results = racers
                    .into_iter()
                    .map(|racer| racer.join().expect("no panic"));
                results.filter_map(Result::ok).collect()
            });
            assert_eq!(bound.len(), 1);
            let now = path.symlink_metadata().expect("is there");
            assert!(bound[0].1.is(now.dev(), now.ino()));
            UnixStream::connect(&path).expect("connects");
        }
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
