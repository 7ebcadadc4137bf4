//! `cargo bench -p tmem --bench serve [-- --quick]`: what it costs that the store is in another process.
//!
//! The other process is the `tmem serve` of this build, reached over its vhost-user socket: real
//! messages, a split ring in a memfd, kicks and interrupts through eventfds. Prints a table and writes
//! `bench/serve.json` in the target directory.
//!
//! | module | measures |
//! |---|---|
//! | `path` | requests through the ring of the service, against the same requests served inline |
//! | `batch` | where the time of a request of 1, 8 and 32 pages goes |
//! | `wakeup` | what it costs this machine to wake a thread |
//! | `idle` | CPU time and memory of 64 connected guests that do nothing |
//! | `neighbour` | latencies of a guest while another one does harm |
//! | `service` | (`tmem serve` as a child process) |

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap,
    reason = "measured numbers are small"
)]

mod batch;
mod idle;
mod neighbour;
mod path;
mod scale;
mod service;
mod wakeup;

use std::time::Duration;

use scale::Scale;
use tmem_testkit::{corpus, report};

fn main() {
    let args: Vec<_> = std::env::args().collect();
    let scale = if args.iter().any(|arg| arg == "--quick") {
        Scale {
            pages: 2048,
            rounds: 7,
            requests: 1000,
            idle: Duration::from_secs(3),
            neighbour: Duration::from_millis(200),
        }
    } else {
        Scale {
            pages: 4096,
            rounds: 25,
            requests: 2000,
            idle: Duration::from_secs(10),
            neighbour: Duration::from_millis(500),
        }
    };
    let only = args.iter().find_map(|arg| arg.strip_prefix("--only="));
    let run = |part: &str| only.is_none_or(|only| only == part);

    let mut report = report::Report::default();
    if run("path") {
        let sources = corpus::sources(scale.pages / 2);
        let mut mix = corpus::mixed(&sources);
        mix.truncate(scale.pages);
        corpus::print(&sources);
        path::with(&mix, |bench| {
            path::rows(bench, &mix, &scale, &mut report);
            batch::rows(bench, &mix, &scale, &mut report);
        });
    }
    if run("idle") {
        idle::measure(&scale, &mut report);
    }
    if run("neighbour") {
        neighbour::measure(&scale, &mut report);
    }
    report.write("serve");
}
