//! A host that is smaller than the budget: pages are refused, and none is lost.

mod service;

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};
use service::{GUESTS, Serve, configuration, eventually};
use tmem_control::api::{Domain, GuestSpec, Host};
use tmem_control::{Client, Stats};
use tmem_protocol::{Event, Op, Pressure, Status};
use tmem_testkit::corpus::page;
use tmem_testkit::driver::writable;
use tmem_testkit::frontend::{BUFFERS, TestGuest};
use vm_memory::{Bytes, GuestAddress};
use zerocopy::{FromZeros, IntoBytes};

const MIB: u64 = 1 << 20;
/// More than the group holds.
const PAGES: u32 = 56_000;

/// A memory cgroup of its own; removed when dropped.
struct Group {
    path: PathBuf,
    limit: PathBuf,
}

impl Group {
    /// `None` where this process may not make one.
    fn make(name: &str, limit: u64) -> Option<Self> {
        let name = format!("tmem-test-{name}-{}", std::process::id());
        let made = [
            ("/sys/fs/cgroup", "memory.max"),
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
        ]
        .into_iter()
        .find_map(|(mount, file)| {
            let path = Path::new(mount).join(&name);
            fs::create_dir(&path).ok()?;
            let group = Self {
                limit: path.join(file),
                path,
            };
            // There without the controller too, as an empty folder or a group that counts nothing.
            group.set(limit).is_ok().then_some(group)
        });
        if made.is_none() {
            eprintln!("WARNING: no memory cgroup can be made here: nothing was tested");
        }
        made
    }

    fn set(&self, limit: u64) -> std::io::Result<()> {
        // The kernel makes no such file for who writes to it.
        File::options()
            .write(true)
            .open(&self.limit)
            .and_then(|mut file| std::io::Write::write_all(&mut file, limit.to_string().as_bytes()))
    }

