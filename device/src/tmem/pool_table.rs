//! The pools of a driver in the domain of its guest.

use std::time::Duration;

use tmem_protocol::Status;
use tmem_store::{CreatePoolError, Dedup, Domain, PoolId, PoolSpec};

use super::pools::{Orphans, Pools};
use super::request::PoolRequest;

/// A pool that no domain has: its index is beyond the last one.
const NO_POOL: PoolId = PoolId(u32::MAX);

/// The pools of a driver: by their ids, and in the domain.
#[derive(Debug)]
pub(super) struct PoolTable {
    domain: Domain,
    pools: Pools,
    max_pools: u32,
    dedup: Dedup,
}

impl PoolTable {
    /// None yet; at most `max_pools` at one time, which keep one copy of the same bytes as `dedup` says.
    pub(super) fn new(domain: Domain, max_pools: u32, dedup: Dedup) -> Self {
        Self {
            domain,
            pools: Pools::new(),
            max_pools,
            dedup,
        }
    }

    /// The domain of the guest.
    pub(super) fn domain(&self) -> &Domain {
        &self.domain
    }

    /// The pool of this id, or one that no domain has.
    pub(super) fn find(&self, id: u32) -> PoolId {
        let (pool, orphans) = self.pools.find(id);
        self.drop_orphans(orphans);
        pool.unwrap_or(NO_POOL)
    }

    pub(super) fn create(&self, kind: &PoolRequest) -> Result<u32, Status> {
        let spec = match kind {
            PoolRequest::Persistent => PoolSpec::Persistent,
            PoolRequest::Ephemeral => PoolSpec::Ephemeral,
            PoolRequest::Shared(group) => PoolSpec::Shared {
                group: group.as_str(),
            },
        };
        let create = || self.domain.create_pool_with(spec, self.dedup);
        let created = self.pools.create(self.max_pools, create);
        created
            .ok_or(Status::TooManyPools)?
            .map_err(create_pool_status)
    }

    pub(super) fn destroy(&self, id: u32) -> Result<(), Status> {
        let (pool, orphans) = self.pools.remove(id);
        self.drop_orphans(orphans);
        let pool = pool.ok_or(Status::NoPool)?;
        self.domain.destroy_pool(pool).map_err(|_| Status::NoPool)
    }

    /// Destroys them all.
    pub(super) fn clear(&self) {
        let pools = self.pools.take();
        self.drop_orphans(pools);
    }

    /// See [`TmemDevice::hand_over`](super::TmemDevice::hand_over).
    pub(super) fn hand_over(&self, patience: Duration) {
        self.pools.hand_over(patience);
    }

    fn drop_orphans(&self, pools: Orphans) {
        for pool in pools.0 {
            // The operator may have removed the domain before.
            let _ = self.domain.destroy_pool(pool);
        }
    }
}

fn create_pool_status(error: CreatePoolError) -> Status {
    match error {
        CreatePoolError::TooMany => Status::TooManyPools,
        CreatePoolError::Denied | CreatePoolError::Removed => Status::Denied,
        CreatePoolError::NoSpace => Status::NoSpace,
        CreatePoolError::NoMemory => Status::NoMemory,
    }
}
