//! Every way to get a chain wrong: it is answered or at least returned, nothing panics, nothing was
//! executed, and the queue goes on.
#![allow(missing_docs, clippy::cast_possible_truncation)]

mod common;

use common::*;
use tmem_device::tmem::Malformed;
use tmem_device::{TmemConfig, TmemDevice};
use tmem_protocol::{MAX_DESCRIPTORS, Op, PAGE_SIZE, Status, feature, request};

/// A rig with a pool that holds `page(1)` at index 1.
fn rig() -> (Rig, u32) {
    let mut rig = Rig::new();
    let pool = rig.create_pool();
    rig.store(pool, &[(1, page(1))]);
    (rig, pool)
}

/// The queue serves the next request, and what was stored is still there.
fn goes_on(rig: &mut Rig, pool: u32) {
    let loaded = rig.load(pool, &[1]);
    assert_eq!(loaded.statuses, [Status::Ok]);
    assert!(loaded.pages == page(1));
}

/// Processes one chain that is already available; its length in the used ring.
fn returned(rig: &mut Rig, head: u16) -> u32 {
    let progress = rig.process().unwrap();
    assert_eq!((progress.chains, progress.pages), (1, 0));
    let used = rig.guest.used();
    assert_eq!(used.len(), 1, "returned exactly once");
    assert_eq!(used[0].0, head);
    used[0].1
}

/// A request that breaks `rule` is answered with INVALID, and the queue goes on.
#[track_caller]
fn refused(request: &[u8], room: usize, entries: usize, rule: Malformed) {
    let (mut rig, pool) = rig();
    let answer = rig.send(request, room);
    assert_eq!(answer, Answer::refused(Status::Invalid, entries));
    assert_eq!(rig.malformed(rule), 1, "counted");
    goes_on(&mut rig, pool);
}

/// A chain of these descriptors is answered with INVALID at `to`, and the queue goes on.
#[track_caller]
fn refused_chain(build: impl FnOnce(&mut Rig, u32) -> (Vec<Buffer>, u64), rule: Malformed) {
    let (mut rig, pool) = rig();
    let (buffers, to) = build(&mut rig, pool);
    let head = rig.guest.chain(&buffers);
    let len = returned(&mut rig, head);
    assert_eq!(rig.answer(to, len).status, Status::Invalid);
    assert_eq!(rig.malformed(rule), 1, "counted");
    goes_on(&mut rig, pool);
}

#[test]
fn no_response_descriptor_returns_the_chain_with_length_0_and_executes_nothing() {
    let (mut rig, pool) = rig();
    let request = store_request(pool, &[(1, page(2))]);
    let from = rig.guest.put(&request);
    let head = rig.guest.chain(&[readable(from, request.len())]);
    assert_eq!(returned(&mut rig, head), 0);
    assert_eq!(rig.malformed(Malformed::NoResponse), 1);
    goes_on(&mut rig, pool);
}

#[test]
fn a_response_of_7_bytes_returns_the_chain_with_length_0_and_executes_nothing() {
    let (mut rig, pool) = rig();
    let (head, to) = rig.submit(&batch_request(Op::InvalidatePage, pool, &[1]), 7);
    assert_eq!(returned(&mut rig, head), 0);
    assert_eq!(rig.guest.read(to, 7), [0xee; 7]);
    assert_eq!(rig.malformed(Malformed::NoResponse), 1);
    goes_on(&mut rig, pool);
}

#[test]
fn a_chain_of_no_bytes_is_returned() {
    let (mut rig, pool) = rig();
    let head = rig
        .guest
        .chain(&[readable(0x10000, 0), writable(0x10000, 0)]);
    assert_eq!(returned(&mut rig, head), 0);
    goes_on(&mut rig, pool);
}

#[test]
fn a_short_header_is_invalid() {
    for len in [1, 2, 31] {
        let header = header(Op::CreatePool as u16, 0, 0, [0; 3]);
        refused(&header[..len], 8, 0, Malformed::ShortHeader);
    }
}

#[test]
fn no_readable_bytes_are_invalid() {
    refused_chain(
        |rig, _| {
            let to = rig.guest.alloc(64);
            (vec![writable(to, 64)], to)
        },
        Malformed::ShortHeader,
    );
}

