//! The server: one thread that answers one request per connection.
//!
//! What changes something may take its time (a reserve is gathered, a guest's thread is waited for), so it is done by
//! other threads, a few at most, while this one answers others.
//!
//! The thread owns everything a client can make it hold: at most [`MAX_CONNECTIONS`] connections,
//! each with a bounded buffer and one deadline for its whole life. More clients wait in the
//! kernel's backlog. A reply is complete in memory before its first byte is written, so the speed
//! of a client never meets the state that the reply was made from.

use std::{
    convert::Infallible,
    io,
    os::unix::net,
    path::Path,
    sync::{Arc, mpsc},
    thread::{self, JoinHandle},
    time::Duration,
};

use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::{
    Response, StatusCode,
    body::{Bytes, Incoming},
    header::{ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, VARY},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::de::DeserializeOwned;
use tmem_base::socket::SocketFile;
use tokio::{
    net::{UnixListener, UnixStream},
    runtime::Runtime,
    sync::{Semaphore, oneshot},
    time,
};

use crate::{
    api::{Accepted, Domains, ErrorReply, Flush, Flushed, Freeable, GuestSpec},
    clients::Outcome,
    operation::{Done, Operation, Passed, Refused},
    prometheus::{self, Format},
    role::Role,
    route::{self, Refusal, Request},
    socket::{self, BindError},
    source::Source,
    stream::{self, Slot, Stream},
    workers::Workers,
};

/// Connections served at a time.
pub const MAX_CONNECTIONS: usize = 16;

/// Bytes of request line and headers that are read before the client is told 431.
pub const MAX_HEADER_BYTES: usize = 16 << 10;

/// Header fields that are read before the client is told 431.
const MAX_HEADERS: usize = 64;

/// Bytes of a request body that are read before the client is told 413.
pub const MAX_BODY_BYTES: usize = 16 << 10;

/// How long a client may take to send its request.
pub const HEADER_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a connection may last, from accept to the last byte of the reply.
pub const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a client waits for what it wants done; then it hears that it goes on (202).
pub const OPERATION_PATIENCE: Duration = Duration::from_secs(3);

/// Operations at a time, done or waiting for a thread; a client that comes with more is told 503.
pub const MAX_OPERATIONS: usize = 8;

/// Threads that do them.
const OPERATION_THREADS: usize = 4;

/// Rest after the system refused to accept (out of descriptors, out of memory), which it would
/// refuse again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// A running server. Dropping it ends all connections, joins the thread and removes the socket. An operation that goes on
/// is left alone.
#[derive(Debug)]
pub struct Server {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    /// Absent where another process made the socket.
    _file: Option<SocketFile>,
}

impl Server {
    /// Makes the socket at `path` and starts to answer on it.
    ///
    /// # Errors
    /// See [`BindError`]. Nothing is left behind then.
    pub fn start(path: &Path, source: Arc<dyn Source>) -> Result<Self, BindError> {
        Self::start_with(path, source, || {})
    }

    /// As [`Self::start`]; the thread calls `first` before it serves anybody: a place to confine it.
    ///
    /// # Errors
    /// See [`BindError`]. Nothing is left behind then.
    pub fn start_with(
        path: &Path,
        source: Arc<dyn Source>,
        first: fn(),
    ) -> Result<Self, BindError> {
        let (listener, file) = socket::bind(path)?;
        Self::serve(Role::Operator, listener, Some(file), source, first)
    }

    /// As [`Self::start_with`] on a listening socket that another process made, such as systemd. Its file
    /// is left alone.
    ///
    /// # Errors
    /// See [`BindError::Start`].
    pub fn start_on(
        listener: net::UnixListener,
        source: Arc<dyn Source>,
        first: fn(),
    ) -> Result<Self, BindError> {
        Self::start_as(Role::Operator, listener, source, first)
    }

    /// As [`Self::start_on`], for clients who may ask for no more than their role allows. Each server has a thread and
    /// connections of its own, so the clients of one do not hold up those of another.
    ///
    /// # Errors
    /// See [`BindError::Start`].
    pub fn start_as(
        role: Role,
        listener: net::UnixListener,
        source: Arc<dyn Source>,
        first: fn(),
    ) -> Result<Self, BindError> {
        listener.set_nonblocking(true).map_err(BindError::Start)?;
        Self::serve(role, listener, None, source, first)
    }

    fn serve(
        role: Role,
        listener: net::UnixListener,
        file: Option<SocketFile>,
        source: Arc<dyn Source>,
        first: fn(),
    ) -> Result<Self, BindError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(BindError::Start)?;
        let listener = {
            let _context = runtime.enter();
            UnixListener::from_std(listener).map_err(BindError::Start)?
        };
        let (stop, stopped) = oneshot::channel();
        let (told, ready) = mpsc::sync_channel(1);
        let thread = thread::Builder::new()
            .name(role.thread().into())
            .spawn(move || {
                first();
                // By this thread, whose rights they have. Later the process may be at its limit of threads.
                let operations = match role {
                    Role::Operator => Workers::start(OPERATION_THREADS).map(Some),
                    Role::Monitor => Ok(None),
                };
                let operations = match operations {
                    Ok(operations) => operations,
                    Err(error) => return drop(told.send(Err(error))),
                };
                let _ = told.send(Ok(()));
                let worker = Worker {
                    source,
                    operations,
                    slots: Arc::new(Semaphore::new(MAX_OPERATIONS)),
                };
                serve(runtime, role, listener, worker, stopped);
            })
            .map_err(BindError::Start)?;
        let server = Self {
            stop: Some(stop),
            thread: Some(thread),
            _file: file,
        };
        // Where the thread ended without a word, it panicked, and said so in the log.
        let ready = ready
            .recv()
            .unwrap_or_else(|error| Err(io::Error::other(error)));
        ready.map_err(BindError::Start)?;
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("The thread of a control socket panicked");
        }
    }
}

