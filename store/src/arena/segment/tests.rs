//! A segment's counts and lists, against a recount.

use super::*;
use crate::arena::size_class::CLASSES;

/// Gets the frames that a slot misses, and takes it.
fn alloc(segment: &mut Segment, slot: u16, backref: PackedBackref) {
    assert!(segment.grow(slot));
    let missing = segment.missing(slot);
    segment.begin_filling(missing);
    segment.alloc(slot, backref);
    segment.end_filling(missing, missing);
}

#[test]
fn every_slot_of_every_class_is_given_once_and_lies_in_the_segment() {
    for class in 0..CLASSES {
        let mut segment = Segment::new(class, 0).expect("memory");
        let slots = slots_per_segment(class);
        for expected in 0..slots {
            let slot = segment.find_free().expect("free slot");
            assert_eq!(usize::from(slot), expected);
            alloc(&mut segment, slot, expected as u64 + 1);
        }
        segment.recount();
        assert!(segment.is_full() && segment.find_free().is_none());
        assert_eq!(segment.resident, u64::MAX, "slots reach into every frame");
        assert_eq!(segment.next_used(0), Some((0, 1)));
        assert_eq!(segment.next_used(slots as u16), None);
        assert_eq!(segment.idle(), 0);
        assert_eq!(segment.highest(), Some((slots as u16 - 1, slots as u64)));
        assert!(segment.free(0));
        assert!(!segment.free(0));
        assert_eq!(segment.next_used(0), Some((1, 2)));
        assert!(!segment.free(slots as u16));
        assert_eq!(segment.find_ready(), Some(0));
    }
}

#[test]
fn a_frame_is_idle_when_no_slot_in_use_touches_it() {
    let class = 23; // 1536 bytes: frames 0..3 hold slots 0..8
    let mut segment = Segment::new(class, 0).expect("memory");
    for slot in 0..8 {
        alloc(&mut segment, slot, 1);
    }
    assert_eq!(segment.resident, 0b111);
    for slot in 0..5 {
        segment.free(slot);
    }
    assert_eq!(segment.idle(), 0b001);
    segment.begin_leaving(0b001);
    assert_eq!(segment.find_ready(), Some(3));
    assert_eq!(
        segment.find_free(),
        Some(3),
        "slots 0 to 2 are in a frame that leaves"
    );
    segment.end_leaving(0b001, 0);
    assert_eq!(segment.find_ready(), Some(3));
    assert_eq!(segment.find_free(), Some(0));
    segment.recount();
}

#[test]
fn what_a_segment_counts_is_what_a_recount_finds_after_any_operations() {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    let mut rng = StdRng::seed_from_u64(6);
    for class in [0, 1, 6, 16, 22, 23, 40, 47, 61, 62, 63] {
        let mut segment = Segment::new(class, rng.random()).expect("memory");
        let mut slots = Vec::new();
        let (mut filling, mut leaving) = (0u64, 0u64);
        for _ in 0..1000 {
            match rng.random_range(0..10) {
                0..4 => {
                    let found = if rng.random() {
                        segment.find_ready()
                    } else {
                        segment.find_free()
                    };
                    let Some(slot) = found else { continue };
                    assert!(segment.grow(slot));
                    let missing = segment.missing(slot);
                    segment.begin_filling(missing);
                    filling |= missing;
                    segment.alloc(slot, 1);
                    slots.push(slot);
                }
                4..7 if !slots.is_empty() => {
                    let slot = slots.swap_remove(rng.random_range(0..slots.len()));
                    assert!(segment.free(slot));
                }
                7 => {
                    // Of frames with slots in use, the kernel takes none back.
                    let got = rng.random::<u64>() | segment.busy;
                    segment.end_filling(filling, got);
                    leaving |= filling & !got;
                    filling = 0;
                }
                8 => {
                    let frames = segment.idle() & rng.random::<u64>();
                    segment.begin_leaving(frames);
                    leaving |= frames;
                }
                _ => {
                    segment.end_leaving(leaving, rng.random::<u64>() & rng.random::<u64>());
                    leaving = 0;
                }
            }
            segment.recount();
        }
    }
}
