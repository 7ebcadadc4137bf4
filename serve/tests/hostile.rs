//! Guests that do harm on purpose, each beside one that works all the time and compares its bytes. What they do with
//! their memory is in `memory.rs`.

mod host;

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use host::{Host, has_thread, host, works_again};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tmem_protocol::{Op, Status};
use tmem_testkit::corpus::page;
use tmem_testkit::driver::Layout;
use tmem_testkit::frontend::{MEMORY, QUEUE_SIZE, TestGuest, eventually, memfd, vring_config};
use tmem_testkit::raw::{self, Raw};
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserConfigFlags;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Descriptors that are open in this process, without the one that looks.
fn descriptors() -> Vec<String> {
    let list = std::fs::read_dir("/proc/self/fd").expect("proc");
    let mut list: Vec<String> = list
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .map(|link| link.display().to_string())
        .filter(|link| !link.starts_with("/proc"))
        .collect();
    list.sort();
    list
}

#[test]
fn a_thousand_hostile_connections_leave_no_descriptor_behind() {
    let names: Vec<String> = (0..8).map(|index| format!("bad{index}")).collect();
    let mut all: Vec<&str> = names.iter().map(String::as_str).collect();
    all.push("good");
    let host = Host::new(&all, "");
    let mut good = host.boot("good");
    // Answered: all its messages were handled.
    good.create_pool();
    let before = descriptors();
    std::thread::scope(|scope| {
        for name in &names {
            let socket = host.socket(name);
            scope.spawn(move || (0..125).for_each(|round| hostile_connection(&socket, round)));
        }
    });
    let deadline = Instant::now() + tmem_testkit::frontend::PATIENCE;
    while descriptors().len() != before.len() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(descriptors(), before);
    for name in &names {
        let mut again = host.boot(name);
        let pool = again.create_pool();
        assert_eq!(again.store(pool, 1, &page(1)), Status::Ok);
    }
}

/// A connection that sends descriptors where they belong, where they do not, and too many.
fn hostile_connection(socket: &Path, round: usize) {
    let bad = Raw::open(socket);
    let file = memfd(MEMORY);
    let fd = file.as_raw_fd();
    let body = raw::words(&[1]);
    match round % 8 {
        0 => drop(bad.send(raw::GET_FEATURES, &[], &[fd; 32])),
        1 => drop(bad.send(raw::SET_VRING_KICK, &body, &[fd; 2])),
        2 => drop(bad.send(raw::SET_VRING_CALL, &body, &[fd; 253])),
        3 => drop(bad.send(
            raw::SET_MEM_TABLE,
            &raw::table(&[[0, 0x1000, 0, 0]]),
            &[fd; 32],
        )),
        4 => {
            // The memory and both sorts of ring, and then not a word.
            bad.ask(
                raw::SET_MEM_TABLE,
                &raw::table(&[[0, MEMORY, 0x1000, 0]]),
                &[fd],
            );
            let event = EventFd::new(EFD_NONBLOCK).expect("eventfd");
            for code in [raw::SET_VRING_CALL, raw::SET_VRING_ERR] {
                for ring in 0..5 {
                    bad.ask(code, &raw::words(&[ring]), &[event.as_raw_fd()]);
                }
            }
        }
        5 => {
            // Descriptors with the body instead of the header.
            use vmm_sys_util::sock_ctrl_msg::ScmSocket;
            let bytes = raw::message(raw::SET_VRING_CALL, 1, &body);
            let (head, rest) = bytes.split_at(12);
            let _ = bad.stream.send_with_fds(&[head], &[]);
            let _ = bad.stream.send_with_fds(&[rest], &[fd; 16]);
            let _ = bad.ask(raw::GET_FEATURES, &[], &[]);
        }
        6 => {
            // Both ends of a connection, which then nobody else has.
            let (one, other) = UnixStream::pair().expect("pair");
            bad.ask(raw::SET_VRING_CALL, &body, &[one.as_raw_fd()]);
            bad.ask(raw::SET_VRING_ERR, &body, &[other.as_raw_fd()]);
        }
        _ => {
            // Every descriptor of one ring replaced many times.
            for _ in 0..20 {
                let event = EventFd::new(EFD_NONBLOCK).expect("eventfd");
                bad.ask(raw::SET_VRING_CALL, &body, &[event.as_raw_fd()]);
            }
        }
    }
}

