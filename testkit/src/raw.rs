//! A connection that says anything: vhost-user messages as bytes, with any descriptors.

use std::io::{Read, Write};
use std::os::fd::RawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use vmm_sys_util::sock_ctrl_msg::ScmSocket;

pub const GET_FEATURES: u32 = 1;
pub const SET_FEATURES: u32 = 2;
pub const SET_OWNER: u32 = 3;
pub const SET_MEM_TABLE: u32 = 5;
pub const SET_VRING_NUM: u32 = 8;
pub const SET_VRING_ADDR: u32 = 9;
pub const SET_VRING_BASE: u32 = 10;
pub const GET_VRING_BASE: u32 = 11;
pub const SET_VRING_KICK: u32 = 12;
pub const SET_VRING_CALL: u32 = 13;
pub const SET_VRING_ERR: u32 = 14;
pub const SET_PROTOCOL_FEATURES: u32 = 16;
pub const SET_VRING_ENABLE: u32 = 18;
pub const GET_CONFIG: u32 = 24;
/// The last request of the specification that has a number here, and some more.
pub const CODES: u32 = 48;

const VERSION: u32 = 1;
const NEED_REPLY: u32 = 8;
/// Of the virtio features: VERSION_1 and the bit for protocol features.
const FEATURES: u64 = 1 << 32 | 1 << 30;
/// MQ, REPLY_ACK, CONFIG, RESET_DEVICE.
const PROTOCOL: u64 = 1 | 1 << 3 | 1 << 9 | 1 << 13;

/// A connection to a service. What is sent is not checked, and an answer is waited for at most 10 seconds.
pub struct Raw {
    pub stream: UnixStream,
}

impl Raw {
    pub fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).expect("connects");
        for set in [UnixStream::set_read_timeout, UnixStream::set_write_timeout] {
            set(&stream, Some(Duration::from_secs(10))).expect("is set");
        }
        Self { stream }
    }

    /// Connects with features, so that messages can be acknowledged.
    pub fn open(socket: &Path) -> Self {
        let raw = Self::connect(socket);
        raw.send(SET_OWNER, &[], &[]);
        raw.send(GET_FEATURES, &[], &[]);
        raw.read(20);
        raw.send(SET_FEATURES, &FEATURES.to_le_bytes(), &[]);
        raw.send(15, &[], &[]);
        raw.read(20);
        raw.send(SET_PROTOCOL_FEATURES, &PROTOCOL.to_le_bytes(), &[]);
        raw
    }

    /// Sends a message. The other side may be gone.
    pub fn send(&self, code: u32, body: &[u8], fds: &[RawFd]) -> bool {
        self.send_with(code, VERSION, body, fds)
    }

    pub fn send_with(&self, code: u32, flags: u32, body: &[u8], fds: &[RawFd]) -> bool {
        let bytes = message(code, flags, body);
        if fds.is_empty() {
            return (&self.stream).write_all(&bytes).is_ok();
        }
        self.stream.send_with_fds(&[&bytes[..]], fds).is_ok()
    }

    /// Sends a message and waits for its acknowledgement. `None` when the connection ends instead.
    pub fn ask(&self, code: u32, body: &[u8], fds: &[RawFd]) -> Option<u64> {
        if !self.send_with(code, VERSION | NEED_REPLY, body, fds) {
            return None;
        }
        let reply = self.read(20)?;
        Some(u64::from_le_bytes(reply[12..].try_into().expect("8 bytes")))
    }

    pub fn read(&self, len: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; len];
        (&self.stream).read_exact(&mut bytes).ok()?;
        Some(bytes)
    }
}

pub fn message(code: u32, flags: u32, body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(body.len()).expect("small");
    let mut bytes: Vec<u8> = [code, flags, len]
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect();
    bytes.extend_from_slice(body);
    bytes
}

/// Body of SET_VRING_NUM and its like.
pub fn state(index: u32, num: u32) -> Vec<u8> {
    [index, num]
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect()
}

/// Body of SET_VRING_KICK and its like.
pub fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Body of SET_MEM_TABLE: guest address, size, user address, offset of each region.
pub fn table(regions: &[[u64; 4]]) -> Vec<u8> {
    let count = u32::try_from(regions.len()).expect("small");
    let mut body = [count.to_le_bytes(), [0; 4]].concat();
    body.extend(regions.iter().flat_map(|region| words(region)));
    body
}

/// A second handle to the connection of a front end, to send on it what the front end would not.
pub fn of(frontend: &impl std::os::fd::AsRawFd) -> Raw {
    // SAFETY: open as long as the front end, which outlives this call.
    let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(frontend.as_raw_fd()) };
    let fd = fd.try_clone_to_owned().expect("clones");
    Raw {
        stream: UnixStream::from(fd),
    }
}
