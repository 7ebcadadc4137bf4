//! CPU time and memory of the service with 64 connected guests that do nothing.

use std::time::Duration;

use tmem_protocol::Status;

use crate::scale::Scale;
use crate::service::Served;
use tmem_testkit::corpus::page;
use tmem_testkit::frontend::TestGuest;
use tmem_testkit::report::Report;

const GUESTS: usize = 64;

pub(crate) fn measure(scale: &Scale, report: &mut Report) {
    let empty = Served::start(&[]).resident_bytes();
    let names: Vec<_> = (0..GUESTS).map(|number| format!("g{number}")).collect();
    let served = Served::start(&names);
    let guests: Vec<_> = names
        .iter()
        .map(|name| {
            // It has worked: its thread has used its stack and buffers. Then it gives its page back.
            let mut guest = TestGuest::boot(&served.socket(name));
            let pool = guest.create_pool();
            assert_eq!(guest.store(pool, 0, &page(1)), Status::Ok);
            assert_eq!(guest.load(pool, 0), Ok(page(1)));
            guest
        })
        .collect();
    std::thread::sleep(Duration::from_millis(200));
    let bytes = served.resident_bytes().saturating_sub(empty) / GUESTS as u64;
    let before = served.cpu_nanos();
    std::thread::sleep(scale.idle);
    let spent = served.cpu_nanos() - before;
    drop(guests);
    let percent = 100.0 * spent as f64 / scale.idle.as_nanos() as f64;
    println!("\n{GUESTS} idle guests, for {:?}", scale.idle);
    report.goal("idle_cpu_percent", percent, "<= 0.5");
    report.goal("idle_bytes_per_guest", bytes as f64, "<= 262144");
}
