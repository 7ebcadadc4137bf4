//! What the service promises to guests that behave, and to the others about those that do not.

mod host;

use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use host::{Host, has_thread};
use tmem_protocol::{Op, Status};
use tmem_serve::parse_guest;
use tmem_testkit::corpus::page;
use tmem_testkit::driver::{NEXT, NO_INTERRUPT, WRITE, writable};
use tmem_testkit::frontend::{BUFFERS, MEMORY, TestGuest, eventually, memfd};
use vhost::vhost_user::VhostUserFrontend;
use vhost::{VhostBackend, VhostUserMemoryRegionInfo};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use vm_memory::{Bytes, GuestAddress};

#[test]
fn a_page_comes_back_as_it_was_stored() {
    let host = Host::new(&["a"], "");
    let mut guest = host.boot("a");
    let pool = guest.create_pool();
    assert_eq!(guest.store(pool, 7, &page(1)), Status::Ok);
    assert_eq!(guest.load(pool, 7), Ok(page(1)));
    assert_eq!(guest.load(pool, 8), Err(Status::NotFound));
}

#[test]
fn the_config_space_is_readable_and_shows_what_the_operator_set() {
    let host = Host::new(&["a"], ",limit=1M,swap=2M,queues=3");
    let mut guest = host.boot("a");
    let config = guest.config();
    assert_eq!(config.page_size.get(), 4096);
    // One for loads and one for stores of each vCPU.
    assert_eq!(config.num_request_queues.get(), 6);
    assert_eq!(config.num_store_queues.get(), 3);
    assert_eq!(config.store_batch.get(), 16);
    assert_eq!(config.limit_bytes.get(), 1 << 20);
    assert_eq!(config.swap_bytes.get(), 2 << 20);
}

#[test]
fn the_guest_is_interrupted_when_it_asks_to_be() {
    let host = Host::new(&["a"], "");
    let mut guest = host.boot("a");
    guest.create_pool();
    // used_event was 0 for the first chain: with EVENT_IDX that asks for one interrupt.
    eventually("call", || guest.rings[1].call.read().is_ok());
}

#[test]
fn a_guest_whose_ring_says_no_interrupt_is_not_interrupted() {
    let host = Host::new(&["a"], "");
    let mut guest = TestGuest::connect(&host.socket("a"));
    let features = guest.frontend.get_features().expect("features");
    guest
        .frontend
        .set_features(features & !(1 << VIRTIO_RING_F_EVENT_IDX))
        .expect("without the event index");
    guest.start_rings(0);
    guest.rings[1].driver.set_avail_flags(NO_INTERRUPT);
    let pool = guest.create_pool();
    for index in 0..100 {
        assert_eq!(guest.store(pool, index, &page(index.into())), Status::Ok);
        assert_eq!(guest.load(pool, index), Ok(page(index.into())));
    }
    // The thread that answers this has done all it does for the requests before.
    guest.config();
    assert!(guest.rings[1].call.read().is_err(), "an interrupt");
    guest.rings[1].driver.set_avail_flags(0);
    assert_eq!(guest.load(pool, 0), Ok(page(0)));
    let mut calls = 0;
    eventually("the interrupt that it asks for", || {
        calls = guest.rings[1].call.read().unwrap_or(0);
        calls > 0
    });
    assert_eq!(calls, 1);
}

#[test]
fn the_guest_is_served_again_after_the_worker_slept() {
    let host = Host::new(&["a"], "");
    let mut guest = host.boot("a");
    let pool = guest.create_pool();
    for index in 0..5 {
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(guest.store(pool, index, &page(index.into())), Status::Ok);
    }
}

#[test]
fn one_guest_cannot_load_what_another_stored() {
    let host = Host::new(&["a", "b"], "");
    let (mut a, mut b) = (host.boot("a"), host.boot("b"));
    let (pool_a, pool_b) = (a.create_pool(), b.create_pool());
    assert_eq!(a.store(pool_a, 0, &page(1)), Status::Ok);
    assert_eq!(b.load(pool_b, 0), Err(Status::NotFound));
    assert!(b.load(pool_a, 0).is_err());
}

