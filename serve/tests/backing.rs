//! Guests whose memory is not what it seems: huge pages, files that others back, pages that nobody has touched. Each beside
//! one that works all the time and compares its bytes.

mod host;

use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use host::{Host, host, works_again};
use rustix::fs::{FallocateFlags, MemfdFlags};
use tmem_protocol::Status;
use tmem_store::{Gate, Want};
use tmem_testkit::corpus::page;
use tmem_testkit::frontend::{MEMORY, PATIENCE, TestGuest, eventually, memfd};
use tmem_testkit::raw::{self, Raw};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Where a front end says that its memory is.
const USER: u64 = 0x1000_0000;

/// Memory of huge pages, of the size that is the machine's own choice.
fn huge(len: u64) -> Option<File> {
    let file = rustix::fs::memfd_create("guest", MemfdFlags::HUGETLB);
    let Ok(file) = file.map(File::from) else {
        eprintln!("THIS KERNEL HAS NO HUGE PAGES: nothing was tested");
        return None;
    };
    file.set_len(len).expect("sized");
    Some(file)
}

/// Bytes of a huge page.
fn huge_page() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").expect("proc");
    let line = text.lines().find(|line| line.starts_with("Hugepagesize:"));
    let number = line.and_then(|line| line.split_whitespace().nth(1));
    number.map_or(2 << 20, |number| {
        number.parse::<u64>().expect("a number") << 10
    })
}

/// Describes memory and starts a ring in it, which the service looks into. Returns how many of the messages were
/// acknowledged.
fn start_ring(bad: &Raw, regions: &[[u64; 4]], fds: &[RawFd]) -> usize {
    let event = EventFd::new(EFD_NONBLOCK).expect("eventfd");
    let at = USER + 0x1000;
    let addresses = [raw::state(1, 0), raw::words(&[at, at, at, 0])].concat();
    let kick = [event.as_raw_fd()];
    let messages: [(u32, Vec<u8>, &[RawFd]); 7] = [
        (raw::SET_MEM_TABLE, raw::table(regions), fds),
        (raw::SET_VRING_NUM, raw::state(1, 64), &[]),
        (raw::SET_VRING_BASE, raw::state(1, 0), &[]),
        (raw::SET_VRING_ADDR, addresses, &[]),
        (raw::SET_VRING_KICK, raw::words(&[1]), &kick),
        (raw::SET_VRING_ENABLE, raw::state(1, 1), &[]),
        // The ring is looked into before the next message is.
        (raw::SET_VRING_ENABLE, raw::state(1, 1), &[]),
    ];
    let acknowledged =
        |(code, body, fds): &(u32, Vec<u8>, &[RawFd])| bad.ask(*code, body, fds) == Some(0);
    messages
        .iter()
        .take_while(|message| acknowledged(message))
        .count()
}

#[test]
fn memory_that_is_not_whole_huge_pages_is_refused_and_costs_only_its_guest() {
    let block = huge_page();
    let Some(file) = huge(2 * block) else { return };
    let fd = file.as_raw_fd();
    let host = host();
    host.beside(|| {
        for region in [
            [0, 0x5000, USER, 0],
            [0, block + 0x1000, USER, 0],
            [0, block, USER, 0x1000],
            [0x1000, block, USER, 0],
        ] {
            let bad = Raw::open(&host.socket("bad"));
            assert_eq!(start_ring(&bad, &[region], &[fd]), 0, "{region:x?}");
            drop(bad);
            eventually("gone", || !host.is_connected("bad"));
        }
    });
    works_again(&host);
}

/// Who changes the machine's pool of huge pages, or needs it as it is, holds this. Other processes do, too.
fn pool_lock() -> File {
    let path = std::env::current_exe().expect("own path");
    let file = File::open(path).expect("opens");
    file.lock().expect("locks");
    file
}

