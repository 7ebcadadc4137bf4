//! The event queue: latest values, bounded memory, no buffer wasted.
#![allow(missing_docs, clippy::cast_possible_truncation)]

mod common;

use std::time::{Duration, Instant};

use common::*;
use tmem_device::tmem::{HostState, Malformed};
use tmem_protocol::{Config, Event, EventType, Op, Pressure, Status};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

fn state(pressure: Pressure, used_bytes: u64) -> HostState {
    HostState {
        pressure,
        limit_bytes: 1 << 20,
        used_bytes,
    }
}

fn buffer(rig: &mut Rig, len: usize) -> (u16, u64) {
    let to = rig.guest.alloc(len);
    (rig.guest.chain(&[writable(to, len)]), to)
}

fn process(rig: &mut Rig) -> u32 {
    let Rig { device, guest, .. } = rig;
    device
        .process_events(&guest.mem, &mut guest.queue)
        .unwrap()
        .chains
}

fn event(rig: &Rig, to: u64) -> Event {
    Event::read_from_bytes(&rig.guest.read(to, 24)).unwrap()
}

#[test]
fn an_event_is_written_to_one_buffer_and_the_others_are_kept() {
    let mut rig = Rig::new();
    let (first, to) = buffer(&mut rig, 24);
    buffer(&mut rig, 24);
    assert_eq!(process(&mut rig), 0, "nothing to tell");
    rig.device
        .post_event(EventType::Pressure, state(Pressure::Full, 77));
    assert_eq!(process(&mut rig), 1);
    assert_eq!(rig.guest.used(), [(first, 24)]);
    let expected = Event {
        event_type: 1.into(),
        reserved: 0.into(),
        level: 2.into(),
        limit_bytes: (1 << 20).into(),
        used_bytes: 77.into(),
    };
    assert_eq!(event(&rig, to), expected);
    assert_eq!(process(&mut rig), 0);
}

#[test]
fn events_without_a_buffer_are_coalesced_to_the_latest_of_each_type() {
    let mut rig = Rig::new();
    for used in 0..1000 {
        rig.device
            .post_event(EventType::Pressure, state(Pressure::Some, used));
        rig.device
            .post_event(EventType::Limits, state(Pressure::None, used));
        assert_eq!(process(&mut rig), 0);
    }
    let buffers: Vec<_> = (0..4).map(|_| buffer(&mut rig, 24)).collect();
    assert_eq!(process(&mut rig), 2);
    for (to, event_type) in [(buffers[0].1, 1), (buffers[1].1, 2)] {
        let event = event(&rig, to);
        assert_eq!(event.event_type.get(), event_type);
        assert_eq!(event.used_bytes.get(), 999);
        assert_eq!(event.level.get(), Pressure::None as u32, "the latest");
    }
    let metrics = rig.device.metrics().snapshot();
    assert_eq!((metrics.events_posted, metrics.events_delivered), (2000, 2));
}

#[test]
fn a_buffer_that_cannot_hold_an_event_is_returned_empty_and_the_event_waits() {
    let mut rig = Rig::new();
    rig.device
        .post_event(EventType::Pressure, state(Pressure::Some, 1));
    let (short, _) = buffer(&mut rig, 23);
    let wrong = rig.guest.alloc(24);
    let wrong = rig.guest.chain(&[readable(wrong, 24)]);
    let outside = rig.guest.chain(&[writable(MEMORY - 8, 24)]);
    let (good, to) = buffer(&mut rig, 24);
    assert_eq!(process(&mut rig), 4);
    let used = rig.guest.used();
    assert_eq!(used, [(short, 0), (wrong, 0), (outside, 0), (good, 24)]);
    assert_eq!(event(&rig, to).level.get(), 1);
    assert_eq!(rig.malformed(Malformed::EventBuffer), 3);
}

#[test]
fn a_driver_without_the_feature_gets_no_events() {
    let mut rig = Rig::new();
    rig.device.set_features(0);
    buffer(&mut rig, 24);
    rig.device
        .post_event(EventType::Limits, state(Pressure::Some, 1));
    assert_eq!(process(&mut rig), 0);
}

#[test]
fn reset_forgets_waiting_events_and_keeps_the_configuration() {
    let mut rig = Rig::new();
    rig.device
        .post_event(EventType::Limits, state(Pressure::Full, 1));
    rig.device.reset();
    rig.device.set_features(rig.device.offered_features());
    buffer(&mut rig, 24);
    assert_eq!(process(&mut rig), 0);
    let mut config = Config::new_zeroed();
    rig.device.read_config(0, config.as_mut_bytes());
    assert_eq!(config.pressure.get(), Pressure::Full as u32);
}