#[test]
fn count_0_of_a_batch_is_invalid() {
    for op in [Op::Store, Op::Load, Op::InvalidatePage] {
        refused(&header(op as u16, 0, 1, OBJECT), 8, 0, Malformed::Count);
    }
}

#[test]
fn count_65_is_invalid() {
    for op in [Op::Store, Op::Load, Op::InvalidatePage] {
        let mut request = header(op as u16, 65, 1, OBJECT);
        request.extend(entries(&[1; 65]));
        refused(&request, 8 + 65 * 4097, 0, Malformed::Count);
    }
}

#[test]
fn count_65535_is_invalid() {
    for op in [Op::Store, Op::Load, Op::InvalidatePage] {
        refused(
            &header(op as u16, 0xffff, 1, OBJECT),
            600,
            0,
            Malformed::Count,
        );
    }
}

#[test]
fn a_count_where_there_are_no_entries_is_invalid() {
    for op in [Op::CreatePool, Op::DestroyPool, Op::InvalidateObject] {
        let mut request = header(op as u16, 1, 0, [0; 3]);
        request.extend(entries(&[1]));
        refused(&request, 9, 1, Malformed::Count);
    }
}

#[test]
fn an_unknown_operation_is_unsupported() {
    for op in [0, 7, 0x100, 0x0300, 0xffff] {
        let (mut rig, pool) = rig();
        let answer = rig.send(&header(op, 0, pool, OBJECT), 8);
        assert_eq!(answer, Answer::refused(Status::Unsupported, 0), "{op}");
        goes_on(&mut rig, pool);
    }
}

#[test]
fn entries_that_are_missing_are_invalid() {
    let mut request = header(Op::InvalidatePage as u16, 2, 1, OBJECT);
    request.extend(entries(&[1]));
    refused(&request, 10, 2, Malformed::ReadableLength);
}

#[test]
fn a_page_that_is_one_byte_short_is_invalid_and_leaves_the_old_data() {
    let mut request = store_request(1, &[(1, page(2))]);
    request.pop();
    refused(&request, 9, 1, Malformed::ReadableLength);
}

#[test]
fn bytes_behind_the_request_are_invalid() {
    let mut request = store_request(1, &[(1, page(2))]);
    request.push(0);
    refused(&request, 9, 1, Malformed::ReadableLength);
}

#[test]
fn no_room_for_the_entry_statuses_is_invalid() {
    let request = store_request(1, &[(1, page(2)), (2, page(2))]);
    refused(&request, 9, 1, Malformed::WritableLength);
}

#[test]
fn a_load_with_room_for_fewer_pages_than_count_is_invalid() {
    let request = batch_request(Op::Load, 1, &[1, 1]);
    for room in [10, 10 + 1, 10 + PAGE_SIZE, 10 + 2 * PAGE_SIZE - 1] {
        refused(&request, room, 2, Malformed::WritableLength);
    }
}

#[test]
fn a_load_whose_page_buffer_is_readable_is_invalid() {
    refused_chain(
        |rig, pool| {
            let mut request = batch_request(Op::Load, pool, &[1]);
            request.extend([0; PAGE_SIZE]);
            let from = rig.guest.put(&request);
            let to = rig.guest.alloc(9);
            (vec![readable(from, request.len()), writable(to, 9)], to)
        },
        Malformed::ReadableLength,
    );
}

#[test]
fn a_store_whose_page_buffer_is_writable_is_invalid() {
    refused_chain(
        |rig, pool| {
            let request = batch_request(Op::Store, pool, &[1]);
            let from = rig.guest.put(&request);
            let to = rig.guest.alloc(9 + PAGE_SIZE);
            let buffers = vec![readable(from, request.len()), writable(to, 9 + PAGE_SIZE)];
            (buffers, to)
        },
        Malformed::ReadableLength,
    );
}

#[test]
fn a_writable_descriptor_before_a_readable_one_is_invalid() {
    refused_chain(
        |rig, pool| {
            let request = batch_request(Op::InvalidatePage, pool, &[1]);
            let from = rig.guest.put(&request);
            let to = rig.guest.alloc(9);
            (vec![writable(to, 9), readable(from, request.len())], to)
        },
        Malformed::Order,
    );
}

