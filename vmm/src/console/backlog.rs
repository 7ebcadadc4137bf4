//! Console output between the vCPU that writes it and the thread that takes it away.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Bytes that wait for a slow reader. Further output is left out and counted.
const CAPACITY: usize = 1 << 20;

/// The line that stands where output is missing.
pub(crate) fn mark(left_out: u64) -> String {
    format!("\r\n[tmem: {left_out} bytes of console output left out]\r\n")
}

/// Bytes in order, bounded.
#[derive(Debug)]
pub(crate) struct Backlog {
    state: Mutex<State>,
    more: Condvar,
    capacity: usize,
}

#[derive(Debug, Default)]
struct State {
    bytes: VecDeque<u8>,
    /// Bytes that had no room, behind all that have one.
    left_out: u64,
    /// Nobody writes any more.
    ended: bool,
    asleep: bool,
}

impl Backlog {
    pub(crate) fn new() -> Self {
        Self::with_capacity(CAPACITY)
    }

    pub(super) fn with_capacity(capacity: usize) -> Self {
        Self {
            state: Mutex::default(),
            more: Condvar::new(),
            capacity,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of what the guest writes. Never waits for a reader.
    pub(crate) fn push(&self, bytes: &[u8]) {
        let mut state = self.lock();
        let room = self.capacity.saturating_sub(state.bytes.len());
        // Once something is missing all that follows is, until the reader has caught up.
        if state.left_out > 0 || bytes.len() > room {
            state.left_out = state.left_out.saturating_add(bytes.len() as u64);
        } else {
            state.bytes.extend(bytes);
        }
        let asleep = std::mem::take(&mut state.asleep);
        drop(state);
        if asleep {
            self.more.notify_one();
        }
    }

    /// No more comes; [`take`](Self::take) no longer waits.
    pub(crate) fn end(&self) {
        self.lock().ended = true;
        self.more.notify_one();
    }

    /// Waits for output and moves some of it to the front of `to`. Returns how many bytes; 0 at the end.
    pub(crate) fn take(&self, to: &mut [u8]) -> usize {
        let mut state = self.lock();
        loop {
            let count = state.bytes.len().min(to.len());
            for (to, byte) in to.iter_mut().zip(state.bytes.drain(..count)) {
                *to = byte;
            }
            // Half empty, so that a reader that stays slow finds long pieces and not a mark for each byte.
            if state.left_out > 0 && state.bytes.len() <= self.capacity / 2 {
                let mark = mark(std::mem::take(&mut state.left_out));
                state.bytes.extend(mark.as_bytes());
            }
            if count > 0 || (state.ended && state.bytes.is_empty()) {
                return count;
            }
            if state.bytes.is_empty() {
                state.asleep = true;
                state = self
                    .more
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    /// Bytes that the reader did not take, for a thread that gives up.
    pub(crate) fn left(&self) -> u64 {
        let state = self.lock();
        (state.bytes.len() as u64).saturating_add(state.left_out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All that is there, taken a few bytes at a time.
    fn drain(backlog: &Backlog) -> String {
        backlog.end();
        let mut all = Vec::new();
        let mut some = [0; 7];
        loop {
            match backlog.take(&mut some) {
                0 => return String::from_utf8(all).unwrap(),
                count => all.extend_from_slice(&some[..count]),
            }
        }
    }

    #[test]
    fn what_fits_comes_out_as_it_went_in() {
        let backlog = Backlog::with_capacity(16);
        backlog.push(b"hello ");
        backlog.push(b"world");
        assert_eq!(drain(&backlog), "hello world");
    }

    #[test]
    fn what_does_not_fit_is_left_out_and_counted_where_it_is_missing() {
        let backlog = Backlog::with_capacity(128);
        for _ in 0..1000 {
            backlog.push(b"0123");
        }
        let mut some = [0; 64];
        assert_eq!(backlog.take(&mut some), 64);
        backlog.push(b"later");
        let expected = format!("{}{}later", "0123".repeat(16), mark(4000 - 128));
        assert_eq!(drain(&backlog), expected);
    }

    #[test]
    fn a_reader_that_stays_slow_finds_pieces_of_half_the_capacity() {
        let backlog = Backlog::with_capacity(1024);
        let mut marks = 0;
        let mut some = [0; 64];
        for _ in 0..10_000 {
            backlog.push(&[b'x'; 128]);
            let count = backlog.take(&mut some);
            marks += some[..count].iter().filter(|byte| **byte == b'[').count();
            assert!(backlog.lock().bytes.len() <= 1024 + mark(u64::MAX).len());
        }
        // Each piece of 512 bytes takes eight turns.
        assert!((1..=10_000 / 8).contains(&marks), "{marks}");
    }

    #[test]
    fn output_that_is_missing_at_the_end_is_told_too() {
        let backlog = Backlog::with_capacity(4);
        backlog.push(b"four");
        backlog.push(b"!");
        assert_eq!(backlog.left(), 5);
        assert_eq!(drain(&backlog), format!("four{}", mark(1)));
        assert_eq!(backlog.left(), 0);
    }

    #[test]
    fn who_waits_is_woken_by_output_and_by_the_end() {
        let backlog = Backlog::new();
        std::thread::scope(|threads| {
            let reader = threads.spawn(|| {
                let mut bytes = [0; 4];
                let first = backlog.take(&mut bytes);
                (first, backlog.take(&mut bytes))
            });
            while !backlog.lock().asleep {
                std::thread::yield_now();
            }
            backlog.push(b"x");
            while !backlog.lock().asleep {
                std::thread::yield_now();
            }
            backlog.end();
            assert_eq!(reader.join().unwrap(), (1, 0));
        });
    }
}
