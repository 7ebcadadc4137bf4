//! Reclaim: trimming, compacting and evicting when a limit or the budget is reached.
//!
//! A store searches only where counters say that memory can be freed, and each of its steps is bounded: it gives back a
//! few frames, evicts a few pages, and moves at most as many slots as one frame holds. From other owners it takes idle
//! frames, and it evicts pages of the domain furthest over its weight. Other waste of theirs is left to the background.

use std::cmp::Reverse;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tmem_base::setting::PoolKind;

use crate::account::ledger::{PageOf, Short};
use crate::account::quota::AllocError;
use crate::arena::Arena;
use crate::domain::{DomainInner, PoolRef};
use crate::error::StoreError;
use crate::index::SHARDS;
use crate::index::backref::Backref;
use crate::memory::FRAME_BYTES;
use crate::owners::{OwnerList, Owners};
use crate::page::Key;
use crate::pool::encoded::Encoded;
use crate::pool::{Pool, PutError};
use crate::reap;

/// Times that a store reclaims memory and tries again. Each time frees something, and a store is refused
/// only when nothing is left to free; the bound is for a host where others take what was freed.
const ATTEMPTS: usize = 10_000;
/// Times that a store tries again because another thread freed something after it was refused, though nothing was left
/// that it could have freed itself. Each time others took it first.
const RETRIES: usize = 4;
/// Times that a store yields to other threads of its guest that are populating frames or giving some back.
const YIELDS: usize = 32;
/// Frames that one step of a store gives back at most. Each may be a call of the kernel's.
const TRIM_FRAMES: usize = 2;
/// Times that a store reclaims memory while all that becomes free is kept for a reserve.
const ATTEMPTS_AT_PROMISE: usize = 8;
/// Slots that one step of a store moves at most: those of one frame, of any class.
const MOVES: usize = 65;
/// Pages that one step of a store evicts at most.
const EVICTIONS: usize = 4;
/// Slots that a store examines to find a page of a class to evict, and pages of a class that it evicts for a frame.
const CLASS_TRIES: usize = 8;
/// Slots of all classes that a store examines to find pages to evict for a frame.
const FRAME_TRIES: usize = 64;
/// Domains that one step of a store tries to evict from.
const VICTIMS: usize = 4;
/// Times that a store frees memory of which the host is short.
const HOST_ATTEMPTS: usize = 32;
/// Pages that one step for a host that is short of memory evicts at most.
const HOST_EVICTIONS: usize = 256;
/// Frames that one step of the background gives back at most, for an arena.
const BACKGROUND_FRAMES: usize = 64;
/// Slots that one step of the background moves at most, for an arena.
const BACKGROUND_MOVES: usize = 64;

/// Puts an encoded page under a key, and reclaims memory for it if need be.
pub(crate) fn put(
    owners: &Owners,
    domain: &Arc<DomainInner>,
    pool_ref: &PoolRef,
    key: Key,
    encoded: &Encoded<'_>,
) -> Result<(), StoreError> {
    let arena = &pool_ref.pool.arena;
    let (class, bytes) = (encoded.class(), encoded.bytes());
    let (mut held, mut first) = (None, true);
    let (mut attempt, mut retries, mut yields) = (0, 0, 0);
    loop {
        let changes = owners.ledger.changes();
        let mut none = None;
        if let (None, Some(bytes)) = (&held, bytes) {
            match arena.hold_for(bytes) {
                Ok(slot) => held = Some(slot),
                Err(why) => none = Some(why),
            }
        }
        let mut error = match pool_ref.pool.put(pool_ref.member, key, encoded, &mut held) {
            Ok(()) => return Ok(()),
            Err(PutError::PoolGone) => return Err(StoreError::NoPool),
            Err(PutError::Alloc(error)) => error,
        };
        let wants_slot = error == AllocError::Frames;
        if let (true, Some(why)) = (wants_slot, none) {
            // The page that was under the key may have left one, the first time.
            if std::mem::take(&mut first) && class.is_some_and(|class| arena.has_ready(class)) {
                continue;
            }
            error = why;
        }
        let AllocError::Short(short) = error else {
            return Err(StoreError::NoMemory);
        };
        if attempt < ATTEMPTS && reclaim(owners, domain, pool_ref, class, short, attempt) {
            attempt += 1;
            continue;
        }
        // Memory moves from pages to idle frames, and from there to any thread that asks. So memory that was in neither
        // when this thread looked, and is not available now, was taken by another thread.
        let slot_came = wants_slot && class.is_some_and(|class| arena.has_ready(class));
        if retries < RETRIES && (slot_came || memory_came(owners, domain, arena, short, changes)) {
            retries += 1;
            continue;
        }
        if yields < YIELDS && arena.has_frames_on_the_way() {
            yields += 1;
            std::thread::yield_now();
            continue;
        }
        if short == Short::Budget && owners.ledger.report_shortage() {
            owners.wakes.background.ask();
        }
        return Err(match short {
            Short::Limit | Short::Budget => StoreError::NoSpace,
            Short::Host => StoreError::NoMemory,
        });
    }
}