#[test]
fn a_page_buffer_that_crosses_the_end_of_guest_memory_is_invalid() {
    for (at, len) in [
        (MEMORY - 1, PAGE_SIZE),
        (MEMORY - 4095, PAGE_SIZE),
        (MEMORY, PAGE_SIZE),
        (MEMORY + (1 << 40), PAGE_SIZE),
        (u64::MAX, PAGE_SIZE),
        (u64::MAX - 4095, PAGE_SIZE),
    ] {
        refused_chain(
            |rig, pool| {
                let request = batch_request(Op::Store, pool, &[1]);
                let from = rig.guest.put(&request);
                let to = rig.guest.alloc(9);
                let buffers = vec![
                    readable(from, request.len()),
                    readable(at, len),
                    writable(to, 9),
                ];
                (buffers, to)
            },
            Malformed::OutsideMemory,
        );
        refused_chain(
            |rig, pool| {
                let request = batch_request(Op::Load, pool, &[1]);
                let from = rig.guest.put(&request);
                let to = rig.guest.alloc(9);
                let buffers = vec![
                    readable(from, request.len()),
                    writable(to, 9),
                    writable(at, len),
                ];
                (buffers, to)
            },
            Malformed::OutsideMemory,
        );
    }
}

#[test]
fn a_header_outside_guest_memory_is_invalid() {
    refused_chain(
        |rig, _| {
            let to = rig.guest.alloc(8);
            (vec![readable(MEMORY - 16, 32), writable(to, 8)], to)
        },
        Malformed::OutsideMemory,
    );
}

#[test]
fn a_response_outside_guest_memory_returns_the_chain_with_length_0() {
    let (mut rig, pool) = rig();
    let request = batch_request(Op::InvalidatePage, pool, &[1]);
    let from = rig.guest.put(&request);
    for at in [MEMORY, MEMORY - 4, u64::MAX - 3] {
        let head = rig
            .guest
            .chain(&[readable(from, request.len()), writable(at, 9)]);
        assert_eq!(returned(&mut rig, head), 0);
    }
    goes_on(&mut rig, pool);
}

#[test]
fn a_page_buffer_that_ends_with_guest_memory_is_fine() {
    let (mut rig, pool) = rig();
    rig.guest.write(MEMORY - 4096, &page(5));
    let request = batch_request(Op::Store, pool, &[5]);
    let from = rig.guest.put(&request);
    let to = rig.guest.alloc(9);
    rig.guest.chain(&[
        readable(from, request.len()),
        readable(MEMORY - 4096, 4096),
        writable(to, 9),
    ]);
    assert_eq!(rig.process().unwrap().pages, 1);
    rig.guest.used();
    assert!(rig.load(pool, &[5]).pages == page(5));
}

#[test]
fn a_nonzero_reserved_field_of_an_entry_is_invalid_and_nothing_is_executed() {
    for byte in 4..8 {
        let mut request = batch_request(Op::InvalidatePage, 1, &[1, 1]);
        request[32 + 8 + byte] = 1;
        refused(&request, 10, 2, Malformed::Reserved);
    }
}

#[test]
fn an_object_where_it_is_reserved_is_invalid() {
    let request = header(Op::CreatePool as u16, 0, 0, [0, 0, 1]);
    refused(&request, 8, 0, Malformed::Reserved);
    let request = header(Op::DestroyPool as u16, 0, 1, [1, 0, 0]);
    refused(&request, 8, 0, Malformed::Reserved);
}

#[test]
fn a_group_name_that_is_empty_or_badly_padded_or_not_utf8_is_invalid() {
    let mut rig = Rig::new();
    rig.device = TmemDevice::new(
        rig.domain.clone(),
        TmemConfig {
            features: u64::MAX,
            ..TmemConfig::default()
        },
    );
    rig.device.set_features(feature::ALL);
    let flags = request::POOL_EPHEMERAL | request::POOL_SHARED;
    for name in [&b""[..], b"\0a", b"a\0b", b"\xff\xfe"] {
        let mut bytes = [0; 24];
        bytes[..name.len()].copy_from_slice(name);
        let mut request = header(Op::CreatePool as u16, 0, flags, [0; 3]);
        request[8..].copy_from_slice(&bytes);
        assert_eq!(rig.send(&request, 8), Answer::refused(Status::Invalid, 0));
    }
    assert_eq!(rig.malformed(Malformed::GroupName), 4);
    // Shared without ephemeral is no kind of pool.
    let request = header(Op::CreatePool as u16, 0, request::POOL_SHARED, [65, 0, 0]);
    assert_eq!(rig.send(&request, 8).status, Status::Unsupported);
}

