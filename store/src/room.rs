//! Making room: trimming, compacting and evicting when a limit or the budget is reached.

use std::cmp::Reverse;
use std::sync::Arc;

use crate::domain::{DomainInner, Joined};
use crate::index::{Holder, SHARDS};
use crate::ledger::Short;
use crate::pool::Pool;
use crate::segment::CLASSES;
use crate::share::Group;
use crate::space::Space;
use crate::stats::PoolKind;
use crate::store::StoreInner;

/// Frames that one step of a store gives back at most. Each may be a call of the kernel's.
const TRIM_FRAMES: usize = 2;
/// Slots that one step of a store moves at most.
const MOVES: usize = 4;
/// Pages that one step of a store evicts at most.
const EVICTIONS: usize = 4;
/// Slots that a store looks at for a page of a class to evict, and pages of a class that it evicts for a frame.
const CLASS_TRIES: usize = 8;
/// Times that a store frees memory of which the host is short.
const HOST_ATTEMPTS: usize = 32;
/// Pages that one step for a host that is short of memory evicts at most.
const HOST_EVICTIONS: usize = 256;
/// Frames that one step of the background gives back at most, for a space.
const BACKGROUND_FRAMES: usize = 64;
/// Slots that one step of the background moves at most, for a space.
const BACKGROUND_MOVES: usize = 64;

impl StoreInner {
    /// Frees memory after a refusal, the store's `attempt`th, of a page that needs a slot of `class`. `false` when
    /// nothing is left that could be freed.
    pub(crate) fn make_room(
        &self,
        domain: &Arc<DomainInner>,
        class: Option<usize>,
        short: Short,
        attempt: usize,
    ) -> bool {
        match short {
            Short::Limit => {
                // The slot of an evicted page serves a new one as it is, which costs a tenth of giving frames back:
                // that is for when there are too many free slots that nobody needs. Where the pages whose turn it
                // was leave no slot of the class, one of the class goes; and where that did not help either, the
                // index wants memory, or the class has no page: a frame is freed. Whoever stores waits for no more.
                (attempt == 0 && domain.space.is_wasteful() && tighten_domain(domain))
                    || (attempt == 1 && class.is_some_and(|class| evict_in_class(domain, class)))
                    || (attempt > 0 && evict_frame(domain))
                    || evict_from(domain, EVICTIONS).pages > 0
                    || tighten_domain(domain)
            }
            // Those who store meanwhile may take what was freed: no store waits for more than a few.
            Short::Host if attempt >= HOST_ATTEMPTS => false,
            Short::Budget | Short::Host => {
                if tighten_domain(domain) {
                    return true;
                }
                let (domains, groups) = self.everybody();
                reclaim(Some((domain, attempt)), &domains, &groups)
            }
        }
    }

    /// Evicts ephemeral pages of a domain until `bytes` bytes of slots are free.
    pub(crate) fn flush(&self, domain: &Arc<DomainInner>, bytes: u64) -> u64 {
        let mut flushed = 0;
        while flushed < bytes {
            let evicted = evict_from(domain, EVICTIONS);
            if evicted.pages == 0 {
                break;
            }
            flushed += evicted.bytes;
        }
        while tighten_domain(domain) {}
        flushed
    }

    /// Evicts ephemeral pages of a domain until it is below its limit, or has none.
    pub(crate) fn shrink_to_limit(&self, domain: &Arc<DomainInner>) {
        while domain.account.charged() > domain.account.limit() {
            if !tighten_domain(domain) && evict_from(domain, EVICTIONS).pages == 0 {
                break;
            }
        }
    }
}

/// Frees memory that the ledger counts against the budget: first what nobody needs, then ephemeral
/// pages of the domain furthest over its weight. `asking` is who asks, and how often it has before; it may use what it frees
/// even within its own reserve.
pub(crate) fn reclaim(
    asking: Option<(&Arc<DomainInner>, usize)>,
    domains: &[Arc<DomainInner>],
    groups: &[Arc<Group>],
) -> bool {
    let mut freed = false;
    for domain in domains {
        freed |=
            domain.space.is_wasteful() && domain.space.spendable() > 0 && tighten_domain(domain);
    }
    for group in groups {
        freed |= group.pool.space.is_wasteful() && tighten_group(group);
    }
    if freed {
        return true;
    }
    let mut order: Vec<_> = domains.iter().collect();
    order.sort_by_cached_key(|domain| Reverse(overuse(domain)));
    for domain in order {
        // What a domain holds within its reserve is nobody else's to win.
        let own = asking.is_some_and(|(asking, _)| Arc::ptr_eq(asking, domain))
            || domain.account.used() > domain.account.reserve();
        // The first pages were those whose turn it was, and left no frame free.
        if asking.is_some_and(|(_, attempt)| attempt > 0) && own && evict_frame(domain) {
            return true;
        }
        let evicted = evict_where(domain, EVICTIONS, |joined| {
            own || joined.pool.kind == PoolKind::Shared
        });
        if evicted.pages > 0 {
            tighten_domain(domain);
            for group in groups {
                tighten_group(group);
            }
            return true;
        }
    }
    false
}