/// Whether a thread gave memory back after the ledger counted so many changes, and it is still available.
fn memory_came(
    owners: &Owners,
    domain: &DomainInner,
    arena: &Arena,
    short: Short,
    changes: u64,
) -> bool {
    let account = match short {
        Short::Limit => &domain.account,
        Short::Budget => &arena.quota().account,
        // The gate checks the host's memory at each request.
        Short::Host => return false,
    };
    owners.ledger.changes() != changes && owners.ledger.has_room(account, FRAME_BYTES as u64)
}

/// Frees memory after a refusal, the store's `attempt`th, of a page that needs a slot of `class`. `false` when
/// nothing is left that could be freed.
fn reclaim(
    owners: &Owners,
    domain: &Arc<DomainInner>,
    pool_ref: &PoolRef,
    class: Option<usize>,
    short: Short,
    attempt: usize,
) -> bool {
    if reap::free_for(owners, domain, short) {
        return true;
    }
    // While a reserve is gathered, what this frees is not for the store: it ends, and does not gather.
    if short == Short::Budget && attempt >= ATTEMPTS_AT_PROMISE && owners.ledger.has_promised() {
        return false;
    }
    match short {
        Short::Limit if !has_evictable(domain) => compact_and_trim_domain(domain),
        Short::Limit => {
            // A new page can use the slot of an evicted page as it is, which costs a tenth of giving frames back.
            // Frames are given back first only if there are too many free slots. If evicting in order frees no slot of
            // the class, one page of the class is evicted. If that does not help either, the index needs memory, or the
            // class has no page: then a frame is freed. A store waits for no more than that.
            (attempt == 0 && domain.arena.is_wasteful() && compact_and_trim_domain(domain))
                || (attempt == 1 && class.is_some_and(|class| evict_in_class(domain, class)))
                || (attempt > 0 && evict_frame(domain))
                || evict_from(domain, EVICTIONS).pages > 0
                || compact_and_trim_domain(domain)
        }
        // Those who store meanwhile may take what was freed: no store waits for more than a few.
        Short::Host if attempt >= HOST_ATTEMPTS => false,
        Short::Budget | Short::Host => {
            compact_and_trim_domain(domain)
                || (pool_ref.pool.kind == PoolKind::Shared && compact_and_trim_pool(&pool_ref.pool))
                || reclaim_from_others(owners, domain, attempt)
        }
    }
}

/// Frees memory of other owners, or ephemeral pages of the domain's own: a bounded step.
fn reclaim_from_others(owners: &Owners, asking: &Arc<DomainInner>, attempt: usize) -> bool {
    let (idle, evictable) = (
        owners.ledger.owners_with_idle.is_some(),
        owners.ledger.has_evictable(),
    );
    if !idle && !evictable {
        return false;
    }
    let list = owners.list();
    idle && take_idle(&list) || evictable && evict_furthest(asking, attempt, &list.domains)
}

