//! What well-formed requests do.
#![allow(missing_docs, clippy::cast_possible_truncation)]

mod common;

use common::*;
use tmem_device::{StoreQueues, TmemConfig, TmemDevice};
use tmem_protocol::{Config, Op, PAGE_SIZE, Status, feature, request};
use virtio_queue::QueueT;
use zerocopy::IntoBytes;

#[test]
fn a_stored_page_comes_back() {
    let mut rig = Rig::new();
    let pool = rig.create_pool();
    let stored = rig.store(pool, &[(3, page(1))]);
    assert_eq!(
        (stored.status, stored.statuses),
        (Status::Ok, vec![Status::Ok])
    );
    let loaded = rig.load(pool, &[3]);
    assert_eq!(loaded.statuses, [Status::Ok]);
    assert_eq!(loaded.pages, page(1));
    assert_eq!(loaded.len, 8 + 1 + 4096);
}

#[test]
fn a_load_leaves_the_page_in_a_persistent_pool() {
    let mut rig = Rig::new();
    let pool = rig.create_pool();
    rig.store(pool, &[(3, page(1))]);
    for _ in 0..3 {
        assert!(rig.load(pool, &[3, 3]).pages == [page(1), page(1)].concat());
    }
}

#[test]
fn a_batch_of_64_goes_both_ways() {
    let mut rig = Rig::new();
    let pool = rig.create_pool();
    let pages: Vec<_> = (0..64).map(|n| (n * 1000, page(n))).collect();
    assert_eq!(rig.store(pool, &pages).statuses, [Status::Ok; 64]);
    let indices: Vec<u32> = pages.iter().map(|(index, _)| *index).collect();
    let loaded = rig.load(pool, &indices);
    assert_eq!(loaded.statuses, [Status::Ok; 64]);
    let expected: Vec<u8> = pages.into_iter().flat_map(|(_, page)| page).collect();
    assert!(loaded.pages == expected);
    let metrics = rig.device.metrics().snapshot();
    assert_eq!((metrics.pages_stored, metrics.pages_loaded), (64, 64));
    assert_eq!(
        (metrics.store_ns.count(), metrics.load_ns.count()),
        (64, 64)
    );
}

#[test]
fn entries_are_executed_in_their_order() {
    let mut rig = Rig::new();
    let pool = rig.create_pool();
    rig.store(pool, &[(5, page(1)), (5, page(2)), (5, page(3))]);
    assert_eq!(rig.load(pool, &[5]).pages, page(3));
}

#[test]
fn requests_of_one_queue_are_executed_and_returned_in_order() {
    let mut rig = Rig::new();
    let pool = rig.create_pool();
    let first = rig.submit(&store_request(pool, &[(1, page(1))]), 9).0;
    let second = rig.submit(&store_request(pool, &[(1, page(2))]), 9).0;
    let (third, to) = rig.submit(&batch_request(Op::Load, pool, &[1]), 9 + PAGE_SIZE);
    let progress = rig.process().unwrap();
    assert_eq!(
        (progress.chains, progress.pages, progress.more),
        (3, 3, false)
    );
    let used = rig.guest.used();
    let heads: Vec<u16> = used.iter().map(|(head, _)| *head).collect();
    assert_eq!(heads, [first, second, third]);
    assert_eq!(rig.answer(to, used[2].1).pages, page(2));
}

#[test]
fn a_load_of_what_was_never_stored_is_not_found_and_length_ends_before_the_gap() {
    let mut rig = Rig::new();
    let pool = rig.create_pool();
    rig.store(pool, &[(0, page(1)), (2, page(2))]);
    let loaded = rig.load(pool, &[0, 1, 2]);
    assert_eq!(loaded.status, Status::Ok);
    assert_eq!(loaded.statuses, [Status::Ok, Status::NotFound, Status::Ok]);
    assert_eq!(
        loaded.pages,
        page(1),
        "the length covers the first page only"
    );
    assert_eq!(loaded.len, 8 + 3 + 4096);
}

#[test]
fn a_page_behind_a_gap_is_at_its_own_place() {
    let mut rig = Rig::new();
    let pool = rig.create_pool();
    rig.store(pool, &[(2, page(2))]);
    let (_, to) = rig.submit(&batch_request(Op::Load, pool, &[1, 2]), 10 + 2 * PAGE_SIZE);
    assert_eq!(rig.process().unwrap().pages, 1);
    assert_eq!(rig.guest.read(to + 10 + 4096, 4096), page(2));
}

