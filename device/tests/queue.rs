//! What makes a ring corrupt, and that no kick is lost and no call is endless.
#![allow(missing_docs, clippy::cast_possible_truncation)]

mod common;

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use common::*;
use tmem_device::QueueCorrupt;
use tmem_device::queue::wants_interrupt;
use tmem_protocol::{Op, Status};
use virtio_queue::{Queue, QueueT};

#[test]
fn an_available_index_that_jumps_by_more_than_the_queue_size_is_corrupt() {
    for jump in [257u16, 300, 0x7fff, 0xffff] {
        let mut rig = Rig::new();
        rig.guest.ring.set_avail_index(jump);
        let error = rig.process().unwrap_err();
        assert!(matches!(error, QueueCorrupt::AvailIndex { index, next: 0 } if index == jump));
        assert!(rig.guest.used().is_empty());
        assert_eq!(rig.device.metrics().snapshot().queue_faults, 1);
    }
}

#[test]
fn an_available_index_that_goes_back_is_corrupt() {
    let mut rig = Rig::new();
    rig.create_pool();
    rig.guest.ring.set_avail_index(0);
    assert!(matches!(
        rig.process(),
        Err(QueueCorrupt::AvailIndex { index: 0, next: 1 })
    ));
}

#[test]
fn a_head_outside_the_descriptor_table_is_corrupt() {
    for head in [256, 0xffff] {
        let mut rig = Rig::new();
        rig.guest.push(head);
        let error = rig.process().unwrap_err();
        assert!(matches!(error, QueueCorrupt::Head { size: 256, .. }));
    }
}

#[test]
fn chains_before_a_corrupt_head_are_returned() {
    let mut rig = Rig::new();
    let (head, _) = rig.submit(&header(Op::CreatePool as u16, 0, 0, [0; 3]), 8);
    rig.guest.push(256);
    assert!(rig.process().is_err());
    assert_eq!(rig.guest.used(), [(head, 8)]);
}

#[test]
fn rings_outside_guest_memory_are_corrupt() {
    let mut rig = Rig::new();
    rig.submit(&header(Op::CreatePool as u16, 0, 0, [0; 3]), 8);
    let outside = MEMORY as u32;
    rig.guest.queue.set_used_ring_address(Some(outside), None);
    assert!(matches!(rig.process(), Err(QueueCorrupt::Ring(_))));

    let mut rig = Rig::new();
    rig.guest.queue.set_avail_ring_address(Some(outside), None);
    assert!(matches!(rig.process(), Err(QueueCorrupt::Ring(_))));

    // Index inside, ring outside.
    let mut rig = Rig::new();
    let edge = outside - 4;
    rig.guest.write(u64::from(edge), &[0, 0, 1, 0]);
    rig.guest.queue.set_avail_ring_address(Some(edge), None);
    assert!(matches!(rig.process(), Err(QueueCorrupt::Unreadable)));
}

#[test]
fn a_descriptor_table_outside_guest_memory_returns_chains_of_no_bytes() {
    let mut rig = Rig::new();
    rig.guest
        .queue
        .set_desc_table_address(Some(MEMORY as u32), None);
    let head = rig
        .submit(&header(Op::CreatePool as u16, 0, 0, [0; 3]), 8)
        .0;
    assert_eq!(rig.process().unwrap().chains, 1);
    assert_eq!(rig.guest.used(), [(head, 0)]);
}

#[test]
fn a_reset_makes_a_corrupt_queue_work_again() {
    let mut rig = Rig::new();
    rig.guest.ring.set_avail_index(999);
    assert!(rig.process().is_err());
    rig.device.reset();
    rig.guest = Guest::new(256);
    rig.create_pool();
}

#[test]
fn a_full_queue_is_served_in_one_call() {
    let mut rig = Rig::with(64, u64::MAX);
    for _ in 0..64 {
        rig.submit(&header(Op::InvalidateObject as u16, 0, 9, OBJECT), 8);
    }
    let progress = rig.process().unwrap();
    assert_eq!((progress.chains, progress.more), (64, false));
    assert_eq!(rig.guest.used().len(), 64);
}

#[test]
fn indices_wrap_around_many_times() {
    let mut rig = Rig::with(4, u64::MAX);
    let pool = rig.create_pool();
    rig.store(pool, &[(1, page(1))]);
    let from = rig
        .guest
        .put(&batch_request(Op::InvalidatePage, pool, &[2]));
    let to = rig.guest.alloc(9);
    for _ in 0..70_000 {
        let head = rig.guest.chain(&[readable(from, 40), writable(to, 9)]);
        assert_eq!(rig.process().unwrap().chains, 1);
        assert_eq!(rig.guest.used(), [(head, 9)]);
    }
    assert!(rig.load(pool, &[1]).pages == page(1));
}

