//! One round over the request rings of a connection: whose turn it is, and for how long.
//!
//! Somebody in the guest waits for a load, and nobody in particular for a store. So load rings come first, and again
//! after each turn of a store ring, which ends early when a load comes: a load waits for one store chain at most. A store
//! ring has its turn in each round, however many loads there are.

use tmem_device::{QueueCorrupt, TmemDevice};
use tmem_protocol::FIRST_REQUEST_QUEUE;
use vm_memory::GuestMemory;

use crate::ring::Ring;

/// Entries taken from one ring before the others have their turn. A chain of more entries is a turn of its own.
const TURN: u32 = 8;

/// Why a round ended early.
#[derive(Debug)]
pub(crate) enum Stop {
    /// The guest's memory is not what it was.
    Broken,
    /// This ring cannot be served.
    Corrupt(u16, QueueCorrupt),
}

/// A round that is being served.
pub(crate) struct Round<'a, M, B> {
    device: &'a TmemDevice,
    memory: &'a M,
    /// Whether the guest's memory broke while it was used.
    broken: B,
    chains: u32,
}

impl<'a, M: GuestMemory, B: Fn() -> bool> Round<'a, M, B> {
    /// Gives each active request ring of `rings`, which begin with the event ring, its turn. Returns how many chains were
    /// served, and why not all rings had their turn.
    pub(crate) fn serve(
        device: &'a TmemDevice,
        memory: &'a M,
        rings: &mut [Ring],
        broken: B,
    ) -> (u32, Result<(), Stop>) {
        let mut round = Self {
            device,
            memory,
            broken,
            chains: 0,
        };
        let result = round.all(rings);
        (round.chains, result)
    }

    fn all(&mut self, rings: &mut [Ring]) -> Result<(), Stop> {
        let first_store = self.device.store_queues().start;
        let middle = usize::from(first_store).min(rings.len());
        let (loads, stores) = rings.split_at_mut(middle);
        self.loads(loads)?;
        let memory = self.memory;
        for (index, ring) in (first_store..).zip(stores) {
            let urgent = || loads.iter().any(|ring| ring.has_chain(memory));
            if self.turn(index, ring, urgent)? > 0 {
                self.loads(loads)?;
            }
        }
        Ok(())
    }

    fn loads(&mut self, rings: &mut [Ring]) -> Result<(), Stop> {
        let rings = (0..).zip(rings).skip(FIRST_REQUEST_QUEUE.into());
        for (index, ring) in rings {
            self.turn(index, ring, || false)?;
        }
        Ok(())
    }

    /// A turn of one ring; how many chains it had.
    fn turn(
        &mut self,
        index: u16,
        ring: &mut Ring,
        urgent: impl FnMut() -> bool,
    ) -> Result<u32, Stop> {
        if !ring.is_active() {
            return Ok(0);
        }
        let served = self
            .device
            .poll_requests(index, self.memory, &mut ring.queue, TURN, urgent)
            .and_then(|progress| {
                if progress.chains > 0 {
                    ring.notify(self.memory).map_err(QueueCorrupt::Ring)?;
                }
                Ok(progress.chains)
            });
        let served = served.map_err(|error| Stop::Corrupt(index, error))?;
        self.chains = self.chains.saturating_add(served);
        // Zero pages took the place of its memory: no more of them than one ring can fill.
        match (self.broken)() {
            true => Err(Stop::Broken),
            false => Ok(served),
        }
    }
}

#[cfg(test)]
mod tests;
