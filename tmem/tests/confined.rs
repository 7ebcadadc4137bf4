//! `tmem serve` as it is run: confined, perhaps not as root, with a log, and told to stop.

mod service;

use std::io::{Read, Write};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tmem_control::Client;
use tmem_control::api::{Change, GuestSpec};
use tmem_protocol::{Op, Status};
use tmem_testkit::corpus::page;
use tmem_testkit::frontend::{TestGuest, eventually};
use tmem_testkit::raw::{self, Raw};

struct Serve {
    child: Child,
    dir: tempfile::TempDir,
}

/// A user that owns nothing; who runs the tests as another user than root has no choice.
const NOBODY: u32 = 65534;

impl Serve {
    /// Guests by name, each with more keys. Its log is in the file `log`.
    fn start(guests: &[(String, &str)]) -> Self {
        Self::start_with(guests, |_| {})
    }

    fn start_with(guests: &[(String, &str)], change: impl FnOnce(&mut Command)) -> Self {
        Self::start_with_memory("256M", guests, change)
    }

    fn start_with_memory(
        memory: &str,
        guests: &[(String, &str)],
        change: impl FnOnce(&mut Command),
    ) -> Self {
        let dir = tempfile::tempdir().expect("temporary folder");
        let at = |name: &str| dir.path().join(name);
        let log = std::fs::File::create(at("log")).expect("makes");
        let mut command = service::command(&["serve", "--memory", memory]);
        command.stderr(log).arg("--control").arg(at("control"));
        for (name, more) in guests {
            let socket = at(name);
            command.arg(format!(
                "--guest=name={name},socket={}{more}",
                socket.display()
            ));
        }
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(dir.path(), Some(NOBODY), Some(NOBODY)).expect("is ours");
            command.uid(NOBODY).gid(NOBODY);
        }
        change(&mut command);
        let child = command.spawn().expect("starts");
        let serve = Self { child, dir };
        eventually("answers", || serve.client().stats().is_ok());
        serve
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn client(&self) -> Client {
        Client::new(self.path("control"))
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).expect("is there")
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    fn pages(&self, name: &str) -> u64 {
        let stats = self.client().stats().expect("answers");
        let domain = stats.domains.into_iter().find(|domain| domain.name == name);
        domain.expect("is there").counters.pages
    }

    fn is_connected(&self, name: &str) -> bool {
        let stats = self.client().stats().expect("answers");
        let domain = stats.domains.into_iter().find(|domain| domain.name == name);
        domain.expect("is there").device.is_some()
    }

    /// Numbers and names of its threads.
    fn threads(&self) -> Vec<(i32, String)> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id()));
        tasks
            .expect("is running")
            .filter_map(|task| {
                let task = task.ok()?;
                let name = std::fs::read_to_string(task.path().join("comm")).ok()?;
                let number = task.file_name().to_str()?.parse().ok()?;
                Some((number, name.trim().to_owned()))
            })
            .collect()
    }

    /// The nice value of a thread.
    fn nice(&self, thread: &str) -> Option<i32> {
        let (number, _) = self
            .threads()
            .into_iter()
            .find(|(_, name)| name == thread)?;
        let stat = format!("/proc/{}/task/{number}/stat", self.child.id());
        let stat = std::fs::read_to_string(stat).ok()?;
        stat.rsplit_once(')')?
            .1
            .split_whitespace()
            .nth(16)?
            .parse()
            .ok()
    }

    fn status(&self, name: &str) -> String {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()));
        let status = status.expect("is running");
        let line = status.lines().find(|line| line.starts_with(name));
        let value = line
            .and_then(|line| line.split_once(':'))
            .expect("is there")
            .1;
        value.trim().to_owned()
    }

    /// Processor time that it spent outside the kernel, to 10 ms.
    fn own_time(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()));
        let stat = stat.expect("is running");
        let (_, fields) = stat.rsplit_once(')').expect("has a name");
        let ticks = fields.split_whitespace().nth(11);
        Duration::from_millis(10 * ticks.expect("is there").parse::<u64>().expect("a number"))
    }

    /// As [`Self::own_time`], when it has ended, which this waits for.
    fn own_time_at_end(&self) -> Duration {
        // SAFETY: all bits zero are a value of this type.
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        // SAFETY: as above.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        // SAFETY: waits for our own child, and writes to the two values above. The C library has no such call with a usage.
        let done = unsafe {
            libc::syscall(
                libc::SYS_waitid,
                libc::P_PID,
                self.child.id(),
                &raw mut info,
                libc::WEXITED | libc::WNOWAIT,
                &raw mut usage,
            )
        };
        assert_eq!(done, 0, "is our child");
        let time = usage.ru_utime;
        let seconds = u64::try_from(time.tv_sec).expect("positive");
        let micros = u64::try_from(time.tv_usec).expect("positive");
        Duration::from_secs(seconds) + Duration::from_micros(micros)
    }

    /// Stops it; it has a second.
    fn stop(mut self) -> tempfile::TempDir {
        let before = Instant::now();
        kill_process(self.pid(), Signal::TERM).expect("is running");
        let status = self.child.wait().expect("ends");
        assert!(status.success(), "{status}\n{}", self.log());
        assert!(
            before.elapsed() < Duration::from_secs(1),
            "{:?}",
            before.elapsed()
        );
        std::mem::replace(
            &mut self.dir,
            tempfile::tempdir().expect("temporary folder"),
        )
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn names<'a>(names: &[&str], more: &'a str) -> Vec<(String, &'a str)> {
    names
        .iter()
        .map(|name| ((*name).to_owned(), more))
        .collect()
}

