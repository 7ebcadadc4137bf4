//! `cargo xtask bench guest [--quick] [--json] [-- --no-kvm]`: what a page costs a guest, with the real driver, against
//! what people use.
//!
//! The benches of the service have a client that does what an ideal driver would. Here the ring is written and read by
//! ours. One User Mode Linux guest on one processor, whose `tmem serve` is on another, moves the pages of a program's
//! heap (`images/workload/heap.h`) to each disk and back in turns, first as requests of its own (`dio`), then as swap
//! (`alloc`). A guest under KVM, nested in an emulated machine where this one has no KVM, gives counts of exits. Prints
//! a table, and writes `bench/guest.json` in the target directory. docs/performance.md says what each figure is.
//!
//! | module | holds |
//! |---|---|
//! | `setup` | processors, the guest and its script |
//! | `floors` | what no driver can be faster than: codec, copy, a request of an ideal client |
//! | `figures` | what the guest said, as medians |
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
mod table;

use anyhow::Result;
use setup::Scale;
use tmem_testkit::report::Report;
use tmem_tests::{exits, platform};

fn main() -> Result<()> {
    let said = |word: &str| std::env::args().any(|argument| argument == word);
    let quick = said("--quick");
    let scale = if quick { Scale::QUICK } else { Scale::FULL };
    let mut report = Report::default();
    let processors = setup::processors()?;
    if processors.len() < 2 {
        println!("one processor: guest and service take turns, figures say little\n");
    }
    report.put("processors", processors.len() as f64);
    let load = setup::load()?;
    println!("processes that wanted a processor before this, on average of a minute: {load}\n");
    report.put("load_before", load);

    let measured = setup::run(&scale, &processors)?;
    table::floors(&measured, &scale, &mut report)?;
    table::requests(&measured, &scale, &mut report)?;
    table::swap(&measured, &scale, &mut report)?;

    // A machine that is emulated needs longer for this than the rest takes.
    let usable = platform::kvm_is_usable();
    let counted = match (said("--no-kvm"), usable, quick) {
        (true, ..) => Err("left out: --no-kvm"),
        (_, false, true) => {
            Err("left out: no usable KVM here, and --quick boots no emulated machine")
        }
        (_, true, _) => Ok(exits::run()?),
        (_, false, false) => {
            println!(
                "\nno usable KVM here: the guest under KVM runs nested in an emulated machine"
            );
            Ok(exits::nested()?)
        }
    };
    table::exits(&counted, &mut report);
    table::goals(&measured, &scale, &counted, &mut report)?;
    report.write("guest");
    Ok(())
}
