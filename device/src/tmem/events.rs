//! Events from the host to the guest. Memory is bounded: of each type of event at most one waits
//! for a buffer, and it has the values of the time at which it is delivered.

use std::sync::Mutex;
use std::sync::PoisonError;

use tmem_protocol::{Event, EventType, Pressure};

/// The values that an event carries and that the configuration space shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostState {
    /// How scarce the host's memory is.
    pub pressure: Pressure,
    /// The most that the pages of this guest may use, in bytes; 0 is no limit.
    pub limit_bytes: u64,
    /// Bytes that the pages of this guest use.
    pub used_bytes: u64,
}

#[derive(Debug, Default)]
struct Pending {
    state: HostState,
    pressure: bool,
    limits: bool,
}

#[derive(Debug, Default)]
pub(super) struct Events {
    pending: Mutex<Pending>,
}

impl Events {
    pub(super) fn new(state: HostState) -> Self {
        Self {
            pending: Mutex::new(Pending {
                state,
                ..Pending::default()
            }),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Pending> {
        // Every critical section leaves the state whole.
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn state(&self) -> HostState {
        self.lock().state
    }

    /// Notes an event. It replaces one of its type that still waits.
    pub(super) fn post(&self, event_type: EventType, state: HostState) {
        let mut pending = self.lock();
        pending.state = state;
        match event_type {
            EventType::Pressure => pending.pressure = true,
            EventType::Limits => pending.limits = true,
        }
    }

    pub(super) fn is_pending(&self) -> bool {
        let pending = self.lock();
        pending.pressure || pending.limits
    }

    /// Takes the event to deliver next.
    pub(super) fn take(&self) -> Option<(EventType, Event)> {
        let mut pending = self.lock();
        let event_type = if std::mem::take(&mut pending.pressure) {
            EventType::Pressure
        } else if std::mem::take(&mut pending.limits) {
            EventType::Limits
        } else {
            return None;
        };
        let event = Event {
            event_type: (event_type as u16).into(),
            level: (pending.state.pressure as u32).into(),
            limit_bytes: pending.state.limit_bytes.into(),
            used_bytes: pending.state.used_bytes.into(),
            ..Event::default()
        };
        Some((event_type, event))
    }

    /// Puts back an event that could not be delivered.
    pub(super) fn put_back(&self, event_type: EventType) {
        let mut pending = self.lock();
        match event_type {
            EventType::Pressure => pending.pressure = true,
            EventType::Limits => pending.limits = true,
        }
    }

    /// Forgets what waits.
    pub(super) fn clear(&self) {
        let mut pending = self.lock();
        (pending.pressure, pending.limits) = (false, false);
    }
}
