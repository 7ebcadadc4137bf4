//! Requests to a service that counts the pages it is first to touch, and to one that cannot: its threads are refused
//! userfaultfd(2), as in many containers, and the kernel makes pages for them without being asked.

use std::hint::spin_loop;
use std::time::Instant;

use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_setaffinity};
use seccompiler::{SeccompAction, SeccompFilter};
use tmem_protocol::Op;
use vm_memory::{Bytes, GuestAddress};

use crate::copy::Copied;
use crate::host::Host;
use crate::scale::Scale;
use tmem_testkit::frontend::TestGuest;
use tmem_testkit::lane::{Lane, PAGE};
use tmem_testkit::report::{Compared, Report, quantile};

/// Bytes of a guest's memory.
const MEMORY: u64 = 64 << 20;
/// Pages that are stored, and frames that they are loaded to: more than a processor's own cache.
const SOURCE: u64 = 16 << 20;
const TARGET: u64 = 32 << 20;
const PAGES: u64 = 2048;

/// A service with one guest.
struct Side {
    host: Host,
    guest: TestGuest,
    pool: u32,
}

impl Side {
    fn start() -> Self {
        let host = Host::with("64M", &[("a", ",queues=1")]);
        let mut guest = TestGuest::connect_with(&host.socket("a"), MEMORY);
        guest.start_rings(0);
        let pool = guest.create_pool();
        for (index, at) in (0..PAGES).zip((SOURCE..).step_by(PAGE as usize)) {
            let written = guest.memory.write_slice(&page(index), GuestAddress(at));
            written.expect("in memory");
        }
        Self { host, guest, pool }
    }

    fn lane(&self) -> Lane<'_> {
        Lane::of(&self.guest, self.pool)
    }

    /// Nanoseconds of a request for one page: the median, which a process that gets in between does not change.
    fn time(&self, lane: &mut Lane<'_>, op: Op, requests: u64) -> f64 {
        let frames = if op == Op::Load { TARGET } else { SOURCE };
        let mut spent = Vec::with_capacity(requests as usize);
        for request in 0..requests {
            let index = request * 7 % PAGES;
            let begin = Instant::now();
            let wanted = lane.submit(op, index as u32..index as u32 + 1, frames + PAGE * index);
            if wanted {
                self.guest.kick(1);
            }
            while !lane.is_done() {
                spin_loop();
            }
            lane.take();
            spent.push(begin.elapsed().as_nanos() as u32);
        }
        quantile(&mut spent, 0.5)
    }

    /// Takes away all pages that are loaded to.
    fn forget(&self) {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&self.guest.file, flags, TARGET, PAGES * PAGE).expect("punches");
    }

    /// Bytes that were granted before they were touched.
    fn counted(&self) -> u64 {
        self.host.memory("a").touched
    }
}

/// Keeps this thread on one processor and those of the guests on another, as otherwise they may share one and sleep.
fn pin() {
    let on = |thread, processor| {
        let mut set = CpuSet::new();
        set.set(processor);
        match sched_setaffinity(thread, &set) {
            Ok(()) | Err(Errno::INVAL) => {}
            Err(error) => panic!("cannot pin a thread: {error}"),
        }
    };
    on(None, 0);
    for task in std::fs::read_dir("/proc/self/task")
        .expect("proc")
        .flatten()
    {
        let name = std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        if name == "guest a\n" {
            let number = task.file_name().to_str().and_then(|name| name.parse().ok());
            on(number.and_then(Pid::from_raw), 1);
        }
    }
}

/// A page of which a third does not compress.
fn page(seed: u64) -> [u8; 4096] {
    let mut page = tmem_testkit::corpus::page(seed);
    page[1400..].fill(7);
    page
}

/// Has what `start` starts do without userfaultfd(2).
fn without_userfaultfd<T: Send>(start: impl FnOnce() -> T + Send) -> T {
    let filter = SeccompFilter::new(
        [(libc::SYS_userfaultfd, vec![])].into(),
        SeccompAction::Allow,
        SeccompAction::Errno(libc::EPERM.cast_unsigned()),
        std::env::consts::ARCH
            .try_into()
            .expect("a known processor"),
    );
    let program: seccompiler::BpfProgram = filter.expect("valid").try_into().expect("small");
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            seccompiler::apply_filter(&program).expect("is applied");
            start()
        });
        thread.join().expect("no panic")
    })
}

pub(crate) fn measure(scale: &Scale, copied: &Copied, report: &mut Report) {
    let plain = without_userfaultfd(Side::start);
    let counting = Side::start();
    pin();
    let (mut in_plain, mut in_counting) = (plain.lane(), counting.lane());
    let mut both = |op, requests| {
        (
            plain.time(&mut in_plain, op, requests),
            counting.time(&mut in_counting, op, requests),
        )
    };
    // Every page is there, and every frame was touched.
    for op in [Op::Store, Op::Load] {
        both(op, PAGES);
    }
    println!("\nns a request of a page       uncounted     counted     ratio");
    let load = Compared::of(scale.turns, || both(Op::Load, scale.requests));
    load.print("load", report);
    let store = Compared::of(scale.turns, || both(Op::Store, scale.requests));
    store.print("store", report);
    let first = Compared::of(scale.turns, || {
        plain.forget();
        counting.forget();
        both(Op::Load, PAGES)
    });
    first.print("load_first_touch", report);
    assert_eq!(plain.counted(), 0, "userfaultfd was not refused");
    if counting.counted() == 0 {
        println!("NO PAGE WAS COUNTED: this kernel has no userfaultfd for this process");
    }

    // As if a service had no mapping: a header, an entry and an answer by descriptor, too. Rings are polled, and stay.
    let (small_in, small_out) = (copied.bytes_from_guest, copied.bytes_to_guest);
    println!("\nof a request of a page to a service that counts, computed from the rows above");
    for (key, request, page) in [
        ("load", load.other, copied.page_to_guest),
        ("store", store.other, copied.page_from_guest),
    ] {
        let alone = (request + page) / request;
        report.goal(&format!("{key}_page_by_descriptor_ratio"), alone, "");
        let all = (request + page + 2.0 * small_in + small_out) / request;
        report.goal(&format!("{key}_by_descriptor_ratio"), all, "");
    }
}
