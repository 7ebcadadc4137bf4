//! A service in this process.
#![allow(dead_code, missing_docs, unreachable_pub)]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};

use tmem_protocol::Status;
use tmem_serve::{Config, ConfigFile, MemoryReport, Service, parse_guest};
use tmem_store::Gate;

use tmem_testkit::corpus::page;
use tmem_testkit::frontend::{TestGuest, eventually};

/// Whether the thread that serves a guest is there. A service that stops leaves one behind that does not end.
pub fn has_thread(guest: &str) -> bool {
    let name = format!("guest {guest}\n");
    let tasks = std::fs::read_dir("/proc/self/task").expect("proc");
    tasks.flatten().any(|task| {
        // One that has ended meanwhile has no name.
        std::fs::read_to_string(task.path().join("comm")).is_ok_and(|comm| comm == name)
    })
}

pub struct Host {
    pub service: Service,
    pub dir: tempfile::TempDir,
}

impl Host {
    /// A service with 64 MiB for guests named as said; `more` is added to each.
    pub fn new(names: &[&str], more: &str) -> Self {
        let guests: Vec<_> = names.iter().map(|name| (*name, more)).collect();
        Self::with("64M", &guests)
    }

    /// A service for guests of which each has a name and more keys.
    pub fn with(memory: &str, guests: &[(&str, &str)]) -> Self {
        Self::gated(memory, guests, None)
    }

    /// As [`Self::with`], with somebody who grants memory.
    pub fn gated(memory: &str, guests: &[(&str, &str)], gate: Option<Arc<dyn Gate>>) -> Self {
        let dir = tempfile::tempdir().expect("temporary folder");
        let guests = guests.iter().map(|(name, more)| {
            let socket = dir.path().join(name);
            let guest = format!("name={name},socket={}{more}", socket.display());
            parse_guest(&guest).expect("a guest")
        });
        let config = ConfigFile {
            memory: Some(memory.parse().expect("a size")),
            guests: guests.collect(),
            ..ConfigFile::default()
        };
        let config = Config::try_from(config).expect("valid");
        let service = Service::start_with(config, BTreeMap::new(), gate).expect("starts");
        Self { service, dir }
    }

    pub fn socket(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn boot(&self, name: &str) -> TestGuest {
        TestGuest::boot(&self.socket(name))
    }

    /// A guest that stored a page at 3 and is disconnected; its pool is kept. Its rings would go on at 2.
    pub fn kept(&self, name: &str) -> u32 {
        let mut guest = self.boot(name);
        let pool = guest.create_pool();
        assert_eq!(guest.store(pool, 3, &page(3)), Status::Ok);
        drop(guest);
        eventually("disconnected", || !self.is_connected(name));
        assert_eq!(self.pages(name), 1);
        pool
    }

    pub fn is_connected(&self, name: &str) -> bool {
        let report = self.service.report();
        let guest = report.iter().find(|guest| guest.config.name == name);
        guest.expect("is there").connected
    }

    /// What the memory of a guest's front end came to.
    pub fn memory(&self, name: &str) -> MemoryReport {
        let report = self.service.report();
        let guest = report.iter().find(|guest| guest.config.name == name);
        guest.expect("is there").memory
    }

    pub fn pages(&self, name: &str) -> u64 {
        let stats = self.service.store().stats();
        let domain = stats.domains.iter().find(|domain| domain.name == name);
        let pools = &domain.expect("is there").pools;
        pools.iter().map(|pool| pool.pages).sum()
    }

    /// Runs `harm` while another guest works, and checks that it gets all its pages, in time.
    pub fn bystander(&self, harm: impl FnOnce()) {
        let mut bystander = self.boot("good");
        let pool = bystander.create_pool();
        for index in 0..64 {
            assert_eq!(
                bystander.store(pool, index, &page(index.into())),
                Status::Ok
            );
        }
        harm();
        for index in 0..64 {
            assert_eq!(bystander.load(pool, index), Ok(page(index.into())));
        }
    }

    /// Runs `harm` while guest `good` stores, loads and compares without pause, on another thread. Its pages
    /// from before are there at the end, and it went on meanwhile.
    pub fn beside<T>(&self, harm: impl FnOnce() -> T) -> T {
        let (stop, rounds) = (AtomicBool::new(false), AtomicU32::new(0));
        let socket = self.socket("good");
        std::thread::scope(|scope| {
            let neighbour = scope.spawn(|| {
                let mut good = TestGuest::boot(&socket);
                let pool = good.create_pool();
                for index in 0..32 {
                    assert_eq!(good.store(pool, index, &page(index.into())), Status::Ok);
                }
                while !stop.load(Relaxed) {
                    let round = rounds.fetch_add(1, Relaxed);
                    let index = 32 + round % 32;
                    assert_eq!(good.store(pool, index, &page(round.into())), Status::Ok);
                    assert_eq!(good.load(pool, index), Ok(page(round.into())));
                }
                for index in 0..32 {
                    assert_eq!(good.load(pool, index), Ok(page(index.into())));
                }
            });
            let went_on = |from: u32| {
                eventually("neighbour goes on", || {
                    neighbour.is_finished() || rounds.load(Relaxed) > from
                });
            };
            went_on(0);
            // Ends the neighbour also when the harm fails.
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(harm));
            let rounds = rounds.load(Relaxed);
            if done.is_ok() {
                went_on(rounds);
            }
            stop.store(true, Relaxed);
            neighbour.join().expect("the neighbour has all its pages");
            done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

/// A service with a guest that does harm and one that does not.
pub fn host() -> Host {
    Host::new(&["bad", "good"], "")
}

/// The socket of the guest that did harm works for one that does not.
pub fn works_again(host: &Host) {
    eventually("cut off", || !host.is_connected("bad"));
    let mut again = host.boot("bad");
    let pool = again.create_pool();
    assert_eq!(again.store(pool, 1, &page(1)), Status::Ok);
    assert_eq!(again.load(pool, 1), Ok(page(1)));
}
