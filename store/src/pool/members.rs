//! The domains that joined a shared pool, and what each of them stored.

use std::sync::Arc;

use super::{Locked, Pool};
use tmem_base::setting::PoolKind;

use crate::account::ledger::{Account, Short};
use crate::account::quota::AllocError;
use crate::evict::Policy;
use crate::index::SHARDS;

/// Pages of a member that are evicted while the lock of a shard is held.
const AT_A_TIME: usize = 8;

impl Pool {
    pub(crate) fn members(&self) -> Vec<Option<Arc<Account>>> {
        self.members.load().to_vec()
    }

    pub(crate) fn set_members(&self, members: Vec<Option<Arc<Account>>>) {
        self.members.store(Arc::new(members));
    }

    /// Allows a member to store, or forbids it. When this returns, no more page of a forbidden member is stored, and
    /// its pages are not found any more.
    pub(crate) fn admit(&self, member: u8, admitted: bool) {
        for cell in &self.shards {
            cell.locked.lock().admitted.set(member, admitted);
        }
    }

    /// Whether pages of the member may come to the shard, and be found there.
    pub(super) fn is_admitted(&self, locked: &Locked, member: u8) -> bool {
        self.kind != PoolKind::Shared || locked.admitted.has(member)
    }

    /// The account to charge for a page of a share group; `None` in a private pool.
    pub(super) fn member(&self, member: u8) -> Result<Option<Arc<Account>>, AllocError> {
        if self.kind != PoolKind::Shared {
            return Ok(None);
        }
        match self.members.load().get(usize::from(member)) {
            Some(Some(account)) => Ok(Some(Arc::clone(account))),
            _ => Err(AllocError::Short(Short::Limit)),
        }
    }

    /// Evicts about `most` pages of a member that is not admitted any more, and forgets their order where none is
    /// left. Returns whether nothing of it is left.
    pub(crate) fn evict_member(&self, member: u8, most: usize) -> bool {
        let mut left = most;
        for shard in 0..SHARDS {
            while !self.evict_some(member, shard) {
                if left == 0 {
                    return false;
                }
                left = left.saturating_sub(AT_A_TIME);
            }
        }
        true
    }

    /// Evicts some pages of a member from one shard. Returns whether that has none left.
    fn evict_some(&self, member: u8, shard: usize) -> bool {
        let cell = &self.shards[shard];
        let mut guard = cell.locked.lock();
        let locked = &mut *guard;
        for _ in 0..AT_A_TIME {
            if self.evict_one(cell, locked, member).is_some() {
                continue;
            }
            if let Some(at) = locked.queues.iter().position(|(m, _)| *m == member) {
                let (_, order) = locked.queues.swap_remove(at);
                locked.shard.uncharge(self.quota(), order.bytes());
                cell.counters.metadata.set(locked.shard.charged());
            }
            return true;
        }
        false
    }
}
