//! Guests that take their memory away or describe it wrongly, each beside one that works all the time and compares its
//! bytes.

mod host;

use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

use host::{Host, host, works_again};
use tmem_protocol::{Op, Status};
use tmem_testkit::corpus::page;
use tmem_testkit::frontend::{MEMORY, eventually, memfd};
use tmem_testkit::raw::{self, Raw};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

#[test]
fn memory_that_is_truncated_while_pages_are_copied_costs_only_its_guest() {
    let host = Host::new(&["bad", "good"], ",keep-seconds=60");
    host.beside(|| {
        for round in 0..40 {
            let mut bad = host.boot("bad");
            let pool = bad.create_pool();
            let file = bad.file.try_clone().expect("clones");
            // The requests come from this side's own copy of what is mapped, so they must not touch it
            // themselves after the cut: it is done in the middle of what the service has to do.
            for slot in 0..16 {
                let op = if slot % 2 == 0 { Op::Store } else { Op::Load };
                let data = page(slot.into());
                let data = if op == Op::Store { &data[..] } else { &[] };
                bad.submit(slot, op, pool, [0; 3], &[slot.into()], data);
            }
            bad.kick(1);
            // Sooner and later within the work.
            for _ in 0..round * 50 {
                std::hint::spin_loop();
            }
            file.set_len([0, tmem_testkit::frontend::BUFFERS, 8 * 4096][round % 3])
                .expect("truncates");
            // What is beyond may never be touched again, then the guest is only short of memory.
            bad.rings[1].kick.write(1).expect("kicks");
            drop(bad);
            eventually("gone", || !host.is_connected("bad"));
        }
    });
    works_again(&host);
}

#[test]
fn memory_that_is_truncated_and_grows_again_costs_only_its_guest() {
    let host = host();
    host.beside(|| {
        for round in 0..20u64 {
            let mut bad = host.boot("bad");
            let pool = bad.create_pool();
            assert_eq!(bad.store(pool, 0, &page(round)), Status::Ok);
            bad.submit(0, Op::Load, pool, [1, 2, 3], &[0], &[]);
            bad.kick(1);
            bad.file.set_len(0).expect("truncates");
            // From never to always touched while it is short.
            bad.rings[1].kick.write(1).expect("kicks");
            for _ in 0..round * 2000 {
                std::hint::spin_loop();
            }
            bad.file.set_len(MEMORY).expect("grows");
            // Zeros throughout: the ring makes no sense, or was found to be short. New rings in the same
            // connection are a new start either way.
            bad.rings[1].kick.write(1).expect("kicks");
            drop(bad);
            eventually("gone", || !host.is_connected("bad"));
            assert_eq!(host.pages("bad"), 0);
        }
    });
    works_again(&host);
}

#[test]
fn a_new_memory_table_does_not_hide_that_the_old_one_was_short() {
    let host = host();
    host.beside(|| {
        for round in 0..20u64 {
            let mut bad = host.boot("bad");
            let pool = bad.create_pool();
            assert_eq!(bad.store(pool, 0, &page(round)), Status::Ok);
            let whole = memfd(MEMORY);
            let table = raw::table(&[[0, MEMORY, bad.user_address(), 0]]);
            let stream = raw::of(&bad.frontend);
            bad.file.set_len(0).expect("truncates");
            // It looks into the ring of events, and finds the table next: mostly both at one wake-up.
            host.service.announce("bad");
            stream.send(raw::SET_MEM_TABLE, &table, &[whole.as_raw_fd()]);
            eventually("cut off", || !host.is_connected("bad"));
            assert_eq!(host.pages("bad"), 0);
        }
    });
    works_again(&host);
}

/// Regions of a SET_MEM_TABLE (guest address, size, user address, offset), and the descriptors that come with it.
type Table = (Vec<[u64; 4]>, Vec<RawFd>);