#[test]
fn a_descriptor_that_points_to_itself_is_invalid() {
    let (mut rig, pool) = rig();
    let from = rig.guest.alloc(64);
    let head = rig.guest.take_desc();
    rig.guest.set_desc(head, from, 64, NEXT, head);
    rig.guest.push(head);
    assert_eq!(returned(&mut rig, head), 0);
    assert_eq!(
        rig.malformed(Malformed::Incomplete),
        0,
        "no room came first"
    );
    goes_on(&mut rig, pool);
}

#[test]
fn a_loop_behind_the_response_is_invalid_and_nothing_is_executed() {
    let (mut rig, pool) = rig();
    let request = batch_request(Op::InvalidatePage, pool, &[1]);
    let from = rig.guest.put(&request);
    let to = rig.guest.alloc(16);
    let (first, second) = (rig.guest.take_desc(), rig.guest.take_desc());
    rig.guest
        .set_desc(first, from, request.len() as u32, NEXT, second);
    rig.guest.set_desc(second, to, 16, NEXT | WRITE, second);
    rig.guest.push(first);
    let len = returned(&mut rig, first);
    assert_eq!(rig.answer(to, len).status, Status::Invalid);
    assert_eq!(rig.malformed(Malformed::Incomplete), 1);
    goes_on(&mut rig, pool);
}

#[test]
fn a_loop_of_descriptors_without_bytes_ends() {
    let (mut rig, pool) = rig();
    let (first, second) = (rig.guest.take_desc(), rig.guest.take_desc());
    rig.guest.set_desc(first, 0, 0, NEXT, second);
    rig.guest.set_desc(second, 0, 0, NEXT | WRITE, first);
    rig.guest.push(first);
    assert_eq!(returned(&mut rig, first), 0);
    goes_on(&mut rig, pool);
}

#[test]
fn a_next_index_outside_the_table_is_invalid() {
    let (mut rig, pool) = rig();
    let request = batch_request(Op::InvalidatePage, pool, &[1]);
    let from = rig.guest.put(&request);
    let to = rig.guest.alloc(16);
    let (first, second) = (rig.guest.take_desc(), rig.guest.take_desc());
    rig.guest
        .set_desc(first, from, request.len() as u32, NEXT, second);
    rig.guest.set_desc(second, to, 16, NEXT | WRITE, 256);
    rig.guest.push(first);
    let len = returned(&mut rig, first);
    assert_eq!(rig.answer(to, len).status, Status::Invalid);
    goes_on(&mut rig, pool);
}

#[test]
fn a_chain_of_more_than_4_gib_is_returned() {
    let (mut rig, pool) = rig();
    let head = rig.guest.chain(&[
        readable(0, u32::MAX as usize),
        readable(0, u32::MAX as usize),
        writable(0x10000, 64),
    ]);
    returned(&mut rig, head);
    goes_on(&mut rig, pool);
}

#[test]
fn an_indirect_table_in_an_indirect_table_is_invalid() {
    let (mut rig, pool) = rig();
    let request = batch_request(Op::InvalidatePage, pool, &[1]);
    let from = rig.guest.put(&request);
    let to = rig.guest.alloc(9);
    let (inner, len) = rig
        .guest
        .table(&[readable(from, request.len()), writable(to, 9)]);
    let nested = descriptor(inner, len, INDIRECT, 0);
    let outer = rig.guest.put(nested.map(u64::to_ne_bytes).as_flattened());
    let head = rig.guest.indirect(outer, 16);
    assert_eq!(returned(&mut rig, head), 0);
    goes_on(&mut rig, pool);
}

#[test]
fn an_indirect_table_with_a_bad_length_or_place_is_returned() {
    let (mut rig, pool) = rig();
    let request = batch_request(Op::InvalidatePage, pool, &[1]);
    let from = rig.guest.put(&request);
    let to = rig.guest.alloc(9);
    let (table, len) = rig
        .guest
        .table(&[readable(from, request.len()), writable(to, 9)]);
    for (addr, len) in [
        (table, 0),
        (table, 1),
        (table, 15),
        (table, len - 1),
        (table, u32::MAX),
        (table, 0xffff_fff0),
        (table, 16 << 16),
        (MEMORY, len),
        (u64::MAX, len),
        (u64::MAX - 15, len),
        (MEMORY - 8, len),
    ] {
        let head = rig.guest.indirect(addr, len);
        assert_eq!(returned(&mut rig, head), 0, "{addr:#x} {len}");
    }
    goes_on(&mut rig, pool);
}