#[test]
fn a_disconnect_frees_the_pages() {
    let host = Host::new(&["a"], "");
    let mut guest = host.boot("a");
    let pool = guest.create_pool();
    assert_eq!(guest.store(pool, 0, &page(1)), Status::Ok);
    assert_eq!(host.pages("a"), 1);
    drop(guest);
    eventually("pages freed", || host.pages("a") == 0);
    let mut guest = host.boot("a");
    assert!(
        guest.load(pool, 0).is_err(),
        "and a reconnect does not bring them back"
    );
}

#[test]
fn kept_pools_are_there_after_a_reconnect_and_only_for_the_same_socket() {
    let host = Host::new(&["a", "b"], ",keep-seconds=60");
    let pool = host.kept("a");
    let mut other = host.boot("b");
    assert!(other.load(pool, 3).is_err());
    // A VMM that restored its guest: the rings go on where they were.
    let mut guest = TestGuest::connect(&host.socket("a"));
    guest.start_rings(2);
    assert_eq!(guest.load(pool, 3), Ok(page(3)));
}

#[test]
fn kept_pools_go_when_another_driver_starts() {
    let host = Host::new(&["a"], ",keep-seconds=60");
    host.kept("a");
    let _guest = host.boot("a");
    eventually("pages freed", || host.pages("a") == 0);
}

/// The ring of the second driver begins at 0, which is also where that of the first would go on.
#[test]
fn another_driver_gets_no_kept_pool_after_65536_requests() {
    let host = Host::new(&["a"], ",keep-seconds=60");
    let mut guest = host.boot("a");
    let pool = guest.create_pool();
    assert_eq!(guest.store(pool, 3, &page(3)), Status::Ok);
    while guest.rings[1].driver.next() != 0 {
        for slot in 0..u16::min(16, 0u16.wrapping_sub(guest.rings[1].driver.next())) {
            guest.submit(slot, Op::InvalidatePage, pool, [1, 2, 3], &[9], &[]);
        }
        guest.kick(1);
        guest.wait();
    }
    drop(guest);
    eventually("disconnected", || !host.is_connected("a"));
    assert_eq!(host.pages("a"), 1);
    let mut other = host.boot("a");
    assert_eq!(other.load(pool & 0xff, 3), Err(Status::NoPool));
    eventually("pages freed", || host.pages("a") == 0);
    let mine = other.create_pool();
    assert_eq!(other.load(mine, 3), Err(Status::NotFound));
    assert_eq!(other.store(mine, 3, &page(4)), Status::Ok);
    assert_eq!(other.load(mine, 3), Ok(page(4)));
}

#[test]
fn who_claims_to_go_on_where_another_driver_was_gets_one_guess() {
    let host = Host::new(&["a"], ",keep-seconds=60");
    let pool = host.kept("a");
    let mut other = TestGuest::connect(&host.socket("a"));
    // The position of the first driver.
    other.start_rings(2);
    let mine = other.create_pool();
    assert_eq!(other.store(mine, 3, &page(4)), Status::Ok);
    assert_eq!(host.pages("a"), 2, "its own pools are no guess");
    assert_eq!(other.load(pool ^ 0x100, 3), Err(Status::NoPool));
    assert_eq!(host.pages("a"), 1);
    assert_eq!(other.load(pool, 3), Err(Status::NoPool));
    assert_eq!(other.load(mine, 3), Ok(page(4)));
}

#[test]
fn a_driver_that_goes_on_may_create_a_pool_before_it_names_another() {
    let host = Host::new(&["a"], ",keep-seconds=60");
    let pool = host.kept("a");
    let mut guest = TestGuest::connect(&host.socket("a"));
    guest.start_rings(2);
    let second = guest.create_pool();
    assert_eq!(guest.store(second, 5, &page(5)), Status::Ok);
    drop(guest);
    eventually("disconnected", || !host.is_connected("a"));
    let mut guest = TestGuest::connect(&host.socket("a"));
    guest.start_rings(4);
    assert_eq!(guest.load(second, 5), Ok(page(5)));
    assert_eq!(guest.load(pool, 3), Ok(page(3)));
    assert_eq!(guest.load(0x0100, 3), Err(Status::NoPool));
    assert_eq!(
        guest.load(pool, 3),
        Ok(page(3)),
        "no guess once it is known"
    );
}

