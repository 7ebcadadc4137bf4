//! Sockets that systemd made (`sd_listen_fds(3)`), by their `FileDescriptorName=`: the name of a guest,
//! [`CONTROL`] or [`STATISTICS`]. And those that come one by one, while guests are served.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::net::{AddressFamily, SocketType, sockopt};

use crate::Config;

/// Name of the control socket. No guest can be called that.
pub const CONTROL: &str = "@control";
/// Name of the socket that only shows figures.
pub const STATISTICS: &str = "@statistics";

/// Why the sockets that were passed are not used.
#[derive(Debug, thiserror::Error)]
pub enum ActivationError {
    /// `LISTEN_FDS` and the related variables are invalid.
    #[error("Cannot take the sockets of the service manager")]
    Environment(#[source] io::Error),
    /// Not something that a guest or a client can connect to.
    #[error("Descriptor {0:?} of the service manager is not a listening unix stream socket")]
    NotListening(String),
    /// The same, of a number that was given.
    #[error("Descriptor {0} is not a listening unix stream socket")]
    NotInherited(RawFd),
    /// Two sockets with one name.
    #[error("The service manager passed two sockets named {0:?}")]
    SameName(String),
    /// Nobody would ever answer there.
    #[error(
        "The service manager passed a socket named {0:?}, and the configuration has no such guest"
    )]
    Unknown(String),
}

/// Sockets that were passed to this process.
#[derive(Debug, Default)]
pub struct Sockets {
    /// That of the control plane.
    pub control: Option<UnixListener>,
    /// That of the figures.
    pub statistics: Option<UnixListener>,
    /// Those of guests, by name.
    pub guests: BTreeMap<String, UnixListener>,
}

impl Sockets {
    /// Takes them. None the second time, and where the process was not started that way.
    ///
    /// # Errors
    /// See [`ActivationError`]: every socket that was passed has a use, or nothing is served.
    pub fn take(config: &Config) -> Result<Self, ActivationError> {
        static TAKEN: AtomicBool = AtomicBool::new(false);
        if TAKEN.swap(true, Ordering::SeqCst) {
            return Ok(Self::default());
        }
        let passed = sd_notify::listen_fds_with_names().map_err(ActivationError::Environment)?;
        // SAFETY: systemd passed this number for this process (LISTEN_PID), which did nothing with it yet: this is the
        // only code that takes such numbers, and it does so once.
        let own = |fd| unsafe { OwnedFd::from_raw_fd(fd) };
        Self::sort(passed.map(|(fd, name)| (own(fd), name)), config)
    }

    fn sort(
        passed: impl IntoIterator<Item = (OwnedFd, String)>,
        config: &Config,
    ) -> Result<Self, ActivationError> {
        let mut sockets = Self::default();
        for (fd, name) in passed {
            let Some(listener) = listener(fd) else {
                return Err(ActivationError::NotListening(name));
            };
            let other = if name == CONTROL {
                sockets.control.replace(listener)
            } else if name == STATISTICS {
                sockets.statistics.replace(listener)
            } else if config.guests.iter().any(|guest| guest.name == name) {
                sockets.guests.insert(name.clone(), listener)
            } else {
                return Err(ActivationError::Unknown(name));
            };
            if other.is_some() {
                return Err(ActivationError::SameName(name));
            }
        }
        Ok(sockets)
    }
}

/// A socket that a guest can connect to, out of a descriptor that may be anything.
pub fn listener(fd: OwnedFd) -> Option<UnixListener> {
    listens(&fd).unwrap_or(false).then(|| fd.into())
}

/// A listening socket that this process was started with, by its number, which keeps its own descriptor.
///
/// # Errors
/// [`ActivationError::NotInherited`] when there is none.
pub fn inherited(number: RawFd) -> Result<UnixListener, ActivationError> {
    let missing = ActivationError::NotInherited(number);
    if number < 0 {
        return Err(missing);
    }
    // SAFETY: used for one call, which fails where nothing is open.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    fd.try_clone_to_owned()
        .ok()
        .and_then(listener)
        .ok_or(missing)
}

/// Where a listening socket is: its path, or `@` and its abstract name. Two sockets are never at one place, so it tells
/// whether two descriptors are the same.
pub fn address(listener: &UnixListener) -> PathBuf {
    let Ok(address) = rustix::net::getsockname(listener) else {
        return PathBuf::new();
    };
    let Ok(address) = rustix::net::SocketAddrUnix::try_from(address) else {
        return PathBuf::new();
    };
    let bytes = match (address.path_bytes(), address.abstract_name()) {
        (Some(path), _) => path.to_vec(),
        (None, Some(name)) => [b"@", name].concat(),
        (None, None) => Vec::new(),
    };
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

fn listens(fd: impl AsFd) -> io::Result<bool> {
    Ok(sockopt::socket_domain(&fd)? == AddressFamily::UNIX
        && sockopt::socket_type(&fd)? == SocketType::STREAM
        && sockopt::socket_acceptconn(&fd)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    fn config() -> Config {
        let guest = crate::config::file::parse_guest("name=vm1,socket=/run/vm1");
        let guests = vec![guest.expect("a guest")];
        Config::try_from(crate::ConfigFile {
            memory: Some(tmem_base::Size(1 << 20)),
            guests,
            ..crate::ConfigFile::default()
        })
        .expect("valid")
    }

    fn sort(passed: Vec<(OwnedFd, &str)>) -> Result<Sockets, ActivationError> {
        let passed = passed.into_iter().map(|(fd, name)| (fd, name.to_owned()));
        Sockets::sort(passed, &config())
    }

    fn listener(dir: &tempfile::TempDir, name: &str) -> OwnedFd {
        UnixListener::bind(dir.path().join(name))
            .expect("binds")
            .into()
    }

    #[test]
    fn a_socket_is_known_by_its_name() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let sockets = sort(vec![
            (listener(&dir, "a"), "vm1"),
            (listener(&dir, "b"), CONTROL),
        ])
        .expect("both have a use");
        let path = |listener: &UnixListener| {
            let address = listener.local_addr().expect("has one");
            address.as_pathname().map(std::path::Path::to_owned)
        };
        assert_eq!(path(&sockets.guests["vm1"]), Some(dir.path().join("a")));
        let control = sockets.control.expect("was passed");
        assert_eq!(path(&control), Some(dir.path().join("b")));
    }

    #[test]
    fn a_socket_without_a_use_is_refused() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let unknown = sort(vec![(listener(&dir, "a"), "vm2")]);
        assert!(matches!(unknown, Err(ActivationError::Unknown(name)) if name == "vm2"));
        for name in ["vm1", CONTROL] {
            let twice = vec![
                (listener(&dir, &format!("{name}1")), name),
                (listener(&dir, &format!("{name}2")), name),
            ];
            assert!(matches!(sort(twice), Err(ActivationError::SameName(_))));
        }
    }

    #[test]
    fn what_does_not_listen_is_refused() {
        let (connected, _other) = UnixStream::pair().expect("a pair");
        let network = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
        let file = tempfile::tempfile().expect("a file");
        for fd in [connected.into(), network.into(), file.into()] {
            let error = sort(vec![(fd, "vm1")]).expect_err("refused");
            assert!(matches!(error, ActivationError::NotListening(name) if name == "vm1"));
        }
    }
}
