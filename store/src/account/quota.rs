//! The right of an owner to charge its account, and why a charge is refused.

use std::sync::Arc;

use super::ledger::{Account, Ledger, Short};
use crate::config::{Gate, Want};
use crate::wake::Wakes;

/// Why there is no slot or no metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AllocError {
    /// Limit or budget: evicting, trimming or compacting may help.
    Short(Short),
    /// The host has no memory.
    NoMemory,
    /// No slot of the class lies in frames with memory: `Arena::hold_for` gets one, once no lock is held.
    Frames,
}

impl From<Short> for AllocError {
    fn from(short: Short) -> Self {
        AllocError::Short(short)
    }
}

/// Charges memory and asks whether the host grants it.
#[derive(Clone, Debug)]
pub(crate) struct Quota {
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) account: Arc<Account>,
    gate: Option<Arc<dyn Gate>>,
    /// The background threads, for when there is something to compact or to prefault.
    wakes: Arc<Wakes>,
    /// The host may not swap the memory out.
    locked: bool,
}

impl Quota {
    pub(crate) fn new(
        ledger: Arc<Ledger>,
        account: Arc<Account>,
        gate: Option<Arc<dyn Gate>>,
        wakes: Arc<Wakes>,
    ) -> Self {
        Self {
            ledger,
            account,
            gate,
            wakes,
            locked: false,
        }
    }

    /// As it is, or for memory that the host may not swap out.
    pub(crate) fn locked(self, locked: bool) -> Self {
        Self { locked, ..self }
    }

    pub(crate) fn is_locked(&self) -> bool {
        self.locked
    }

    pub(crate) fn charge(&self, bytes: u64) -> Result<(), AllocError> {
        self.charge_for(bytes, Want::Pages)
    }

    pub(crate) fn charge_for(&self, bytes: u64, want: Want) -> Result<(), AllocError> {
        if bytes == 0 {
            return Ok(());
        }
        self.ledger.charge(&self.account, bytes)?;
        if self
            .gate
            .as_ref()
            .is_some_and(|gate| !gate.allow(bytes, want))
        {
            self.ledger.release(&self.account, bytes);
            return Err(AllocError::Short(Short::Host));
        }
        Ok(())
    }

    /// Uncharges frames that the kernel has again.
    pub(crate) fn uncharge_returned(&self, bytes: u64) {
        self.uncharge(bytes);
        if let Some(gate) = &self.gate {
            gate.returned(bytes);
        }
    }

    pub(crate) fn uncharge(&self, bytes: u64) {
        self.ledger.release(&self.account, bytes);
    }

    pub(crate) fn wakes(&self) -> &Wakes {
        &self.wakes
    }
}