#[test]
fn kept_pools_go_when_their_time_is_over() {
    let host = Host::new(&["a"], ",keep-seconds=1");
    host.kept("a");
    eventually("pages freed", || host.pages("a") == 0);
}

#[test]
fn a_reset_of_the_device_frees_the_pages() {
    let host = Host::new(&["a"], "");
    let mut guest = host.boot("a");
    let pool = guest.create_pool();
    assert_eq!(guest.store(pool, 0, &page(1)), Status::Ok);
    guest.frontend.reset_device().expect("resets");
    eventually("pages freed", || host.pages("a") == 0);
}

#[test]
fn a_paused_ring_goes_on_where_it_stopped() {
    let host = Host::new(&["a"], "");
    let mut guest = host.boot("a");
    let pool = guest.create_pool();
    assert_eq!(guest.store(pool, 0, &page(1)), Status::Ok);
    let base = guest.frontend.get_vring_base(1).expect("base");
    assert_eq!(base, 2);
    guest.frontend.get_vring_base(0).expect("base");
    guest.rings.clear();
    guest.start_rings(2);
    assert_eq!(guest.load(pool, 0), Ok(page(1)));
}

#[test]
fn many_requests_over_one_connection_wrap_the_rings() {
    let host = Host::new(&["a"], "");
    let mut guest = host.boot("a");
    let pool = guest.create_pool();
    for round in 0..20_000u32 {
        let index = round % 64;
        assert_eq!(guest.store(pool, index, &page(round.into())), Status::Ok);
        assert_eq!(guest.load(pool, index), Ok(page(round.into())));
        if round % 4096 == 0 {
            assert_eq!(
                guest.config().page_size.get(),
                4096,
                "messages have their turn"
            );
        }
    }
}

#[test]
fn a_guest_that_truncates_its_memory_costs_only_itself() {
    let host = Host::new(&["bad", "good"], ",keep-seconds=60");
    host.bystander(|| {
        let mut bad = host.boot("bad");
        let pool = bad.create_pool();
        assert_eq!(bad.store(pool, 0, &page(1)), Status::Ok);
        assert!(host.is_connected("bad"));
        bad.file.set_len(0).expect("truncates");
        bad.kick(1);
        eventually("cut off", || !host.is_connected("bad"));
        eventually("its pages freed, kept or not", || host.pages("bad") == 0);
    });
    // And its socket still works.
    let mut again = host.boot("bad");
    let pool = again.create_pool();
    assert_eq!(again.store(pool, 0, &page(1)), Status::Ok);
}

#[test]
fn memory_that_was_never_there_costs_only_its_guest() {
    let host = Host::new(&["bad", "good"], "");
    host.bystander(|| {
        let bad = TestGuest::connect(&host.socket("bad"));
        let short = memfd(4096);
        let region = VhostUserMemoryRegionInfo {
            guest_phys_addr: 0,
            memory_size: MEMORY,
            userspace_addr: bad.user_address(),
            mmap_offset: 0,
            mmap_handle: short.as_raw_fd(),
        };
        // Refused at once, or cut off at the first access: both will do.
        let _ = bad.frontend.set_mem_table(&[region]);
        let mut bad = bad;
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            bad.start_rings(0);
            bad.kick(1);
        }));
        drop(outcome);
        eventually("cut off", || !host.is_connected("bad"));
    });
}

#[test]
fn garbage_on_the_socket_costs_only_its_sender() {
    let host = Host::new(&["bad", "good"], "");
    host.bystander(|| {
        for seed in 0..20 {
            let mut bad = UnixStream::connect(host.socket("bad")).expect("connects");
            // The other side may be gone before all of it is written.
            let _ = bad.write_all(&page(seed));
        }
        eventually("cut off", || !host.is_connected("bad"));
    });
    host.boot("bad").create_pool();
}

