//! A connection that can carry a descriptor beside its bytes (`SCM_RIGHTS` of unix(7)).

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::UnixStream,
};

/// What came with the bytes of a connection so far.
#[derive(Debug, Default)]
pub(crate) enum Passed {
    #[default]
    Nothing,
    One(OwnedFd),
    TooMany,
}

/// The place of it, which the connection and the answer to its request share.
#[derive(Clone, Debug, Default)]
pub(crate) struct Slot(Arc<Mutex<Passed>>);

impl Slot {
    /// Takes what came out.
    pub(crate) fn take(&self) -> Passed {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn add(&self, fd: OwnedFd) {
        let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *slot = match *slot {
            Passed::Nothing => Passed::One(fd),
            Passed::One(_) | Passed::TooMany => Passed::TooMany,
        };
    }
}

/// A connection that takes descriptors, or sends one with its first bytes.
#[derive(Debug)]
pub(crate) struct Stream {
    socket: UnixStream,
    slot: Slot,
    to_send: Option<OwnedFd>,
}

impl Stream {
    pub(crate) fn new(socket: UnixStream, slot: Slot, to_send: Option<OwnedFd>) -> Self {
        Self {
            socket,
            slot,
            to_send,
        }
    }

    /// Reads, and keeps one descriptor at most: the kernel closes what does not fit the buffer.
    fn receive(&self, into: &mut [u8]) -> io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut passed = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC;
        let read = recvmsg(
            &self.socket,
            &mut [IoSliceMut::new(into)],
            &mut passed,
            flags,
        )?;
        for message in passed.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                descriptors.for_each(|fd| self.slot.add(fd));
            }
        }
        Ok(read.bytes)
    }

    fn send(&self, bytes: &[u8], fd: &OwnedFd) -> io::Result<usize> {
        let fds = [fd.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut passing = SendAncillaryBuffer::new(&mut space);
        passing.push(SendAncillaryMessage::ScmRights(&fds));
        let bytes = [IoSlice::new(bytes)];
        Ok(sendmsg(
            &self.socket,
            &bytes,
            &mut passing,
            SendFlags::NOSIGNAL,
        )?)
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.socket.poll_read_ready(cx))?;
            let into = buf.initialize_unfilled();
            let read = || self.receive(into);
            match self.socket.try_io(Interest::READABLE, read) {
                Ok(bytes) => {
                    buf.advance(bytes);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if is_passing(&error) => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let Some(fd) = &self.to_send else {
                return Pin::new(&mut self.socket).poll_write(cx, bytes);
            };
            ready!(self.socket.poll_write_ready(cx))?;
            let write = || self.send(bytes, fd);
            match self.socket.try_io(Interest::WRITABLE, write) {
                Ok(written) => {
                    self.to_send = None;
                    return Poll::Ready(Ok(written));
                }
                Err(error) if is_passing(&error) => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

/// Whether to try again: nothing there yet, or a signal came.
fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}