#[test]
fn an_indirect_table_that_ends_too_early_is_invalid() {
    let (mut rig, pool) = rig();
    let request = batch_request(Op::InvalidatePage, pool, &[1]);
    let from = rig.guest.put(&request);
    let to = rig.guest.alloc(9);
    let (table, len) = rig.guest.table(&[
        readable(from, request.len()),
        writable(to, 9),
        writable(to, 9),
    ]);
    let head = rig.guest.indirect(table, len - 16);
    let len = returned(&mut rig, head);
    assert_eq!(rig.answer(to, len).status, Status::Invalid);
    assert_eq!(rig.malformed(Malformed::Incomplete), 1);
    goes_on(&mut rig, pool);
}

#[test]
fn a_bad_indirect_table_behind_a_good_descriptor_is_invalid() {
    let (mut rig, pool) = rig();
    let to = rig.guest.alloc(8);
    let (first, second) = (rig.guest.take_desc(), rig.guest.take_desc());
    rig.guest.set_desc(first, to, 8, NEXT | WRITE, second);
    rig.guest.set_desc(second, to, 17, INDIRECT, 0);
    rig.guest.push(first);
    let len = returned(&mut rig, first);
    assert_eq!(rig.answer(to, len).status, Status::Invalid);
    goes_on(&mut rig, pool);
}

#[test]
fn a_chain_of_too_many_descriptors_is_invalid() {
    let (mut rig, pool) = rig();
    let to = rig.guest.alloc(MAX_DESCRIPTORS + 1);
    let buffers: Vec<Buffer> = (0..=MAX_DESCRIPTORS as u64)
        .map(|n| writable(to + n, 1))
        .collect();
    let (table, len) = rig.guest.table(&buffers);
    let head = rig.guest.indirect(table, len);
    let used = returned(&mut rig, head);
    assert_eq!(rig.answer(to, used).status, Status::Invalid);
    assert_eq!(rig.malformed(Malformed::TooLong), 1);
    // One fewer is a chain like any other: here one without a request.
    let head = rig.guest.indirect(table + 16, len - 16);
    let _ = returned(&mut rig, head);
    assert_eq!(rig.malformed(Malformed::TooLong), 1);
    goes_on(&mut rig, pool);
}

#[test]
fn the_second_of_two_requests_is_served_when_the_first_is_malformed() {
    let (mut rig, pool) = rig();
    let (bad, bad_to) = rig.submit(&header(Op::Load as u16, 0xffff, pool, OBJECT), 100);
    let (good, good_to) = rig.submit(&batch_request(Op::Load, pool, &[1]), 9 + PAGE_SIZE);
    let progress = rig.process().unwrap();
    assert_eq!((progress.chains, progress.pages), (2, 1));
    let used = rig.guest.used();
    assert_eq!((used[0].0, used[1].0), (bad, good));
    assert_eq!(rig.answer(bad_to, used[0].1).status, Status::Invalid);
    assert!(rig.answer(good_to, used[1].1).pages == page(1));
}

#[test]
fn request_and_response_in_the_same_memory_harm_nobody() {
    let (mut rig, pool) = rig();
    let request = store_request(pool, &[(2, page(2)), (3, page(3))]);
    let from = rig.guest.put(&request);
    rig.guest
        .chain(&[readable(from, request.len()), writable(from, request.len())]);
    assert_eq!(rig.process().unwrap().pages, 2);
    rig.guest.used();
    // A load whose pages overwrite its own header, entries and descriptors' memory.
    let request = batch_request(Op::Load, pool, &[2, 3]);
    rig.guest.write(from, &request);
    rig.guest.chain(&[
        readable(from, request.len()),
        writable(from, 10),
        writable(from, PAGE_SIZE),
        writable(from, PAGE_SIZE),
    ]);
    assert_eq!(rig.process().unwrap().pages, 2);
    rig.guest.used();
    goes_on(&mut rig, pool);
}