fn serve(
    runtime: Runtime,
    role: Role,
    listener: UnixListener,
    worker: Worker,
    stopped: oneshot::Receiver<()>,
) {
    // A client that asks without pause must not take a processor from a vCPU: yield to them. On
    // Linux this is the calling thread only.
    if let Err(error) = rustix::process::setpriority_process(None, 5) {
        log::debug!("Cannot lower the priority of the control thread: {error}");
    }
    runtime.block_on(async {
        tokio::select! {
            _ = stopped => {}
            () = accept(role, listener, worker) => {}
        }
    });
    runtime.shutdown_background();
}

async fn accept(role: Role, listener: UnixListener, worker: Worker) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let count = |outcome| count(worker.source.as_ref(), role, outcome);
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                count(Outcome::Accepted);
                let worker = worker.clone();
                tokio::spawn(async move {
                    let _slot = slot;
                    connection(role, stream, worker).await;
                });
            }
            Err(error) => {
                count(Outcome::NotAccepted);
                log::warn!("Cannot accept a control connection: {error}");
                time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn count(source: &dyn Source, role: Role, outcome: Outcome) {
    if let Some(clients) = source.clients() {
        clients.count(role, outcome);
    }
}

async fn connection(role: Role, socket: UnixStream, worker: Worker) {
    let source = Arc::clone(&worker.source);
    let slot = Slot::default();
    let service = service_fn(|request: hyper::Request<Incoming>| {
        let (worker, slot) = (worker.clone(), slot.clone());
        async move {
            let response = answer(request, role, &worker, &slot).await;
            if response.status().is_client_error() || response.status().is_server_error() {
                count(worker.source.as_ref(), role, Outcome::Refused);
            }
            Ok::<_, Infallible>(response)
        }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .keep_alive(false)
        .header_read_timeout(HEADER_TIMEOUT)
        .max_headers(MAX_HEADERS)
        .max_header_size(MAX_HEADER_BYTES)
        .max_buf_size(2 * MAX_HEADER_BYTES);
    // Who may change nothing has no use for a descriptor: the kernel drops what comes there.
    let served = async {
        match role {
            Role::Operator => {
                let stream = TokioIo::new(Stream::new(socket, slot.clone(), None));
                http.serve_connection(stream, service).await
            }
            Role::Monitor => http.serve_connection(TokioIo::new(socket), service).await,
        }
    };
    match time::timeout(CONNECTION_TIMEOUT, served).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            let outcome = if error.is_timeout() {
                Outcome::TimedOut
            } else {
                Outcome::Broken
            };
            count(source.as_ref(), role, outcome);
            log::debug!("Control connection: {error}");
        }
        Err(_) => {
            count(source.as_ref(), role, Outcome::TimedOut);
            log::debug!("Control connection took too long");
        }
    }
}

async fn answer(
    request: hyper::Request<Incoming>,
    role: Role,
    worker: &Worker,
    slot: &Slot,
) -> Response<Full<Bytes>> {
    let source = worker.source.as_ref();
    // A request without a use for its body leaves it unread; hyper closes the connection over it.
    let (parts, body) = request.into_parts();
    let request = match route::decode(&parts.method, parts.uri.path()) {
        Ok(request) => request,
        Err(refusal) => return refuse(refusal),
    };
    if role == Role::Monitor && request.changes() {
        return refuse(Refusal {
            status: StatusCode::FORBIDDEN,
            error: "This socket shows figures and changes nothing; ask the control socket"
                .to_owned(),
            allow: None,
        });
    }
    match request {
        Request::Stats => json(StatusCode::OK, &source.stats()),
        Request::Metrics => {
            let accept = parts.headers.get_all(ACCEPT).iter();
            let format = Format::negotiated(accept.filter_map(|value| value.to_str().ok()));
            match prometheus::render(source.stats(), format) {
                Ok(page) => {
                    let mut response = reply(StatusCode::OK, format.content_type(), page);
                    let vary = HeaderValue::from_static("accept");
                    response.headers_mut().insert(VARY, vary);
                    response
                }
                Err(error) => internal(&error),
            }
        }
        Request::Domains => {
            let domains = source.stats().domains;
            json(StatusCode::OK, &Domains { domains })
        }
        Request::Domain(name) => domain(source, name, StatusCode::OK),
        Request::Freeable => {
            let stats = source.stats();
            let each = stats.domains.into_iter().map(|d| (d.name, d.freeable));
            let reply = Freeable {
                freeable: stats.freeable,
                domains: each.collect(),
            };
            json(StatusCode::OK, &reply)
        }
        Request::Change(name) => match decode(body).await {
            Ok(change) => {
                let domain = name.to_owned();
                worker
                    .operate(Operation::Change { domain, change }, name)
                    .await
            }
            Err(refusal) => refuse(refusal),
        },
        Request::Flush(name) => match decode::<Flush>(body).await {
            Ok(Flush { bytes }) => {
                let domain = name.to_owned();
                worker
                    .operate(Operation::Flush { domain, bytes }, name)
                    .await
            }
            Err(refusal) => refuse(refusal),
        },
        Request::AddGuest => match decode::<GuestSpec>(body).await {
            Ok(guest) => {
                let name = guest.name.clone();
                match passed(slot.take(), &guest) {
                    Ok(None) => worker.operate(Operation::AddGuest(guest), &name).await,
                    Ok(Some(socket)) => {
                        let operation = Operation::AddGuestOn { guest, socket };
                        worker.operate(operation, &name).await
                    }
                    Err(error) => refuse(Refusal {
                        status: StatusCode::CONFLICT,
                        error: error.to_owned(),
                        allow: None,
                    }),
                }
            }
            Err(refusal) => refuse(refusal),
        },
        Request::RemoveGuest(name) => {
            worker
                .operate(Operation::RemoveGuest(name.to_owned()), name)
                .await
        }
    }
}

/// The socket that came with the request for a guest, which then must name no other.
fn passed(came: stream::Passed, guest: &GuestSpec) -> Result<Option<Passed>, &'static str> {
    match came {
        stream::Passed::Nothing if guest.socket.is_empty() => {
            Err("There is no socket: name the path of one to make, or pass one that listens")
        }
        stream::Passed::Nothing => Ok(None),
        stream::Passed::One(_) if !guest.socket.is_empty() => {
            Err("There are two sockets: one was passed, and one is named")
        }
        stream::Passed::One(fd) => Ok(Some(Passed::new(fd))),
        stream::Passed::TooMany => Err("More than one descriptor was passed"),
    }
}

