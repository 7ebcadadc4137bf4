//! Counts of connections to the control sockets, and of what they came to.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
};

use crate::{api::Connections, role::Role};

/// What happened to a connection. The first is no end, all others are reasons.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is served.
    Accepted,
    /// The system did not let it in.
    NotAccepted,
    /// Its request was answered with a refusal.
    Refused,
    /// It took too long.
    TimedOut,
    /// What it sent is no request, or it went away before its reply.
    Broken,
}

/// Each outcome and its word, in the order of [`Outcome`].
const REASONS: [(Outcome, &str); 4] = [
    (Outcome::NotAccepted, "not_accepted"),
    (Outcome::Refused, "refused"),
    (Outcome::TimedOut, "timed_out"),
    (Outcome::Broken, "broken"),
];

/// Each role and the word for its socket.
const SOCKETS: [(Role, &str); 2] = [(Role::Operator, "control"), (Role::Monitor, "statistics")];

/// Counters of the control sockets of a process.
#[derive(Debug, Default)]
pub struct Clients([[AtomicU64; 5]; 2]);

impl Clients {
    pub(crate) fn count(&self, role: Role, outcome: Outcome) {
        if let Some(counter) = self.counter(role, outcome) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn counter(&self, role: Role, outcome: Outcome) -> Option<&AtomicU64> {
        self.0.get(role as usize)?.get(outcome as usize)
    }

    fn read(&self, role: Role, outcome: Outcome) -> u64 {
        self.counter(role, outcome)
            .map_or(0, |counter| counter.load(Ordering::Relaxed))
    }

    /// The counters by the words for socket and reason.
    pub fn report(&self) -> BTreeMap<String, Connections> {
        let of = |role| Connections {
            accepted: self.read(role, Outcome::Accepted),
            rejected: REASONS
                .map(|(outcome, word)| (word.to_owned(), self.read(role, outcome)))
                .into(),
        };
        SOCKETS
            .map(|(role, word)| (word.to_owned(), of(role)))
            .into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_outcome_of_every_socket_has_a_counter_of_its_own() {
        let clients = Clients::default();
        let outcomes = [Outcome::Accepted]
            .into_iter()
            .chain(REASONS.map(|(outcome, _)| outcome));
        for (times, (role, outcome)) in (1..).zip(
            SOCKETS
                .iter()
                .flat_map(|(role, _)| outcomes.clone().map(|outcome| (*role, outcome))),
        ) {
            for _ in 0..times {
                clients.count(role, outcome);
            }
            assert_eq!(clients.read(role, outcome), times);
        }
        let report = clients.report();
        assert_eq!(report["control"].accepted, 1);
        assert_eq!(report["control"].rejected["broken"], 5);
        assert_eq!(report["statistics"].accepted, 6);
        assert_eq!(report["statistics"].rejected["not_accepted"], 7);
    }
}
