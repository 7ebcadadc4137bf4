//! What an arena counts and lists, against a recount after random operations.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::segment::frame_run;
use super::*;
use crate::account::allotment::Allotment;
use crate::account::ledger::{Account, Ledger};
use crate::entry::Encoding;
use crate::wake::Wakes;

const MIB: u64 = 1 << 20;

pub(super) fn arena(limit: u64) -> (Arc<Ledger>, Arena) {
    let ledger = Arc::new(Ledger::new(1 << 30));
    let account = Arc::new(Account::default());
    ledger
        .configure(&account, Allotment::of(0, limit))
        .expect("fits");
    let quota = Quota::new(
        Arc::clone(&ledger),
        account,
        None,
        Arc::new(Wakes::default()),
    );
    let arena = Arena::new("test", quota).expect("memfd");
    (ledger, arena)
}

/// Counts all anew, and compares. Nobody else uses the arena.
fn recount(arena: &Arena, ledger: &Ledger) {
    let (mut sources, mut on_the_way) = (0, 0);
    for (class, cell) in arena.classes.iter().enumerate() {
        let inner = cell.locked.lock();
        let (mut frames, mut live, mut ready, mut metadata) = (0, 0, 0, 0);
        let lists = [OPEN, READY, IDLE].map(|list| {
            let listed = inner.segments.iter();
            listed
                .filter(|(_, segment)| segment.lists() & list != 0)
                .map(|(segment_id, _)| *segment_id)
                .collect::<BTreeSet<_>>()
        });
        for segment in inner.segments.values() {
            segment.recount();
            let way = segment.on_the_way();
            frames += u64::from((segment.resident() | way).count_ones());
            on_the_way += u64::from(way.count_ones());
            live += segment.live() as u64;
            ready += segment.ready();
            metadata += segment.metadata_bytes();
            assert!(segment.live() > 0 || way != 0, "an empty segment stays");
        }
        let gauges = &cell.gauges;
        assert_eq!(gauges.frames.get(), frames);
        assert_eq!(gauges.live.get(), live);
        assert_eq!(gauges.ready.get(), ready);
        assert_eq!(gauges.metadata.get(), metadata);
        assert_eq!(
            [&inner.open, &inner.ready, &inner.idle],
            [&lists[0], &lists[1], &lists[2]]
        );
        let bit = |mask: &AtomicU64| mask.load(Ordering::Relaxed) >> class & 1 == 1;
        assert_eq!(bit(&arena.idle), !inner.idle.is_empty());
        assert_eq!(bit(&arena.occupied), !inner.segments.is_empty());
        sources += u64::from(!inner.idle.is_empty());
        drop(inner);
        // If the arena says that moving slots frees nothing, that must be true.
        if !bit(&arena.movable) {
            assert_eq!(arena.moves_to_win(class), None);
        }
    }
    sources += u64::from(!arena.spare.lock().retired.is_empty());
    assert_eq!(arena.sources.load(Ordering::Relaxed), sources);
    assert_eq!(ledger.owners_with_idle.is_some(), sources > 0);
    assert_eq!(arena.on_the_way.load(Ordering::Relaxed), on_the_way);
    let usage = arena.usage();
    assert_eq!(ledger.used(), usage.frames + usage.metadata);
}

/// Moves the highest slot of a class down, as a pool does whose entry names it.
fn move_one(arena: &Arena, class: usize, slots: &mut [Slot], fill: bool) -> bool {
    let Some(highest) = arena.highest(class) else {
        return false;
    };
    let mut to = arena.hold_below(class, highest.slot, fill);
    let found = slots.iter_mut().find(|slot| slot.id() == highest.slot);
    let Some(slot) = found else {
        return false;
    };
    if !arena.copy(*slot, &mut to) {
        return false;
    }
    let committed = arena.commit(slot.len, slot.encoding, highest.backref, &mut to);
    let Ok(moved) = committed else {
        return false;
    };
    arena.free(*slot);
    *slot = moved;
    true
}

