//! `tmem serve` under limits of its process: requests beyond a limit are refused, and everything else goes on.

mod service;

use std::os::fd::AsRawFd;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, prlimit, setrlimit};
use service::{GUESTS, Serve, eventually};
use tmem_control::api::GuestSpec;
use tmem_control::{Client, ClientError};
use tmem_protocol::Status;
use tmem_testkit::corpus::page;
use tmem_testkit::frontend::TestGuest;
use tmem_testkit::raw;

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

/// Descriptors that the service has open.
fn descriptors(serve: &Serve) -> usize {
    let open = std::fs::read_dir(format!("/proc/{}/fd", serve.child.id()));
    open.expect("is ours").count()
}

/// The lowest numbers that the service has no descriptor for.
fn free(serve: &Serve) -> impl Iterator<Item = u64> + '_ {
    let process = serve.child.id();
    let is_free = move |number: &u64| {
        let path = format!("/proc/{process}/fd/{number}");
        std::fs::symlink_metadata(path).is_err()
    };
    (0..).filter(is_free)
}

#[test]
fn a_message_for_whose_descriptors_there_is_no_room_waits_and_costs_its_guest_nothing() {
    let serve = Serve::configured("64M", GUESTS, |_| {});
    let mut guest = TestGuest::boot(&serve.path("a"));
    let mut other = TestGuest::boot(&serve.path("b"));
    let (pool, others) = (guest.create_pool(), other.create_pool());
    assert_eq!(guest.store(pool, 0, &page(0)), Status::Ok);
    assert_eq!(other.store(others, 0, &page(0)), Status::Ok);
    let call = guest.rings[1].call.as_raw_fd();
    let memory = guest.file.as_raw_fd();
    let half = tmem_testkit::frontend::MEMORY / 2;
    let user = guest.user_address();
    let table = raw::table(&[[0, half, user, 0], [half, half, user + half, half]]);
    let messages = [
        (raw::SET_VRING_CALL, raw::words(&[1]), vec![call]),
        (raw::SET_MEM_TABLE, table, vec![memory, memory]),
    ];
    // Room for none, and for one of those that a message has and the answer needs.
    let mut said = 0;
    for (code, body, files) in &messages {
        for room in 0..3 {
            let limit = match room {
                0 => 3,
                room => free(&serve).nth(room - 1).expect("there is one") + 1,
            };
            let before = change(&serve, Resource::Nofile, Some(limit));
            let stream = raw::of(&guest.frontend);
            let patience = Some(Duration::from_secs(60));
            stream.stream.set_read_timeout(patience).expect("is set");
            std::thread::scope(|scope| {
                let asked = scope.spawn(|| stream.ask(*code, body, files));
                said += 1;
                let waits = || serve.log().matches("Guest a: A message waits").count() >= said;
                let in_time = within(waits);
                if in_time {
                    // Its rings and all other guests go on meanwhile.
                    for index in 0..32 {
                        assert_eq!(guest.store(pool, index, &page(index.into())), Status::Ok);
                        assert_eq!(other.store(others, index, &page(7)), Status::Ok);
                    }
                    assert!(!asked.is_finished());
                }
                change(&serve, Resource::Nofile, before);
                assert_eq!(asked.join().expect("asks"), Some(0), "{code} at {limit}");
                assert!(in_time, "{}", serve.log());
            });
            keeps(&mut guest, pool, 1);
        }
    }
    keeps(&mut guest, pool, 32);
    // The service does not wait for a guest that disconnects meanwhile.
    let open = descriptors(&serve);
    let before = change(&serve, Resource::Nofile, Some(3));
    raw::of(&guest.frontend).send(raw::SET_VRING_CALL, &raw::words(&[1]), &[call]);
    let waits = || serve.log().matches("Guest a: A message waits").count() > said;
    assert!(within(waits), "{}", serve.log());
    drop(guest);
    eventually("its descriptors are closed", || {
        descriptors(&serve) < open - 3
    });
    change(&serve, Resource::Nofile, before);
    assert_eq!(other.load(others, 0), Ok(page(7)));
    assert!(!serve.log().contains("Bad message"), "{}", serve.log());
    let mut guest = TestGuest::boot(&serve.path("a"));
    let pool = guest.create_pool();
    assert_eq!(guest.store(pool, 0, &page(0)), Status::Ok);
}

/// As [`eventually`], for what must not panic.
fn within(mut condition: impl FnMut() -> bool) -> bool {
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    while !condition() {
        if std::time::Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
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
    // Root has no limit, and processes of the same user outside this test count, too.
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
        client.add_guest(&GuestSpec {
            name: name.to_owned(),
            socket: serve.path(name).display().to_string(),
            ..GuestSpec::default()
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

#[test]
fn a_service_for_which_there_are_too_few_threads_says_so_and_ends_or_starts() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("NOT TESTED: only root can start a service as a user without processes");
        return;
    }
    let dir = tempfile::tempdir().expect("temporary folder");
    let user = 65_100 + std::process::id() % 400;
    chown(dir.path(), Some(user), Some(user)).expect("is root");
    let at = |name: &str| dir.path().join(name).display().to_string();
    for threads in 1..64 {
        let log = std::fs::File::create(dir.path().join("log")).expect("makes");
        let mut command = Command::new(env!("CARGO_BIN_EXE_tmem"));
        command
            .args(["serve", "--memory=16M"])
            .arg(format!("--control={}", at("control")))
            .arg(format!("--statistics={}", at("stats")))
            .arg(format!("--guest=name=a,socket={}", at("a")))
            .stderr(log)
            .uid(user)
            .gid(user);
        under(&mut command, Resource::Nproc, threads);
        let mut child = command.spawn().expect("starts");
        let client = Client::new(at("control"));
        let mut end = None;
        eventually("it serves or ends", || {
            end = child.try_wait().expect("is ours");
            end.is_some() || client.stats().is_ok()
        });
        let said = std::fs::read_to_string(dir.path().join("log")).expect("is there");
        let Some(end) = end else {
            // All that it has to do later, it can.
            let changed = client.add_guest(&GuestSpec::default());
            assert!(matches!(changed, Err(ClientError::Refused { .. })));
            child.kill().expect("is running");
            child.wait().expect("ends");
            assert!(threads > 3, "{threads} are enough");
            return;
        };
        assert_eq!(end.code(), Some(1), "with {threads} threads: {said}");
        assert!(
            !said.contains("panicked") && !said.contains("Bug"),
            "{said}"
        );
        let last = said.lines().last().unwrap_or_default();
        assert!(last.starts_with("tmem: "), "{said}");
        assert!(last.contains("Resource temporarily unavailable"), "{said}");
        for name in ["a", "control", "stats"] {
            assert!(!dir.path().join(name).exists(), "{name} is left behind");
        }
    }
    panic!("it never starts");
}
