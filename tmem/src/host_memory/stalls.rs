//! Pressure stall information: a trigger of the kernel fires while processes wait for memory.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::Timespec;

/// Some process waits for memory for 300 ms of 2 s. The kernel grants windows of other lengths to privileged processes only.
const TRIGGER: &[u8] = b"some 300000 2000000\0";
/// A trigger that fired is not polled again for so long: it would fire no more than once in its window.
const REST: Duration = Duration::from_secs(1);
/// Time for which a trigger that fired counts: longer than the window, after which it fires again if it has to.
const HOLD: Duration = Duration::from_secs(3);
/// No time at all.
const NEVER: u64 = u64::MAX;

/// A trigger, and when it fired.
#[derive(Debug)]
pub(super) struct Stalls {
    trigger: OwnedFd,
    begin: Instant,
    /// Milliseconds from `begin`.
    fired: AtomicU64,
    /// The cgroup was removed, or the kernel has removed the trigger.
    dead: AtomicBool,
}

impl Stalls {
    /// Sets a trigger at a file `memory` of `/proc/pressure`, or `memory.pressure` of a cgroup. `None` where there is none,
    /// and on kernels that give it to privileged processes only.
    pub(super) fn open(path: &Path) -> Option<Self> {
        let trigger = || -> io::Result<OwnedFd> {
            let mut file = OpenOptions::new().read(true).write(true).open(path)?;
            file.write_all(TRIGGER)?;
            Ok(file.into())
        };
        trigger()
            .inspect_err(|error| log::debug!("No trigger at {}: {error}", path.display()))
            .ok()
            .map(Self::new)
    }

    /// Takes a descriptor that polls as having urgent data when it fires.
    pub(super) fn new(trigger: OwnedFd) -> Self {
        Self {
            trigger,
            begin: Instant::now(),
            fired: AtomicU64::new(NEVER),
            dead: AtomicBool::new(false),
        }
    }

    fn since(&self) -> Option<Duration> {
        match self.fired.load(Relaxed) {
            NEVER => None,
            fired => Some(
                self.begin
                    .elapsed()
                    .saturating_sub(Duration::from_millis(fired)),
            ),
        }
    }

    /// Whether it fired a moment ago.
    pub(super) fn is_firing(&self) -> bool {
        self.since().is_some_and(|since| since < HOLD)
    }

    fn listens(&self) -> bool {
        !self.dead.load(Relaxed) && self.since().is_none_or(|since| since >= REST)
    }

    /// Time until something changes without an event.
    fn due(&self) -> Option<Duration> {
        let since = self.since()?;
        [REST, HOLD]
            .into_iter()
            .find(|time| since < *time)
            .map(|time| time.saturating_sub(since))
    }

    fn note(&self, events: PollFlags) {
        if events.intersects(PollFlags::ERR | PollFlags::NVAL | PollFlags::HUP) {
            self.dead.store(true, Relaxed);
        } else if events.contains(PollFlags::PRI) {
            let now = u64::try_from(self.begin.elapsed().as_millis()).unwrap_or(NEVER - 1);
            self.fired.store(now, Relaxed);
        }
    }
}

/// Waits until `wake` can be read (and reads it), a trigger fires or has been silent for long, or the time is over.
pub(super) fn wait<'a>(
    wake: BorrowedFd<'_>,
    triggers: impl Iterator<Item = &'a Stalls>,
    time: Option<Duration>,
) {
    let triggers: Vec<_> = triggers.collect();
    let time = triggers
        .iter()
        .filter_map(|stalls| stalls.due())
        .chain(time)
        .min();
    // Never a moment too early: it would be waited for again.
    let time = time.map(|time| time + Duration::from_millis(1));
    let timeout = time.and_then(|time| Timespec::try_from(time).ok());
    let listening: Vec<_> = triggers
        .into_iter()
        .filter(|stalls| stalls.listens())
        .collect();
    let mut waits = vec![PollFd::from_borrowed_fd(wake, PollFlags::IN)];
    waits.extend(
        listening
            .iter()
            .map(|stalls| PollFd::from_borrowed_fd(stalls.trigger.as_fd(), PollFlags::PRI)),
    );
    if poll(&mut waits, timeout.as_ref()).is_err() {
        // A signal: the caller checks again.
        return;
    }
    for (stalls, wait) in listening.iter().zip(&waits[1..]) {
        stalls.note(wait.revents());
    }
    if waits[0].revents().contains(PollFlags::IN) {
        // It does not block: there is something.
        let _ = rustix::io::read(wake, &mut [0u8; 8]);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::net::{TcpListener, TcpStream};

    use rustix::event::{EventfdFlags, eventfd};

    use super::*;

    /// A trigger, and what makes it fire.
    pub(in crate::host_memory) fn pair() -> (Stalls, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
        let fires = TcpStream::connect(listener.local_addr().expect("has one")).expect("connects");
        let (trigger, _) = listener.accept().expect("accepts");
        (Stalls::new(trigger.into()), fires)
    }

    pub(in crate::host_memory) fn urgent(stream: &TcpStream) {
        rustix::net::send(stream, b"!", rustix::net::SendFlags::OOB).expect("sends");
    }

    #[test]
    fn a_trigger_that_fires_ends_the_wait_and_counts_for_longer_than_its_window() {
        let (stalls, fires) = pair();
        let wake = eventfd(0, EventfdFlags::NONBLOCK).expect("eventfd");
        assert!(!stalls.is_firing());
        urgent(&fires);
        let begin = Instant::now();
        wait(wake.as_fd(), [&stalls].into_iter(), None);
        assert!(stalls.is_firing());
        // It is not looked at while it rests, although the data is still there.
        wait(wake.as_fd(), [&stalls].into_iter(), None);
        assert!(begin.elapsed() >= REST, "a rest");
        assert!(HOLD > Duration::from_secs(2), "the window of the trigger");
    }

    #[test]
    fn a_trigger_that_the_kernel_took_away_is_not_waited_for() {
        let (stalls, fires) = pair();
        let wake = eventfd(0, EventfdFlags::NONBLOCK).expect("eventfd");
        // Both ends: nothing comes any more.
        drop(fires);
        rustix::net::shutdown(&stalls.trigger, rustix::net::Shutdown::Both).expect("is a socket");
        wait(wake.as_fd(), [&stalls].into_iter(), None);
        assert!(!stalls.listens() && !stalls.is_firing());
        rustix::io::write(&wake, &1u64.to_ne_bytes()).expect("writes");
        wait(wake.as_fd(), [&stalls].into_iter(), None);
    }

    #[test]
    fn a_machine_with_pressure_information_gives_a_trigger_to_anybody() {
        let path = Path::new("/proc/pressure/memory");
        // Without the file, or switched off, there is nothing to be had.
        if std::fs::read(path).is_err() {
            println!("this machine has no pressure information: nothing was tested");
            return;
        }
        match Stalls::open(path) {
            Some(stalls) => assert!(stalls.listens()),
            None => println!("this kernel gives no trigger: nothing was tested"),
        }
    }
}