#[test]
fn a_corrupt_event_ring_is_reported() {
    let mut rig = Rig::new();
    rig.device
        .post_event(EventType::Limits, state(Pressure::Full, 1));
    rig.guest.ring.set_avail_index(0x4000);
    let Rig { device, guest, .. } = &mut rig;
    assert!(device.process_events(&guest.mem, &mut guest.queue).is_err());
}

/// The level that the configuration space shows.
fn shown(rig: &Rig) -> u32 {
    let mut config = Config::new_zeroed();
    rig.device.read_config(0, config.as_mut_bytes());
    config.pressure.get()
}

/// Stores pages until one is refused for want of room; its index.
fn fill(rig: &mut Rig, pool: u32) -> u32 {
    (0..)
        .find(|index| {
            let statuses = rig.store(pool, &[(*index, page(*index))]).statuses;
            statuses == [Status::NoSpace]
        })
        .unwrap()
}

#[test]
fn a_guest_whose_stores_are_refused_is_told_once_and_told_again_when_there_is_room() {
    let mut rig = Rig::with(256, 2 << 20);
    let pool = rig.create_pool();
    assert_eq!(rig.store(pool, &[(0, page(0))]).statuses, [Status::Ok]);
    assert!(!rig.device.update_pressure());
    let index = fill(&mut rig, pool);
    assert!(rig.device.update_pressure());
    rig.store(pool, &[(index, page(index))]);
    assert!(!rig.device.update_pressure(), "once");
    assert_eq!(shown(&rig), Pressure::Full as u32);
    let all: Vec<u32> = (0..index).collect();
    for some in all.chunks(16) {
        rig.send(
            &batch_request(Op::InvalidatePage, pool, some),
            8 + some.len(),
        );
    }
    // The store gives what is free back in the background.
    let deadline = Instant::now() + Duration::from_secs(30);
    while !rig.device.update_pressure() {
        assert!(Instant::now() < deadline, "still full");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(shown(&rig), Pressure::None as u32);
}

#[test]
fn a_guest_that_gets_more_hears_of_it_and_of_the_next_refusal_and_one_that_gets_less_is_still_full()
{
    let mut rig = Rig::with(256, 2 << 20);
    let pool = rig.create_pool();
    let index = fill(&mut rig, pool);
    assert!(rig.device.update_pressure());
    rig.device.post_limits(1 << 19);
    assert_eq!(shown(&rig), Pressure::Full as u32, "less is no room");
    let buffers = [(); 4].map(|()| buffer(&mut rig, 24).1);
    assert_eq!(process(&mut rig), 2);
    rig.device.post_limits(4 << 20);
    assert_eq!(shown(&rig), Pressure::None as u32);
    assert_eq!(process(&mut rig), 2);
    let told = buffers.map(|to| {
        let event = event(&rig, to);
        (
            event.event_type.get(),
            event.level.get(),
            event.limit_bytes.get(),
        )
    });
    let (pressure, limits) = (EventType::Pressure as u16, EventType::Limits as u16);
    assert_eq!(
        told,
        [
            (pressure, Pressure::Full as u32, 1 << 19),
            (limits, Pressure::Full as u32, 1 << 19),
            (pressure, Pressure::None as u32, 4 << 20),
            (limits, Pressure::None as u32, 4 << 20),
        ]
    );
    assert_eq!(rig.guest.used().len(), 4);
    rig.store(pool, &[(index, page(index))]);
    assert!(rig.device.update_pressure(), "the next refusal");
    assert_eq!(shown(&rig), Pressure::Full as u32);
}

#[test]
fn a_guest_hears_that_the_host_is_short_of_memory_and_its_transport_that_there_is_an_event() {
    let mut rig = Rig::new();
    for (short, level) in [(true, Pressure::Some), (false, Pressure::None)] {
        assert!(rig.device.note_host(short));
        assert!(!rig.device.note_host(short), "once");
        assert_eq!(shown(&rig), level as u32);
        // The transport of a guest that rings for something else.
        assert!(rig.device.update_pressure());
        assert!(!rig.device.update_pressure());
        let (_, to) = buffer(&mut rig, 24);
        assert_eq!(process(&mut rig), 1);
        let event = event(&rig, to);
        assert_eq!(event.event_type.get(), EventType::Pressure as u16);
        assert_eq!(event.level.get(), level as u32);
    }
}