/// Gives back idle frames of one owner that has more than its reserve.
fn take_idle(list: &OwnerList) -> bool {
    let domains = list.domains.len();
    let owners = domains + list.groups.len();
    let first = list.hand.load(Ordering::Relaxed);
    for turn in 0..owners {
        let at = (first + turn) % owners;
        let freed = match list.domains.get(at) {
            Some(domain) => {
                domain.arena.has_idle()
                    && domain.account.used() > domain.account.reserve()
                    && domain.arena.trim(TRIM_FRAMES.min(domain.arena.spendable())) > 0
            }
            None => list.groups[at - domains]
                .upgrade()
                .is_some_and(|group| group.pool.arena.trim(TRIM_FRAMES) > 0),
        };
        if freed {
            list.hand.store(at, Ordering::Relaxed);
            return true;
        }
    }
    false
}

/// Evicts ephemeral pages for a host that is short of memory: of the domain furthest over its weight, and of a domain
/// within its reserve only when no other domain has any. Bounded work; `true` when there were such pages.
pub(crate) fn evict_for_host(domains: &[Arc<DomainInner>]) -> bool {
    // Nothing of a domain within its reserve is overuse.
    furthest_first(domains)
        .into_iter()
        .any(|domain| evict_from(domain, HOST_EVICTIONS).pages > 0)
}

/// Evicts ephemeral pages of the domain furthest over its weight, and gives back what that frees. `asking` has asked
/// `attempt` times before; it may use what it frees even within its own reserve.
fn evict_furthest(asking: &Arc<DomainInner>, attempt: usize, domains: &[Arc<DomainInner>]) -> bool {
    let mut tried: [Option<&Arc<DomainInner>>; VICTIMS] = [None; VICTIMS];
    for turn in 0..VICTIMS {
        // No other domain may take pages that a domain holds within its reserve.
        let own = |domain: &Arc<DomainInner>| {
            Arc::ptr_eq(asking, domain) || domain.account.used() > domain.account.reserve()
        };
        let victim = domains
            .iter()
            .filter(|domain| {
                domain.account.has_evictable(PageOf::Shared)
                    || domain.account.has_evictable(PageOf::Private) && own(domain)
            })
            .filter(|domain| {
                !tried
                    .iter()
                    .flatten()
                    .any(|tried| Arc::ptr_eq(tried, domain))
            })
            .max_by_key(|domain| overuse(domain));
        let Some(victim) = victim else {
            return false;
        };
        let own = own(victim);
        // The first attempt evicted in order, and that freed no frame.
        if attempt > 0 && own && evict_frame(victim) {
            return true;
        }
        let evicted = evict_where(victim, EVICTIONS, |pool_ref| {
            own || pool_ref.pool.kind == PoolKind::Shared
        });
        if evicted.pages > 0 {
            // Other waste of the victim is left to the background: no guest moves another's slots. The slots of a group
            // belong to no single guest, and evicting one member's pages seldom empties a frame, so the slots of one
            // frame are moved.
            victim.arena.trim(TRIM_FRAMES);
            for pool_ref in victim.pools() {
                if pool_ref.pool.kind == PoolKind::Shared {
                    compact_and_trim_pool(&pool_ref.pool);
                }
            }
            return true;
        }
        tried[turn] = Some(victim);
    }
    false
}

fn has_evictable(domain: &DomainInner) -> bool {
    [PageOf::Private, PageOf::Shared]
        .into_iter()
        .any(|pages| domain.account.has_evictable(pages))
}

/// The domains, those furthest over their weight first.
pub(crate) fn furthest_first(domains: &[Arc<DomainInner>]) -> Vec<&Arc<DomainInner>> {
    let mut order: Vec<_> = domains.iter().collect();
    order.sort_by_cached_key(|domain| Reverse(overuse(domain)));
    order
}

