//! `tmem serve` under limits of its process: what cannot be done is refused, and everything else goes on.

#[path = "../../serve/tests/guest/mod.rs"]
mod guest;
mod service;

use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use guest::{TestGuest, page};
use rustix::process::{Pid, Resource, Rlimit, prlimit, setrlimit};
use service::{GUESTS, Serve, eventually};
use tmem_control::operate::NewGuest;
use tmem_control::{Client, ClientError};
use tmem_protocol::Status;

fn under(command: &mut Command, resource: Resource, limit: u64) {
    let limit = Rlimit {
        current: Some(limit),
        maximum: Some(limit),
    };
    // SAFETY: one system call, no memory is allocated.
    unsafe { command.pre_exec(move || Ok(setrlimit(resource, limit)?)) };
}

/// Changes the soft limit of a running service; returns what it was.
fn change(serve: &Serve, resource: Resource, current: Option<u64>) -> Option<u64> {
    let pid = Pid::from_child(&serve.child);
    let old = rustix::process::getrlimit(resource);
    let limit = Rlimit {
        current,
        maximum: old.maximum,
    };
    let before = prlimit(Some(pid), resource, limit).expect("is ours");
    before.current
}

/// Stores incompressible pages until one is refused; how many were not.
fn fill(guest: &mut TestGuest, pool: u32, most: u32) -> u32 {
    for index in 0..most {
        match guest.store(pool, index, &page(index.into())) {
            Status::Ok => {}
            status => {
                assert_eq!(status, Status::NoMemory);
                return index;
            }
        }
    }
    panic!("{most} pages were stored");
}

fn keeps(guest: &mut TestGuest, pool: u32, pages: u32) {
    for index in 0..pages {
        assert_eq!(guest.load(pool, index), Ok(page(index.into())));
    }
}

#[test]
fn a_page_beyond_the_limit_on_the_size_of_files_is_refused_and_all_others_stay() {
    for (limit, least) in [(8 << 20, 0), (20 << 20, 4000)] {
        let mut serve = Serve::configured("64M", GUESTS, |command| {
            under(command, Resource::Fsize, limit);
        });
        let mut one = TestGuest::boot(&serve.path("a"));
        let pool = one.create_pool();
        let pages = fill(&mut one, pool, 8192);
        assert!(pages >= least, "{pages} pages");
        // Pages that need no memory of their own, and another guest.
        assert_eq!(one.store(pool, 10_000, &[7; 4096]), Status::Ok);
        let mut other = TestGuest::boot(&serve.path("b"));
        let others = other.create_pool();
        assert!(fill(&mut other, others, 8192) >= least);
        keeps(&mut one, pool, pages);
        keeps(&mut other, others, least);
        assert_eq!(one.load(pool, 10_000), Ok([7; 4096]));
        assert!(serve.child.try_wait().expect("is ours").is_none());
        let log = serve.log();
        assert!(log.contains("RLIMIT_FSIZE"), "{log}");
    }
}

#[test]
fn a_service_out_of_descriptors_says_so_and_serves_those_it_has() {
    let serve = Serve::configured("64M", GUESTS, |_| {});
    let mut guest = TestGuest::boot(&serve.path("a"));
    let pool = guest.create_pool();
    assert_eq!(guest.store(pool, 0, &page(0)), Status::Ok);
    let before = change(&serve, Resource::Nofile, Some(3));
    let waits = std::os::unix::net::UnixStream::connect(serve.path("b")).expect("waits");
    let control = std::os::unix::net::UnixStream::connect(serve.path("control")).expect("waits");
    eventually("in the log", || {
        let log = serve.log();
        log.contains("Guest b: Cannot accept") && log.contains("accept a control connection")
    });
    let used = processor_time(&serve);
    for index in 1..64 {
        assert_eq!(guest.store(pool, index, &page(index.into())), Status::Ok);
    }
    keeps(&mut guest, pool, 64);
    // Long enough to tell a loop without a rest.
    std::thread::sleep(Duration::from_secs(2));
    let used = processor_time(&serve) - used;
    assert!(used < Duration::from_secs(1), "{used:?}");
    assert!(serve.log().lines().count() < 60, "{}", serve.log());
    change(&serve, Resource::Nofile, before);
    drop((waits, control));
    let mut other = TestGuest::boot(&serve.path("b"));
    let others = other.create_pool();
    assert_eq!(other.store(others, 1, &page(1)), Status::Ok);
    assert!(Client::new(serve.path("control")).stats().is_ok());
}

