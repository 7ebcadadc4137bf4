//! Signals to `tmem serve`: SIGHUP reads the configuration again, and none but SIGTERM and SIGINT end it.

mod service;

use rustix::process::{Pid, Signal, kill_process};
use service::{Serve, configuration, eventually};
use tmem_control::{Client, Stats};
use tmem_protocol::Status;
use tmem_testkit::corpus::page;
use tmem_testkit::frontend::TestGuest;

const KEPT: &str = "[[guest]]\nname = 'kept'\nsocket = 'DIR/kept'\n";
const GONE: &str = "[[guest]]\nname = 'gone'\nsocket = 'DIR/gone'\nreserve = '40M'\n";
const NEW: &str = "[[guest]]\nname = 'new'\nsocket = 'DIR/new'\nreserve = '40M'\n";

fn stats(serve: &Serve) -> Stats {
    Client::new(serve.path("control")).stats().expect("answers")
}

fn names(serve: &Serve) -> Vec<String> {
    let domains = stats(serve).domains.into_iter();
    domains.map(|domain| domain.name).collect()
}

fn send(serve: &Serve, signal: Signal) {
    kill_process(Pid::from_child(&serve.child), signal).expect("is running");
}

/// Has the configuration read again, until the log has `lines` lines with `part`.
fn reload(serve: &Serve, text: &str, part: &str, lines: usize) {
    std::fs::write(serve.path("tmem.toml"), text).expect("writes");
    send(serve, Signal::HUP);
    eventually(part, || serve.log().matches(part).count() == lines);
}

fn ends_well(mut serve: Serve) {
    send(&serve, Signal::TERM);
    let status = serve.child.wait().expect("ends");
    assert!(status.success(), "{status}\n{}", serve.log());
}

#[test]
fn sighup_adds_removes_and_changes_guests_and_the_others_keep_their_pages() {
    let serve = Serve::configured("64M", &[KEPT, GONE].concat(), |_| {});
    let mut kept = TestGuest::boot(&serve.path("kept"));
    let pool = kept.create_pool();
    assert_eq!(kept.store(pool, 0, &page(0)), Status::Ok);
    let said = serve.ask(&["set", "kept", "weight=7"]);
    assert_eq!(said.0, Some(0), "{}", said.1);
    let guests = [NEW, KEPT, "limit = '8M'\n"].concat();
    let text = configuration(serve.dir.path(), "64M", &guests);
    reload(&serve, &text, "1 guests added, 1 removed, 1 changed", 1);
    assert_eq!(names(&serve), ["kept", "new"]);
    assert!(!serve.path("gone").exists());
    let domains = stats(&serve).domains;
    assert_eq!((domains[0].limit, domains[0].weight), (Some(8 << 20), 7));
    assert_eq!(kept.load(pool, 0), Ok(page(0)));
    let mut new = TestGuest::boot(&serve.path("new"));
    let pool = new.create_pool();
    for index in 0..64 {
        assert_eq!(new.store(pool, index, &page(index.into())), Status::Ok);
        assert_eq!(new.load(pool, index), Ok(page(index.into())));
    }
    // Nothing to do is fine, too.
    reload(&serve, &text, "0 guests added, 0 removed, 0 changed", 1);
    ends_well(serve);
}

#[test]
fn a_configuration_that_cannot_be_used_changes_nothing_and_is_one_line() {
    let serve = Serve::configured("64M", KEPT, |_| {});
    for (number, text) in ["memory = ", "memory = 0", "memory = '1M'\nnonsense = 1"]
        .into_iter()
        .enumerate()
    {
        reload(&serve, text, "Nothing is changed: ", number + 1);
        assert_eq!(serve.log().lines().count(), number + 1, "{}", serve.log());
    }
    std::fs::remove_file(serve.path("tmem.toml")).expect("removes");
    send(&serve, Signal::HUP);
    eventually("said", || serve.log().contains("No such file"));
    assert_eq!(names(&serve), ["kept"]);
    ends_well(serve);
}

#[test]
fn a_pipe_in_place_of_the_configuration_holds_up_nothing() {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    let serve = Serve::configured("64M", KEPT, |_| {});
    std::fs::remove_file(serve.path("tmem.toml")).expect("removes");
    let mode = Mode::RUSR | Mode::WUSR;
    mknodat(CWD, serve.path("tmem.toml"), FileType::Fifo, mode, 0).expect("makes");
    send(&serve, Signal::HUP);
    eventually("said", || serve.log().contains("not a regular file"));
    assert!(
        serve.log().contains("Nothing is changed: "),
        "{}",
        serve.log()
    );
    assert_eq!(names(&serve), ["kept"]);
    ends_well(serve);
}

