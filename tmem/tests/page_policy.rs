//! The kernel's handling of the memory of guests' pages, and the effect of bad memory.

mod service;

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;

use rustix::process::{Resource, Rlimit, setrlimit};
use service::{GUESTS, Serve, eventually};
use tmem_control::Client;
use tmem_protocol::{Op, Status};
use tmem_testkit::corpus::page;
use tmem_testkit::frontend::TestGuest;

/// Pages that are stored, and bytes of the file behind them that stay good.
const PAGES: u32 = 2000;
const GOOD: u64 = 4 << 20;

fn fill(guest: &mut TestGuest, pool: u32) {
    for index in 0..PAGES {
        assert_eq!(guest.store(pool, index, &page(index.into())), Status::Ok);
    }
}

/// The flags of every mapping of a memory file of this name.
fn flags(serve: &Serve, name: &str) -> Vec<String> {
    let smaps = fs::read_to_string(format!("/proc/{}/smaps", serve.child.id()));
    let smaps = smaps.expect("is running");
    let name = format!("/memfd:{name} (deleted)");
    let mut found = Vec::new();
    let mut lines = smaps.lines();
    while let Some(line) = lines.next() {
        if line.ends_with(&name) {
            let flags = lines.find(|line| line.starts_with("VmFlags:"));
            found.push(format!("{} ", flags.expect("every mapping has them")));
        }
    }
    found
}

fn have(serve: &Serve, name: &str, flag: &str) -> bool {
    let flags = flags(serve, name);
    assert!(!flags.is_empty(), "no mapping of {name}");
    flags
        .iter()
        .all(|flags| flags.contains(&format!(" {flag} ")))
}

#[test]
fn pages_have_no_huge_pages_and_are_in_no_core_file() {
    let serve = Serve::configured("64M", GUESTS, |_| {});
    let mut one = TestGuest::boot(&serve.path("a"));
    let pool = one.create_pool();
    fill(&mut one, pool);
    if fs::exists("/sys/kernel/mm/transparent_hugepage").expect("can be asked") {
        assert!(have(&serve, "a", "nh"), "{:?}", flags(&serve, "a"));
    }
    assert!(have(&serve, "a", "dd"), "{:?}", flags(&serve, "a"));
    assert!(!have(&serve, "a", "lo"), "nobody asked for it");
    assert!(have(&serve, "guest", "dd"), "the memory of a guest");
}

#[test]
fn pages_are_locked_in_memory_when_the_operator_wants_it() {
    // Needs a limit that is large enough, or the privilege to do without.
    let unlimited = Rlimit {
        current: None,
        maximum: None,
    };
    let raise = move || {
        let _ = setrlimit(Resource::Memlock, unlimited);
        Ok(())
    };
    let guests = format!("mlock = true\n{GUESTS}");
    // SAFETY: one system call between fork and exec.
    let serve = Serve::configured("64M", &guests, |command| unsafe {
        command.pre_exec(raise);
    });
    let mut one = TestGuest::boot(&serve.path("a"));
    let pool = one.create_pool();
    fill(&mut one, pool);
    assert!(have(&serve, "a", "lo"), "{:?}", flags(&serve, "a"));
    assert!(
        !have(&serve, "guest", "lo"),
        "a guest's own memory is not the service's"
    );
    // Of the address space, only populated pages.
    let status = fs::read_to_string(format!("/proc/{}/status", serve.child.id()));
    let status = status.expect("is running");
    assert!(!status.contains("VmLck:\t       0 kB"), "{status}");
    for index in 0..PAGES {
        assert_eq!(one.load(pool, index), Ok(page(index.into())));
    }
}

#[test]
fn a_service_that_may_not_lock_memory_does_not_start_and_says_what_to_do() {
    // Root needs no limit.
    if !rustix::process::geteuid().is_root() {
        eprintln!("WARNING: not root: nothing was tested");
        return;
    }
    let dir = tempfile::tempdir().expect("temporary folder");
    chown(dir.path(), Some(65_534), Some(65_534)).expect("is ours");
    let limit = Rlimit {
        current: Some(64 << 10),
        maximum: Some(64 << 10),
    };
    let socket = format!("--guest=name=a,socket={}", dir.path().join("a").display());
    let mut command = service::command(&["serve", "--memory=64M", "--mlock", &socket]);
    command.uid(65_534).gid(65_534);
    // SAFETY: one system call between fork and exec.
    unsafe { command.pre_exec(move || Ok(setrlimit(Resource::Memlock, limit)?)) };
    let output = command.output().expect("runs");
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(
        error.contains("LimitMEMLOCK= of a unit) has to be unlimited"),
        "{error}"
    );
}