/// The usual work of a guest.
fn works(guest: &mut TestGuest) {
    let pool = guest.create_pool();
    for index in 0..512 {
        assert_eq!(guest.store(pool, index, &page(index.into())), Status::Ok);
    }
    for index in 0..512 {
        assert_eq!(guest.load(pool, index), Ok(page(index.into())));
    }
    let answer = guest.request(Op::InvalidateObject, pool, [1, 2, 3], &[], &[]);
    assert_eq!(answer.status(), Status::Ok);
}

#[test]
fn everything_works_confined_and_as_a_user_that_owns_nothing() {
    let serve = Serve::start(&names(
        &["good", "bad"],
        ",group=web,limit=64M,keep-seconds=1",
    ));
    assert_eq!(serve.status("NoNewPrivs"), "1");
    // The first thread confines itself last, when others answer already.
    eventually("is confined", || serve.status("Seccomp") == "2");
    let ids = serve.status("Uid");
    if rustix::process::geteuid().is_root() {
        assert!(
            ids.split_whitespace().all(|id| id == NOBODY.to_string()),
            "{ids}"
        );
    }
    let mut good = TestGuest::boot(&serve.path("good"));
    works(&mut good);
    let group = good.join("web").expect("may join");
    assert_eq!(good.store(group, 1, &page(1)), Status::Ok);
    // Each way in which a connection can end, most with a line in the log.
    for round in 0..40u64 {
        let bad = Raw::open(&serve.path("bad"));
        match round % 4 {
            0 => drop(bad.send(raw::GET_FEATURES, &[0; 9], &[])),
            1 => drop(bad.ask(raw::SET_MEM_TABLE, &raw::table(&[[0, 4096, 0, 0]]), &[2])),
            2 => drop(bad.send(raw::SET_VRING_NUM, &raw::state(99, 99), &[])),
            _ => {
                drop(bad);
                let mut bad = TestGuest::boot(&serve.path("bad"));
                let pool = bad.create_pool();
                assert_eq!(bad.store(pool, 0, &page(round)), Status::Ok);
                bad.rings[1].driver.set_avail_index(9999);
                bad.kick(1);
                if round % 8 == 3 {
                    bad.file.set_len(0).expect("truncates");
                    bad.rings[1].kick.write(1).expect("kicks");
                }
            }
        }
        eventually("ended", || !serve.is_connected("bad"));
    }
    eventually("its time is over", || serve.pages("bad") == 0);
    assert!(serve.log().contains("Guest bad"), "{}", serve.log());
    // Every operation of the control plane, and guests that are started by a confined thread.
    let client = serve.client();
    for round in 0..12 {
        let name = format!("new{round}");
        let guest = GuestSpec {
            name: name.clone(),
            socket: serve.path(&name).display().to_string(),
            groups: vec!["web".to_owned()],
            ..GuestSpec::default()
        };
        client.add_guest(&guest).expect("added");
        let mut new = TestGuest::boot(&serve.path(&name));
        works(&mut new);
        let group = new.join("web").expect("may join");
        assert_eq!(new.load(group, 1), Ok(page(1)));
        let change = Change {
            limit: Some(Some(1 << 30)),
            compression: Some(tmem_control::api::Compression::Dense),
            ..Change::default()
        };
        client.change(&name, &change).expect("changed");
        client.flush(&name, 1 << 20).expect("flushed");
        if round % 2 == 0 {
            new.file.set_len(0).expect("truncates");
            new.rings[1].kick.write(1).expect("kicks");
            eventually("cut off", || !serve.is_connected(&name));
        }
        client.remove_guest(&name).expect("removed");
    }
    let mut page_of_metrics = String::new();
    let mut stream = UnixStream::connect(serve.path("control")).expect("connects");
    stream
        .write_all(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")
        .expect("asks");
    stream
        .read_to_string(&mut page_of_metrics)
        .expect("answers");
    assert!(page_of_metrics.starts_with("HTTP/1.1 200"));
    works(&mut good);
    let dir = serve.stop();
    assert!(!dir.path().join("good").exists() && !dir.path().join("control").exists());
}

/// Whether the store has the thread that needs another processor.
fn has_prefault() -> bool {
    std::thread::available_parallelism().is_ok_and(|processors| processors.get() > 1)
}

/// The last thread of a process takes its memory down: on a busy host one of the lowest priority needs many seconds.
#[test]
fn no_thread_has_the_lowest_priority_unless_a_guest_wants_dense_pages() {
    for (more, lowest) in [("", false), (",compression=dense", true)] {
        let mut serve = Serve::start(&names(&["vm1"], more));
        let mut guest = TestGuest::boot(&serve.path("vm1"));
        let pool = guest.create_pool();
        guest.submit(1, Op::Store, pool, [1; 3], &[0], &[7; 4096]);
        guest.kick(1);
        assert_eq!(guest.answer(1, 1, 0).statuses, [0]);
        let nice = if lowest { Some(19) } else { serve.nice("tmem") };
        eventually("its priority", || serve.nice("tmem-cold") == nice);
        kill_process(serve.pid(), Signal::TERM).expect("is running");
        let status = serve.child.wait().expect("ends");
        assert!(status.success(), "{status}\n{}", serve.log());
    }
}

#[test]
fn a_signal_may_hit_any_thread() {
    for kind in [
        "tmem",
        "tmem-control",
        "tmem-background",
        "tmem-cold",
        "tmem-prefault",
        "guest vm1",
        "guest vm2",
    ]
    .into_iter()
    .filter(|kind| *kind != "tmem-prefault" || has_prefault())
    {
        let mut serve = Serve::start(&names(&["vm1"], ""));
        let guest = GuestSpec {
            name: "vm2".to_owned(),
            socket: serve.path("vm2").display().to_string(),
            ..GuestSpec::default()
        };
        serve.client().add_guest(&guest).expect("added");
        let _guest = TestGuest::boot(&serve.path("vm1"));
        let mut thread = 0;
        // A new thread has the name of the one that made it until it runs.
        eventually(kind, || {
            let threads = serve.threads();
            let found = threads.iter().find(|(_, name)| name == kind);
            found.inspect(|(number, _)| thread = *number).is_some()
        });
        let send = |signal: libc::c_int| {
            // SAFETY: a signal to a thread of our own child.
            let sent = unsafe {
                libc::syscall(
                    libc::SYS_tgkill,
                    serve.pid().as_raw_nonzero().get(),
                    thread,
                    signal,
                )
            };
            assert_eq!(sent, 0, "{kind}");
        };
        send(libc::SIGUSR1);
        send(libc::SIGHUP);
        eventually("it reads its configuration again", || {
            serve.log().contains("without --config")
        });
        send(libc::SIGTERM);
        let status = serve.child.wait().expect("ends");
        assert!(status.success(), "{kind}: {status}\n{}", serve.log());
    }
}

#[test]
fn a_stop_answers_what_is_in_flight_and_removes_the_sockets_of_64_guests() {
    let all: Vec<String> = (0..64).map(|number| format!("g{number}")).collect();
    let guests: Vec<(String, &str)> = all.iter().map(|name| (name.clone(), ",queues=1")).collect();
    let outside = tempfile::tempdir().expect("temporary folder");
    let notify = UnixDatagram::bind(outside.path().join("notify")).expect("binds");
    notify
        .set_read_timeout(Some(tmem_testkit::frontend::PATIENCE))
        .expect("is set");
    for path in [outside.path().to_owned(), outside.path().join("notify")] {
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(path, Some(NOBODY), Some(NOBODY)).expect("is ours");
        }
    }
    let serve = Serve::start_with(&guests, |command| {
        command.env("NOTIFY_SOCKET", outside.path().join("notify"));
    });
    let mut connected: Vec<TestGuest> = all[2..]
        .iter()
        .map(|name| TestGuest::boot(&serve.path(name)))
        .collect();
    let pools: Vec<u32> = connected.iter_mut().map(TestGuest::create_pool).collect();
    // One is stuck within a message.
    let stuck = UnixStream::connect(serve.path("g0")).expect("connects");
    (&stuck)
        .write_all(&[2, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0])
        .expect("writes");
    // One floods, until it gets no more answers.
    let flood = serve.path("g1");
    let flood = std::thread::spawn(move || {
        let mut bad = TestGuest::boot(&flood);
        let pool = bad.create_pool();
        let until = Instant::now() + tmem_testkit::frontend::PATIENCE * 2;
        while Instant::now() < until {
            bad.submit_stores(pool);
            bad.kick(1);
            let sent = Instant::now();
            while !bad.poll() {
                if sent.elapsed() > Duration::from_secs(2) {
                    return;
                }
            }
        }
        panic!("it never stopped");
    });
    eventually("floods", || serve.pages("g1") == 16);
    // And all others have a request in their rings, without a kick.
    for (guest, pool) in connected.iter_mut().zip(&pools) {
        guest.submit(0, Op::Store, *pool, [1, 2, 3], &[0], &page(0));
    }
    let dir = serve.stop();
    for guest in &mut connected {
        assert!(guest.poll(), "a request was left unanswered");
        assert_eq!(guest.answer(0, 1, 0).statuses, [u8::from(Status::Ok)]);
    }
    flood.join().expect("the flood ends");
    let left: Vec<_> = std::fs::read_dir(dir.path())
        .expect("is there")
        .map(|entry| entry.expect("readable").file_name())
        .collect();
    assert_eq!(left, ["log"]);
    let mut told = Vec::new();
    for _ in 0..2 {
        let mut text = [0; 64];
        let len = notify.recv(&mut text).expect("told");
        told.push(String::from_utf8_lossy(&text[..len]).into_owned());
    }
    assert_eq!(told, ["READY=1\n", "STOPPING=1\n"]);
}