/// Evicts ephemeral pages for a host that is short of memory: of the domain furthest over its weight, and only when nobody
/// else has any, of one within its reserve. Bounded work; `true` when there were such pages.
pub(crate) fn evict_for_host(domains: &[Arc<DomainInner>]) -> bool {
    let mut order: Vec<_> = domains.iter().collect();
    // Nothing of a domain within its reserve is overuse.
    order.sort_by_cached_key(|domain| Reverse(overuse(domain)));
    order
        .into_iter()
        .any(|domain| evict_from(domain, HOST_EVICTIONS).pages > 0)
}

/// Bytes beyond the reserve for each unit of weight, scaled to keep small differences apart.
fn overuse(domain: &DomainInner) -> u128 {
    let account = &domain.account;
    let over = account.charged().saturating_sub(account.reserve());
    (u128::from(over) << 32) / u128::from(account.weight().max(1))
}

/// What an eviction took.
#[derive(Clone, Copy, Debug, Default)]
struct Evicted {
    pages: u64,
    /// Bytes of slots.
    bytes: u64,
}

fn evict_from(domain: &DomainInner, most: usize) -> Evicted {
    evict_where(domain, most, |_| true)
}

/// Evicts neighbours in a class of large slots until a frame is free, and gives it back.
fn evict_frame(domain: &DomainInner) -> bool {
    if domain.own_freeable() == 0 {
        return false;
    }
    for class in (0..CLASSES).rev() {
        for _ in 0..CLASS_TRIES {
            if !evict_in_class(domain, class) {
                break;
            }
            if domain.space.trim_class(class, 1, 0) > 0 {
                return true;
            }
        }
    }
    false
}

/// Evicts an ephemeral page of the domain's own whose slot is of the class.
fn evict_in_class(domain: &DomainInner, class: usize) -> bool {
    (0..CLASS_TRIES)
        .map_while(|_| domain.space.next_victim(class))
        .any(|victim| {
            let Some(holder) = Holder::unpack(victim.backref) else {
                return false;
            };
            domain
                .own_pool(holder.pool())
                .is_some_and(|joined| joined.pool.evict_slot(holder, victim.slot))
        })
}

/// Evicts pages of a domain, one from each shard in turn: their shards hash alike, so this comes near
/// the order that one queue would have.
fn evict_where(domain: &DomainInner, most: usize, choose: impl Fn(&Joined) -> bool) -> Evicted {
    let pools: Vec<_> = domain
        .pools()
        .filter(|joined| joined.pool.kind != PoolKind::Persistent && choose(joined))
        .collect();
    let mut evicted = Evicted::default();
    let mut empty = 0;
    while empty < pools.len() * SHARDS && evicted.pages < most as u64 {
        for joined in &pools {
            let (pages, bytes) = joined
                .pool
                .evict(joined.member, joined.pool.next_shard(), 1);
            evicted.pages += pages;
            evicted.bytes += bytes;
            empty = if pages == 0 { empty + 1 } else { 0 };
        }
    }
    evicted
}

fn tighten_domain(domain: &DomainInner) -> bool {
    tighten(&domain.space, 0, |number| {
        domain
            .own_pool(number)
            .map(|joined| Arc::clone(&joined.pool))
    })
}

fn tighten_group(group: &Group) -> bool {
    tighten(&group.pool.space, 0, |_| Some(Arc::clone(&group.pool)))
}

/// Gives back frames of a space that its slots do not need, moving some slots. Bounded work; `true`
/// when something was given back.
fn tighten(space: &Space, per_mille: u64, pool: impl Fn(u8) -> Option<Arc<Pool>>) -> bool {
    if space.trim(TRIM_FRAMES) > 0 {
        return true;
    }
    let mut moved = 0;
    for class in 0..CLASSES {
        if moved >= MOVES {
            break;
        }
        if space.is_sparse(class, per_mille) {
            moved += compact(space, class, MOVES - moved, &pool);
        }
    }
    moved > 0 && space.trim(TRIM_FRAMES) > 0
}

/// Moves up to `most` slots of a class from the top of its addresses to the lowest that are free.
fn compact(
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

/// How soon frames that nobody needs are given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    /// All of them now.
    Fast,
    /// As many as the last [`Space::look`] allowed.
    Slow,
}

/// One bounded step of compaction in the background. `true` when there is more to do.
pub(crate) fn compact_step(
    domains: &[Arc<DomainInner>],
    groups: &[Arc<Group>],
    pace: Pace,
) -> bool {
    let mut more = false;
    for domain in domains {
        more |= compact_space(&domain.space, pace, |number| {
            domain
                .own_pool(number)
                .map(|joined| Arc::clone(&joined.pool))
        });
    }
    for group in groups {
        more |= compact_space(&group.pool.space, pace, |_| Some(Arc::clone(&group.pool)));
    }
    more
}

/// Waste, in thousandths of a class's frames, that the background moves slots for.
const BACKGROUND_WASTE: u64 = 10;

fn compact_space(space: &Space, pace: Pace, pool: impl Fn(u8) -> Option<Arc<Pool>>) -> bool {
    let mut moved = 0;
    for class in 0..CLASSES {
        if moved >= BACKGROUND_MOVES {
            break;
        }
        if space.is_sparse(class, BACKGROUND_WASTE) {
            moved += compact(space, class, BACKGROUND_MOVES - moved, &pool);
        }
    }
    let trimmed = match pace {
        Pace::Fast => space.trim(BACKGROUND_FRAMES.min(space.spendable())),
        Pace::Slow => space.trim_slowly(BACKGROUND_FRAMES),
    };
    moved > 0 || trimmed > 0
}