#[test]
fn a_guest_that_gives_its_own_end_away_can_be_removed() {
    let host = Host::new(&["giver", "good"], "");
    host.beside(|| {
        let bad = Raw::open(&host.socket("giver"));
        let own = bad.stream.as_raw_fd();
        bad.ask(raw::SET_VRING_CALL, &raw::words(&[1]), &[own]);
        drop(bad);
        // It looks connected, as it holds its own other end.
        let before = Instant::now();
        assert!(host.service.remove_guest("giver"));
        assert!(before.elapsed() < Duration::from_millis(900));
        eventually("its thread ends", || !has_thread("giver"));
    });
}

#[test]
fn a_message_that_comes_byte_by_byte_or_only_in_part_costs_only_its_sender() {
    let host = host();
    host.beside(|| {
        let bytes = [
            raw::message(raw::GET_FEATURES, 1, &[]),
            raw::message(raw::SET_FEATURES, 1, &0u64.to_le_bytes()),
        ]
        .concat();
        for cut in 1..bytes.len() {
            use std::io::Write;
            let bad = Raw::connect(&host.socket("bad"));
            let (first, _) = bytes.split_at(cut);
            let _ = (&bad.stream).write_all(first);
            if cut % 4 == 0 {
                // The rest never comes; a stop, a removal or this end it.
                let _ = bad.stream.shutdown(std::net::Shutdown::Write);
            }
            drop(bad);
        }
        let bad = Raw::connect(&host.socket("bad"));
        for byte in &bytes {
            use std::io::Write;
            // Refused or answered, as the framing likes.
            if (&bad.stream).write_all(&[*byte]).is_err() {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        drop(bad);
    });
    works_again(&host);
}

#[test]
fn ring_sizes_and_places_that_make_no_sense_are_refused() {
    let host = host();
    host.beside(|| {
        for num in [0, 3, 65, 2048, 65536, u32::MAX] {
            let bad = Raw::open(&host.socket("bad"));
            let answer = bad.ask(raw::SET_VRING_NUM, &raw::state(1, num), &[]);
            assert_ne!(answer, Some(0), "size {num}");
        }
        // Events, then 4 queues for loads and 4 for stores: the last is 8.
        for ring in [9, 255, 256, u32::MAX] {
            for code in [
                raw::SET_VRING_NUM,
                raw::SET_VRING_BASE,
                raw::GET_VRING_BASE,
                raw::SET_VRING_ENABLE,
            ] {
                let bad = Raw::open(&host.socket("bad"));
                let answer = bad.ask(code, &raw::state(ring, 1), &[]);
                assert_ne!(answer, Some(0), "ring {ring}");
            }
        }
        // A base that no 16-bit index has, a place outside memory, a kick without memory.
        let body = [raw::state(1, 0), raw::words(&[0, 0, 0, 0])].concat();
        for (code, body) in [
            (raw::SET_VRING_BASE, raw::state(1, 65536)),
            (raw::SET_VRING_ADDR, body),
            (raw::SET_VRING_KICK, raw::words(&[0x101])),
            (raw::SET_VRING_ENABLE, raw::state(1, 2)),
        ] {
            let bad = Raw::open(&host.socket("bad"));
            assert_ne!(bad.ask(code, &body, &[]), Some(0), "{code}");
        }
    });
    works_again(&host);
}

#[test]
fn a_ring_in_use_is_not_moved_and_one_that_was_stopped_loses_no_request() {
    let host = host();
    host.beside(|| {
        let mut bad = host.boot("bad");
        let pool = bad.create_pool();
        for round in 0..50 {
            bad.submit(0, Op::Store, pool, [1, 2, 3], &[7], &page(round));
            bad.kick(1);
            // Under way or done: it stops at a whole request, and the place is in memory too.
            let base = bad.frontend.get_vring_base(1).expect("base");
            let base = u16::try_from(base).expect("16 bits");
            bad.frontend.get_vring_base(0).expect("base");
            let next = bad.rings[1].driver.next();
            bad.rings.clear();
            bad.start_rings(base);
            bad.rings[1].driver.set_avail_index(next);
            bad.kick(1);
            bad.wait();
            assert_eq!(bad.load(pool, 7), Ok(page(round)));
        }
        let user = bad.user_address();
        let place = vring_config(&Layout::at(0, QUEUE_SIZE), user);
        let mut refused = bad.frontend.set_vring_addr(1, &place).is_err();
        // Without acknowledgements the refusal is the end of the connection.
        refused |= bad.frontend.get_features().is_err();
        assert!(refused);
    });
    works_again(&host);
}

#[test]
fn rings_that_are_restarted_under_load_lose_nothing_of_others() {
    let host = host();
    host.beside(|| {
        let mut bad = host.boot("bad");
        let pool = bad.create_pool();
        let deadline = Instant::now() + Duration::from_secs(1);
        while Instant::now() < deadline {
            bad.submit_stores(pool);
            bad.kick(1);
            let _ = bad.frontend.set_vring_enable(1, false);
            let _ = bad.frontend.set_vring_enable(1, true);
            bad.share_memory();
            bad.kick(1);
            bad.wait();
        }
    });
    works_again(&host);
}

#[test]
fn strange_descriptors_for_kick_call_and_error_cost_only_their_guest() {
    let host = host();
    let file = File::options()
        .create(true)
        .truncate(true)
        .read(true)
        .write(true)
        .open(host.dir.path().join("file"))
        .expect("opens");
    host.beside(|| {
        for code in [raw::SET_VRING_KICK, raw::SET_VRING_CALL, raw::SET_VRING_ERR] {
            let (pipe_read, pipe_write) = std::io::pipe().expect("pipe");
            let (broken_read, broken_write) = std::io::pipe().expect("pipe");
            drop(broken_read);
            let (socket, closed) = UnixStream::pair().expect("pair");
            drop(closed);
            let blocking = EventFd::new(0).expect("eventfd");
            let null = File::options()
                .write(true)
                .open("/dev/null")
                .expect("opens");
            let fds: [OwnedFd; 7] = [
                pipe_read.into(),
                pipe_write.into(),
                broken_write.into(),
                socket.into(),
                null.into(),
                file.try_clone().expect("clones").into(),
                // SAFETY: a copy of a descriptor that is open.
                unsafe { std::os::fd::BorrowedFd::borrow_raw(blocking.as_raw_fd()) }
                    .try_clone_to_owned()
                    .expect("clones"),
            ];
            for fd in fds {
                let mut bad = host.boot("bad");
                let pool = bad.create_pool();
                // Behind the back of `vhost`, which only sends eventfds.
                let stream = raw::of(&bad.frontend);
                stream.send(code, &raw::words(&[1]), &[fd.as_raw_fd()]);
                for slot in 0..4 {
                    bad.submit(slot, Op::Store, pool, [0; 3], &[1], &page(1));
                }
                bad.rings[1].kick.write(1).expect("kicks");
                // Full, if it is one that can be.
                bad.rings[1].driver.set_avail_index(9999);
                bad.rings[1].kick.write(1).expect("kicks");
                drop(stream);
                drop(bad);
                eventually("gone", || !host.is_connected("bad"));
            }
        }
    });
    assert_eq!(
        file.metadata().expect("is there").len(),
        0,
        "nobody wrote to it"
    );
    works_again(&host);
}

#[test]
fn the_configuration_space_is_read_at_any_offset_and_never_beyond_its_end() {
    let host = host();
    host.beside(|| {
        for offset in [0, 1, 31, 32, 39, 40, 200, 255, 256, 0x1000, u32::MAX] {
            for size in [1u32, 4, 40, 255, 256, 4000] {
                let mut bad = TestGuest::connect(&host.socket("bad"));
                let empty = vec![0u8; size as usize];
                let flags = VhostUserConfigFlags::empty();
                // Our own side of the framing refuses much of it; the rest is sent below as it is.
                if let Ok((_, bytes)) = bad.frontend.get_config(offset, size, flags, &empty) {
                    assert_eq!(bytes.len(), size as usize);
                    let beyond = 40usize.saturating_sub(offset as usize);
                    assert!(bytes.iter().skip(beyond).all(|byte| *byte == 0));
                }
                drop(bad);
                let bad = Raw::open(&host.socket("bad"));
                let head: Vec<u8> = [offset, size, 0]
                    .iter()
                    .flat_map(|w| w.to_le_bytes())
                    .collect();
                bad.send(raw::GET_CONFIG, &[head.clone(), empty].concat(), &[]);
                bad.send(raw::GET_CONFIG, &head, &[]);
            }
        }
    });
    works_again(&host);
}

#[test]
fn any_messages_in_any_order_cost_only_their_sender() {
    let seed = std::env::var("TMEM_SEED").map_or(1, |seed| seed.parse().expect("a number"));
    let host = Host::new(&["bad", "worse", "good"], "");
    host.beside(|| {
        std::thread::scope(|scope| {
            for (name, first) in [("bad", seed), ("worse", seed + 1000)] {
                let socket = host.socket(name);
                scope.spawn(move || (first..first + 40).for_each(|seed| random(&socket, seed)));
            }
        });
    });
    works_again(&host);
}

/// Memory and rings as a driver sets them up, so that what comes after meets rings that are served.
fn begin_well(to: &Raw, file: &File, user: u64, events: &[EventFd]) {
    let table = raw::table(&[[0, MEMORY, user, 0]]);
    to.send(raw::SET_MEM_TABLE, &table, &[file.as_raw_fd()]);
    for (ring, event) in (0u32..2).zip(events) {
        let at = Layout::at(0x4000 * u64::from(ring), QUEUE_SIZE);
        let places = [at.descriptors, at.used, at.available].map(|at| user + at);
        let places = raw::words(&[places[0], places[1], places[2], 0]);
        let (body, index) = (raw::state(ring, 0), raw::words(&[ring.into()]));
        to.send(raw::SET_VRING_NUM, &raw::state(ring, 64), &[]);
        to.send(raw::SET_VRING_ADDR, &[body, places].concat(), &[]);
        to.send(raw::SET_VRING_KICK, &index, &[event.as_raw_fd()]);
        to.send(raw::SET_VRING_ENABLE, &raw::state(ring, 1), &[]);
    }
}

/// A connection that says what a table of dice tells it. Whatever it does, the service goes on.
fn random(socket: &Path, seed: u64) {
    let mut dice = StdRng::seed_from_u64(seed);
    let bad = Raw::open(socket);
    let file = memfd(MEMORY);
    let events: Vec<EventFd> = (0..4)
        .map(|_| EventFd::new(EFD_NONBLOCK).expect("eventfd"))
        .collect();
    let (pipe, _) = std::io::pipe().expect("pipe");
    let user = 0x7f00_0000_0000u64;
    if seed.is_multiple_of(2) {
        begin_well(&bad, &file, user, &events);
    }
    for _ in 0..dice.random_range(1..80) {
        let ring = dice.random_range(0..6u32);
        let event = events[dice.random_range(0..events.len())].as_raw_fd();
        let any = dice.random_range(0..MEMORY) & [!0, !0xfff, !0xf][dice.random_range(0..3)];
        let (code, body, fds) = match dice.random_range(0..14) {
            0 | 1 => {
                let table = raw::table(&[[0, MEMORY, user, 0]]);
                (raw::SET_MEM_TABLE, table, vec![file.as_raw_fd()])
            }
            2 => (
                raw::SET_VRING_NUM,
                raw::state(ring, 1 << dice.random_range(0..11)),
                vec![],
            ),
            3 | 4 => {
                let places = [user, user + 0x1000, user + 0x2000, 0];
                let body = [raw::state(ring, 0), raw::words(&places)].concat();
                (raw::SET_VRING_ADDR, body, vec![])
            }
            5 => {
                let places = [
                    user + any,
                    user + (any ^ 0x1000),
                    user + (any ^ 0x4000),
                    any,
                ];
                let body = [raw::state(ring, 0), raw::words(&places)].concat();
                (raw::SET_VRING_ADDR, body, vec![])
            }
            6 => (
                raw::SET_VRING_BASE,
                raw::state(ring, dice.random_range(0..3)),
                vec![],
            ),
            7 => (raw::GET_VRING_BASE, raw::state(ring, 0), vec![]),
            8 => (raw::SET_VRING_KICK, raw::words(&[ring.into()]), vec![event]),
            9 => (raw::SET_VRING_CALL, raw::words(&[ring.into()]), vec![event]),
            10 => (
                raw::SET_VRING_ENABLE,
                raw::state(ring, dice.random_range(0..2)),
                vec![],
            ),
            11 => {
                // What is in memory changes, and the ring is rung.
                use std::os::unix::fs::FileExt;
                let bytes: Vec<u8> = (0..dice.random_range(1..4096))
                    .map(|_| dice.random())
                    .collect();
                let _ = file.write_at(&bytes, any & 0x3fff);
                let _ = events.iter().try_for_each(|event| event.write(1));
                continue;
            }
            12 => {
                let len = [0, MEMORY, any][dice.random_range(0..3)];
                let _ = file.set_len(len);
                let _ = events.iter().try_for_each(|event| event.write(1));
                continue;
            }
            _ => {
                let len = dice.random_range(0..64);
                let body = (0..len).map(|_| dice.random()).collect();
                let fds = vec![pipe.as_raw_fd(); dice.random_range(0..3)];
                (dice.random_range(0..raw::CODES), body, fds)
            }
        };
        let flags = if dice.random_range(0..20) == 0 {
            dice.random()
        } else {
            1
        };
        if !bad.send_with(code, flags, &body, &fds) {
            return;
        }
    }
}