#[test]
fn another_process_of_the_same_user_cannot_read_the_memory_of_the_service() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("WARNING: not root: nothing was tested");
        return;
    }
    let user = 61_000 + std::process::id() % 4000;
    let serve = Serve::configured_in("64M", GUESTS, |command, dir| {
        for path in [dir.to_owned(), dir.join("tmem.toml")] {
            chown(path, Some(user), Some(user)).expect("is ours");
        }
        command.uid(user).gid(user);
    });
    let mem = fs::metadata(format!("/proc/{}/mem", serve.child.id()));
    assert_eq!(mem.expect("is running").uid(), 0, "only root may");
    let mut one = TestGuest::boot(&serve.path("a"));
    let pool = one.create_pool();
    fill(&mut one, pool);
}

/// The file behind the pages of a guest.
fn file_of(serve: &Serve, name: &str) -> Option<File> {
    let name = format!("/memfd:{name} (deleted)");
    let folder = fs::read_dir(format!("/proc/{}/fd", serve.child.id())).ok()?;
    let path = folder
        .flatten()
        .map(|entry| entry.path())
        .find(|path| fs::read_link(path).is_ok_and(|target| target.as_os_str() == name.as_str()))?;
    File::options().write(true).open(path).ok()
}

#[test]
fn memory_that_goes_bad_is_the_loss_of_the_pages_on_it_and_no_more() {
    let mut serve = Serve::configured("64M", GUESTS, |_| {});
    let mut unlucky = TestGuest::boot(&serve.path("a"));
    let pool = unlucky.create_pool();
    fill(&mut unlucky, pool);
    let mut other = TestGuest::boot(&serve.path("b"));
    let others = other.create_pool();
    fill(&mut other, others);
    // An access behind the end of the file raises SIGBUS, as bad memory does.
    let Some(file) = file_of(&serve, "a") else {
        eprintln!(
            "WARNING: the files of another process cannot be opened here: nothing was tested"
        );
        return;
    };
    let size = file.metadata().expect("is open").len();
    file.set_len(GOOD).expect("is cut");
    let mut lost = 0;
    for index in 0..PAGES {
        match unlucky.load(pool, index) {
            Ok(bytes) => assert_eq!(bytes, page(index.into())),
            Err(status) => {
                assert_eq!(status, Status::IoError);
                lost += 1;
            }
        }
    }
    let expected = u64::from(PAGES) - GOOD / 4096;
    assert_eq!(lost, expected, "a page lies on a page");
    file.set_len(size).expect("is whole again");
    for index in 0..PAGES {
        assert_eq!(other.load(others, index), Ok(page(index.into())));
    }
    let stats = Client::new(serve.path("control")).stats().expect("answers");
    assert_eq!(stats.host.expect("has figures").bad_pages, lost);
    let counters: Vec<_> = stats.domains.iter().map(|d| d.counters.corrupt).collect();
    assert_eq!(counters, [lost, 0]);
    eventually("in the log", || {
        serve.log().contains("pages of host memory are bad so far")
    });
    assert!(serve.log().lines().count() < 20, "{}", serve.log());
    // Lost pages stay lost, and pages that are stored from now on can be loaded.
    assert_eq!(unlucky.load(pool, PAGES - 1), Err(Status::IoError));
    let all: Vec<u32> = (0..PAGES).collect();
    for some in all.chunks(50) {
        let answer = unlucky.request(Op::InvalidatePage, pool, [1, 2, 3], some, &[]);
        assert_eq!(answer.status(), Status::Ok);
    }
    fill(&mut unlucky, pool);
    for index in 0..PAGES {
        assert_eq!(unlucky.load(pool, index), Ok(page(index.into())));
    }
    assert!(serve.child.try_wait().expect("is ours").is_none());
}
