//! Freeing what was cut loose: pools that were destroyed, objects that were invalidated, domains that were removed.
//!
//! Whoever ends them frees a little, the background thread the rest in bounded steps. What is not free yet stays
//! charged, so a store that finds no room helps first.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::account::ledger::Short;
use crate::domain::DomainInner;
use crate::store::StoreInner;

/// Pages that one step frees at most, for each domain.
pub(crate) const STEP: usize = 256;
/// Pages that a store without room frees at most before it tries again.
const HELP: usize = 64;
/// Frames that it gives back then, which those pages may have been the last in.
const HELP_FRAMES: usize = 8;
/// Steps that whoever removes a domain does itself: enough for all that is small.
const INLINE_STEPS: usize = 24;

impl StoreInner {
    /// One bounded step. `true` when there was something to free.
    pub(crate) fn reap(&self) -> bool {
        let mut freed = self.wakes.clear_graveyard();
        if !self.has_dying() {
            return freed;
        }
        let leaving = self.leaving.lock().first().cloned();
        if let Some(domain) = leaving {
            self.free_leaving(&domain);
            freed = true;
        }
        let (domains, groups) = self.everybody();
        for domain in domains {
            freed |= domain.free_some(STEP);
        }
        for group in groups {
            freed |= group.pool.free_loose(STEP);
        }
        freed
    }

    fn has_dying(&self) -> bool {
        self.wakes.dying.load(Ordering::Relaxed) > 0
    }

    /// Frees a little of what is dying for a domain that has no room: its own, and where the budget is short, that of
    /// others. `true` when there was something.
    pub(crate) fn free_for(&self, domain: &DomainInner, short: Short) -> bool {
        if !self.has_dying() {
            return false;
        }
        if help(domain) {
            return true;
        }
        if short == Short::Limit {
            return false;
        }
        let leaving = self.leaving.lock().first().cloned();
        if let Some(leaving) = leaving {
            self.free_leaving(&leaving);
            return true;
        }
        let (domains, groups) = self.everybody();
        domains.iter().any(|domain| help(domain))
            || groups.iter().any(|group| {
                let freed = group.pool.free_loose(HELP);
                if freed {
                    group.pool.space.trim(HELP_FRAMES);
                }
                freed
            })
    }

    /// Takes over a domain that nobody finds any more.
    pub(crate) fn let_go(&self, domain: &Arc<DomainInner>) {
        self.leaving.lock().push(Arc::clone(domain));
        self.wakes.dying.fetch_add(1, Ordering::Relaxed);
        for _ in 0..INLINE_STEPS {
            if self.free_leaving(domain) {
                return;
            }
        }
        self.wakes.upkeep.ask_soon();
    }

    /// Frees some of what a removed domain had. Returns whether nothing is left.
    fn free_leaving(&self, domain: &Arc<DomainInner>) -> bool {
        if domain.free_some(STEP) {
            return false;
        }
        domain.space.end();
        if !domain.space.abandon() {
            return false;
        }
        let mut leaving = self.leaving.lock();
        if let Some(at) = leaving.iter().position(|other| Arc::ptr_eq(other, domain)) {
            leaving.swap_remove(at);
            self.wakes.dying.fetch_sub(1, Ordering::Relaxed);
        }
        true
    }
}

/// Frees a little of what is dying of a domain. `true` when there was something.
fn help(domain: &DomainInner) -> bool {
    let freed = domain.free_some(HELP);
    if freed {
        domain.space.trim(HELP_FRAMES);
    }
    freed
}