#[test]
fn a_guest_that_comes_when_the_time_of_its_pool_is_over_comes_too_late() {
    let serve = Serve::start(&names(&["a"], ",keep-seconds=1"));
    let mut guest = TestGuest::boot(&serve.path("a"));
    let pool = guest.create_pool();
    assert_eq!(guest.store(pool, 3, &page(3)), Status::Ok);
    drop(guest);
    eventually("disconnected", || !serve.is_connected("a"));
    // Both happen while the service is stopped: a client connects, and the time runs out.
    kill_process(serve.pid(), Signal::STOP).expect("is running");
    eventually("stopped", || {
        let stat = |(thread, _): &(i32, String)| {
            let path = format!("/proc/{}/task/{thread}/stat", serve.child.id());
            std::fs::read_to_string(path).expect("is running")
        };
        serve
            .threads()
            .iter()
            .map(stat)
            .all(|stat| stat.contains(") T "))
    });
    let bytes = raw::message(raw::GET_FEATURES, 1, &[]);
    let late = UnixStream::connect(serve.path("a")).expect("waits in the queue");
    (&late).write_all(&bytes).expect("writes");
    std::thread::sleep(Duration::from_millis(1200));
    kill_process(serve.pid(), Signal::CONT).expect("is running");
    (&late).read_exact(&mut [0; 20]).expect("answers");
    assert_eq!(serve.pages("a"), 0);
    drop(late);
    serve.stop();
}

