//! What the operator grants or changes reaches the guest: share groups, events, a frozen start; how long its
//! pools are kept.

mod host;

use std::time::{Duration, Instant};

use host::{Host, has_thread};
use tmem_protocol::{Event, EventType, Op, Pressure, Status};
use tmem_store::DomainChange;
use tmem_testkit::corpus::page;
use tmem_testkit::driver::writable;
use tmem_testkit::frontend::{BUFFERS, TestGuest, eventually};
use vm_memory::{Bytes, GuestAddress};
use zerocopy::{FromZeros, IntoBytes};

/// A file page, as the members of a group have it.
const FILE: [u64; 3] = [5, 6, 7];

fn put(guest: &mut TestGuest, pool: u32, data: &[u8; 4096]) -> Status {
    let answer = guest.request(Op::Store, pool, FILE, &[0], data);
    Status::try_from(answer.statuses[0]).expect("a known status")
}

fn get(guest: &mut TestGuest, pool: u32) -> Result<Vec<u8>, Status> {
    let answer = guest.request(Op::Load, pool, FILE, &[0], &[]);
    match Status::try_from(answer.statuses[0]).expect("a known status") {
        Status::Ok => Ok(answer.pages),
        status => Err(status),
    }
}

#[test]
fn a_file_page_is_shared_within_the_group_that_the_operator_named_and_with_nobody_else() {
    let host = Host::with(
        "64M",
        &[
            ("a", ",group=web"),
            ("b", ",group=db,group=web"),
            ("c", ",group=db"),
            ("d", ""),
        ],
    );
    let [mut a, mut b, mut c, mut d] = ["a", "b", "c", "d"].map(|name| host.boot(name));
    let pool_a = a.join("web").expect("may join");
    assert_eq!(put(&mut a, pool_a, &page(1)), Status::Ok);
    let pool_b = b.join("web").expect("may join");
    assert_eq!(get(&mut b, pool_b), Ok(page(1).to_vec()));
    // A load leaves it there, for everybody.
    assert_eq!(get(&mut a, pool_a), Ok(page(1).to_vec()));
    // Neither a name that it knows nor the number of the pool lets another one in, and nothing is made
    // for it instead.
    assert_eq!(c.join("web"), Err(Status::Denied));
    assert_eq!(d.join("web"), Err(Status::Unsupported));
    for guest in [&mut c, &mut d] {
        assert!(get(guest, pool_a).is_err());
        assert_ne!(put(guest, pool_a, &page(2)), Status::Ok);
    }
    let pools = |name: &str| {
        let domain = host.service.store().domain(name).expect("is there");
        domain.stats().pools.len()
    };
    assert_eq!((pools("c"), pools("d")), (0, 0));
    // Another group of the same guest is another pool.
    let db = b.join("db").expect("may join");
    assert_eq!(get(&mut b, db), Err(Status::NotFound));
    let db_c = c.join("db").expect("may join");
    assert_eq!(put(&mut c, db_c, &page(3)), Status::Ok);
    assert_eq!(get(&mut b, db), Ok(page(3).to_vec()));
    // An invalidate is seen by every member.
    b.request(Op::InvalidatePage, pool_b, FILE, &[0], &[]);
    assert_eq!(get(&mut a, pool_a), Err(Status::NotFound));
    // Who leaves takes nothing of others along.
    assert_eq!(put(&mut b, pool_b, &page(4)), Status::Ok);
    drop(a);
    eventually("gone", || pools("a") == 0);
    assert_eq!(get(&mut b, pool_b), Ok(page(4).to_vec()));
}

#[test]
fn a_guest_that_begins_frozen_is_refused_until_it_is_thawed() {
    let host = Host::new(&["a"], ",frozen=true,compression=dense");
    let mut guest = host.boot("a");
    let pool = guest.create_pool();
    assert_eq!(guest.store(pool, 0, &page(0)), Status::Frozen);
    let domain = host.service.store().domain("a").expect("is there");
    assert!(domain.stats().cold);
    domain.thaw();
    assert_eq!(guest.store(pool, 0, &page(0)), Status::Ok);
}

