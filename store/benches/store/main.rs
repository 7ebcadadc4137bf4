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
mod latency;
mod pages;
mod path;
mod room;

use std::path::PathBuf;

use serde_json::{Map, Value};
use tmem_store::Page;

/// How much to do.
pub(crate) struct Scale {
    /// Pages of the mix.
    pub(crate) pages: usize,
    /// Pages of the latency test.
    pub(crate) latency_pages: usize,
    /// Times that short measurements are repeated.
    pub(crate) rounds: usize,
}

/// What is written to `store.json`.
#[derive(Default)]
pub(crate) struct Report(Map<String, Value>);

impl Report {
    pub(crate) fn put(&mut self, key: &str, value: f64) {
        let rounded = (value * 1000.0).round() / 1000.0;
        self.0.insert(key.to_owned(), Value::from(rounded));
    }

    pub(crate) fn goal(&mut self, key: &str, value: f64, goal: &str) {
        println!("{key:34} {value:10.3}   goal {goal}");
        self.put(key, value);
    }

    pub(crate) fn value(&mut self, key: &str, value: Value) {
        self.0.insert(key.to_owned(), value);
    }
}

fn target_dir() -> PathBuf {
    // target/release/deps/store-HASH
    let exe = std::env::current_exe().expect("path of this program");
    exe.ancestors()
        .nth(3)
        .expect("inside a target directory")
        .to_owned()
}

fn main() {
    let args: Vec<_> = std::env::args().collect();
    let has = |name: &str| args.iter().any(|arg| arg == name);
    let scale = if has("--long") {
        Scale {
            pages: 240_000,
            latency_pages: 10_000_000,
            rounds: 9,
        }
    } else if has("--quick") {
        Scale {
            pages: 30_000,
            latency_pages: 400_000,
            rounds: 3,
        }
    } else {
        Scale {
            pages: 90_000,
            latency_pages: 1_500_000,
            rounds: 5,
        }
    };
    let only = args.iter().find_map(|arg| arg.strip_prefix("--only="));
    let run = |part: &str| only.is_none_or(|only| only == part);

    let sources = pages::sources(scale.pages / 3);
    let mut report = Report::default();
    println!("pages: without those that repeat one word");
    for source in &sources {
        println!(
            "  {:28} {:7} pages, {:6} more repeat a word",
            source.name,
            source.pages.len(),
            source.filled
        );
    }
    let mix = mixed(&sources);
    report.value("pages", Value::from(mix.len()));

    if run("path") {
        path::codecs(&sources, &mut report);
        path::store_and_load(&mix, &mut report);
        path::dedup(&mix, &mut report);
        path::scaling(&mix, scale.rounds, &mut report);
    }
    if run("room") {
        room::density(&mix, &mut report);
        room::resident(&mix, &mut report);
        room::cold(&mix, &mut report);
    }
    if run("latency") {
        latency::tail(&mix, scale.latency_pages, &mut report);
    }
    if run("compare") {
        compare::table(&mix, &mut report);
    }

    let dir = target_dir().join("bench");
    std::fs::create_dir_all(&dir).expect("target directory is writable");
    let file = dir.join("store.json");
    let text = serde_json::to_string_pretty(&Value::Object(report.0)).expect("plain values");
    std::fs::write(&file, text + "\n").expect("target directory is writable");
    println!("\nwritten to {}", file.display());
}

/// All pages, the sources taking turns.
fn mixed(sources: &[pages::Source]) -> Vec<Page> {
    let longest = sources.iter().map(|s| s.pages.len()).max().unwrap_or(0);
    let mut mix = Vec::new();
    for at in (0..longest).step_by(8) {
        for source in sources {
            mix.extend(source.pages.iter().skip(at).take(8));
        }
    }
    mix
}

/// The value below which `fraction` of the samples lie.
pub(crate) fn quantile(samples: &mut [u32], fraction: f64) -> f64 {
    assert!(!samples.is_empty());
    let at = ((samples.len() - 1) as f64 * fraction) as usize;
    f64::from(*samples.select_nth_unstable(at).1)
}