/// Reads a whole body, however slowly it comes within the time of a connection.
async fn decode<T: DeserializeOwned>(body: Incoming) -> Result<T, Refusal> {
    let refusal = |status, error| Refusal {
        status,
        error,
        allow: None,
    };
    let bytes = match Limited::new(body, MAX_BODY_BYTES).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) if error.is::<LengthLimitError>() => {
            let error = format!("A body has at most {MAX_BODY_BYTES} bytes");
            return Err(refusal(StatusCode::PAYLOAD_TOO_LARGE, error));
        }
        Err(_) => {
            let error = "The body could not be read".to_owned();
            return Err(refusal(StatusCode::BAD_REQUEST, error));
        }
    };
    serde_json::from_slice(&bytes)
        .map_err(|error| refusal(StatusCode::BAD_REQUEST, format!("Body: {error}")))
}

/// What there is to report on and to change.
#[derive(Clone)]
struct Worker {
    source: Arc<dyn Source>,
    /// None where nothing can be changed.
    operations: Option<Workers>,
    slots: Arc<Semaphore>,
}

impl Worker {
    /// Has something done to the guest named `name`, and replies with what it is then, or that it goes on.
    async fn operate(&self, operation: Operation, name: &str) -> Response<Full<Bytes>> {
        let Some(operations) = &self.operations else {
            return internal(&io::Error::other("nothing can be changed here"));
        };
        let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() else {
            let error = format!("{MAX_OPERATIONS} operations are going on, try again later");
            return json(StatusCode::SERVICE_UNAVAILABLE, &ErrorReply { error });
        };
        let source = Arc::clone(&self.source);
        let mut doing = operations.run(move || {
            let _slot = slot;
            source.operate(operation)
        });
        let source = self.source.as_ref();
        match time::timeout(OPERATION_PATIENCE, &mut doing).await {
            Ok(Ok(Ok(Done::Changed))) => domain(source, name, StatusCode::OK),
            Ok(Ok(Ok(Done::Added))) => domain(source, name, StatusCode::CREATED),
            Ok(Ok(Ok(Done::Flushed(flushed)))) => json(StatusCode::OK, &Flushed { flushed }),
            Ok(Ok(Ok(Done::Removed))) => {
                let mut response = Response::new(Full::default());
                *response.status_mut() = StatusCode::NO_CONTENT;
                response
            }
            Ok(Ok(Err(refused))) => refuse(Refusal {
                status: refused.status(),
                error: refused.to_string(),
                allow: None,
            }),
            Ok(Err(error)) => internal(&error),
            Err(_) => {
                let name = name.to_owned();
                tokio::spawn(async move {
                    if let Ok(Err(refused)) = doing.await {
                        log::warn!("Guest {name:?}: what took long was refused: {refused}");
                    }
                });
                let message = "It goes on".to_owned();
                json(StatusCode::ACCEPTED, &Accepted { message })
            }
        }
    }
}