#[test]
fn a_front_end_that_stops_within_a_message_costs_only_itself() {
    let host = Host::new(&["bad", "good"], "");
    host.bystander(|| {
        let mut bad = UnixStream::connect(host.socket("bad")).expect("connects");
        // The header of SET_FEATURES, whose 8 bytes never come.
        bad.write_all(&[2, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0])
            .expect("writes");
        eventually("connected", || host.is_connected("bad"));
        std::thread::sleep(Duration::from_millis(20));
        // It can be removed all the same.
        let before = Instant::now();
        assert!(host.service.remove_guest("bad"));
        assert!(before.elapsed() < Duration::from_millis(500));
    });
}

#[test]
fn a_corrupt_ring_stops_the_device_and_a_reset_repairs_it() {
    let host = Host::new(&["bad", "good"], "");
    host.bystander(|| {
        let mut bad = host.boot("bad");
        bad.create_pool();
        bad.rings[1].driver.set_avail_index(1000);
        bad.kick(1);
        let faults = || {
            let report = host.service.report();
            report
                .iter()
                .map(|guest| guest.device.queue_faults)
                .sum::<u64>()
        };
        eventually("noticed", || faults() == 1);
        bad.kick(1);
        assert!(host.is_connected("bad"), "the connection stays");
        bad.frontend.reset_device().expect("resets");
        bad.rings.clear();
        bad.frontend
            .set_features(bad.frontend.get_features().expect("features"))
            .expect("set");
        bad.start_rings(0);
        bad.create_pool();
        assert_eq!(faults(), 1);
    });
}

#[test]
fn malformed_requests_are_answered_and_the_ring_goes_on() {
    let host = Host::new(&["a"], "");
    let mut guest = host.boot("a");
    let pool = guest.create_pool();
    let driver = &mut guest.rings[1].driver;
    // A descriptor that leads out of memory.
    driver.set_desc(10, MEMORY * 2, 32, NEXT, 11);
    driver.set_desc(11, BUFFERS, 8, WRITE, 0);
    driver.offer(10);
    // One that leads to itself.
    driver.set_desc(12, BUFFERS, 8, NEXT, 12);
    driver.offer(12);
    guest.kick(1);
    guest.wait();
    assert_eq!(guest.store(pool, 1, &page(1)), Status::Ok);
}

