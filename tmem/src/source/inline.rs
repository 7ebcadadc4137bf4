//! The source of a process that runs one guest and has its pages.

use std::sync::{Arc, Weak};

use tmem_control::{Done, Operation, Refused, Source, Stats};

use super::store::OwnStore;
use crate::host_memory::HostMemory;

/// The statistics of the guest's store and of the host's memory.
pub(crate) struct Inline {
    store: OwnStore,
    memory: Weak<HostMemory>,
}

impl Inline {
    /// Reports on this store, and on the memory of the host while it is watched.
    pub(crate) fn new(store: OwnStore, memory: &Arc<HostMemory>) -> Self {
        Self {
            store,
            memory: Arc::downgrade(memory),
        }
    }
}

impl Source for Inline {
    fn stats(&self) -> Stats {
        Stats {
            host: self.memory.upgrade().and_then(|memory| memory.report()),
            ..self.store.stats()
        }
    }

    fn operate(&self, operation: Operation) -> Result<Done, Refused> {
        self.store.operate(operation)
    }
}
