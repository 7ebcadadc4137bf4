//! Threads that serve store queues in place of the vCPUs, so that a vCPU that stores goes on at once. The doorbell of
//! such a queue is an eventfd. Between two stores a thread polls its queues for a short while with notifications off;
//! then it asks for a kick and sleeps, so an idle guest costs nothing.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use tmem_device::{Progress, QueueCorrupt, TmemDevice};
use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::EventFd;

use super::tell;
use crate::stop::Wake;
use crate::virtio::Queues;

/// How long a thread polls after its last store: longer than a guest that swaps out takes from one request to the next, and
/// about as long as a kick costs both sides (README.md has figures).
const SPIN: Duration = Duration::from_micros(50);

/// Time between two attempts to wait where the system cannot.
const RETRY: Duration = Duration::from_millis(20);

/// Entries taken from one queue before the other queues of the thread have their turn, and before a reset can get in.
const TURN: u32 = 8;

/// The threads of one device, each with some of its store queues. Dropping it stops and joins them.
#[derive(Debug)]
pub(super) struct StoreThreads {
    threads: Vec<Thread>,
}

#[derive(Debug)]
struct Thread {
    shared: Arc<Shared>,
    handle: Option<JoinHandle<()>>,
}

impl StoreThreads {
    /// Starts so many threads, but not more than `device` has store queues.
    pub(super) fn start(device: &Arc<TmemDevice>, count: u16) -> io::Result<Self> {
        let mut threads = Self {
            threads: Vec::new(),
        };
        let queues = device.store_queues();
        let count = count.min(queues.end.saturating_sub(queues.start));
        for number in 0..count {
            let mine = queues
                .clone()
                .skip(number.into())
                .step_by(count.into())
                .map(|index| {
                    let doorbell = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
                    Ok(Ring { index, doorbell })
                })
                .collect::<io::Result<_>>()?;
            let shared = Arc::new(Shared {
                name: format!("tmem store {number}"),
                device: Arc::clone(device),
                rings: mine,
                wake: Wake::new()?,
                stop: AtomicBool::new(false),
                active: Mutex::new(None),
                epoch: AtomicU64::new(0),
            });
            let run = Arc::clone(&shared);
            let handle = std::thread::Builder::new()
                .name(shared.name.clone())
                .spawn(move || run.run())?;
            threads.threads.push(Thread {
                shared,
                handle: Some(handle),
            });
        }
        Ok(threads)
    }

    /// The eventfd that wakes the thread of a queue, if it has one.
    pub(super) fn doorbell(&self, queue: u16) -> Option<&EventFd> {
        self.threads
            .iter()
            .flat_map(|thread| &thread.shared.rings)
            .find(|ring| ring.index == queue)
            .map(|ring| &ring.doorbell)
    }

    /// The driver is ready: rings may be served, and have been filled already.
    pub(super) fn activate(&self, queues: &Arc<Queues>) {
        for thread in &self.threads {
            thread.shared.change(Some(Arc::clone(queues)));
            thread.shared.wake.wake();
        }
    }

    /// The transport has reset the queues, each under its lock, so no thread is inside of one. After this call no
    /// thread serves a queue that is ready again, before the next [`activate`](Self::activate).
    pub(super) fn deactivate(&self) {
        for thread in &self.threads {
            thread.shared.change(None);
        }
    }

    /// Tells them to end; they do so after a turn.
    fn ask_to_end(&self) {
        for thread in &self.threads {
            thread.shared.stop.store(true, Ordering::SeqCst);
            thread.shared.wake.wake();
        }
    }

    /// Waits until the first has ended.
    #[cfg(test)]
    pub(super) fn stop(&self) {
        self.ask_to_end();
        while !self.first_thread().is_finished() {
            std::thread::yield_now();
        }
    }

    /// Changes with each activation and each reset.
    #[cfg(test)]
    pub(super) fn epoch(&self) -> u64 {
        let first = self.threads.first().expect("there is one");
        first.shared.epoch.load(Ordering::SeqCst)
    }

    /// What the first thread would do if it had not looked since an epoch. Whether it served a chain.
    #[cfg(test)]
    pub(super) fn serve_since(&self, epoch: u64, queues: &Queues) -> bool {
        let shared = &self.threads.first().expect("there is one").shared;
        let work = Work {
            shared,
            queues,
            epoch,
        };
        work.disarm();
        work.serve() || work.arm()
    }

    #[cfg(test)]
    pub(super) fn first_thread(&self) -> &JoinHandle<()> {
        let first = self
            .threads
            .first()
            .and_then(|thread| thread.handle.as_ref());
        first.expect("there is one")
    }
}

impl Drop for StoreThreads {
    fn drop(&mut self) {
        self.ask_to_end();
        for thread in &mut self.threads {
            if let Some(handle) = thread.handle.take() {
                // A panic was reported when it happened.
                let _ = handle.join();
            }
        }
    }
}

/// A store queue and what the guest rings for it.
#[derive(Debug)]
struct Ring {
    index: u16,
    doorbell: EventFd,
}