fn domain(source: &dyn Source, name: &str, status: StatusCode) -> Response<Full<Bytes>> {
    let domains = source.stats().domains;
    match domains.into_iter().find(|domain| domain.name == name) {
        Some(domain) => json(status, &domain),
        None => {
            let refused = Refused::Unknown(name.to_owned());
            refuse(Refusal {
                status: refused.status(),
                error: refused.to_string(),
                allow: None,
            })
        }
    }
}

fn refuse(refusal: Refusal) -> Response<Full<Bytes>> {
    let Refusal {
        status,
        error,
        allow,
    } = refusal;
    let mut response = json(status, &ErrorReply { error });
    if let Some(allow) = allow {
        response
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static(allow));
    }
    response
}

fn json(status: StatusCode, body: &impl serde::Serialize) -> Response<Full<Bytes>> {
    match serde_json::to_string(body) {
        Ok(text) => reply(status, "application/json", text),
        Err(error) => internal(&io::Error::from(error)),
    }
}

fn internal(error: &dyn std::error::Error) -> Response<Full<Bytes>> {
    log::warn!("Cannot make a control reply: {error}");
    let text = r#"{"error":"The reply could not be made"}"#.to_owned();
    reply(StatusCode::INTERNAL_SERVER_ERROR, "application/json", text)
}

fn reply(status: StatusCode, content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