/// Memory of huge pages of a size of which the machine has none to give, and that size.
fn no_huge_pages(len: u64) -> Option<(File, u64)> {
    let sizes = std::fs::read_dir("/sys/kernel/mm/hugepages")
        .into_iter()
        .flatten();
    let found = sizes.flatten().find_map(|size| {
        let number = |file: &str| {
            let text = std::fs::read_to_string(size.path().join(file)).ok()?;
            text.trim().parse::<u64>().ok()
        };
        let to_give = number("free_hugepages")? + number("nr_overcommit_hugepages")?;
        let name = size.file_name().into_string().ok()?;
        let kib = name.strip_prefix("hugepages-")?.strip_suffix("kB")?;
        let bytes = kib.parse::<u64>().ok()? << 10;
        let flags = MemfdFlags::HUGETLB | MemfdFlags::from_bits_retain(bytes.ilog2() << 26);
        let file = rustix::fs::memfd_create("guest", flags).ok()?;
        (to_give == 0).then(|| (File::from(file), bytes))
    });
    match &found {
        Some((file, _)) => file.set_len(len).expect("sized"),
        None => eprintln!("THIS MACHINE HAS HUGE PAGES TO GIVE OF EVERY SIZE: nothing was tested"),
    }
    found
}

#[test]
fn huge_pages_that_are_not_there_cost_only_their_guest() {
    let _lock = pool_lock();
    let len = 1 << 38;
    let Some((file, block)) = no_huge_pages(len) else {
        return;
    };
    let host = host();
    host.beside(|| {
        for offset in [0, block] {
            let bad = Raw::open(&host.socket("bad"));
            let region = [0, len - offset, USER, offset];
            // The ring starts, and is gone with the connection when it is looked into.
            assert_eq!(start_ring(&bad, &[region], &[file.as_raw_fd()]), 6);
            drop(bad);
            eventually("gone", || !host.is_connected("bad"));
        }
    });
    works_again(&host);
}

/// Huge pages of the machine, more of them than before while this is there.
struct Pool(u64);

const POOL: &str = "/proc/sys/vm/nr_hugepages";

impl Pool {
    fn grow(pages: u64) -> Option<Self> {
        let read = || {
            std::fs::read_to_string(POOL)
                .ok()?
                .trim()
                .parse::<u64>()
                .ok()
        };
        let before = read()?;
        let grown = std::fs::write(POOL, (before + pages).to_string());
        let pool = Self(before);
        let there = grown.is_ok() && read().is_some_and(|now| now >= before + pages);
        there.then_some(pool)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let _ = std::fs::write(POOL, self.0.to_string());
    }
}

#[test]
fn a_guest_in_huge_pages_is_served_and_one_that_truncates_them_costs_only_itself() {
    let _lock = pool_lock();
    let Some(_pool) = Pool::grow(8) else {
        eprintln!("THIS MACHINE GIVES NO HUGE PAGES (not root, or no memory): nothing was tested");
        return;
    };
    let len = MEMORY.next_multiple_of(huge_page());
    let host = host();
    host.beside(|| {
        for cut in [0, huge_page()] {
            let Some(file) = huge(len) else { return };
            let mut bad = TestGuest::connect_in(&host.socket("bad"), file, len);
            bad.start_rings(0);
            let pool = bad.create_pool();
            assert_eq!(bad.store(pool, 1, &page(1)), Status::Ok);
            assert_eq!(bad.load(pool, 1), Ok(page(1)));
            bad.file.set_len(cut).expect("truncates");
            bad.kick(1);
            host.service.announce("bad");
            if cut == 0 {
                // Its rings are gone, and it is told so; what is beyond the other cut is never touched.
                eventually("cut off", || !host.is_connected("bad"));
                assert_eq!(host.pages("bad"), 0);
            }
            drop(bad);
            eventually("gone", || !host.is_connected("bad"));
        }
    });
    works_again(&host);
}

/// Mappings of this process.
fn maps() -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("proc");
    maps.lines().count()
}