#[test]
fn what_an_arena_lists_is_what_a_recount_finds_after_any_operations() {
    for seed in 0..6 {
        let (ledger, arena) = arena(2 * MIB);
        let mut rng = StdRng::seed_from_u64(seed);
        // Few classes, so that they have several segments each.
        let lens = [60u16, 200, 1500, 2700, 4096];
        let (mut slots, mut helds) = (Vec::<Slot>::new(), Vec::new());
        for turn in 0..6000 {
            let len = lens[rng.random_range(0..lens.len())];
            let class = class_of(len);
            let most = rng.random_range(1..5);
            match rng.random_range(0..100) {
                0..55 => {
                    let bytes = vec![len as u8; usize::from(len)];
                    if let Ok(held) = arena.hold_for(&bytes) {
                        let mut held = Some(held);
                        let committed = arena.commit(len, Encoding::Raw, 1, &mut held);
                        assert!(committed.is_ok() && held.is_none(), "a held slot is there");
                        slots.extend(committed);
                    }
                }
                55..80 if !slots.is_empty() => {
                    arena.free(slots.swap_remove(rng.random_range(0..slots.len())));
                }
                80..84 => helds.extend(arena.hold(class)),
                84..88 => helds.truncate(most),
                88..91 => {
                    arena.trim(most);
                }
                91..94 => {
                    move_one(&arena, class, &mut slots, most % 2 == 0);
                }
                94..97 => {
                    arena.prefault();
                }
                97 => {
                    arena.plan_trim();
                    arena.trim_slowly(most);
                }
                98 => {
                    // A frame that the kernel refuses.
                    let frames = frame_run(0, most);
                    let mut inner = arena.classes[class].locked.lock();
                    let free = free_slot(&mut inner).filter(|slot| {
                        let segment = &inner.segments[&slot.segment];
                        let known = segment.resident() | segment.on_the_way();
                        segment.missing(slot.index) != 0 && known & frames == 0
                    });
                    if let Some(SlotId {
                        segment: segment_id,
                        ..
                    }) = free
                        && arena.charge_frames(frames).is_ok()
                    {
                        arena.change(class, &mut inner, segment_id, |s| s.begin_filling(frames));
                        arena.count_begun(class, frames);
                        drop(inner);
                        let got = arena.populate(segment_id, frames & rng.random::<u64>());
                        arena.end_filling(class, segment_id, (frames, got), None);
                    }
                }
                _ => {
                    let few = slots.len() / 3;
                    slots.drain(few..).for_each(|slot| arena.free(slot));
                }
            }
            if turn % 16 == 0 {
                recount(&arena, &ledger);
            }
        }
        for slot in &slots {
            let mut back = [0; 4096];
            assert!(arena.fetch(*slot, &mut back), "other bytes came back");
        }
        drop(helds);
        slots.into_iter().for_each(|slot| arena.free(slot));
        while arena.trim(usize::MAX) > 0 {}
        recount(&arena, &ledger);
        assert_eq!(ledger.used(), 0);
    }
}

#[test]
fn moving_as_many_slots_as_are_said_to_win_a_frame_wins_one() {
    let mut rng = StdRng::seed_from_u64(9);
    for len in [64u16, 100, 700, 1700, 2100] {
        let (ledger, arena) = arena(u64::MAX);
        let class = class_of(len);
        let bytes = vec![7; usize::from(len)];
        let mut slots = Vec::new();
        for _ in 0..3 * slots_per_segment(class) {
            let mut held = Some(arena.hold_for(&bytes).expect("room"));
            let committed = arena.commit(len, Encoding::Raw, 1, &mut held);
            slots.push(committed.expect("held"));
        }
        while arena.trim(64) > 0 {}
        let mut won = 0;
        for _ in 0..slots.len() / 4 {
            arena.free(slots.swap_remove(rng.random_range(0..slots.len())));
            while arena.trim(64) > 0 {}
            let used = arena.usage().frames;
            let Some(moves) = arena.moves_to_win(class) else {
                assert_eq!(
                    arena.movable().count(),
                    0,
                    "nothing is known and remembered"
                );
                continue;
            };
            assert!(moves <= 65, "{moves} moves");
            for _ in 0..moves {
                assert!(move_one(&arena, class, &mut slots, false));
            }
            arena.trim(64);
            assert!(arena.usage().frames < used);
            won += 1;
        }
        assert!(won > 2, "{won} frames of slots of {len} bytes");
        recount(&arena, &ledger);
    }
}

#[test]
fn a_slot_that_is_held_is_nobody_elses_and_comes_back() {
    let (ledger, arena) = arena(u64::MAX);
    let class = class_of(4096);
    let first = arena.hold(class).expect("room");
    let second = arena.hold_for(&[3; 4096]).expect("room");
    assert_ne!(first.id(), second.id());
    let id = second.id();
    let mut held = Some(second);
    let committed = arena.commit(4096, Encoding::Raw, 9, &mut held);
    let slot = committed.expect("held");
    assert_eq!(slot.id(), id);
    // One of another class is left alone, and one without the bytes.
    held = Some(first);
    for len in [64, 4095, 4096] {
        let committed = arena.commit(len, Encoding::Raw, 9, &mut held);
        assert_eq!(committed, Err(AllocError::Frames));
        assert!(held.is_some());
    }
    drop(held);
    arena.free(slot);
    arena.end();
    drop(arena.hold(class));
    assert_eq!(ledger.used(), 0, "who ends last gives back what is left");
}
