//! `cargo bench -p tmem-store --bench store [-- --quick|--long]`: the store against its bare codec.
//!
//! Every ratio compares two things done alternately in one run on the same pages, so that what the
//! machine does meanwhile hits both. Prints tables and writes `bench/store.json` in the target directory.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap,
    reason = "measured numbers are small"
)]

mod compare;
mod density;
mod latency;
mod limit;
mod path;

use serde_json::Value;

use tmem_testkit::corpus;
use tmem_testkit::report::Report;

/// How much to do.
pub(crate) struct Scale {
    /// Pages of the mix.
    pub(crate) pages: usize,
    /// Pages of the latency test.
    pub(crate) latency_pages: usize,
    /// Times that short measurements are repeated.
    pub(crate) rounds: usize,
    /// How full the stores at a limit are.
    pub(crate) full: &'static [limit::Size],
}

fn main() {
    let args: Vec<_> = std::env::args().collect();
    let has = |name: &str| args.iter().any(|arg| arg == name);
    let scale = if has("--long") {
        Scale {
            pages: 240_000,
            latency_pages: 10_000_000,
            rounds: 9,
            full: &[limit::ONE, limit::FOUR, limit::SIXTEEN],
        }
    } else if has("--quick") {
        Scale {
            pages: 30_000,
            latency_pages: 400_000,
            rounds: 3,
            full: &[limit::SMALL],
        }
    } else {
        Scale {
            pages: 90_000,
            latency_pages: 1_500_000,
            rounds: 5,
            full: &[limit::ONE],
        }
    };
    let only = args.iter().find_map(|arg| arg.strip_prefix("--only="));
    let run = |part: &str| only.is_none_or(|only| only == part);

    let sources = corpus::sources(scale.pages / 3);
    let mut report = Report::default();
    corpus::print(&sources);
    let mix = corpus::mixed(&sources);
    report.value("pages", Value::from(mix.len()));

    if run("path") {
        path::codecs(&sources, &mut report);
        path::store_and_load(&mix, &mut report);
        path::dedup(&mix, &mut report);
        path::scaling(&mix, scale.rounds, &mut report);
    }
    if run("density") {
        density::density(&mix, &mut report);
        density::resident(&mix, &mut report);
        density::cold(&mix, &mut report);
    }
    if run("latency") {
        latency::tail(&mix, scale.latency_pages, &mut report);
    }
    if run("limit") {
        limit::full(scale.full, &mut report);
    }
    if run("compare") {
        compare::table(&mix, &mut report);
    }

    report.write("store");
}
