//! A blocking client with a deadline for everything.

use std::{
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Duration,
};

use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request, StatusCode, body::Bytes, client::conn::http1, header::HOST};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tmem_base::name::is_guest_name;
use tokio::{net::UnixStream, time};

use crate::{
    api::{Change, Domain, ErrorReply, Flush, Flushed, Freeable, GuestSpec, Stats},
    socket,
    stream::{Slot, Stream},
};

/// How long a request may take, from connect to the last byte of the reply.
///
/// Longer than the server lets a stalled client keep a slot.
pub const DEADLINE: Duration = Duration::from_secs(5);

/// Largest reply that is read.
pub const MAX_REPLY_BYTES: usize = 16 << 20;

/// Why there is no reply.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is nothing at the path.
    #[error("There is no control socket {}", .0.display())]
    NoSocket(PathBuf),
    /// There is a socket, and no process listens on it.
    #[error("Nothing listens on control socket {}", .0.display())]
    NobodyListens(PathBuf),
    /// Longer than `sun_path`.
    #[error("Control socket path {} is longer than the system takes", .0.display())]
    PathTooLong(PathBuf),
    /// The socket is there and cannot be used.
    #[error("Cannot connect to control socket {}", path.display())]
    Connect {
        /// The path given.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Connected, but no whole reply came in time.
    #[error("No reply from {} within {} s", .0.display(), DEADLINE.as_secs())]
    TimedOut(PathBuf),
    /// The reply was cut off, or is not HTTP.
    #[error("No proper reply from {}", path.display())]
    Http {
        /// The path given.
        path: PathBuf,
        /// What was wrong with it.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The server is at it, and it takes longer than a reply may.
    #[error("{} goes on with it; `tmem stats` and its log show how it ends", .0.display())]
    GoesOn(PathBuf),
    /// The server refused the request.
    #[error("The server at {} answered {status}: {error}", path.display())]
    Refused {
        /// The path given.
        path: PathBuf,
        /// The HTTP status.
        status: StatusCode,
        /// The server's explanation, or none.
        error: String,
    },
    /// The reply is not the JSON that is expected.
    #[error("The reply from {} is not understood", path.display())]
    Decode {
        /// The path given.
        path: PathBuf,
        /// Where it differs.
        #[source]
        source: serde_json::Error,
    },
    /// No guest can have this name.
    #[error("{0:?} cannot be the name of a guest: 1 to 64 letters, digits, '.', '_' and '-'")]
    Name(String),
    /// The event loop could not be set up.
    #[error("Cannot set up the client")]
    Setup(#[source] io::Error),
}

/// Asks the server behind one socket. Each call is a connection of its own.
#[derive(Clone, Debug)]
pub struct Client {
    path: PathBuf,
}

impl Client {
    /// A client of the socket at `path`. Connects when asked something.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// `GET /v1/stats`.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn stats(&self) -> Result<Stats, ClientError> {
        self.decode(&self.get("/v1/stats")?)
    }

    /// `GET /metrics`.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn metrics(&self) -> Result<String, ClientError> {
        let body = self.get("/metrics")?;
        String::from_utf8(body.into()).map_err(|error| self.http(error))
    }

    /// `GET /v1/freeable`.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn freeable(&self) -> Result<Freeable, ClientError> {
        self.decode(&self.get("/v1/freeable")?)
    }

    /// `PATCH /v1/domains/{name}`. Returns what the domain is then.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn change(&self, name: &str, change: &Change) -> Result<Domain, ClientError> {
        let resource = format!("/v1/domains/{}", checked(name)?);
        self.decode(&self.request(Method::PATCH, &resource, self.encode(change)?)?)
    }

    /// `POST /v1/domains/{name}/flush`. Returns the bytes that were freed.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn flush(&self, name: &str, bytes: u64) -> Result<u64, ClientError> {
        let resource = format!("/v1/domains/{}/flush", checked(name)?);
        let body = self.encode(&Flush { bytes })?;
        let reply: Flushed = self.decode(&self.request(Method::POST, &resource, body)?)?;
        Ok(reply.flushed)
    }

    /// `POST /v1/guests`. Returns its domain.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn add_guest(&self, guest: &GuestSpec) -> Result<Domain, ClientError> {
        self.decode(&self.request(Method::POST, "/v1/guests", self.encode(guest)?)?)
    }

    /// As [`Self::add_guest`], with a socket that listens and that the server takes over. The guest names none.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn add_guest_on(&self, guest: &GuestSpec, socket: OwnedFd) -> Result<Domain, ClientError> {
        let body = self.encode(guest)?;
        self.decode(&self.request_with(Method::POST, "/v1/guests", body, Some(socket))?)
    }

    /// `DELETE /v1/guests/{name}`.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn remove_guest(&self, name: &str) -> Result<(), ClientError> {
        let resource = format!("/v1/guests/{}", checked(name)?);
        self.request(Method::DELETE, &resource, Bytes::new())
            .map(drop)
    }

    fn decode<T: DeserializeOwned>(&self, body: &[u8]) -> Result<T, ClientError> {
        serde_json::from_slice(body).map_err(|source| ClientError::Decode {
            path: self.path.clone(),
            source,
        })
    }

    fn encode(&self, body: &impl Serialize) -> Result<Bytes, ClientError> {
        serde_json::to_vec(body)
            .map(Bytes::from)
            .map_err(|error| self.http(error))
    }

    fn get(&self, resource: &str) -> Result<Bytes, ClientError> {
        self.request(Method::GET, resource, Bytes::new())
    }

    fn request(&self, method: Method, resource: &str, body: Bytes) -> Result<Bytes, ClientError> {
        self.request_with(method, resource, body, None)
    }

    fn request_with(
        &self,
        method: Method,
        resource: &str,
        body: Bytes,
        passing: Option<OwnedFd>,
    ) -> Result<Bytes, ClientError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(ClientError::Setup)?;
        runtime.block_on(async {
            match time::timeout(DEADLINE, self.exchange(method, resource, body, passing)).await {
                Ok(result) => result,
                Err(_) => Err(ClientError::TimedOut(self.path.clone())),
            }
        })
    }

    async fn exchange(
        &self,
        method: Method,
        resource: &str,
        body: Bytes,
        passing: Option<OwnedFd>,
    ) -> Result<Bytes, ClientError> {
        let socket = connect(&self.path).await?;
        let stream = Stream::new(socket, Slot::default(), passing);
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.http(error))?;
        let request = Request::builder()
            .method(method)
            .uri(resource)
            .header(HOST, "localhost")
            .body(Full::new(body))
            .map_err(|error| self.http(error))?;
        let reply = async {
            let response = sender
                .send_request(request)
                .await
                .map_err(|error| self.http(error))?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MAX_REPLY_BYTES)
                .collect()
                .await
                .map_err(|source| self.http(source))?
                .to_bytes();
            Ok((status, body))
        };
        tokio::pin!(reply);
        // The connection does the I/O; it ends before the reply only when the peer is gone, and the
        // reply then says so.
        let result = tokio::select! {
            biased;
            result = &mut reply => result,
            _ = connection => reply.await,
        };
        let (status, body) = result?;
        if status == StatusCode::ACCEPTED {
            return Err(ClientError::GoesOn(self.path.clone()));
        }
        if status.is_success() {
            return Ok(body);
        }
        let error = serde_json::from_slice::<ErrorReply>(&body)
            .map_or_else(|_| "no explanation".to_owned(), |reply| reply.error);
        Err(ClientError::Refused {
            path: self.path.clone(),
            status,
            error,
        })
    }

    fn http(&self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ClientError {
        ClientError::Http {
            path: self.path.clone(),
            source: source.into(),
        }
    }
}

/// A name that needs no escapes in a path.
fn checked(name: &str) -> Result<&str, ClientError> {
    if is_guest_name(name) {
        Ok(name)
    } else {
        Err(ClientError::Name(name.to_owned()))
    }
}

async fn connect(path: &Path) -> Result<UnixStream, ClientError> {
    if !socket::path_fits(path) {
        return Err(ClientError::PathTooLong(path.to_owned()));
    }
    UnixStream::connect(path).await.map_err(|source| {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::NotFound => ClientError::NoSocket(path),
            io::ErrorKind::ConnectionRefused => ClientError::NobodyListens(path),
            _ => ClientError::Connect { path, source },
        }
    })
}