#[test]
fn what_is_left_to_the_host_changes_at_once() {
    let serve = Serve::configured("64M", KEPT, |_| {});
    let mut kept = TestGuest::boot(&serve.path("kept"));
    let pool = kept.create_pool();
    assert_eq!(kept.store(pool, 0, &page(0)), Status::Ok);
    // More than any machine has.
    let guests = ["host-reserve = '100T'\nreserve-populate = true\n", KEPT].concat();
    let text = configuration(serve.dir.path(), "64M", &guests);
    reload(&serve, &text, "no page is taken", 1);
    eventually("waits", || {
        serve
            .log()
            .contains("A change of reserve-populate waits for a restart")
    });
    let mut next = 1;
    let mut store = |kept: &mut TestGuest| {
        next += 1;
        kept.store(pool, next, &page(next.into()))
    };
    eventually("refused", || store(&mut kept) == Status::NoMemory);
    assert_eq!(kept.load(pool, 0), Ok(page(0)));
    let text = configuration(serve.dir.path(), "64M", KEPT);
    reload(&serve, &text, "0 guests added, 0 removed, 0 changed", 2);
    eventually("accepted", || store(&mut kept) == Status::Ok);
    ends_well(serve);
}

#[test]
fn a_change_that_waits_for_a_restart_is_named() {
    let serve = Serve::configured("64M", KEPT, |_| {});
    let guests = [KEPT, "queues = 2\nswap = '1G'\nweight = 9\n"].concat();
    let text = configuration(serve.dir.path(), "32M", &guests);
    reload(&serve, &text, "0 guests added, 0 removed, 1 changed", 1);
    let log = serve.log();
    assert!(
        log.contains("A change of memory waits for a restart"),
        "{log}"
    );
    assert!(
        log.contains("Guest kept: a change of swap, queues waits"),
        "{log}"
    );
    let stats = stats(&serve);
    assert_eq!((stats.budget, stats.domains[0].weight), (64 << 20, 9));
    ends_well(serve);
}

#[test]
fn without_a_file_sighup_is_a_line() {
    let mut serve = Serve::start();
    let log = std::fs::File::create(serve.path("log")).expect("makes");
    serve.kill();
    let at = |name: &str| serve.path(name).display().to_string();
    serve.child = service::command(&["serve", "--memory=1M", "--control", &at("control")])
        .stderr(log)
        .spawn()
        .expect("starts");
    eventually("answers", || {
        Client::new(serve.path("control")).stats().is_ok()
    });
    send(&serve, Signal::HUP);
    eventually("said", || serve.log().contains("without --config"));
    ends_well(serve);
}

#[test]
fn signals_that_mean_nothing_to_a_service_cost_no_page() {
    let serve = Serve::configured("64M", KEPT, |_| {});
    let mut guest = TestGuest::boot(&serve.path("kept"));
    let pool = guest.create_pool();
    assert_eq!(guest.store(pool, 0, &page(0)), Status::Ok);
    let numbers = [
        libc::SIGQUIT,
        libc::SIGUSR1,
        libc::SIGUSR2,
        libc::SIGALRM,
        libc::SIGVTALRM,
        libc::SIGPROF,
        libc::SIGIO,
        libc::SIGPIPE,
        libc::SIGPWR,
        libc::SIGXFSZ,
        libc::SIGXCPU,
        libc::SIGRTMIN(),
        libc::SIGRTMAX(),
    ];
    let pid = Pid::from_child(&serve.child).as_raw_nonzero().get();
    for number in numbers {
        // SAFETY: a signal to our own child.
        assert_eq!(unsafe { libc::kill(pid, number) }, 0);
        assert_eq!(guest.load(pool, 0), Ok(page(0)), "signal {number}");
        assert_eq!(names(&serve), ["kept"]);
    }
    eventually("said", || serve.log().contains("RLIMIT_CPU"));
    ends_well(serve);
}

#[test]
fn the_memory_that_a_front_end_may_describe_changes_with_its_next_table() {
    let serve = Serve::configured("64M", KEPT, |_| {});
    let accepted = || {
        let file = tmem_testkit::frontend::memfd(tmem_testkit::frontend::MEMORY);
        let raw = tmem_testkit::raw::Raw::open(&serve.path("kept"));
        let table = tmem_testkit::raw::table(&[[0, tmem_testkit::frontend::MEMORY, 1 << 28, 0]]);
        let fd = std::os::fd::AsRawFd::as_raw_fd(&file);
        raw.ask(tmem_testkit::raw::SET_MEM_TABLE, &table, &[fd]) == Some(0)
    };
    assert!(accepted());
    for (memory, accepts) in [("2M", false), ("4M", true)] {
        let guests = format!("{KEPT}memory = '{memory}'\nfirst-touch = '1M'\n");
        let text = configuration(serve.dir.path(), "64M", &guests);
        let said = serve.log().matches("0 removed, 1 changed").count();
        reload(&serve, &text, "0 removed, 1 changed", said + 1);
        assert_eq!(accepted(), accepts, "{memory}");
    }
    let said = "More than 2097152 bytes of memory";
    eventually("said", || serve.log().contains(said));
    ends_well(serve);
}