/// Pages of the test below. `TMEM_STOP_PAGES` sets another number.
fn stop_pages() -> u32 {
    let text = std::env::var("TMEM_STOP_PAGES").ok();
    text.and_then(|text| text.parse().ok()).unwrap_or(500_000)
}

#[test]
fn a_stop_takes_no_longer_with_the_pages_of_a_large_guest() {
    let mut serve = Serve::start_with_memory("6G", &names(&["large"], ",queues=1"), |_| {});
    let mut guest = TestGuest::boot(&serve.path("large"));
    let pool = guest.create_pool();
    let mut pages = vec![0; 8 * 4096];
    let mut next = 0;
    while next < stop_pages() {
        for slot in 0..16 {
            let indices: Vec<u32> = (next..next + 8).collect();
            // No two are equal, and each has a slot of its own.
            for (page, index) in pages.chunks_exact_mut(4096).zip(&indices) {
                page[..4].copy_from_slice(&index.to_le_bytes());
            }
            guest.submit(slot, Op::Store, pool, [1; 3], &indices, &pages);
            next += 8;
        }
        guest.kick(1);
        guest.wait();
    }
    assert_eq!(guest.answer(15, 8, 0).statuses, [0; 8]);
    assert_eq!(serve.pages("large"), u64::from(next));
    let used = serve.client().stats().expect("answers").used;
    // A walk over the pages would count as the service's own time, the kernel's work does not. Other processes change
    // neither.
    let to_store = serve.own_time();
    let begin = Instant::now();
    kill_process(serve.pid(), Signal::TERM).expect("is running");
    let all = serve.own_time_at_end();
    let elapsed = begin.elapsed();
    let status = serve.child.wait().expect("ends");
    assert!(status.success(), "{status}\n{}", serve.log());
    let to_stop = all.saturating_sub(to_store);
    println!(
        "{next} pages in {used} bytes: stopped in {elapsed:?}, {to_stop:?} of it its own, after {to_store:?}"
    );
    assert!(to_stop < to_store / 30, "{to_stop:?} after {to_store:?}");
    assert!(!serve.path("large").exists() && !serve.path("control").exists());
}
