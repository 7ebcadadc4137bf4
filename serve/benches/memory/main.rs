//! `cargo xtask bench memory [--quick]`: the cost of mapping a front end's memory, and of counting its untouched pages
//! before they are allocated.
//!
//! Prints a table and writes `bench/memory.json` in the target directory. Ratios are to a floor of the same turn; a
//! printed ratio is the median over all turns.
//!
//! | module | measures |
//! |---|---|
//! | `copy` | bytes of a guest through a mapping, and by `pread` and `pwrite` on its descriptor |
//! | `touch` | requests to a service that counts first touches, and to one that cannot |

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "measured numbers are small"
)]

mod copy;
#[path = "../../tests/host/mod.rs"]
mod host;
mod scale;
mod touch;

use scale::Scale;
use tmem_testkit::report::Report;

fn main() {
    let scale = if std::env::args().any(|argument| argument == "--quick") {
        Scale {
            turns: 7,
            copies: 20_000,
            requests: 1000,
        }
    } else {
        Scale {
            turns: 31,
            copies: 100_000,
            requests: 4000,
        }
    };
    let mut report = Report::default();
    let copied = copy::measure(&scale, &mut report);
    touch::measure(&scale, &copied, &mut report);
    report.write("memory");
}