#[test]
fn an_invalidated_page_is_gone_and_its_neighbour_stays() {
    let mut rig = Rig::new();
    let pool = rig.create_pool();
    rig.store(pool, &[(1, page(1)), (2, page(2))]);
    let answer = rig.send(&batch_request(Op::InvalidatePage, pool, &[1]), 9);
    assert_eq!(
        (answer.status, answer.statuses),
        (Status::Ok, vec![Status::Ok])
    );
    assert_eq!(rig.load(pool, &[1]).statuses, [Status::NotFound]);
    assert_eq!(rig.load(pool, &[2]).pages, page(2));
}

#[test]
fn invalidating_what_is_not_there_succeeds() {
    let mut rig = Rig::new();
    let pool = rig.create_pool();
    let answer = rig.send(&batch_request(Op::InvalidatePage, pool, &[1, 1]), 10);
    assert_eq!(answer.statuses, [Status::Ok, Status::Ok]);
    let answer = rig.send(&header(Op::InvalidateObject as u16, 0, pool, [1, 2, 3]), 8);
    assert_eq!((answer.status, answer.len), (Status::Ok, 8));
}

#[test]
fn an_invalidated_object_is_gone_and_another_object_stays() {
    let mut rig = Rig::new();
    let pool = rig.create_pool();
    rig.store(pool, &[(1, page(1))]);
    let mut other = header(Op::Store as u16, 1, pool, [7, 8, 10]);
    other.extend(entries(&[1]));
    other.extend(page(2));
    rig.send(&other, 9);
    let answer = rig.send(&header(Op::InvalidateObject as u16, 0, pool, OBJECT), 8);
    assert_eq!(answer.status, Status::Ok);
    assert_eq!(rig.load(pool, &[1]).statuses, [Status::NotFound]);
    let mut load = header(Op::Load as u16, 1, pool, [7, 8, 10]);
    load.extend(entries(&[1]));
    assert_eq!(rig.send(&load, 9 + PAGE_SIZE).pages, page(2));
}

#[test]
fn index_at_the_32_bit_limit_is_a_page_like_any_other() {
    let mut rig = Rig::new();
    let pool = rig.create_pool();
    rig.store(
        pool,
        &[(u32::MAX, page(1)), (u32::MAX - 1, page(2)), (0, page(3))],
    );
    assert_eq!(rig.load(pool, &[u32::MAX]).pages, page(1));
    assert_eq!(rig.load(pool, &[u32::MAX - 1]).pages, page(2));
    assert_eq!(rig.load(pool, &[0]).pages, page(3));
}

#[test]
fn a_store_over_the_limit_is_refused_and_leaves_no_old_data() {
    let mut rig = Rig::with(256, 64 << 10);
    let pool = rig.create_pool();
    let pages: Vec<_> = (0..64).map(|n| (n, page(n))).collect();
    let answer = rig.store(pool, &pages);
    assert_eq!(answer.status, Status::Ok);
    let stored = answer.statuses.iter().filter(|s| **s == Status::Ok).count();
    let refused = answer
        .statuses
        .iter()
        .filter(|s| **s == Status::NoSpace)
        .count();
    assert!(refused > 0);
    assert_eq!(stored + refused, 64);
    for (index, status) in (0..).zip(&answer.statuses) {
        let loaded = rig.load(pool, &[index]);
        if *status == Status::Ok {
            assert_eq!(loaded.pages, page(index));
        } else {
            assert_eq!(loaded.statuses, [Status::NotFound]);
        }
    }
    let refusals = rig.device.metrics().snapshot().refusals;
    assert_eq!(refusals[Status::NoSpace as usize], refused as u64);
}

#[test]
fn a_frozen_guest_is_told_so_and_may_load_and_invalidate() {
    let mut rig = Rig::new();
    let pool = rig.create_pool();
    rig.store(pool, &[(1, page(1)), (2, page(2))]);
    rig.domain.freeze();
    assert_eq!(rig.store(pool, &[(9, page(9))]).statuses, [Status::Frozen]);
    assert_eq!(rig.load(pool, &[2]).pages, page(2));
    let gone = rig.send(&batch_request(Op::InvalidatePage, pool, &[1]), 9);
    assert_eq!(gone.statuses, [Status::Ok]);
    rig.domain.thaw();
    assert_eq!(rig.store(pool, &[(9, page(9))]).statuses, [Status::Ok]);
}

