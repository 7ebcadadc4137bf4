//! The thread `tmem link`: it watches descriptors, passes interrupts on, and never waits for the service.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use rustix::event::{Timespec, epoll};
use rustix::io::Errno;

use super::shared::{Shared, token};

/// The thread `tmem link`. Descriptors that the service has too are watched edge-triggered and never read: it could
/// make a read wait. Every write to an eventfd is an edge, read or not.
pub(super) struct LinkThread {
    shared: Arc<Shared>,
}

impl LinkThread {
    pub(super) fn new(shared: Arc<Shared>) -> io::Result<Self> {
        let once = epoll::EventFlags::IN | epoll::EventFlags::ET;
        let data = epoll::EventData::new_u64;
        let events = &shared.events;
        epoll::add(
            events,
            &shared.wake,
            data(token::WAKE),
            epoll::EventFlags::IN,
        )?;
        let (call, error) = (
            borrowed(&shared.eventfds.call),
            borrowed(&shared.eventfds.error),
        );
        epoll::add(events, call, data(token::CALL), once)?;
        epoll::add(events, error, data(token::ERROR), once)?;
        Ok(Self { shared })
    }

    pub(super) fn run(self) {
        let shared = &*self.shared;
        let mut ready = Vec::with_capacity(8);
        loop {
            let (closing, until) = {
                let state = shared.state();
                (state.closing, state.start_until)
            };
            if closing {
                return;
            }
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                shared.look_at_time();
                continue;
            }
            let timeout = left.and_then(|left| Timespec::try_from(left).ok());
            let room = rustix::buffer::spare_capacity(&mut ready);
            match epoll::wait(&shared.events, room, timeout.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return shared.fail(format_args!("it cannot be watched: {error}")),
            }
            for event in ready.drain(..) {
                self.event(event.data.u64());
            }
        }
    }

    fn event(&self, token: u64) {
        let shared = &*self.shared;
        match token {
            token::WAKE => shared.wake.clear(),
            token::CALL => shared.interrupt(),
            token::ERROR => shared.fail(format_args!("a ring is inconsistent")),
            connection => shared.lost(connection.saturating_sub(token::CONNECTION)),
        }
    }
}

fn borrowed(eventfd: &vmm_sys_util::eventfd::EventFd) -> std::os::fd::BorrowedFd<'_> {
    // SAFETY: the descriptor is open as long as the eventfd, which outlives the borrow.
    unsafe { std::os::fd::BorrowedFd::borrow_raw(std::os::fd::AsRawFd::as_raw_fd(eventfd)) }
}