    /// Has the process start in it.
    fn holds(&self, command: &mut Command) {
        let processes = File::options()
            .write(true)
            .open(self.path.join("cgroup.procs"));
        let processes = processes.expect("is ours");
        // SAFETY: one system call, no memory is allocated.
        unsafe {
            command.pre_exec(move || {
                rustix::io::write(processes.as_fd(), b"0")?;
                Ok(())
            });
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Its last process has ended, but may not have left yet.
        eventually("the group is removed", || {
            fs::remove_dir(&self.path).is_ok()
        });
    }
}

/// Stores all pages; which of them were accepted.
fn fill(guest: &mut TestGuest, pool: u32, pages: std::ops::Range<u32>) -> Vec<u32> {
    let accepted = pages.filter(
        |index| match guest.store(pool, *index, &page((*index).into())) {
            Status::Ok => true,
            status => {
                assert_eq!(status, Status::NoMemory);
                false
            }
        },
    );
    accepted.collect()
}

/// Stores pages from an index on until so many are accepted.
fn gain(guest: &mut TestGuest, pool: u32, first: u32, count: usize) -> Vec<u32> {
    let (mut next, mut accepted) = (first, Vec::new());
    while accepted.len() < count {
        eventually("a page is accepted", || {
            let some = fill(guest, pool, next..next + 50);
            next += 50;
            accepted.extend(&some);
            !some.is_empty()
        });
    }
    accepted
}

fn keeps(guest: &mut TestGuest, pool: u32, pages: &[u32]) {
    for index in pages {
        assert_eq!(guest.load(pool, *index), Ok(page((*index).into())));
    }
}

#[test]
fn a_budget_beyond_the_control_group_ends_in_refusals_and_every_accepted_page_comes_back() {
    let Some(group) = Group::make("budget", 200 * MIB) else {
        return;
    };
    let mut serve = Serve::configured("2G", GUESTS, |command| group.holds(command));
    let mut one = TestGuest::boot(&serve.path("a"));
    let pool = one.create_pool();
    let mut pages = fill(&mut one, pool, 0..PAGES);
    println!("{} pages in 200 MiB", pages.len());
    // 160 MiB at least: the floor is a small part.
    assert!(
        (40_000..51_200).contains(&pages.len()),
        "{} pages",
        pages.len()
    );
    // A store that needs no memory works, and another guest has its pool at least.
    let last = pages.pop().expect("many");
    assert_eq!(one.store(pool, last, &[7; 4096]), Status::Ok);
    assert_eq!(one.load(pool, last), Ok([7; 4096]));
    let mut other = TestGuest::boot(&serve.path("b"));
    let others = other.create_pool();
    let few = fill(&mut other, others, 0..1000);
    keeps(&mut one, pool, &pages);
    keeps(&mut other, others, &few);

    // Freed memory can be used again, by either guest.
    for some in pages[..20_000].chunks(50) {
        let answer = one.request(Op::InvalidatePage, pool, [1, 2, 3], some, &[]);
        assert_eq!(answer.status(), Status::Ok);
    }
    let more = gain(&mut other, others, 1000, 10_000);
    keeps(&mut other, others, &more);
    keeps(&mut other, others, &few);
    keeps(&mut one, pool, &pages[20_000..]);

    // A limit that is raised holds at once, without a new start.
    group.set(400 * MIB).expect("is ours");
    let more = gain(&mut one, pool, PAGES, 20_000);
    keeps(&mut one, pool, &more);

    assert!(serve.child.try_wait().expect("is ours").is_none());
    let log = serve.log();
    for said in [
        "less than the memory for pages, 2.0 GiB",
        "left of 200.0 MiB: pages that need more are refused",
        "left again",
    ] {
        assert!(log.contains(said), "{said}: {log}");
    }
    assert!(log.lines().count() < 40, "{log}");
    drop(serve);
}

#[test]
fn a_guest_whose_memory_nobody_touched_cannot_have_the_service_killed() {
    const MEMORY: u64 = 2 << 30;
    let Some(group) = Group::make("sparse", 300 * MIB) else {
        return;
    };
    let mut serve = Serve::configured("64M", GUESTS, |command| group.holds(command));
    let mut good = TestGuest::boot(&serve.path("b"));
    let goods = good.create_pool();
    let pages = fill(&mut good, goods, 0..1000);
    assert_eq!(pages.len(), 1000);
    let mut bad = TestGuest::connect_with(&serve.path("a"), MEMORY);
    bad.start_rings(0);
    let pool = bad.create_pool();
    assert_eq!(bad.store(pool, 1, &page(1)), Status::Ok);
    assert_eq!(bad.load(pool, 1), Ok(page(1)));
    // Every page of its memory, which it never touched itself.
    let (mut loaded, mut refused) = (0, 0);
    for at in (8 * MIB..MEMORY).step_by(4096) {
        match bad.load_to(pool, 1, at) {
            Status::Ok => loaded += 1,
            status => {
                assert_eq!(status, Status::NoMemory);
                refused += 1;
            }
        }
        if loaded % 1000 == 0 {
            keeps(&mut good, goods, &pages[..10]);
        }
        if refused > 10_000 {
            break;
        }
    }
    println!("{loaded} pages touched first in 300 MiB, {refused} refused");
    assert!(refused > 10_000 && loaded > 10_000);
    keeps(&mut good, goods, &pages);
    assert_eq!(bad.load(pool, 1), Ok(page(1)));
    assert!(serve.child.try_wait().expect("is ours").is_none());
    drop(serve);
}
fn stats(serve: &Serve) -> Stats {
    Client::new(serve.path("control")).stats().expect("answers")
}

fn host(serve: &Serve) -> Host {
    stats(serve).host.expect("this machine has figures")
}

fn domain(serve: &Serve, name: &str) -> Domain {
    let domains = stats(serve).domains.into_iter();
    let mut named = domains.filter(|domain| domain.name == name);
    named.next().expect("is there")
}

/// Where the guest has its buffer for events, apart from those of requests.
const EVENT: u64 = BUFFERS - 0x1000;

/// Offers one buffer for an event.
fn listen(guest: &mut TestGuest) {
    guest.rings[0].driver.chain(&[writable(EVENT, 24)]);
    guest.kick(0);
}

/// The level of the next event.
fn hears(guest: &TestGuest) -> u32 {
    eventually("an event", || guest.rings[0].driver.is_done());
    let mut event = Event::new_zeroed();
    let read = guest
        .memory
        .read_slice(event.as_mut_bytes(), GuestAddress(EVENT));
    read.expect("in memory");
    assert_eq!(event.event_type.get(), 1, "about pressure");
    event.level.get()
}

#[test]
fn ephemeral_pages_go_first_guests_hear_of_it_and_the_floor_is_the_operators() {
    let Some(group) = Group::make("first", 300 * MIB) else {
        return;
    };
    let guests = format!("host-reserve = '64M'\n{GUESTS}");
    let mut serve = Serve::configured("2G", &guests, |command| group.holds(command));
    assert_eq!(host(&serve).floor, 64 * MIB);
    let mut cache = TestGuest::boot(&serve.path("a"));
    // An ephemeral pool.
    let pool = cache.request(Op::CreatePool, 1, [0; 3], &[], &[]);
    assert_eq!(pool.status(), Status::Ok);
    let cached = pool.response.pool.get();
    let pages = fill(&mut cache, cached, 0..30_000);
    assert!(pages.len() > 29_000, "{} pages", pages.len());

    let mut swap = TestGuest::boot(&serve.path("b"));
    let pool = swap.create_pool();
    listen(&mut swap);
    let kept = fill(&mut swap, pool, 0..PAGES + 8000);
    println!("{} pages in 300 MiB of which 64 are left alone", kept.len());
    // With the cache they would be 28,000; 236 MiB are 60,000.
    assert!((45_000..60_400).contains(&kept.len()), "{}", kept.len());
    let evictions = domain(&serve, "a").counters.evictions;
    assert!(evictions > 20_000, "{evictions}");
    eventually("nothing is left to be given up", || {
        domain(&serve, "a").freeable == 0
    });
    // No page that may vanish is taken meanwhile.
    assert!(fill(&mut cache, cached, 0..10).is_empty());
    let short = host(&serve);
    assert!(short.short && short.refusals > 0, "{short:?}");
    // As a rule, the event that the host is short comes before a refusal. The last event says that pages are refused.
    let mut level = hears(&swap);
    if level == Pressure::Some as u32 {
        listen(&mut swap);
        level = hears(&swap);
    }
    assert_eq!(level, Pressure::Full as u32);
    keeps(&mut swap, pool, &kept);

    // The operator leaves less alone: there is room at once.
    listen(&mut swap);
    let text = configuration(serve.dir.path(), "2G", GUESTS);
    let text = format!("host-reserve = '16M'\nmlock = true\n{text}");
    fs::write(serve.path("tmem.toml"), text).expect("writes");
    kill_process(Pid::from_child(&serve.child), Signal::HUP).expect("is running");
    assert_eq!(hears(&swap), Pressure::None as u32);
    assert_eq!(host(&serve).floor, 16 * MIB);
    let log = serve.log();
    assert!(
        log.contains("A change of mlock waits for a restart"),
        "{log}"
    );
    let more = gain(&mut swap, pool, 2 * PAGES, 5000);
    keeps(&mut swap, pool, &more);
    keeps(&mut swap, pool, &kept);
    assert!(serve.child.try_wait().expect("is ours").is_none());
    assert!(serve.log().lines().count() < 40, "{}", serve.log());
    drop(serve);
}

#[test]
fn memory_that_others_take_while_nobody_stores_is_given_back_from_ephemeral_pages() {
    let Some(group) = Group::make("others", 300 * MIB) else {
        return;
    };
    let serve = Serve::configured("2G", GUESTS, |command| group.holds(command));
    let mut cache = TestGuest::boot(&serve.path("a"));
    let pool = cache.request(Op::CreatePool, 1, [0; 3], &[], &[]);
    let pool = pool.response.pool.get();
    let pages = fill(&mut cache, pool, 0..30_000);
    assert!(pages.len() > 29_000, "{} pages", pages.len());
    // As if others had taken all but 10 MiB, of which 8 are left alone.
    let now = host(&serve);
    assert!(!now.short && domain(&serve, "a").counters.evictions == 0);
    let limit = now.limit - now.available + 10 * MIB;
    group.set(limit).expect("is ours");
    eventually("given back", || {
        domain(&serve, "a").counters.evictions > 0 && !host(&serve).short
    });
    let left = domain(&serve, "a").counters.pages;
    assert!(left > 10_000, "{left} pages: no more goes than has to");
}

#[test]
fn a_reserve_is_taken_at_the_start_and_one_that_the_host_does_not_have_ends_it_with_a_reason() {
    let guests = GUESTS.replace("queues = 1\n", "queues = 1\nreserve = '40M'\n");
    let text = format!("reserve-populate = true\n{guests}");
    let serve = Serve::configured("100M", &text, |_| {});
    let resident = || {
        let status = fs::read_to_string(format!("/proc/{}/status", serve.child.id()));
        let status = status.expect("is running");
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("RssShmem:"));
        let kib = line.expect("has it").trim().trim_end_matches(" kB");
        kib.parse::<u64>().expect("a number") * 1024
    };
    let (used, taken) = (stats(&serve).used, resident());
    assert!((75 * MIB..=80 * MIB).contains(&used), "{used}");
    assert!((75 * MIB..=80 * MIB).contains(&taken), "{taken}");
    // It is used, and not taken once more.
    let mut guest = TestGuest::boot(&serve.path("a"));
    let pool = guest.create_pool();
    let pages = fill(&mut guest, pool, 0..5000);
    keeps(&mut guest, pool, &pages);
    assert!(stats(&serve).used <= 80 * MIB);
    // A guest that comes later has its reserve a moment later.
    let added = GuestSpec {
        name: "c".to_owned(),
        socket: serve.path("c").display().to_string(),
        reserve: Some(16 * MIB),
        ..GuestSpec::default()
    };
    Client::new(serve.path("control"))
        .add_guest(&added)
        .expect("is added");
    eventually("populated", || resident() > 90 * MIB);
    drop(serve);

