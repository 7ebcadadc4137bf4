//! Freeing what was cut loose: pools that were destroyed, objects that were invalidated, domains that were removed.
//!
//! The call that ends them frees a little, the background thread the rest in bounded steps. What is not free yet stays
//! charged, so a store that finds no room helps first.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::account::ledger::Short;
use crate::domain::DomainInner;
use crate::owners::Owners;

/// Pages that one step frees at most, for each domain.
pub(crate) const STEP: usize = 256;
/// Pages that a store without room frees at most before it tries again.
const HELP: usize = 64;
/// Frames that it gives back then, which those pages may have been the last in.
const HELP_FRAMES: usize = 8;
/// Steps that the removal of a domain does itself: enough for small domains.
const INLINE_STEPS: usize = 24;

/// One bounded step. `true` when there was something to free.
pub(crate) fn step(owners: &Owners) -> bool {
    let mut freed = owners.wakes.clear_graveyard();
    if !has_dying(owners) {
        return freed;
    }
    let leaving = owners.leaving.lock().first().cloned();
    if let Some(domain) = leaving {
        free_leaving(owners, &domain);
        freed = true;
    }
    let list = owners.list();
    for domain in &list.domains {
        freed |= domain.free_some(STEP);
    }
    for group in list.groups() {
        freed |= group.pool.free_loose(STEP);
    }
    freed
}

fn has_dying(owners: &Owners) -> bool {
    owners.wakes.dying.load(Ordering::Relaxed) > 0
}

/// Frees a little of what is dying for a domain that has no room: its own, and where the budget is short, that of
/// others. `true` when there was something.
pub(crate) fn free_for(owners: &Owners, domain: &DomainInner, short: Short) -> bool {
    if !has_dying(owners) {
        return false;
    }
    if help(domain) {
        return true;
    }
    if short == Short::Limit {
        return false;
    }
    let leaving = owners.leaving.lock().first().cloned();
    if let Some(leaving) = leaving {
        free_leaving(owners, &leaving);
        return true;
    }
    let list = owners.list();
    list.domains.iter().any(|domain| help(domain))
        || list.groups().any(|group| {
            let freed = group.pool.free_loose(HELP);
            if freed {
                group.pool.arena.trim(HELP_FRAMES);
            }
            freed
        })
}

/// Takes over a domain that no request finds any more.
pub(crate) fn let_go(owners: &Owners, domain: &Arc<DomainInner>) {
    owners.leaving.lock().push(Arc::clone(domain));
    owners.wakes.dying.fetch_add(1, Ordering::Relaxed);
    for _ in 0..INLINE_STEPS {
        if free_leaving(owners, domain) {
            return;
        }
    }
    owners.wakes.background.ask_soon();
}

/// Frees some of what a removed domain had. Returns whether nothing is left.
fn free_leaving(owners: &Owners, domain: &Arc<DomainInner>) -> bool {
    if domain.free_some(STEP) {
        return false;
    }
    domain.arena.end();
    if !domain.arena.abandon() {
        return false;
    }
    let mut leaving = owners.leaving.lock();
    if let Some(at) = leaving.iter().position(|other| Arc::ptr_eq(other, domain)) {
        leaving.swap_remove(at);
        owners.wakes.dying.fetch_sub(1, Ordering::Relaxed);
    }
    true
}

/// Frees a little of what is dying of a domain. `true` when there was something.
fn help(domain: &DomainInner) -> bool {
    let freed = domain.free_some(HELP);
    if freed {
        domain.arena.trim(HELP_FRAMES);
    }
    freed
}