#[test]
fn ten_thousand_tables_leave_no_mapping_behind() {
    let host = host();
    let plain = memfd(MEMORY);
    let huge = huge(2 * huge_page());
    host.beside(|| {
        let before = maps();
        let bad = Raw::open(&host.socket("bad"));
        let regions: Vec<_> = (0..8)
            .map(|at| [at << 20, 0x5000, USER + (at << 20), 0])
            .collect();
        let table = raw::table(&regions);
        for _ in 0..9000 {
            let answer = bad.ask(raw::SET_MEM_TABLE, &table, &[plain.as_raw_fd(); 8]);
            assert_eq!(answer, Some(0));
        }
        drop(bad);
        // Of huge pages whole ones, and parts of one, which are refused and end the connection.
        let regions = |len: u64| -> Vec<_> {
            (0..8)
                .map(|at| [at << 30, len, USER + (at << 30), 0])
                .collect()
        };
        let (whole, parts) = (regions(huge_page()), regions(0x5000));
        for round in 0..if huge.is_some() { 1000 } else { 0 } {
            let fds = [huge.as_ref().expect("is there").as_raw_fd(); 8];
            let bad = Raw::open(&host.socket("bad"));
            let table = if round % 100 == 0 { &parts } else { &whole };
            for _ in 0..10 {
                bad.send(raw::SET_MEM_TABLE, &raw::table(table), &fds);
            }
            bad.ask(raw::GET_FEATURES, &[], &[]);
        }
        eventually("gone", || !host.is_connected("bad"));
        // Heaps and stacks of threads come and go.
        eventually("unmapped", || maps() < before + 20);
    });
    works_again(&host);
}

#[test]
fn a_file_that_the_kernel_does_not_back_alone_is_refused_unless_the_operator_allows_it() {
    let host = Host::with(
        "64M",
        &[("bad", ""), ("any", ",memory-backing=any"), ("good", "")],
    );
    // Where programs can be built is a disk.
    let folder = std::env::current_exe().expect("own path");
    let folder = folder.parent().expect("has one");
    host.beside(|| {
        let file = tempfile::tempfile_in(folder).expect("temporary file");
        file.set_len(MEMORY).expect("sized");
        let bad = Raw::open(&host.socket("bad"));
        let table = raw::table(&[[0, MEMORY, USER, 0]]);
        let answer = bad.ask(raw::SET_MEM_TABLE, &table, &[file.as_raw_fd()]);
        assert_ne!(answer, Some(0));
        drop(bad);
        let mut any = TestGuest::connect_in(&host.socket("any"), file, MEMORY);
        any.start_rings(0);
        let pool = any.create_pool();
        assert_eq!(any.store(pool, 1, &page(1)), Status::Ok);
        assert_eq!(any.load(pool, 1), Ok(page(1)));
        let shm = tempfile::tempfile_in("/dev/shm").expect("temporary file");
        shm.set_len(MEMORY).expect("sized");
        let mut shm = TestGuest::connect_in(&host.socket("bad"), shm, MEMORY);
        shm.start_rings(0);
        let pool = shm.create_pool();
        assert_eq!(shm.store(pool, 1, &page(1)), Status::Ok);
    });
    works_again(&host);
}

#[test]
fn a_table_of_more_memory_than_the_operator_grants_is_refused() {
    let host = Host::with("64M", &[("bad", ",memory=2M"), ("good", "")]);
    let file = memfd(MEMORY);
    let answer = || {
        let bad = Raw::open(&host.socket("bad"));
        let half = MEMORY / 2;
        let regions = [[0, half, USER, 0], [half, half, USER + half, half]];
        let fds = [file.as_raw_fd(); 2];
        bad.ask(raw::SET_MEM_TABLE, &raw::table(&regions), &fds)
    };
    host.beside(|| {
        assert_ne!(answer(), Some(0));
        eventually("gone", || !host.is_connected("bad"));
        host.service.set_memory("bad", Some(MEMORY), None);
        assert_eq!(answer(), Some(0));
        eventually("gone", || !host.is_connected("bad"));
        host.service.set_memory("bad", Some(MEMORY - 1), None);
        assert_ne!(answer(), Some(0));
    });
    host.service.set_memory("bad", None, None);
    works_again(&host);
}

/// Bytes behind a file.
fn allocated(file: &File) -> u64 {
    file.metadata().expect("metadata").blocks() * 512
}

/// A guest with memory that it does not touch, from this address on.
const UNTOUCHED: u64 = 8 << 20;

