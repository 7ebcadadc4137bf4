//! A host that is smaller than the budget: pages are refused, and nobody loses one.

#[path = "../../serve/tests/guest/mod.rs"]
mod guest;
mod service;

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use guest::{TestGuest, page};
use service::{GUESTS, Serve, eventually};
use tmem_protocol::{Op, Status};

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
            println!("no memory cgroup can be made here: nothing was tested");
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
    // 160 MiB at least: what is left alone is a small part.
    assert!(
        (40_000..51_200).contains(&pages.len()),
        "{} pages",
        pages.len()
    );
    // What needs no memory, and another guest, which has its pool at least.
    let last = pages.pop().expect("many");
    assert_eq!(one.store(pool, last, &[7; 4096]), Status::Ok);
    assert_eq!(one.load(pool, last), Ok([7; 4096]));
    let mut other = TestGuest::boot(&serve.path("b"));
    let others = other.create_pool();
    let few = fill(&mut other, others, 0..1000);
    keeps(&mut one, pool, &pages);
    keeps(&mut other, others, &few);

    // What is given up can be had again, by whoever needs it.
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
