//! Looks at the next message of a front end before it is received: a descriptor for which the process has no room would
//! be lost, and the message could not be told from one that never had a descriptor.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};
use vhost::vhost_user::message::MAX_ATTACHED_FD_ENTRIES;

/// Bytes of the header of a message, with which its descriptors come.
const HEADER: usize = 12;
/// Descriptors that are taken from one message; the kernel closes those beyond.
const MOST: usize = MAX_ATTACHED_FD_ENTRIES;
/// Descriptors that the answer to a message can need: the faults of its memory, the file behind a domain's pages.
const OWN: usize = 2;

/// The next thing on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// A message, or the end.
    Message,
    /// Nothing yet.
    Nothing,
    /// A message with more descriptors than the process has room for. It is still there.
    NoRoom,
    /// Descriptors with a part of a header: the parts could hold twice as many as a message.
    Torn,
}

/// Examines the next message, and leaves it in the socket.
pub(crate) fn peek(stream: impl AsFd) -> Result<Next, Errno> {
    let mut header = [0; HEADER];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let mut parts = [IoSliceMut::new(&mut header)];
    let message = match recvmsg(&stream, &mut parts, &mut control, flags) {
        Ok(message) => message,
        Err(Errno::AGAIN | Errno::INTR) => return Ok(Next::Nothing),
        Err(Errno::NOMEM | Errno::NOBUFS) => return Ok(Next::NoRoom),
        Err(error) => return Err(error),
    };
    let mut files: Vec<OwnedFd> = Vec::with_capacity(MOST + OWN);
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            files.extend(descriptors);
        }
    }
    let cut = message.flags.contains(ReturnFlags::CTRUNC) && files.len() < MOST;
    if !files.is_empty() && message.bytes < HEADER {
        return Ok(Next::Torn);
    }
    for _ in 0..OWN {
        // Held with the others, so that there is room for all of them.
        match rustix::io::fcntl_dupfd_cloexec(&stream, 0) {
            Ok(file) => files.push(file),
            Err(Errno::MFILE | Errno::NOMEM) => return Ok(Next::NoRoom),
            Err(error) => return Err(error),
        }
    }
    Ok(if cut { Next::NoRoom } else { Next::Message })
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    use vmm_sys_util::sock_ctrl_msg::ScmSocket;

    use super::*;

    #[test]
    fn a_message_is_still_there_when_it_was_looked_at() {
        let (front, back) = UnixStream::pair().expect("a pair");
        assert_eq!(peek(&back), Ok(Next::Nothing));
        let file = File::open("/dev/null").expect("opens");
        let bytes = [&[7u8; HEADER + 8][..]];
        let files = [file.as_raw_fd(); MOST];
        front.send_with_fds(&bytes, &files).expect("sends");
        assert_eq!(peek(&back), Ok(Next::Message));
        assert_eq!(peek(&back), Ok(Next::Message));
        let mut buffer = [0u8; HEADER + 8];
        let mut fds = [0; MOST];
        // Surplus descriptors are not mistaken for a lack of room.
        front
            .send_with_fds(&bytes, &[file.as_raw_fd(); MOST + 8])
            .expect("sends");
        let mut iov = [libc::iovec {
            iov_base: buffer.as_mut_ptr().cast(),
            iov_len: buffer.len(),
        }];
        // SAFETY: the buffer is there, and has that length.
        let received = unsafe { back.recv_with_fds(&mut iov, &mut fds) };
        assert_eq!(received.expect("receives"), (HEADER + 8, MOST));
        assert_eq!(buffer, [7; HEADER + 8]);
        assert_eq!(peek(&back), Ok(Next::Message));
        drop(front);
    }

    #[test]
    fn descriptors_with_a_part_of_a_header_are_refused_and_bytes_alone_are_not() {
        let (mut front, back) = UnixStream::pair().expect("a pair");
        front.write_all(&[1]).expect("sends");
        assert_eq!(peek(&back), Ok(Next::Message));
        let (front, back) = UnixStream::pair().expect("a pair");
        let file = File::open("/dev/null").expect("opens");
        front
            .send_with_fds(&[&[1u8][..]], &[file.as_raw_fd()])
            .expect("sends");
        assert_eq!(peek(&back), Ok(Next::Torn));
        let (front, back) = UnixStream::pair().expect("a pair");
        drop(front);
        assert_eq!(peek(&back), Ok(Next::Message), "the end");
    }
}
