//! A service whose every answer is scripted.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::*;

pub(super) const GET_FEATURES: u32 = 1;
pub(super) const SET_FEATURES: u32 = 2;
pub(super) const SET_OWNER: u32 = 3;
pub(super) const SET_MEM_TABLE: u32 = 5;
pub(super) const SET_VRING_NUM: u32 = 8;
pub(super) const SET_VRING_ADDR: u32 = 9;
pub(super) const SET_VRING_BASE: u32 = 10;
pub(super) const GET_VRING_BASE: u32 = 11;
pub(super) const SET_VRING_KICK: u32 = 12;
pub(super) const SET_VRING_CALL: u32 = 13;
pub(super) const SET_VRING_ERR: u32 = 14;
pub(super) const GET_PROTOCOL_FEATURES: u32 = 15;
pub(super) const SET_PROTOCOL_FEATURES: u32 = 16;
pub(super) const GET_QUEUE_NUM: u32 = 17;
pub(super) const SET_VRING_ENABLE: u32 = 18;
pub(super) const GET_CONFIG: u32 = 24;
pub(super) const RESET_DEVICE: u32 = 34;

pub(super) const VERSION_1: u64 = 1 << 32;
pub(super) const FEATURES: u64 = VERSION_1 | 1 << 30 | 1 << 29 | 1 << 28 | 0b101;
pub(super) const PROTOCOL: u64 = 1 | 1 << 9 | 1 << 13;
pub(super) const REPLY_ACK: u64 = 1 << 3;

/// Long enough for a machine that is busy with other things; nothing waits that long when all is well.
pub(super) const DEADLINE: Duration = Duration::from_secs(60);

/// The reaction of the service to a message.
#[derive(Clone, Debug)]
pub(super) enum Act {
    /// The behaviour of a service.
    Well,
    /// Does what a service does, and closes once it is released.
    Last,
    /// Answers with these bytes as the body.
    Body(Vec<u8>),
    /// Writes these bytes, whatever they are.
    Raw(Vec<u8>),
    Close,
    /// Says nothing more; closes when it is released.
    Stall,
}

pub(super) struct Mock {
    _folder: tempfile::TempDir,
    pub(super) path: PathBuf,
    seen: Arc<Mutex<Vec<u32>>>,
    pub(super) release: Arc<AtomicBool>,
}

impl Drop for Mock {
    fn drop(&mut self) {
        self.release.store(true, Ordering::SeqCst);
    }
}

impl Mock {
    /// `script` says what to do with each message of each connection.
    pub(super) fn new(script: impl Fn(usize, u32) -> Act + Send + 'static) -> Self {
        Self::offering(PROTOCOL, script)
    }

    pub(super) fn offering(
        protocol: u64,
        script: impl Fn(usize, u32) -> Act + Send + 'static,
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vm1");
        let listener = UnixListener::bind(&path).unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let release = Arc::new(AtomicBool::new(false));
        let (log, free) = (Arc::clone(&seen), Arc::clone(&release));
        // Ends with the test process when there are no more connections.
        std::thread::spawn(move || {
            for (number, stream) in listener.incoming().enumerate() {
                serve(stream.unwrap(), protocol, &log, &free, |code| {
                    script(number, code)
                });
            }
        });
        Self {
            _folder: folder,
            path,
            seen,
            release,
        }
    }

    pub(super) fn connect(&self) -> Result<VhostUser, ServiceError> {
        VhostUser::connect(&self.path, patient())
    }

    pub(super) fn count(&self, code: u32) -> usize {
        let seen = self.seen.lock().unwrap();
        seen.iter().filter(|request| **request == code).count()
    }
}

pub(super) fn patient() -> Timeouts {
    Timeouts {
        connect: DEADLINE,
        start: DEADLINE,
        stop: DEADLINE,
    }
}

pub(super) fn serve(
    mut stream: UnixStream,
    protocol: u64,
    log: &Mutex<Vec<u32>>,
    release: &AtomicBool,
    script: impl Fn(u32) -> Act,
) {
    loop {
        let mut header = [0u8; 12];
        if stream.read_exact(&mut header).is_err() {
            return;
        }
        let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap());
        let (code, flags, size) = (word(0), word(4), word(8));
        let mut body = vec![0; usize::try_from(size).unwrap()];
        if stream.read_exact(&mut body).is_err() {
            return;
        }
        log.lock().unwrap().push(code);
        let act = script(code);
        let body = match &act {
            Act::Well | Act::Last => match answer(code, protocol, &body) {
                Some(answer) => Some(answer),
                None if flags & 8 != 0 && code != SET_PROTOCOL_FEATURES => Some(vec![0; 8]),
                None => None,
            },
            Act::Body(body) => Some(body.clone()),
            Act::Raw(bytes) => {
                let _ = stream.write_all(bytes);
                None
            }
            Act::Close => return,
            Act::Stall => None,
        };
        if let Some(body) = body {
            let _ = stream.write_all(&message(code, &body));
        }
        if matches!(act, Act::Stall | Act::Last) {
            while !release.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(2));
            }
            return;
        }
    }
}

pub(super) fn message(code: u32, body: &[u8]) -> Vec<u8> {
    let size = u32::try_from(body.len()).unwrap();
    let mut bytes: Vec<u8> = [code, 5, size]
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect();
    bytes.extend(body);
    bytes
}

pub(super) fn number(value: u64) -> Vec<u8> {
    value.to_le_bytes().to_vec()
}

pub(super) fn config(page_size: u32, queues: u16, batch: u16) -> Vec<u8> {
    let length = u32::try_from(size_of::<tmem_protocol::Config>()).unwrap();
    let mut bytes: Vec<u8> = [0, length, 0]
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect();
    bytes.extend(page_size.to_le_bytes());
    bytes.extend(queues.to_le_bytes());
    bytes.extend(batch.to_le_bytes());
    bytes.resize(12 + size_of::<tmem_protocol::Config>(), 0);
    bytes
}

/// The body of a good answer, where there is one.
pub(super) fn answer(code: u32, protocol: u64, body: &[u8]) -> Option<Vec<u8>> {
    Some(match code {
        GET_FEATURES => number(FEATURES),
        GET_PROTOCOL_FEATURES => number(protocol),
        GET_QUEUE_NUM => number(2),
        GET_CONFIG => config(4096, 1, 64),
        GET_VRING_BASE => body.to_vec(),
        _ => return None,
    })
}

/// Waits for a condition.
pub(super) fn eventually(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
