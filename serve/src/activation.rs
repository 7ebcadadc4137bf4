//! Sockets that systemd made (`sd_listen_fds(3)`).

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::net::{AddressFamily, sockopt};

/// The sockets that were passed to this process, by `FileDescriptorName=`. Empty the second time,
/// and where the process was not started that way.
///
/// # Errors
/// What was passed is not a listening unix socket, or two have one name.
pub fn sockets() -> io::Result<BTreeMap<String, UnixListener>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    let mut sockets = BTreeMap::new();
    if TAKEN.swap(true, Ordering::SeqCst) {
        return Ok(sockets);
    }
    for (fd, name) in sd_notify::listen_fds_with_names()? {
        // SAFETY: systemd passed this number for this process (LISTEN_PID), which did nothing with
        // it yet: this is the only place that looks, and it does so once.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let borrowed: BorrowedFd<'_> = std::os::fd::AsFd::as_fd(&fd);
        let listens = sockopt::socket_domain(borrowed)? == AddressFamily::UNIX
            && sockopt::socket_acceptconn(borrowed)?;
        if !listens {
            return Err(io::Error::other(format!(
                "{name:?} is not a listening unix socket"
            )));
        }
        if sockets
            .insert(name.clone(), UnixListener::from(fd))
            .is_some()
        {
            return Err(io::Error::other(format!("two sockets are named {name:?}")));
        }
    }
    Ok(sockets)
}