#[test]
fn a_destroyed_pool_is_unknown() {
    let mut rig = Rig::new();
    let pool = rig.create_pool();
    rig.store(pool, &[(1, page(1))]);
    let destroy = header(Op::DestroyPool as u16, 0, pool, [0; 3]);
    assert_eq!(rig.send(&destroy, 8).status, Status::Ok);
    assert_eq!(rig.send(&destroy, 8).status, Status::NoPool);
    assert_eq!(rig.load(pool, &[1]), Answer::refused(Status::NoPool, 1));
}

#[test]
fn unknown_pool_is_a_status_for_every_operation() {
    let mut rig = Rig::new();
    let pool = rig.create_pool();
    for unknown in [pool + 1, 0xffff_ffff] {
        let stored = rig.store(unknown, &[(1, page(1)), (2, page(2))]);
        assert_eq!(stored, Answer::refused(Status::NoPool, 2));
        assert_eq!(rig.load(unknown, &[1]), Answer::refused(Status::NoPool, 1));
        let invalidated = rig.send(&batch_request(Op::InvalidatePage, unknown, &[1]), 9);
        assert_eq!(invalidated, Answer::refused(Status::NoPool, 1));
        for op in [Op::InvalidateObject, Op::DestroyPool] {
            let answer = rig.send(&header(op as u16, 0, unknown, [0; 3]), 8);
            assert_eq!(answer, Answer::refused(Status::NoPool, 0), "{op:?}");
        }
    }
}

#[test]
fn the_number_of_pools_is_bounded_and_destroying_one_makes_room() {
    let mut rig = Rig::new();
    let pools: Vec<u32> = (0..32).map(|_| rig.create_pool()).collect();
    let create = header(Op::CreatePool as u16, 0, 0, [0; 3]);
    assert_eq!(
        rig.send(&create, 8),
        Answer::refused(Status::TooManyPools, 0)
    );
    let destroy = header(Op::DestroyPool as u16, 0, pools[5], [0; 3]);
    assert_eq!(rig.send(&destroy, 8).status, Status::Ok);
    rig.create_pool();
}

#[test]
fn reset_destroys_the_pools_of_the_driver_and_forgets_features() {
    let mut rig = Rig::new();
    let pools: Vec<u32> = (0..32).map(|_| rig.create_pool()).collect();
    rig.store(pools[0], &[(1, page(1))]);
    rig.device.reset();
    for pool in pools {
        assert_eq!(rig.load(pool, &[1]), Answer::refused(Status::NoPool, 1));
    }
    rig.create_pool();
    assert_eq!(rig.device.metrics().snapshot().resets, 1);
}

#[test]
fn a_pool_whose_feature_was_not_negotiated_is_unsupported() {
    let mut rig = Rig::new();
    for flags in [request::POOL_EPHEMERAL, request::POOL_SHARED, 3, 4, 1 << 31] {
        let answer = rig.send(&header(Op::CreatePool as u16, 0, flags, [0; 3]), 8);
        assert_eq!(answer, Answer::refused(Status::Unsupported, 0), "{flags}");
    }
}

#[test]
fn only_offered_features_can_be_negotiated() {
    let rig = Rig::new();
    let device = TmemDevice::new(
        rig.domain,
        TmemConfig {
            request_queues: 2,
            stores: StoreQueues { count: 1, batch: 8 },
            features: u64::MAX,
            ..TmemConfig::default()
        },
    );
    assert_eq!(device.offered_features(), feature::ALL);
    assert_eq!(
        device.offered_features() & feature::bit(feature::CREDITS),
        0
    );
}

#[test]
fn configuration_space_reads_the_same_in_any_pieces_and_zero_beyond_its_end() {
    let rig = Rig::new();
    let mut whole = [0xffu8; 48];
    rig.device.read_config(0, &mut whole);
    let expected = Config {
        page_size: 4096.into(),
        num_request_queues: 1.into(),
        max_batch: 64.into(),
        max_pools: 32.into(),
        pressure: 0.into(),
        limit_bytes: (1 << 20).into(),
        swap_bytes: (1 << 30).into(),
        ..Config::default()
    };
    assert_eq!(&whole[..40], expected.as_bytes());
    assert_eq!(whole[40..], [0; 8]);
    for offset in [0u64, 1, 31, 32, 33, 39, 40, 41, u64::MAX - 1, u64::MAX] {
        let mut one = [0xff];
        rig.device.read_config(offset, &mut one);
        let expected = whole.get(offset.min(99) as usize).copied().unwrap_or(0);
        assert_eq!(one[0], expected, "{offset}");
    }
}