/// A guest of 16 descriptors whose ring entries all name a good chain; its available index is the only
/// thing that another thread still has to move.
fn prepared() -> Rig {
    let mut rig = Rig::with(16, u64::MAX);
    let pool = rig.create_pool();
    rig.guest = Guest::new(16);
    let request = header(Op::InvalidateObject as u16, 0, pool, OBJECT);
    let from = rig.guest.put(&request);
    let to = rig.guest.alloc(8);
    for _ in 0..8 {
        let head = rig.guest.chain(&[readable(from, 32), writable(to, 8)]);
        for entry in [head, head + 1] {
            rig.guest.ring.set_avail_entry(entry, head);
        }
    }
    rig.guest.ring.set_avail_index(0);
    rig
}

#[test]
fn no_kick_is_lost_while_the_guest_adds_chains_from_another_cpu() {
    const CHAINS: u16 = 20_000;
    let mut rig = prepared();
    rig.guest.queue.set_event_idx(true);
    let doorbell = AtomicBool::new(false);
    let mut driver = rig.guest.ring.clone();
    let deadline = Instant::now() + Duration::from_secs(60);
    std::thread::scope(|scope| {
        // A driver that kicks only when it was asked to.
        scope.spawn(|| {
            for new in 1..=CHAINS {
                while new.wrapping_sub(driver.used_index()) > 16 {
                    assert!(Instant::now() < deadline, "the device sleeps");
                    std::thread::yield_now();
                }
                driver.set_avail_index(new);
                if driver.wants_kick() {
                    doorbell.store(true, SeqCst);
                }
            }
        });
        // The device is called for a kick, and again where it says so.
        let mut served = 0;
        while served < u32::from(CHAINS) {
            assert!(Instant::now() < deadline, "served {served}");
            if !doorbell.swap(false, SeqCst) {
                std::thread::yield_now();
                continue;
            }
            loop {
                let progress = rig.process().unwrap();
                served += progress.chains;
                if !progress.more {
                    break;
                }
            }
        }
    });
}

#[test]
fn polling_serves_no_more_chains_than_it_may() {
    let mut rig = Rig::new();
    for _ in 0..5 {
        rig.submit(&header(Op::CreatePool as u16, 0, 0, [0; 3]), 8);
    }
    let mut poll = |limit| {
        rig.device
            .poll_requests(1, &rig.guest.mem, &mut rig.guest.queue, limit, || false)
            .unwrap()
            .chains
    };
    assert_eq!([poll(2), poll(0), poll(9), poll(9)], [2, 0, 3, 0]);
}

/// Offers chains, each of which invalidates that many pages.
fn submit_invalidates(rig: &mut Rig, pool: u32, counts: &[u32]) {
    for count in counts {
        let indices: Vec<u32> = (0..*count).collect();
        let request = batch_request(Op::InvalidatePage, pool, &indices);
        rig.submit(&request, 8 + indices.len());
    }
}

#[test]
fn a_poll_ends_with_the_chain_that_reaches_its_limit_of_entries() {
    let mut rig = Rig::new();
    let pool = rig.create_pool();
    submit_invalidates(&mut rig, pool, &[3, 4, 1, 16]);
    // What is refused is work as well.
    submit_invalidates(&mut rig, !pool, &[64, 7, 64]);
    let mut poll = || {
        let progress = rig
            .device
            .poll_requests(1, &rig.guest.mem, &mut rig.guest.queue, 8, || false)
            .unwrap();
        (progress.chains, progress.work)
    };
    let turns = [(); 5].map(|()| poll());
    assert_eq!(turns, [(3, 8), (1, 16), (1, 64), (2, 71), (0, 0)]);
}

#[test]
fn a_poll_makes_way_after_a_chain_when_another_queue_cannot_wait() {
    let mut rig = Rig::new();
    let pool = rig.create_pool();
    submit_invalidates(&mut rig, pool, &[1; 6]);
    let mut poll = |urgent| {
        let mut asked = 0;
        let progress = rig
            .device
            .poll_requests(1, &rig.guest.mem, &mut rig.guest.queue, 8, || {
                asked += 1;
                asked >= urgent
            })
            .unwrap();
        progress.chains
    };
    // One chain in any case: whoever always has something urgent must not keep this queue from its turn.
    assert_eq!([poll(1), poll(2), poll(9), poll(1)], [1, 2, 3, 0]);
}

#[test]
fn a_doorbell_with_more_entries_than_a_round_is_served_in_several_calls() {
    let mut rig = Rig::new();
    let pool = rig.create_pool();
    submit_invalidates(&mut rig, pool, &[64; 10]);
    let rounds = [(); 3].map(|()| {
        let progress = rig.process().unwrap();
        (progress.chains, progress.more)
    });
    assert_eq!(rounds, [(4, true), (4, true), (2, false)]);
}

