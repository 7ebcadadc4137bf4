//! `cargo xtask bench guest [--quick] [--json] [-- --no-kvm] [--only=PART]`: what a page costs a guest, with the real
//! driver, against what people use.
//!
//! The benches of the service have a client that does what an ideal driver would. Here the ring is written and read by
//! ours. One User Mode Linux guest on one processor, whose `tmem serve` is on another, moves the pages of a program's
//! heap (`images/workload/heap.h`) to each disk and back in turns, first as requests of its own (`dio`), then as swap
//! (`alloc`). Other guests run whole programs. Guests under KVM, nested in an emulated machine where this one has no KVM,
//! give counts of exits. PART is `pages`, `exits`, `work`, a program of it, or `demo`, which is what `cargo xtask demo`
//! found.
//!
//! Prints tables, and writes `bench/guest.json` in the target directory. docs/performance.md says what each figure is.
//!
//! | module | holds |
//! |---|---|
//! | `setup` | processors, the guest and its script |
//! | `floors` | what no driver can be faster than: codec, copy, a request of an ideal client |
//! | `figures` | what the guest said, as medians |
//! | `work`, `sources` | programs in a guest that is too small for them, and what they work on |
//! | `table` | the tables, and the goals |

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "measured numbers are small"
)]

mod figures;
mod floors;
mod setup;
mod sources;
mod table;
mod work;

use std::fs;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use setup::Scale;
use table::Exits;
use tmem_testkit::report::Report;
use tmem_tests::{exits, paths, platform};

/// What there is to run alone, with `--only=`.
const PARTS: [&str; 4] = ["pages", "exits", "work", "demo"];

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let said = |word: &str| arguments.iter().any(|argument| argument == word);
    let quick = said("--quick");
    let only = arguments
        .iter()
        .find_map(|argument| argument.strip_prefix("--only="));
    let program = |name: &str| work::PROGRAMS.iter().any(|program| program.name == name);
    if let Some(only) = only {
        ensure!(
            PARTS.contains(&only) || program(only),
            "--only= takes one of {PARTS:?}, or a program of \"work\""
        );
    }
    let wanted = |part: &str| only.is_none_or(|only| only == part);
    let works = only.is_none_or(|only| only == "work" || program(only));
    let (scale, work_scale) = if quick {
        (Scale::QUICK, work::Scale::QUICK)
    } else {
        (Scale::FULL, work::Scale::FULL)
    };
    let mut report = Report::default();
    let processors = setup::processors()?;
    if processors.len() < 2 {
        println!("one processor: guest and service take turns, figures say little\n");
    }
    report.put("processors", processors.len() as f64);
    let &first = processors.first().context("no processor")?;
    let two = [first, *processors.get(1).unwrap_or(&first)];
    let load = setup::load()?;
    println!("processes that wanted a processor before this, on average of a minute: {load}\n");
    report.put("load_before", load);

    let measured = wanted("pages")
        .then(|| setup::run(&scale, two))
        .transpose()?;
    if let Some(measured) = &measured {
        table::floors(measured, &scale, &mut report)?;
        table::requests(measured, &scale, &mut report)?;
        table::swap(measured, &scale, &mut report)?;
    }
    let worked = works
        .then(|| work::run(&work_scale, two, |name| wanted("work") || wanted(name)))
        .transpose()?;
    if let Some(worked) = &worked {
        table::work(worked, &mut report);
    }
    let exits = wanted("exits")
        .then(|| count_exits(said("--no-kvm"), quick))
        .transpose()?;
    if let Some(exits) = &exits {
        table::exits(exits, &mut report);
    }

    println!();
    if let Some(Ok(exits)) = &exits {
        table::exit_goals(exits, &mut report);
    }
    if let Some(measured) = &measured {
        table::goals(measured, &scale, &mut report)?;
    }
    if let Some(worked) = &worked {
        table::work_goals(worked, &mut report);
    }
    if wanted("demo") {
        match demo_figures()? {
            Some(figures) => table::demo_goals(&figures, &mut report)?,
            None => println!("demo_vs_zram, demo_vs_disk: run `cargo xtask demo` first"),
        }
    }
    report.write("guest");
    Ok(())
}

/// A machine that is emulated needs minutes for this.
fn count_exits(left_out: bool, quick: bool) -> Result<Exits> {
    let done = |guest: exits::Counted, counts: &exits::Counts| {
        let name = guest.name();
        setup::say(&format!("exits {name}: {:.3} for a store", counts.store));
    };
    match (left_out, platform::kvm_is_usable(), quick) {
        (true, ..) => Ok(Err("left out: --no-kvm")),
        (_, false, true) => Ok(Err(
            "left out: no usable KVM here, and --quick boots no emulated machine",
        )),
        (_, true, _) => Ok(Ok(exits::run(done)?)),
        (_, false, false) => {
            setup::say(
                "\nno usable KVM here: the guests under KVM run nested in an emulated machine",
            );
            Ok(Ok(exits::nested(done)?))
        }
    }
}

/// What the last `cargo xtask demo` wrote, if there was one.
fn demo_figures() -> Result<Option<Value>> {
    let file = paths::target().join("bench/demo.json");
    if !file.exists() {
        return Ok(None);
    }
    let text = fs::read_to_string(&file)?;
    let figures = serde_json::from_str(&text);
    figures.with_context(|| format!("{} is no JSON", file.display()))
}
