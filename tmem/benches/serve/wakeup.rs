//! What it costs this machine to wake a thread on another processor: the least that a kick of a worker
//! that sleeps can cost, and the time for which it pays to spin.

use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use crate::service::pin;
use tmem_testkit::report::median;

const TIMES: usize = 500;

/// Microseconds from the write to an eventfd to the return of `epoll_wait` in another thread, which has
/// slept for `pause`. Median.
pub(crate) fn measure(pause: Duration) -> f64 {
    let event = EventFd::new(0).expect("eventfd");
    let epoll = Epoll::new().expect("epoll");
    let watch = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, 0);
    epoll
        .ctl(ControlOperation::Add, event.as_raw_fd(), watch)
        .expect("an eventfd");
    let start = Instant::now();
    let now = || start.elapsed().as_nanos() as u64;
    let woken = AtomicU64::new(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            pin(None, 1);
            for _ in 0..TIMES {
                let mut events = [EpollEvent::default()];
                epoll.wait(-1, &mut events).expect("an eventfd");
                woken.store(now(), Ordering::Release);
            }
        });
        let mut times: Vec<f64> = (0..TIMES)
            .map(|_| {
                let asleep = Instant::now() + pause;
                while Instant::now() < asleep {
                    std::hint::spin_loop();
                }
                woken.store(0, Ordering::Release);
                let began = now();
                event.write(1).expect("an eventfd");
                loop {
                    match woken.load(Ordering::Acquire) {
                        0 => std::hint::spin_loop(),
                        at => break at.saturating_sub(began) as f64 / 1000.0,
                    }
                }
            })
            .collect();
        median(&mut times)
    })
}