#[test]
fn tables_that_overlap_wrap_or_cannot_be_mapped_end_the_connection() {
    let host = host();
    let (plain, sparse) = (memfd(MEMORY), memfd(1 << 41));
    let (pipe, _write) = std::io::pipe().expect("pipe");
    let (socket, _peer) = UnixStream::pair().expect("pair");
    let event = EventFd::new(EFD_NONBLOCK).expect("eventfd");
    let null = File::open("/dev/null").expect("opens");
    let folder = File::open(host.dir.path()).expect("opens");
    let read_only = {
        let path = host.dir.path().join("read-only");
        std::fs::write(&path, vec![0; 1 << 16]).expect("writes");
        File::open(path).expect("opens")
    };
    let good = plain.as_raw_fd();
    let one = |fd: RawFd| (vec![[0, 0x1_0000, 0x1000_0000, 0]], vec![fd]);
    let two = |a: [u64; 4], b: [u64; 4]| (vec![a, b], vec![good, good]);
    let cases: Vec<(&str, Table)> = vec![
        ("pipe", one(pipe.as_raw_fd())),
        ("socket", one(socket.as_raw_fd())),
        ("eventfd", one(event.as_raw_fd())),
        ("null", one(null.as_raw_fd())),
        ("folder", one(folder.as_raw_fd())),
        ("read-only", one(read_only.as_raw_fd())),
        (
            "overlap",
            two([0, 0x2000, 0x10_0000, 0], [0x1000, 0x2000, 0x20_0000, 0]),
        ),
        (
            "same twice",
            two([0, 0x2000, 0x10_0000, 0], [0, 0x2000, 0x10_0000, 0]),
        ),
        (
            "guest address wraps",
            (vec![[u64::MAX - 0xfff, 0x2000, 0, 0]], vec![good]),
        ),
        (
            "user address wraps",
            (vec![[0, 0x2000, u64::MAX - 0xfff, 0]], vec![good]),
        ),
        (
            "offset wraps",
            (vec![[0, 0x2000, 0, u64::MAX - 0xfff]], vec![good]),
        ),
        ("beyond the file", (vec![[0, MEMORY * 2, 0, 0]], vec![good])),
        ("larger than all", (vec![[0, 1 << 62, 0, 0]], vec![good])),
        (
            "larger than a guest may be",
            (vec![[0, 1 << 41, 0, 0]], vec![sparse.as_raw_fd()]),
        ),
        ("no bytes", (vec![[0, 0, 0, 0]], vec![good])),
        ("not pages", (vec![[1, 0x1001, 0, 0]], vec![good])),
        ("no descriptor", (vec![[0, 0x1000, 0, 0]], vec![])),
        ("more descriptors", (vec![[0, 0x1000, 0, 0]], vec![good; 8])),
        (
            "nine regions",
            (
                (0..9).map(|at| [at << 20, 0x1000, at << 20, 0]).collect(),
                vec![good; 9],
            ),
        ),
    ];
    host.beside(|| {
        for (name, (regions, fds)) in cases {
            let bad = Raw::open(&host.socket("bad"));
            let answer = bad.ask(raw::SET_MEM_TABLE, &raw::table(&regions), &fds);
            assert_ne!(answer, Some(0), "{name} was accepted");
            drop(bad);
            eventually("gone", || !host.is_connected("bad"));
        }
    });
    works_again(&host);
}

#[test]
fn a_table_whose_user_addresses_overlap_stays_within_the_guests_own_memory() {
    // Only a translation of the guest's own; whatever it gives lies in its memory.
    let host = host();
    host.beside(|| {
        let file = memfd(MEMORY);
        let fd = file.as_raw_fd();
        let bad = Raw::open(&host.socket("bad"));
        let regions = [
            [0, 0x10_0000, 0x10_0000, 0],
            [0x10_0000, 0x10_0000, 0x18_0000, 0x10_0000],
        ];
        bad.ask(raw::SET_MEM_TABLE, &raw::table(&regions), &[fd, fd]);
        for at in [0x10_0000, 0x17_f000, 0x1f_f000, 0x27_f000, 0x28_0000] {
            let body = [raw::state(1, 0), raw::words(&[at, at, at, 0])].concat();
            let answer = bad.ask(raw::SET_VRING_ADDR, &body, &[]);
            assert_eq!(answer == Some(0), at < 0x28_0000, "{at:#x}");
        }
    });
    works_again(&host);
}