/// Bytes beyond the reserve for each unit of weight, scaled to keep small differences apart.
fn overuse(domain: &DomainInner) -> u128 {
    let account = &domain.account;
    let over = account.charged().saturating_sub(account.reserve());
    (u128::from(over) << 32) / u128::from(account.weight().max(1))
}

/// The amount that was evicted.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Evicted {
    pub(crate) pages: u64,
    /// Bytes of slots.
    pub(crate) bytes: u64,
}

fn evict_from(domain: &DomainInner, most: usize) -> Evicted {
    evict_where(domain, most, |_| true)
}

/// Evicts neighbours in a class of large slots until a frame is free, and gives it back.
fn evict_frame(domain: &DomainInner) -> bool {
    if !domain.account.has_evictable(PageOf::Private) {
        return false;
    }
    let mut tries = FRAME_TRIES;
    for class in domain.arena.occupied() {
        for _ in 0..CLASS_TRIES {
            if tries == 0 || !evict_looking(domain, class, &mut tries) {
                break;
            }
            if domain.arena.trim_class(class, 1, 0) > 0 {
                return true;
            }
        }
    }
    false
}

/// Evicts an ephemeral page of the domain's own whose slot is of the class.
fn evict_in_class(domain: &DomainInner, class: usize) -> bool {
    domain.account.has_evictable(PageOf::Private)
        && evict_looking(domain, class, &mut FRAME_TRIES.clone())
}

/// As [`evict_in_class`], and counts the slots that it examines.
fn evict_looking(domain: &DomainInner, class: usize, tries: &mut usize) -> bool {
    let looks = CLASS_TRIES.min(*tries);
    (0..looks)
        .map_while(|_| {
            *tries -= 1;
            domain.arena.next_victim(class)
        })
        .any(|victim| {
            let Some(backref) = Backref::unpack(victim.backref) else {
                return false;
            };
            domain
                .own_pool(backref.pool())
                .is_some_and(|pool_ref| pool_ref.pool.evict_slot(backref, victim.slot))
        })
}

/// Evicts pages of a domain, one from each shard in turn: their shards hash alike, so this comes near
/// the order that one queue would have. It finds none only where there are none.
pub(crate) fn evict_where(
    domain: &DomainInner,
    most: usize,
    choose: impl Fn(&PoolRef) -> bool,
) -> Evicted {
    let pools: Vec<_> = domain
        .pools()
        .filter(|pool_ref| pool_ref.pool.kind != PoolKind::Persistent && choose(pool_ref))
        .collect();
    let mut evicted = Evicted::default();
    // Pages that existed when they were chosen and did not when they were to be evicted: other threads evict, too.
    let mut lost = 0;
    while evicted.pages < most as u64 && lost < pools.len() * SHARDS {
        let mut some = false;
        for pool_ref in &pools {
            let Some(shard) = pool_ref.pool.next_shard(pool_ref.member) else {
                continue;
            };
            some = true;
            let (pages, bytes) = pool_ref.pool.evict(pool_ref.member, shard, 1);
            evicted.pages += pages;
            evicted.bytes += bytes;
            lost = if pages == 0 { lost + 1 } else { 0 };
        }
        if !some {
            break;
        }
    }
    evicted
}

/// Finds the domain's own pool of an index.
fn own_pools(domain: &DomainInner) -> impl Fn(u8) -> Option<Arc<Pool>> {
    |pool_index| {
        domain
            .own_pool(pool_index)
            .map(|pool_ref| Arc::clone(&pool_ref.pool))
    }
}

fn compact_and_trim_domain(domain: &DomainInner) -> bool {
    compact_and_trim(&domain.arena, own_pools(domain))
}

/// As [`compact_and_trim_domain`], for a pool of a share group.
fn compact_and_trim_pool(pool: &Arc<Pool>) -> bool {
    compact_and_trim(&pool.arena, |_| Some(Arc::clone(pool)))
}