fn sparse(host: &Host, name: &str) -> TestGuest {
    let mut guest = TestGuest::connect_with(&host.socket(name), 256 << 20);
    guest.start_rings(0);
    guest
}

#[test]
fn pages_that_nobody_touched_are_counted_and_no_more_of_them_made_than_allowed() {
    let host = Host::with("64M", &[("bad", ",first-touch=2M"), ("good", "")]);
    host.beside(|| {
        let mut bad = sparse(&host, "bad");
        let pool = bad.create_pool();
        assert_eq!(bad.store(pool, 1, &page(1)), Status::Ok);
        assert_eq!(bad.load(pool, 1), Ok(page(1)));
        let before = allocated(&bad.file);
        let mut made = 0;
        let refused = (0..1024).find(|at| match bad.load_to(pool, 1, UNTOUCHED + at * 4096) {
            Status::Ok => {
                made += 1;
                false
            }
            status => {
                assert_eq!(status, Status::NoMemory);
                true
            }
        });
        // Page tables and the pages of its rings are counted, too.
        assert!((450..=512).contains(&made), "{made} pages in 2 MiB");
        let at = UNTOUCHED + refused.expect("is refused") * 4096;
        assert!(allocated(&bad.file) - before <= 2 << 20);
        assert_eq!(host.memory("bad").touched, 2 << 20);
        assert!(host.memory("bad").refused > 0);
        // What the guest touches itself is no matter, and nothing was lost.
        bad.memory_write(at, 7);
        assert_eq!(bad.load_to(pool, 1, at), Status::Ok);
        assert_eq!(bad.load(pool, 1), Ok(page(1)));
        // More may be allowed without a new start.
        host.service.set_memory("bad", None, Some(4 << 20));
        assert_eq!(bad.load_to(pool, 1, at + 4096), Status::Ok);
    });
}

/// Puts a page into a file and takes it out again, until it is told to stop. Returns how often it was there again without
/// having been put there.
fn flicker(file: &File, rest: u64, stop: &AtomicBool) -> u64 {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let (mut made, mut round) = (0, 0);
    while !stop.load(SeqCst) {
        // A write to a mapping could make it twice: it is repeated after the page is there, which may be gone by then.
        file.write_all_at(&[1], UNTOUCHED).expect("writes");
        // Long enough to be found there, more or less.
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_nanos(round * 37 % 3000) {}
        round += 1;
        loop {
            rustix::fs::fallocate(file, flags, UNTOUCHED, 4096).expect("punches");
            if allocated(file) <= rest {
                break;
            }
            made += 1;
        }
    }
    made
}

#[test]
fn a_guest_that_takes_its_pages_away_all_the_time_gets_no_more_made_than_allowed() {
    let host = Host::with("64M", &[("bad", ",first-touch=2M"), ("good", "")]);
    host.beside(|| {
        let mut bad = sparse(&host, "bad");
        let pool = bad.create_pool();
        assert_eq!(bad.store(pool, 1, &page(1)), Status::Ok);
        // Nothing of what it may have made is left, not even what a page table would take.
        let mut pages = (1..1024).map(|at| bad.load_to(pool, 1, UNTOUCHED + at * 4096));
        assert!(pages.any(|status| status == Status::NoMemory));
        drop(pages);
        let mut at = 0;
        while bad.load_to(pool, 1, UNTOUCHED + at * 4096) == Status::Ok {
            at += 1;
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&bad.file, flags, UNTOUCHED, 4096).expect("punches");

        let (rest, stop) = (allocated(&bad.file), AtomicBool::new(false));
        let file = bad.file.try_clone().expect("clones");
        let made = std::thread::scope(|scope| {
            let flicker = scope.spawn(|| flicker(&file, rest, &stop));
            // It is cut off when the page was there when that was asked, and gone when it was touched.
            let deadline = Instant::now() + PATIENCE;
            let (mut loads, mut is_connected, mut is_answered) = (0, true, true);
            while is_connected && is_answered && Instant::now() < deadline {
                bad.submit_loads_to(pool, &[1; 8], UNTOUCHED);
                loads += 8;
                let begin = Instant::now();
                is_answered = false;
                while is_connected && !is_answered && begin.elapsed() < PATIENCE {
                    is_answered = bad.poll();
                    // Not without pause: that would keep the other side waiting.
                    let waits = begin.elapsed() < Duration::from_millis(5);
                    is_connected = waits || host.is_connected("bad");
                }
            }
            stop.store(true, SeqCst);
            assert!(is_answered || !is_connected, "no answer in time");
            if is_connected {
                eprintln!("IN {loads} LOADS THE PAGE WAS NEVER GONE IN TIME: little was tested");
            }
            flicker.join().expect("no panic")
        });
        assert_eq!(made, 0, "pages made beyond what is allowed");
        assert!(host.memory("bad").touched <= 2 << 20);
    });
    eventually("gone", || !host.is_connected("bad"));
    host.service.set_memory("bad", None, None);
    works_again(&host);
}