#[test]
fn equal_pages_are_kept_once_where_the_operator_wants_it() {
    let host = Host::with("64M", &[("on", ",dedup=on"), ("off", "")]);
    let deduplicated = |name: &str| {
        let mut guest = host.boot(name);
        let pool = guest.create_pool();
        for index in 0..8 {
            assert_eq!(guest.store(pool, index, &page(1)), Status::Ok);
        }
        let stats = host.service.store().domain(name).expect("is there").stats();
        stats
            .pools
            .iter()
            .map(|pool| pool.deduplicated)
            .sum::<u64>()
    };
    assert!(deduplicated("on") > 0);
    assert_eq!(deduplicated("off"), 0);
}

/// Where the guest has its buffer for events, apart from those of requests.
const EVENT: u64 = BUFFERS - 0x1000;

/// Offers one buffer for an event.
fn listen(guest: &mut TestGuest) {
    let zeros = [0u8; size_of::<Event>()];
    guest
        .memory
        .write_slice(&zeros, GuestAddress(EVENT))
        .expect("in memory");
    guest.rings[0].driver.chain(&[writable(EVENT, 24)]);
    guest.kick(0);
}

/// The event in the buffer, once the guest is told that it is there: before, it may be there in part.
fn event(guest: &TestGuest) -> Option<(EventType, Pressure, u64)> {
    if !guest.rings[0].driver.is_done() {
        return None;
    }
    let mut event = Event::new_zeroed();
    let at = GuestAddress(EVENT);
    guest
        .memory
        .read_slice(event.as_mut_bytes(), at)
        .expect("in memory");
    let kind = EventType::try_from(event.event_type.get()).ok()?;
    let level = Pressure::try_from(event.level.get()).expect("a known level");
    Some((kind, level, event.limit_bytes.get()))
}

#[test]
fn a_guest_hears_that_its_stores_are_refused_and_that_it_got_more() {
    let host = Host::new(&["a"], ",limit=1M");
    let mut guest = host.boot("a");
    let pool = guest.create_pool();
    listen(&mut guest);
    let mut index = 0;
    while guest.store(pool, index, &page(index.into())) == Status::Ok {
        index += 1;
        assert!(index < 300, "the limit holds");
    }
    eventually("told", || event(&guest).is_some());
    assert_eq!(
        event(&guest),
        Some((EventType::Pressure, Pressure::Full, 1 << 20))
    );
    assert_eq!(guest.config().pressure.get(), Pressure::Full as u32);
    // The operator takes some away: it stays full.
    let domain = host.service.store().domain("a").expect("is there");
    let set = |limit| {
        let change = DomainChange {
            limit: Some(limit),
            ..DomainChange::default()
        };
        domain.set(change).expect("valid");
        host.service.announce("a");
    };
    listen(&mut guest);
    set(1 << 19);
    eventually("told", || event(&guest).is_some());
    assert_eq!(
        event(&guest),
        Some((EventType::Limits, Pressure::Full, 1 << 19))
    );
    // And gives more: there is room, which both say.
    listen(&mut guest);
    set(4 << 20);
    eventually("told", || event(&guest).is_some());
    assert_eq!(
        event(&guest),
        Some((EventType::Pressure, Pressure::None, 4 << 20))
    );
    listen(&mut guest);
    eventually("told", || event(&guest).is_some());
    assert_eq!(
        event(&guest),
        Some((EventType::Limits, Pressure::None, 4 << 20))
    );
    assert_eq!(guest.store(pool, index, &page(0)), Status::Ok);
}

#[test]
fn a_guest_hears_that_the_host_is_short_of_memory_and_that_it_is_not() {
    let host = Host::new(&["a", "b"], "");
    let mut guest = host.boot("a");
    for (short, level) in [
        (true, Pressure::Some),
        (false, Pressure::None),
        (true, Pressure::Some),
    ] {
        listen(&mut guest);
        eventually("announced", || host.service.announce_host(short));
        eventually("told", || event(&guest).is_some());
        assert_eq!(event(&guest), Some((EventType::Pressure, level, 0)));
        assert_eq!(guest.config().pressure.get(), level as u32);
    }
    // Nothing is said twice: the next event is another one.
    listen(&mut guest);
    eventually("announced", || host.service.announce_host(true));
    host.service.announce("a");
    eventually("told", || event(&guest).is_some());
    let told = event(&guest);
    assert_eq!(told, Some((EventType::Limits, Pressure::Some, 0)));
}