#[test]
fn with_event_index_the_doorbell_is_armed_for_the_next_chain() {
    let mut rig = Rig::new();
    rig.guest.queue.set_event_idx(true);
    for served in 1..=5u16 {
        rig.create_pool();
        assert_eq!(rig.guest.ring.avail_event(), served);
    }
}

#[test]
fn polling_leaves_the_doorbell_as_it_is() {
    let mut rig = Rig::new();
    rig.guest.queue.set_event_idx(true);
    rig.create_pool();
    rig.submit(&header(Op::CreatePool as u16, 0, 0, [0; 3]), 8);
    let progress = rig
        .device
        .poll_requests(1, &rig.guest.mem, &mut rig.guest.queue, 9, || false)
        .unwrap();
    assert_eq!(progress.chains, 1);
    assert_eq!(rig.guest.ring.avail_event(), 1);
}

/// Whether the guest wants an interrupt for what was used since the last call.
fn interrupts(rig: &mut Rig) -> bool {
    let Rig { guest, .. } = rig;
    wants_interrupt(&mut guest.queue, &guest.mem).unwrap()
}

#[test]
fn a_guest_that_asked_for_no_interrupt_gets_none() {
    let mut rig = Rig::new();
    rig.guest.queue.set_event_idx(true);
    // used_event far away.
    rig.guest.ring.set_used_event(0x8000);
    rig.create_pool();
    assert!(!interrupts(&mut rig));
}

#[test]
fn a_guest_that_asked_for_an_interrupt_at_some_chain_gets_it_there() {
    let mut rig = Rig::new();
    rig.guest.queue.set_event_idx(true);
    // The flag means nothing to a guest that names the chain.
    rig.guest.ring.set_avail_flags(NO_INTERRUPT);
    for (used_event, expected) in [(0, true), (2, false), (2, true), (2, false)] {
        rig.guest.ring.set_used_event(used_event);
        rig.create_pool();
        assert_eq!(interrupts(&mut rig), expected, "used_event {used_event}");
    }
}

#[test]
fn a_guest_whose_flag_says_no_interrupt_gets_none_until_it_clears_the_flag() {
    let mut rig = Rig::new();
    for flag in [1u16, 0, 1, 1, 0, 0] {
        rig.guest.ring.set_avail_flags(flag);
        rig.create_pool();
        assert_eq!(interrupts(&mut rig), flag == 0, "flag {flag}");
        // Other bits are reserved, and a device ignores them.
        rig.guest.ring.set_avail_flags(flag | 0xfffe);
        rig.create_pool();
        assert_eq!(interrupts(&mut rig), flag == 0, "flag {flag} with others");
    }
}

#[test]
fn a_flag_outside_guest_memory_is_an_error() {
    let mut rig = Rig::new();
    rig.guest
        .queue
        .set_avail_ring_address(Some(MEMORY as u32), None);
    let Rig { guest, .. } = &mut rig;
    assert!(wants_interrupt(&mut guest.queue, &guest.mem).is_err());
}

#[test]
fn queues_of_one_device_are_independent() {
    let mut rig = Rig::new();
    let pool = rig.create_pool();
    rig.store(pool, &[(1, page(1))]);
    let mut other = Guest::new(16);
    other.ring.set_avail_index(0x100);
    let Rig { device, guest, .. } = &mut rig;
    assert!(
        device
            .process_requests::<_, Queue>(2, &other.mem, &mut other.queue)
            .is_err()
    );
    let _ = guest;
    assert_eq!(rig.load(pool, &[1]).statuses, [Status::Ok]);
}

#[test]
fn two_queues_are_served_by_two_threads_at_once() {
    let mut rig = Rig::new();
    let pool = rig.create_pool();
    let device = &rig.device;
    std::thread::scope(|scope| {
        for thread in 0..2u32 {
            scope.spawn(move || {
                let mut guest = Guest::new(16);
                let mut send = |request: &[u8], room: usize| {
                    // Each request in the same memory: the guest is small.
                    let (from, to) = (0x20000, 0x40000);
                    guest.write(from, request);
                    guest.chain(&[readable(from, request.len()), writable(to, room)]);
                    let progress = device
                        .process_requests(1, &guest.mem, &mut guest.queue)
                        .unwrap();
                    assert_eq!((progress.chains, progress.pages), (1, 1));
                    guest.read(to, room)
                };
                for round in 0..500 {
                    let index = thread * 1000 + round % 7;
                    let bytes = page(thread << 16 | round);
                    send(&store_request(pool, &[(index, bytes.clone())]), 9);
                    let answer = send(&batch_request(Op::Load, pool, &[index]), 9 + 4096);
                    assert!(answer[9..] == bytes);
                }
            });
        }
    });
    assert_eq!(rig.device.metrics().snapshot().pages_loaded, 1000);
}
