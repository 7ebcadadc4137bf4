//! Pages that the service makes in the memory of a guest: they count as long as they are charged to the service, however
//! often a front end comes back.

mod host;

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::Duration;

use host::{Host, works_again};
use tmem_protocol::Status;
use tmem_testkit::corpus::page;
use tmem_testkit::frontend::{TestGuest, eventually, memfd};
use tmem_testkit::raw::{self, Raw};

/// Bytes of guest memory.
const MEMORY: u64 = 64 << 20;
/// A guest has memory that it does not touch, from this address on.
const UNTOUCHED: u64 = 8 << 20;

/// Bytes behind a file.
fn allocated(file: &File) -> u64 {
    file.metadata().expect("metadata").blocks() * 512
}

fn host() -> Host {
    Host::with("64M", &[("bad", ",first-touch=2M"), ("good", "")])
}

/// Whether the kernel says when a file is gone. A filter around the test may keep it from that.
fn knows_what_is_gone() -> bool {
    let flags = libc::FAN_CLOEXEC | libc::FAN_REPORT_FID;
    // SAFETY: makes a descriptor, touches no memory.
    let fd = unsafe { libc::fanotify_init(flags, 0) };
    let known = fd >= 0;
    if known {
        // SAFETY: just made, and nobody else has it.
        drop(unsafe { OwnedFd::from_raw_fd(fd) });
    }
    if !known {
        eprintln!("NOT TESTED: there is no fanotify here, so nothing is ever given back");
    }
    known
}

/// Memory whose first part the guest touched itself.
fn memory() -> File {
    let file = memfd(MEMORY);
    let zeros = vec![0; usize::try_from(UNTOUCHED).expect("small")];
    file.write_all_at(&zeros, 0).expect("writes");
    file
}

fn boot(host: &Host, file: &File) -> (TestGuest, u32) {
    let file = file.try_clone().expect("clones");
    let mut guest = TestGuest::connect_in(&host.socket("bad"), file, MEMORY);
    guest.start_rings(0);
    let pool = guest.create_pool();
    assert_eq!(guest.store(pool, 1, &page(1)), Status::Ok);
    (guest, pool)
}

fn end(host: &Host, guest: TestGuest) {
    drop(guest);
    eventually("gone", || !host.is_connected("bad"));
}

/// Loads into so many pages that nobody touched, until that is refused. How many were loaded.
fn touch(guest: &mut TestGuest, pool: u32, first: u64, most: u64) -> u64 {
    for at in first..first + most {
        match guest.load_to(pool, 1, UNTOUCHED + at * 4096) {
            Status::Ok => {}
            status => {
                assert_eq!(status, Status::NoMemory);
                return at - first;
            }
        }
    }
    most
}

#[test]
fn a_front_end_that_keeps_its_files_and_comes_back_gets_no_more_pages_made_than_allowed() {
    let host = host();
    let mut kept = Vec::new();
    host.beside(|| {
        let (mut made, mut last) = (0, 0);
        for _ in 0..8 {
            let file = memory();
            let before = allocated(&file);
            let (mut bad, pool) = boot(&host, &file);
            last = touch(&mut bad, pool, 0, 200);
            made += allocated(&file) - before;
            end(&host, bad);
            kept.push(file);
        }
        assert!(made <= 2 << 20, "{made} bytes were made in 2 MiB");
        assert!(
            made >= 3 << 19,
            "what is unmapped is given back: {made} bytes"
        );
        assert_eq!(last, 0);
    });
    // What a closed file held is given back, and only that.
    kept.truncate(2);
    let (mut bad, pool) = boot(&host, &memory());
    let made = touch(&mut bad, pool, 0, 200);
    if knows_what_is_gone() {
        assert!(
            (60..=112).contains(&made),
            "{made} pages beside two times 200"
        );
    } else {
        assert_eq!(made, 0);
    }
    end(&host, bad);
    host.service.set_memory("bad", None, None);
    works_again(&host);
}

#[test]
fn a_guest_whose_files_are_gone_has_its_whole_allowance_however_often_it_boots() {
    if !knows_what_is_gone() {
        return;
    }
    let host = host();
    for round in 0..8 {
        let (mut guest, pool) = boot(&host, &memory());
        let made = touch(&mut guest, pool, 0, 400);
        assert_eq!(made, 400, "in round {round}");
        end(&host, guest);
    }
    // As many tables as somebody likes, of which each closes the file before: with 200 there is no room for two at a time
    // and some page tables.
    let raw_tables = |guest: &TestGuest, file: &File| {
        let table = raw::table(&[[0, MEMORY, guest.user_address(), 0]]);
        assert_eq!(
            raw::of(&guest.frontend).ask(raw::SET_MEM_TABLE, &table, &[file.as_raw_fd()]),
            Some(0)
        );
    };
    let file = memory();
    let (mut guest, pool) = boot(&host, &file);
    for at in 0..20 {
        raw_tables(&guest, &file);
        assert_eq!(touch(&mut guest, pool, at * 20, 20), 20, "table {at}");
    }
}

#[test]
fn a_guest_that_comes_back_in_its_memory_has_each_page_counted_once() {
    let host = host();
    let file = memory();
    for _ in 0..8 {
        let (mut guest, pool) = boot(&host, &file);
        assert_eq!(touch(&mut guest, pool, 0, 300), 300);
        end(&host, guest);
    }
    let (mut guest, pool) = boot(&host, &file);
    let more = touch(&mut guest, pool, 300, 1000);
    assert!((100..=212).contains(&more), "{more} pages beside 300");
}

#[test]
fn a_flood_of_tables_is_slowed_down_and_its_guest_can_be_removed_meanwhile() {
    let host = host();
    // Whole, so that to map and to unmap it takes its time.
    let file = memory();
    let socket = host.socket("bad");
    host.beside(|| {
        let bad = Raw::open(&socket);
        let table = raw::table(&[[0, MEMORY, 1 << 28, 0]]);
        std::thread::scope(|scope| {
            let flood = scope.spawn(|| {
                let mut sent = 0;
                // One that is not slowed down ends, too.
                while sent < 200_000 && bad.send(raw::SET_MEM_TABLE, &table, &[file.as_raw_fd()]) {
                    sent += 1;
                }
            });
            let slowed = || host.memory("bad").waits > 0;
            while !slowed() && !flood.is_finished() {
                std::thread::sleep(Duration::from_millis(1));
            }
            assert!(slowed(), "200000 tables and no wait");
            assert!(host.service.remove_guest("bad"));
        });
    });
}