#[test]
fn the_event_interrupts_a_guest_that_sleeps() {
    let host = Host::new(&["a"], "");
    let mut guest = host.boot("a");
    guest.create_pool();
    listen(&mut guest);
    let domain = host.service.store().domain("a").expect("is there");
    let change = DomainChange {
        limit: Some(1 << 20),
        ..DomainChange::default()
    };
    domain.set(change).expect("valid");
    host.service.announce("a");
    eventually("call of the event queue", || {
        guest.rings[0].call.read().is_ok()
    });
    assert_eq!(
        event(&guest),
        Some((EventType::Limits, Pressure::None, 1 << 20))
    );
}

#[test]
fn after_its_time_a_kept_pool_is_nobodys() {
    let host = Host::new(&["a"], ",keep-seconds=1");
    let pool = host.kept("a");
    eventually("pages freed", || host.pages("a") == 0);
    // The same VMM, too late: its ring goes on, its pool is gone.
    let mut guest = TestGuest::connect(&host.socket("a"));
    guest.start_rings(2);
    assert_eq!(guest.load(pool, 3), Err(Status::NoPool));
}

#[test]
fn the_time_of_a_kept_pool_begins_with_the_last_disconnect() {
    let host = Host::new(&["a"], ",keep-seconds=2");
    let pool = host.kept("a");
    for round in 0..3u16 {
        let mut guest = TestGuest::connect(&host.socket("a"));
        guest.start_rings(2 + round);
        assert_eq!(guest.load(pool, 3), Ok(page(3)), "round {round}");
        // Longer than it would be kept without a connection.
        if round == 0 {
            std::thread::sleep(Duration::from_millis(2500));
            assert_eq!(host.pages("a"), 1);
        }
        drop(guest);
        eventually("disconnected", || !host.is_connected("a"));
    }
}

#[test]
fn a_guest_that_is_removed_while_its_pool_is_kept_leaves_nothing() {
    let host = Host::new(&["a", "good"], ",keep-seconds=600");
    host.beside(|| {
        host.kept("a");
        assert!(host.service.remove_guest("a"));
        assert!(host.service.store().domain("a").is_none());
        // Its name begins anew.
        let again = format!("name=a,socket={}", host.socket("a").display());
        let again = tmem_serve::parse_guest(&again).expect("a guest");
        let again = tmem_serve::GuestConfig::try_from(again).expect("valid");
        host.service.add_guest(again).expect("added");
        assert_eq!(host.pages("a"), 0);
    });
}

#[test]
fn a_stop_does_not_wait_for_pools_that_are_kept() {
    let host = Host::new(&["keeper"], ",keep-seconds=600");
    host.kept("keeper");
    let before = Instant::now();
    drop(host.service);
    assert!(before.elapsed() < Duration::from_millis(900));
    eventually("its thread ends", || !has_thread("keeper"));
}

#[test]
fn guests_that_could_take_each_others_descriptors_are_refused() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // Both, so that the service cannot raise it.
    let small = Rlimit {
        current: Some(300),
        maximum: Some(300),
    };
    setrlimit(Resource::Nofile, small).expect("is set");
    let host = Host::new(&["a"], "");
    let more = format!("name=b,socket={},queues=64", host.socket("b").display());
    let more = tmem_serve::parse_guest(&more).expect("a guest");
    let more = tmem_serve::GuestConfig::try_from(more).expect("valid");
    let error = host.service.add_guest(more).expect_err("does not fit");
    assert!(
        error.to_string().contains("descriptors"),
        "{error} {limit:?}"
    );
    assert!(!host.socket("b").exists());
}