#[test]
fn a_flood_does_not_starve_another_guest() {
    let host = Host::new(&["bad", "good"], "");
    let mut good = host.boot("good");
    let pool = good.create_pool();
    let socket = host.socket("bad");
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut bad = TestGuest::boot(&socket);
            let pool = bad.create_pool();
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                bad.submit_stores(pool);
                bad.kick(1);
                bad.wait();
            }
        });
        for round in 0..500 {
            assert_eq!(good.store(pool, round, &page(round.into())), Status::Ok);
            assert_eq!(good.load(pool, round), Ok(page(round.into())));
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

#[test]
fn a_kick_that_is_read_by_the_guest_itself_does_not_stall_the_worker() {
    let host = Host::new(&["reader"], "");
    let mut bad = host.boot("reader");
    let pool = bad.create_pool();
    for _ in 0..1000 {
        bad.kick(1);
        let _ = bad.rings[1].kick.read();
    }
    assert_eq!(bad.store(pool, 0, &page(0)), Status::Ok);
    let before = Instant::now();
    drop(host);
    assert!(before.elapsed() < Duration::from_millis(900));
    eventually("its thread ends", || !has_thread("reader"));
}

#[test]
fn a_new_limit_is_told_to_the_guest() {
    let host = Host::new(&["a"], "");
    let mut guest = host.boot("a");
    guest.rings[0].driver.chain(&[writable(BUFFERS, 24)]);
    guest.kick(0);
    // The store is told by whoever changes it; here only the message counts.
    let domain = host.service.store().domain("a").expect("is there");
    let change = tmem_store::DomainChange {
        limit: Some(1 << 20),
        ..Default::default()
    };
    domain.set(change).expect("valid");
    host.service.announce("a");
    let limit = || -> u64 {
        let at = GuestAddress(BUFFERS + 8);
        guest.memory.read_obj(at).expect("in memory")
    };
    eventually("event", || limit() == 1 << 20);
    assert_eq!(guest.config().limit_bytes.get(), 1 << 20);
}

#[test]
fn guests_come_and_go_while_others_work() {
    let host = Host::new(&["good"], "");
    host.bystander(|| {
        for round in 0..5 {
            let socket = host.socket("new");
            let config = format!("name=new,socket={}", socket.display());
            let config = parse_guest(&config).expect("a guest");
            let config = tmem_serve::GuestConfig::try_from(config).expect("valid");
            host.service.add_guest(config.clone()).expect("added");
            assert!(host.service.add_guest(config).is_err(), "only once");
            let mut guest = TestGuest::boot(&socket);
            let pool = guest.create_pool();
            assert_eq!(guest.store(pool, round, &page(1)), Status::Ok);
            assert!(host.service.remove_guest("new"));
            assert!(!socket.exists());
            assert!(!host.service.remove_guest("new"));
        }
    });
}

#[test]
fn the_service_stops_within_a_second_whatever_its_guests_do() {
    let host = Host::new(&["busy", "idle", "stalled", "absent"], "");
    let _idle = host.boot("idle");
    let mut stalled = UnixStream::connect(host.socket("stalled")).expect("connects");
    stalled.write_all(&[1, 0, 0]).expect("writes");
    let socket = host.socket("busy");
    let busy = std::thread::spawn(move || {
        let mut busy = TestGuest::boot(&socket);
        let pool = busy.create_pool();
        let until = Instant::now() + Duration::from_secs(10);
        // Until the answers stop.
        loop {
            busy.submit(0, Op::Store, pool, [0; 3], &[1], &page(1));
            busy.kick(1);
            let sent = Instant::now();
            while !busy.poll() {
                if sent.elapsed() > Duration::from_millis(500) {
                    return;
                }
                assert!(Instant::now() < until, "never stopped");
            }
        }
    });
    eventually("busy", || host.pages("busy") == 1);
    let before = Instant::now();
    drop(host.service);
    assert!(
        before.elapsed() < Duration::from_secs(1),
        "{:?}",
        before.elapsed()
    );
    for name in ["busy", "idle", "stalled", "absent"] {
        eventually("its thread ends", || !has_thread(name));
    }
    busy.join().expect("the guest is left alone");
}

#[test]
fn sixty_four_idle_guests_cost_no_processor_time() {
    let names: Vec<String> = (0..64).map(|index| format!("sleeper{index}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let host = Host::new(&names, "");
    let mut guests: Vec<TestGuest> = names.iter().map(|name| host.boot(name)).collect();
    guests.iter_mut().for_each(|guest| {
        guest.create_pool();
    });
    // Only the threads of these guests: other tests run in this process at the same time.
    let switches = || -> u64 {
        let tasks = std::fs::read_dir("/proc/self/task").expect("proc");
        tasks
            .filter_map(|task| {
                let status = std::fs::read_to_string(task.ok()?.path().join("status")).ok()?;
                status.starts_with("Name:\tguest sleeper").then_some(())?;
                let line = status.lines().find(|line| line.starts_with("voluntary"))?;
                line.split_whitespace().nth(1)?.parse::<u64>().ok()
            })
            .sum()
    };
    // A thread may be late to rest after its last request; one that wakes up by itself never does.
    eventually("no thread wakes up", || {
        let before = switches();
        std::thread::sleep(Duration::from_millis(500));
        switches() == before
    });
    let byte: u8 = guests[0]
        .memory
        .read_obj(GuestAddress(0))
        .expect("in memory");
    assert_eq!(byte, 0);
}
