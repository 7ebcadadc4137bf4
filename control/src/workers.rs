//! Threads for what takes its time. The first is there before anybody is served, so that an operation never needs what
//! the process may not have later.

use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;

use tokio::sync::oneshot;

type Job = Box<dyn FnOnce() + Send>;

/// A few threads, which end when this is dropped and they have nothing to do.
#[derive(Clone, Debug)]
pub(crate) struct Workers {
    jobs: mpsc::Sender<Job>,
    shared: Arc<Shared>,
}

struct Shared {
    jobs: Mutex<mpsc::Receiver<Job>>,
    most: usize,
    threads: AtomicUsize,
    /// Jobs that are done or wait.
    busy: AtomicUsize,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl Workers {
    /// Starts the first of at most `most` threads.
    ///
    /// # Errors
    /// The system has none.
    pub(crate) fn start(most: usize) -> io::Result<Self> {
        let (jobs, receiver) = mpsc::channel();
        let shared = Arc::new(Shared {
            jobs: Mutex::new(receiver),
            most,
            threads: AtomicUsize::new(0),
            busy: AtomicUsize::new(0),
        });
        let workers = Self { jobs, shared };
        workers.add_thread()?;
        Ok(workers)
    }

    /// Has something done. The answer never comes when that panics.
    pub(crate) fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> oneshot::Receiver<T> {
        let (answer, receiver) = oneshot::channel();
        let busy = self.shared.busy.fetch_add(1, SeqCst) + 1;
        let threads = self.shared.threads.load(SeqCst);
        if busy > threads
            && threads < self.shared.most
            && let Err(error) = self.add_thread()
        {
            log::debug!("No further thread for an operation, which waits: {error}");
        }
        let job = move || {
            // Nobody may wait for it any more.
            let _ = answer.send(job());
        };
        // The receiver lives as long as this does.
        let _ = self.jobs.send(Box::new(job));
        receiver
    }

    fn add_thread(&self) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        let thread = thread::Builder::new().name("tmem-operate".to_owned());
        thread.spawn(move || shared.work())?;
        self.shared.threads.fetch_add(1, SeqCst);
        Ok(())
    }
}

impl Shared {
    fn work(&self) {
        loop {
            // One waits with the lock, the others for it.
            let job = self
                .jobs
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .recv();
            let Ok(job) = job else { return };
            // What it leaves half done is its own; who waits for its answer hears that none comes.
            let _ = catch_unwind(AssertUnwindSafe(job));
            self.busy.fetch_sub(1, SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_are_done_at_a_time_up_to_the_number_of_threads_and_a_panic_costs_its_own_answer() {
        let workers = Workers::start(2).expect("starts");
        let (go, wait) = mpsc::channel::<()>();
        let slow = workers.run(move || wait.recv().is_ok());
        let panics = workers.run(|| -> u32 { panic!("a test has a job panic") });
        assert!(panics.blocking_recv().is_err());
        assert_eq!(
            workers.run(|| 7).blocking_recv(),
            Ok(7),
            "beside the slow one"
        );
        go.send(()).expect("waits");
        assert_eq!(slow.blocking_recv(), Ok(true));
        for number in 0..100 {
            assert_eq!(workers.run(move || number).blocking_recv(), Ok(number));
        }
        assert!(workers.shared.threads.load(SeqCst) <= 2);
    }
}