/// Gives back frames of an arena that its slots do not need, and moves the slots of one frame if none is idle. `true`
/// when something was given back; `false` only when moving slots within the populated frames frees none, or when
/// another thread is changing the pages that would have to move.
fn compact_and_trim(arena: &Arena, pool: impl Fn(u8) -> Option<Arc<Pool>>) -> bool {
    if arena.trim(TRIM_FRAMES) > 0 {
        return true;
    }
    let mut left = MOVES;
    for class in arena.movable() {
        let Some(moves) = arena.moves_to_win(class) else {
            continue;
        };
        if moves > left {
            continue;
        }
        left -= compact(arena, class, moves, false, &pool);
        if arena.trim(TRIM_FRAMES) > 0 {
            return true;
        }
    }
    false
}

/// Moves up to `most` slots of a class from the top of its addresses to the lowest that are free: in frames with memory,
/// or with `fill` in any. Returns how many it moved.
fn compact(
    arena: &Arena,
    class: usize,
    most: usize,
    fill: bool,
    pool: impl Fn(u8) -> Option<Arc<Pool>>,
) -> usize {
    let mut moved = 0;
    for _ in 0..most {
        let Some(highest) = arena.highest(class) else {
            break;
        };
        let Some(backref) = Backref::unpack(highest.backref) else {
            break;
        };
        let Some(pool) = pool(backref.pool()) else {
            break;
        };
        let mut to = arena.hold_below(class, highest.slot, fill);
        if to.is_none() || !pool.relocate(backref, highest.slot, &mut to) {
            break;
        }
        moved += 1;
    }
    moved
}

/// How soon idle frames are given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    /// All of them now.
    Fast,
    /// As many as the last [`Arena::plan_trim`] allowed.
    Slow,
}

/// One bounded step of compaction in the background. `true` when there is more to do.
///
/// After a store was refused for want of budget, all memory that moving slots can free without taking more is freed,
/// and given back at once.
pub(crate) fn compact_step(owners: &Owners, pace: Pace) -> bool {
    let ledger = &owners.ledger;
    let list = owners.list();
    let shortage = ledger.take_shortage();
    let mut more = false;
    for domain in &list.domains {
        more |= compact_arena(&domain.arena, pace, shortage, own_pools(domain));
    }
    for group in list.groups() {
        let pool = &group.pool;
        more |= compact_arena(&pool.arena, pace, shortage, |_| Some(Arc::clone(pool)));
    }
    if shortage && more {
        ledger.report_shortage();
    }
    more
}

/// One step as of [`compact_step`] after a refusal, for one domain. `true` when there is more to do.
pub(crate) fn compact_alone(domain: &DomainInner) -> bool {
    compact_arena(&domain.arena, Pace::Fast, true, own_pools(domain))
}

/// Waste, in thousandths of a class's frames, that the background moves slots for.
const BACKGROUND_WASTE: u64 = 10;

fn compact_arena(
    arena: &Arena,
    pace: Pace,
    shortage: bool,
    pool: impl Fn(u8) -> Option<Arc<Pool>>,
) -> bool {
    let mut moved = 0;
    let classes = if shortage {
        arena.movable()
    } else {
        arena.occupied()
    };
    for class in classes {
        let left = BACKGROUND_MOVES.saturating_sub(moved);
        if left == 0 {
            break;
        }
        if !shortage {
            if arena.is_sparse(class, BACKGROUND_WASTE) {
                moved += compact(arena, class, left, true, &pool);
            }
        } else if let Some(moves) = arena.moves_to_win(class) {
            moved += compact(arena, class, moves, false, &pool);
        }
    }
    let trimmed = match pace {
        Pace::Slow if !shortage => arena.trim_slowly(BACKGROUND_FRAMES),
        _ => arena.trim(BACKGROUND_FRAMES.min(arena.spendable())),
    };
    moved > 0 || trimmed > 0
}

#[cfg(all(test, debug_assertions))]
mod tests;