#[derive(Debug)]
struct Shared {
    name: String,
    device: Arc<TmemDevice>,
    rings: Vec<Ring>,
    /// Wakes the thread for what is no doorbell.
    wake: Wake,
    stop: AtomicBool,
    active: Mutex<Option<Arc<Queues>>>,
    /// Changes with `active`. Read under the lock of a queue: a queue that is ready again after a reset got so after the
    /// change.
    epoch: AtomicU64,
}

/// Reports a panic of the thread it lives in.
struct PanicReport<'a>(&'a str, &'a Queues);

impl Drop for PanicReport<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.1.report_failure(self.0);
        }
    }
}

impl Shared {
    fn active(&self) -> MutexGuard<'_, Option<Arc<Queues>>> {
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, queues: Option<Arc<Queues>>) {
        let mut active = self.active();
        *active = queues;
        self.epoch.fetch_add(1, Ordering::SeqCst);
    }

    fn run(&self) {
        while !self.stop.load(Ordering::SeqCst) {
            let (queues, epoch) = {
                let active = self.active();
                (active.clone(), self.epoch.load(Ordering::SeqCst))
            };
            if let Some(queues) = queues {
                let _report = PanicReport(&self.name, &queues);
                self.work(&Work {
                    shared: self,
                    queues: &queues,
                    epoch,
                });
            }
            self.sleep();
        }
    }

    /// Serves the rings until they have been empty for [`SPIN`], and asks for a kick.
    fn work(&self, work: &Work<'_>) {
        let mut last = Instant::now();
        work.disarm();
        while !work.is_over() {
            if work.serve() {
                tell::pressure(&self.device, work.queues);
                last = Instant::now();
            } else if last.elapsed() < SPIN {
                std::hint::spin_loop();
            } else {
                // For what has been served: it would wake the thread for nothing.
                self.count_kicks();
                if !work.arm() {
                    return;
                }
                // Chains that came before notifications were on are not kicked for.
                work.disarm();
                last = Instant::now();
            }
        }
    }

    /// Sleeps until a doorbell rings or something else changes.
    fn sleep(&self) {
        let doorbells = self.rings.iter().map(|ring| borrowed(&ring.doorbell));
        let mut watched = vec![PollFd::new(&self.wake, PollFlags::IN)];
        watched.extend(doorbells.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        match poll(&mut watched, None) {
            Ok(_) | Err(Errno::INTR) => {}
            // The kernel has no memory for it now.
            Err(error) => {
                log::warn!("{} cannot wait for its guest: {error}", self.name);
                std::thread::sleep(RETRY);
            }
        }
        self.wake.clear();
        self.count_kicks();
    }

    /// Forgets the kicks so far.
    fn count_kicks(&self) {
        for ring in &self.rings {
            // The value is the number of kicks, each of which was an exit of the guest.
            if let Ok(kicks) = ring.doorbell.read() {
                self.device.metrics().count_doorbells(ring.index, kicks);
            }
        }
    }
}

/// The rings between an activation and a reset.
struct Work<'a> {
    shared: &'a Shared,
    queues: &'a Queues,
    epoch: u64,
}

impl Work<'_> {
    /// Whether the driver began anew, or there is nothing more to do.
    fn is_over(&self) -> bool {
        self.shared.stop.load(Ordering::SeqCst)
            || self.queues.is_stopping()
            || self.queues.interrupt().is_reset_needed()
            || self.shared.epoch.load(Ordering::SeqCst) != self.epoch
    }

    /// The queue of a ring, if it may be touched.
    fn lock(&self, index: u16) -> Option<MutexGuard<'_, Queue>> {
        let queue = self.queues.lock(index)?;
        let over = !queue.ready() || self.is_over();
        (!over).then_some(queue)
    }

    /// A turn of each ring. Whether there was something to serve.
    fn serve(&self) -> bool {
        let mut any = false;
        for ring in &self.shared.rings {
            let Some(mut queue) = self.lock(ring.index) else {
                continue;
            };
            let mem = self.queues.mem();
            let served =
                self.shared
                    .device
                    .poll_requests(ring.index, mem, &mut *queue, TURN, || false);
            any |= tell::served(served, &mut queue, self.queues).chains > 0;
        }
        any
    }

    /// Asks the guest to kick for its next chain. Whether there is one already, for which it will not.
    fn arm(&self) -> bool {
        self.change_notifications(|queue| queue.enable_notification(self.queues.mem()))
    }

    /// Tells the guest that no kicks are needed for now.
    fn disarm(&self) {
        self.change_notifications(|queue| {
            queue
                .disable_notification(self.queues.mem())
                .map(|()| false)
        });
    }

    fn change_notifications(
        &self,
        mut change: impl FnMut(&mut Queue) -> Result<bool, virtio_queue::Error>,
    ) -> bool {
        let mut more = false;
        for ring in &self.shared.rings {
            let Some(mut queue) = self.lock(ring.index) else {
                continue;
            };
            match change(&mut queue) {
                Ok(found) => more |= found,
                Err(error) => {
                    let corrupt = Err(QueueCorrupt::Ring(error));
                    let _: Progress = tell::served(corrupt, &mut queue, self.queues);
                }
            }
        }
        more
    }
}

fn borrowed(eventfd: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is open as long as the eventfd, which outlives the borrow.
    unsafe { BorrowedFd::borrow_raw(eventfd.as_raw_fd()) }
}
