//! Memory that an operator asks for: a reserve, a flush, a lower limit. It may be all that a guest has, so it is
//! gathered in batches, and no lock is held from one batch to the next.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tmem_base::setting::PoolKind;

use crate::account::allotment::Allotment;
use crate::account::ledger::{Account, Ledger};
use crate::domain::{DomainInner, PoolRef};
use crate::error::ConfigError;
use crate::owners::Owners;
use crate::reap;
use crate::reclaim::{self, Pace};

/// How long memory for a reserve is looked for.
const PATIENCE: Duration = Duration::from_secs(30);
/// Pages that are evicted between two checks of the memory that is still missing.
const BATCH: usize = 128;
/// Frames that are given back between two checks.
const FRAMES: usize = 256;

/// Memory that is kept for a reserve as it becomes free.
struct Promise<'a> {
    ledger: &'a Ledger,
    bytes: u64,
}

impl<'a> Promise<'a> {
    fn new(ledger: &'a Ledger, bytes: u64) -> Self {
        ledger.promise(bytes);
        Self { ledger, bytes }
    }
}

impl Drop for Promise<'_> {
    fn drop(&mut self) {
        self.ledger.withdraw(self.bytes);
    }
}

/// Gives a domain its allotment, evicting ephemeral pages of others for the reserve.
pub(crate) fn grant(
    owners: &Owners,
    account: &Account,
    allotment: Allotment,
) -> Result<(), ConfigError> {
    let configure = || owners.ledger.configure(account, allotment);
    if configure().is_ok() {
        return Ok(());
    }
    let used = account.used();
    let missing = allotment.reserve.max(used) - account.reserve().max(used);
    let _promise = Promise::new(&owners.ledger, missing);
    let end = Instant::now() + PATIENCE;
    while configure().is_err() {
        if Instant::now() >= end || !gather(owners) {
            return Err(ConfigError::ReserveInUse);
        }
    }
    Ok(())
}

/// Frees a batch of what the ledger counts against the budget. `false` when there is nothing to free.
fn gather(owners: &Owners) -> bool {
    if reap::step(owners) {
        return true;
    }
    let list = owners.list();
    let trim = || list.arenas().filter(|arena| arena.trim(FRAMES) > 0).count() > 0;
    if trim() {
        return true;
    }
    for domain in reclaim::furthest_first(&list.domains) {
        // No other domain may take pages that a domain holds within its reserve.
        let own = domain.account.used() > domain.account.reserve();
        let chosen = |pool_ref: &PoolRef| own || pool_ref.pool.kind == PoolKind::Shared;
        if reclaim::evict_where(domain, BATCH, chosen).pages > 0 {
            trim();
            return true;
        }
    }
    reclaim::compact_step(owners, Pace::Fast)
}

/// Evicts ephemeral pages of a domain until `bytes` bytes of slots are free.
pub(crate) fn flush(domain: &Arc<DomainInner>, bytes: u64) -> u64 {
    let mut flushed = 0;
    while flushed < bytes {
        let evicted = reclaim::evict_where(domain, BATCH / 4, |_| true);
        if evicted.pages == 0 {
            break;
        }
        flushed += evicted.bytes;
        domain.arena.trim(FRAMES);
    }
    while reclaim::compact_alone(domain) {}
    flushed
}

/// Evicts ephemeral pages of a domain until it is below its limit, or has none.
pub(crate) fn shrink_to_limit(domain: &Arc<DomainInner>) {
    while domain.account.charged() > domain.account.limit() {
        let freed = domain.arena.trim(FRAMES) > 0
            || domain.free_some(reap::STEP)
            || reclaim::evict_where(domain, BATCH / 4, |_| true).pages > 0
            || reclaim::compact_alone(domain);
        if !freed {
            break;
        }
    }
}
