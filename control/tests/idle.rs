//! Alone in its process, so that the one control thread there is belongs to this test.

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use tmem_control::{Client, Server, Source, Stats};

struct Nothing;

impl Source for Nothing {
    fn stats(&self) -> Stats {
        Stats::default()
    }
}

/// For each control thread: how often it gave up the processor, to wait or by force.
fn switches() -> Vec<Vec<String>> {
    let tasks = std::fs::read_dir("/proc/self/task").expect("reads /proc");
    tasks
        .flatten()
        .filter_map(|task| std::fs::read_to_string(task.path().join("status")).ok())
        .filter(|status| status.starts_with("Name:\ttmem-control\n"))
        .map(|status| {
            let lines = status.lines().filter(|line| line.contains("ctxt_switches"));
            lines.map(str::to_owned).collect()
        })
        .collect()
}

#[test]
fn idle_server_never_wakes_up_and_its_thread_goes_with_it() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("control");
    let server = Server::start(&path, Arc::new(Nothing)).expect("starts");
    Client::new(&path).stats().expect("answers");

    // The thread may still be busy closing that connection: wait until it rests.
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let before = switches();
        thread::sleep(Duration::from_secs(1));
        // A thread that it made has its name until it runs.
        if before.len() == 1 && switches() == before {
            break;
        }
        assert!(
            Instant::now() < deadline,
            "the control thread wakes up when idle"
        );
    }

    drop(server);
    // The kernel may show a thread a little longer than it can be joined.
    while !switches().is_empty() {
        assert!(
            Instant::now() < deadline,
            "the control thread is still there"
        );
        thread::sleep(Duration::from_millis(5));
    }
}