#[test]
fn a_guest_that_returns_while_the_host_is_out_of_descriptors_finds_its_pages_later() {
    let guests = GUESTS.replace("queues = 1\n", "queues = 1\nkeep-seconds = 600\n");
    let serve = Serve::configured("64M", &guests, |_| {});
    let client = Client::new(serve.path("control"));
    let pages = || {
        let stats = client.stats().expect("answers");
        let a = stats.domains.into_iter().find(|domain| domain.name == "a");
        let a = a.expect("is there");
        (a.counters.pages, a.device.is_some())
    };
    let mut guest = TestGuest::boot(&serve.path("a"));
    let pool = guest.create_pool();
    assert_eq!(guest.store(pool, 0, &page(0)), Status::Ok);
    drop(guest);
    eventually("disconnected", || pages() == (1, false));
    // The connection gets the last descriptor, and nothing is left to serve it with.
    let taken = |number: &u64| {
        let path = format!("/proc/{}/fd/{number}", serve.child.id());
        std::fs::symlink_metadata(path).is_ok()
    };
    let free = (0..).find(|number| !taken(number)).expect("there is one");
    let before = change(&serve, Resource::Nofile, Some(free + 1));
    let returns = std::os::unix::net::UnixStream::connect(serve.path("a")).expect("connects");
    eventually("in the log", || {
        serve.log().contains("Guest a: The host cannot serve it")
    });
    change(&serve, Resource::Nofile, before);
    drop(returns);
    assert_eq!(pages(), (1, false));
}

/// Time that the process used, in 100ths of a second.
fn processor_time(serve: &Serve) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", serve.child.id()));
    let stat = stat.expect("is running");
    let (_, fields) = stat.rsplit_once(')').expect("has a name");
    let ticks: u64 = fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(|field| field.parse::<u64>().expect("a number"))
        .sum();
    Duration::from_millis(ticks * 10)
}

#[test]
fn a_guest_for_which_there_is_no_thread_is_refused_and_the_others_go_on() {
    // Root has no limit, and the processes of whoever else runs this count too.
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let user = 61_000 + std::process::id() % 4000;
    let serve = Serve::configured_in("64M", GUESTS, |command, dir| {
        for path in [dir.to_owned(), dir.join("tmem.toml")] {
            chown(path, Some(user), Some(user)).expect("is ours");
        }
        command.uid(user).gid(user);
        under(command, Resource::Nproc, 12);
    });
    let mut guest = TestGuest::boot(&serve.path("a"));
    let pool = guest.create_pool();
    let client = Client::new(serve.path("control"));
    let add = |name: &str| {
        client.add_guest(&NewGuest {
            name: name.to_owned(),
            socket: serve.path(name).display().to_string(),
            ..NewGuest::default()
        })
    };
    let names = ["c", "d", "e", "f", "g", "h", "i", "j"];
    let refused = names
        .into_iter()
        .find_map(|name| Some((name, add(name).err()?)));
    match refused {
        Some((name, ClientError::Refused { status, .. })) => {
            assert_eq!(status.as_u16(), 500);
            assert!(!serve.path(name).exists(), "it left its socket");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(guest.store(pool, 1, &page(1)), Status::Ok);
    client.remove_guest("c").expect("is there");
    add("k").expect("there is room again");
}