/// A host that has so many bytes for a guest, and panics in its thread when it is told to.
#[derive(Debug, Default)]
struct HostMemory {
    left: AtomicU64,
    panics: AtomicBool,
}

impl Gate for HostMemory {
    fn allow(&self, bytes: u64, _: Want) -> bool {
        if std::thread::current().name() != Some("guest bad") {
            return true;
        }
        assert!(!self.panics.load(SeqCst), "a test has a thread panic");
        let taken = self
            .left
            .fetch_update(SeqCst, SeqCst, |left| left.checked_sub(bytes));
        taken.is_ok()
    }
}

fn gated(left: u64) -> (Host, Arc<HostMemory>) {
    let memory = Arc::new(HostMemory::default());
    memory.left.store(left, SeqCst);
    let gate = Some(Arc::clone(&memory) as Arc<dyn Gate>);
    (
        Host::gated("64M", &[("bad", ""), ("good", "")], gate),
        memory,
    )
}

#[test]
fn a_page_for_which_the_host_has_no_memory_is_waited_for_and_comes() {
    let (host, memory) = gated(u64::MAX);
    host.beside(|| {
        let mut bad = sparse(&host, "bad");
        let pool = bad.create_pool();
        assert_eq!(bad.store(pool, 1, &page(1)), Status::Ok);
        memory.left.store(0, SeqCst);
        // What was granted before, then nothing more.
        let mut at = UNTOUCHED;
        let touched = host.memory("bad").touched;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // The load below asks again and again.
                std::thread::sleep(Duration::from_millis(100));
                memory.left.store(u64::MAX, SeqCst);
            });
            for _ in 0..1000 {
                assert_eq!(bad.load_to(pool, 1, at), Status::Ok);
                at += 4096;
            }
        });
        assert!(host.memory("bad").touched > touched);
        assert_eq!(host.memory("bad").refused, 0);
    });
}

#[test]
fn a_panic_in_the_thread_of_a_guest_costs_that_guest_its_pages_and_nobody_else_anything() {
    // As in the program: what the usual one does, no such thread may.
    std::panic::set_hook(Box::new(|panic| eprintln!("{panic}")));
    let (host, memory) = gated(u64::MAX);
    host.beside(|| {
        for round in 1..=3 {
            let mut bad = host.boot("bad");
            let pool = bad.create_pool();
            assert_eq!(bad.store(pool, 1, &page(1)), Status::Ok);
            memory.panics.store(true, SeqCst);
            // In the store, with its locks held.
            for index in 0..64 {
                bad.submit(
                    0,
                    tmem_protocol::Op::Store,
                    pool,
                    [0; 3],
                    &[index],
                    &page(index.into()),
                );
                bad.kick(1);
                let gone = || !host.is_connected("bad");
                eventually("answered or cut off", || bad.poll() || gone());
                if gone() {
                    break;
                }
            }
            memory.panics.store(false, SeqCst);
            drop(bad);
            eventually("gone", || !host.is_connected("bad"));
            assert_eq!(host.memory("bad").panics, round);
            assert_eq!(host.pages("bad"), 0);
        }
    });
    works_again(&host);
}