#[test]
fn descriptor_borders_have_no_meaning() {
    let mut rig = Rig::new();
    let pool = rig.create_pool();
    let request = store_request(pool, &[(1, page(1)), (2, page(2))]);
    for piece in [1000, 4096, 5, 31] {
        // The last pieces take the rest, so that the chain fits into the queue.
        let from = rig.guest.put(&request);
        let to = rig.guest.alloc(10);
        let mut buffers: Vec<Buffer> = (0..8)
            .map(|n| readable(from + n * piece, piece as usize))
            .take_while(|b| b.addr + u64::from(b.len) < from + request.len() as u64)
            .collect();
        let done = buffers.iter().map(|b| b.len as usize).sum::<usize>();
        buffers.push(readable(from + done as u64, request.len() - done));
        buffers.extend((0..10).map(|n| writable(to + n, 1)));
        rig.guest.chain(&buffers);
        assert_eq!(rig.process().unwrap().pages, 2);
        let used = rig.guest.used();
        let answer = rig.answer(to, used[0].1);
        assert_eq!(answer.statuses, [Status::Ok, Status::Ok], "{piece}");

        let load = batch_request(Op::Load, pool, &[1, 2]);
        let from = rig.guest.put(&load);
        let room = 10 + 2 * PAGE_SIZE;
        let to = rig.guest.alloc(room);
        let mut buffers: Vec<Buffer> = (0..load.len() as u64)
            .map(|n| readable(from + n, 1))
            .collect();
        buffers.extend((0..2).map(|n| writable(to + n * piece, piece as usize)));
        let done = 2 * piece as usize;
        buffers.push(writable(to + done as u64, room - done));
        rig.guest.chain(&buffers);
        assert_eq!(rig.process().unwrap().pages, 2);
        let used = rig.guest.used();
        let loaded = rig.answer(to, used[0].1);
        assert!(loaded.pages == [page(1), page(2)].concat(), "{piece}");
    }
}

#[test]
fn descriptors_of_no_bytes_are_passed_over() {
    let mut rig = Rig::new();
    let request = rig.guest.put(&header(Op::CreatePool as u16, 0, 0, [0; 3]));
    let to = rig.guest.alloc(8);
    rig.guest.chain(&[
        readable(0, 0),
        readable(request, 32),
        readable(u64::MAX, 0),
        writable(u64::MAX, 0),
        writable(to, 8),
    ]);
    let _ = rig.process().unwrap();
    let used = rig.guest.used();
    assert_eq!(rig.answer(to, used[0].1).status, Status::Ok);
}

#[test]
fn an_indirect_table_is_a_chain_like_any_other() {
    let mut rig = Rig::new();
    let pool = rig.create_pool();
    let request = store_request(pool, &[(1, page(1))]);
    let from = rig.guest.put(&request);
    let to = rig.guest.alloc(9);
    let (table, len) = rig.guest.table(&[
        readable(from, 40),
        readable(from + 40, 4096),
        writable(to, 9),
    ]);
    let head = rig.guest.indirect(table, len);
    assert_eq!(rig.process().unwrap().pages, 1);
    assert_eq!(rig.guest.used(), [(head, 9)]);
    assert_eq!(rig.load(pool, &[1]).pages, page(1));
}

#[test]
fn two_devices_of_one_guest_do_not_destroy_each_others_pools_at_reset() {
    let mut rig = Rig::new();
    let pool = rig.create_pool();
    rig.store(pool, &[(1, page(1))]);
    TmemDevice::new(rig.domain.clone(), TmemConfig::default()).reset();
    assert_eq!(rig.load(pool, &[1]).pages, page(1));
}

#[test]
fn a_queue_that_is_not_ready_is_left_alone() {
    let mut rig = Rig::new();
    rig.submit(&header(Op::CreatePool as u16, 0, 0, [0; 3]), 8);
    rig.guest.queue.set_ready(false);
    assert_eq!(rig.process().unwrap().chains, 0);
    rig.guest.queue.set_ready(true);
    assert_eq!(rig.process().unwrap().chains, 1);
}

#[test]
fn doorbells_are_counted_for_request_and_event_queues_apart() {
    let rig = Rig::new();
    rig.device.metrics().count_doorbells(0, 1);
    rig.device.metrics().count_doorbells(1, 2);
    let metrics = rig.device.metrics().snapshot();
    assert_eq!((metrics.doorbells, metrics.event_doorbells), (2, 1));
}