    // A host that has to keep more for itself than it has.
    let dir = tempfile::tempdir().expect("temporary folder");
    let file = dir.path().join("tmem.toml");
    let text = format!("host-reserve = '100T'\nreserve-populate = true\n{guests}");
    let text = configuration(dir.path(), "100M", &text);
    fs::write(&file, text).expect("writes");
    let output = service::command(&["serve", "--config", file.to_str().expect("utf-8")])
        .output()
        .expect("runs");
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(
        error.contains("The reserve of guest \"a\" cannot be populated: the host has memory for 0 of 41943040 bytes"),
        "{error}"
    );
    assert!(error.contains("no page is taken"), "{error}");
    assert!(!dir.path().join("a").exists(), "nothing is left behind");
}

#[test]
fn what_guests_are_promised_beyond_the_host_is_said_at_the_start_and_when_a_guest_is_added() {
    let serve = Serve::configured("100T", GUESTS, |_| {});
    assert!(
        !serve.log().contains("guests have reserved"),
        "{}",
        serve.log()
    );
    let added = GuestSpec {
        name: "c".to_owned(),
        socket: serve.path("c").display().to_string(),
        reserve: Some(90 << 40),
        ..GuestSpec::default()
    };
    Client::new(serve.path("control"))
        .add_guest(&added)
        .expect("is added");
    let said = |count| {
        eventually("said", || {
            serve
                .log()
                .matches("less than what guests have reserved, ")
                .count()
                == count
        });
    };
    said(1);
    let set = serve.ask(&["set", "a", "reserve=1T"]);
    assert_eq!(set.0, Some(0), "{}", set.1);
    said(2);
    drop(serve);
    let guests = GUESTS.replace("queues = 1\n", "queues = 1\nreserve = '40T'\n");
    let serve = Serve::configured("100T", &guests, |_| {});
    assert!(
        serve
            .log()
            .contains("less than what guests have reserved, 81920.0 GiB"),
        "{}",
        serve.log()
    );
}
