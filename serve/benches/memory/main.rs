//! `cargo xtask bench memory [--quick]`: what it costs that a front end's memory is mapped, and that the pages of it that
//! nobody has touched are counted before they are made.
//!
//! Prints a table and writes `bench/memory.json` in the target directory. Ratios are to a floor of the same turn; a ratio
//! is the median of those of all turns.
//!
//! | module | measures |
//! |---|---|
//! | `copy` | bytes of a guest through a mapping, and by `pread` and `pwrite` on its descriptor |
//! | `touch` | requests to a service that counts first touches, and to one that cannot |
//! | `lane` | (the driver's side of one ring) |

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "measured numbers are small"
)]

mod copy;
#[path = "../../tests/guest/mod.rs"]
mod guest;
#[path = "../../../tmem/benches/serve/lane.rs"]
#[allow(dead_code, reason = "another benchmark uses the rest")]
mod lane;
#[path = "../../../store/benches/store/report.rs"]
#[allow(dead_code, reason = "another benchmark uses the rest")]
mod report;
mod touch;

use report::Report;

/// How much to do.
pub(crate) struct Scale {
    /// Times that each side has its turn.
    turns: usize,
    /// Copies of one turn.
    copies: u32,
    /// Requests of one turn.
    requests: u64,
}

/// Nanoseconds of a floor and of what is compared with it: medians of the turns, and of their ratios.
pub(crate) struct Compared {
    pub(crate) floor: f64,
    pub(crate) other: f64,
    pub(crate) ratio: f64,
}

impl Compared {
    /// Turn by turn, as the machine is not the same all the time.
    pub(crate) fn of(turns: usize, mut turn: impl FnMut() -> (f64, f64)) -> Self {
        let (mut floors, mut others, mut ratios) = (vec![], vec![], vec![]);
        for _ in 0..turns {
            let (floor, other) = turn();
            floors.push(floor);
            others.push(other);
            ratios.push(other / floor);
        }
        Self {
            floor: median(&mut floors),
            other: median(&mut others),
            ratio: median(&mut ratios),
        }
    }

    /// A row of the table, and of the report.
    pub(crate) fn print(&self, key: &str, report: &mut Report) {
        let Self {
            floor,
            other,
            ratio,
        } = self;
        println!("  {key:26} {floor:9.0} {other:11.0} {ratio:9.3}");
        report.put(&format!("{key}_floor_ns"), *floor);
        report.put(&format!("{key}_ns"), *other);
        report.put(&format!("{key}_ratio"), *ratio);
    }
}

pub(crate) fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

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
