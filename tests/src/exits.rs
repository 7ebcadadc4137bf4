//! What pages cost a guest under KVM in exits: counts, which are the same on an emulated processor. For
//! `cargo xtask bench guest`.

use anyhow::{Context, Result, bail, ensure};

use crate::console::Console;
use crate::guest::{Guest, Machine, Setup};
use crate::outer::Outer;

/// Memory that is swapped out at once and read back: it all fits into the guest, so that reading stores nothing.
const WORK: &str = "16M";
/// Memory of the guest.
const MEMORY: &str = "64M";

/// Exits of the doorbell, and interrupts, for a page.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Counts {
    /// Pages that were swapped out.
    pub stored: f64,
    /// Exits for a page that is swapped out.
    pub store: f64,
    /// Exits for a page that is loaded in order, with a readahead of eight where the kernel reads ahead.
    pub load_cluster: f64,
    /// Exits for a page that is loaded alone.
    pub load_random: f64,
    /// Exits for a page that the guest gave up, which the figures of loads leave out.
    pub invalidate: f64,
    /// Interrupts for a page of all that were moved.
    pub interrupts: f64,
}

const PREFIX: &str = "exits ";

impl Counts {
    /// All of them, in the order of a line.
    fn all(&mut self) -> [&mut f64; 6] {
        [
            &mut self.stored,
            &mut self.store,
            &mut self.load_cluster,
            &mut self.load_random,
            &mut self.invalidate,
            &mut self.interrupts,
        ]
    }

    /// A line that [`Self::read`] understands.
    fn line(mut self, guest: &str) -> String {
        let numbers = self.all().map(|number| number.to_string());
        format!("{PREFIX}{guest} {}", numbers.join(" "))
    }

    /// The counts of a guest that a line has, if it is one of them.
    fn read(line: &str, guest: &str) -> Option<Self> {
        let numbers: Vec<f64> = line
            .strip_prefix(PREFIX)?
            .strip_prefix(guest)?
            .strip_prefix(' ')?
            .split(' ')
            .map(|word| word.parse().ok())
            .collect::<Option<_>>()?;
        let mut counts = Self::default();
        let all = counts.all();
        if numbers.len() != all.len() {
            return None;
        }
        all.into_iter()
            .zip(numbers)
            .for_each(|(to, from)| *to = from);
        Some(counts)
    }
}

/// A guest whose exits are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    /// Swaps to the swap disk, whose requests the thread of the processor serves within the exit.
    Inline,
    /// The same, with a thread of the host for stores.
    StoreThread,
    /// The kernel reads ahead on the swap disk, which says that it is not synchronous.
    ReadAhead,
    /// Frontswap, over a disk on which the kernel reads ahead.
    Frontswap,
}

impl Counted {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::Inline,
        Self::StoreThread,
        Self::ReadAhead,
        Self::Frontswap,
    ];

    /// What it is called.
    pub fn name(self) -> &'static str {
        match self {
            Self::Inline => "inline",
            Self::StoreThread => "store-thread",
            Self::ReadAhead => "read-ahead",
            Self::Frontswap => "frontswap",
        }
    }

    fn setup(self) -> (Setup, &'static str) {
        let block = "tmem=1 tmem.frontswap=0";
        let (words, swap) = match self {
            Self::Inline | Self::StoreThread => (block, "tmemswap0"),
            Self::ReadAhead => ("tmem=1 tmem.frontswap=0 tmem.sync=0", "tmemswap0"),
            Self::Frontswap => ("tmem=1", Machine::Kvm.disk()),
        };
        let options: &[&str] = match self {
            Self::StoreThread => &["--store-threads", "1"],
            _ => &["--store-threads", "0"],
        };
        let setup = Setup {
            memory: MEMORY.into(),
            kernel_words: words,
            disk: (self == Self::Frontswap).then_some(64 << 20),
            options,
            show: false,
            ..Setup::default()
        };
        (setup, swap)
    }
}

/// What [`Counted::ALL`] need, in that order.
pub type All = [Counts; Counted::ALL.len()];

/// How often the driver had rung a doorbell up to a moment, by all its counters `kicks_WHY` that `counts` wants by WHY.
pub fn doorbells(console: &Console, moment: &str, counts: impl Fn(&str) -> bool) -> u64 {
    let prefix = format!("counter {moment} tmem.kicks_");
    let lines = console.lines().iter();
    lines
        .filter_map(|line| line.strip_prefix(&prefix)?.split_once(' '))
        .filter(|(why, _)| counts(why))
        .filter_map(|(_, count)| count.trim().parse::<u64>().ok())
        .sum()
}

/// Runs the guests under `tmem run`, where KVM is usable, and calls `done` behind each.
///
/// # Errors
/// A guest did not do its work, or found a wrong byte.
pub fn run(mut done: impl FnMut(Counted, &Counts)) -> Result<All> {
    let mut all = All::default();
    for (guest, to) in Counted::ALL.into_iter().zip(&mut all) {
        *to = run_one(guest).with_context(|| format!("the guest {:?}", guest.name()))?;
        done(guest, to);
    }
    Ok(all)
}

fn run_one(guest: Counted) -> Result<Counts> {
    let (setup, swap) = guest.setup();
    // A driver that sends pages later is done with them at the next look.
    let commands = format!(
        "look() {{ at_wait; usleep 200000; counters $1; irqs $1; }}; cluster() {{ echo $1 >/proc/sys/vm/page-cluster; }}; \
         swap_on {swap}; hog size={WORK} kinds=text,pointer,random \
         phases=fill,wait,pageout,wait,verify,wait,pageout,wait,random,wait & \
         look filled; go; look out; cluster 3; go; look cluster; go; look again; cluster 0; go; look random; go; \
         wait $!; echo guest work $?; splats"
    );
    let console = Guest::start(&setup, &commands)?.finish()?;
    console.verified(1)?;
    counts(&console)
}

/// By the counters that the guest showed at its looks. One that its driver does not have counts nothing.
fn counts(console: &Console) -> Result<Counts> {
    let grown = |from: &str, to: &str, name: &str| {
        let at = |moment| {
            ["frontswap", "block"]
                .map(|user| console.counter(moment, &format!("tmem.{user}_{name}")))
                .into_iter()
                .map(|count| count.unwrap_or(0))
                .sum::<u64>()
        };
        at(to).saturating_sub(at(from))
    };
    let kicks = |from, to, counts: fn(&str) -> bool| {
        doorbells(console, to, counts).saturating_sub(doorbells(console, from, counts))
    };
    let for_pages = |from, to, what| -> Result<f64> {
        let pages = grown(from, to, what);
        ensure!(pages > 1000, "only {pages} {what} from {from} to {to}");
        let of_pages = |why: &str| !["invalidate", "control"].contains(&why);
        ratio(kicks(from, to, of_pages), pages)
    };
    let [first, last] = ["filled", "random"];
    let moved = grown(first, last, "stores_ok") + grown(first, last, "loads_ok");
    let given_up = grown(first, last, "invalidates_sent");
    let taken = |moment| crate::interrupts::taken(console, moment);
    Ok(Counts {
        stored: ratio(grown(first, "out", "stores_ok"), 1)?,
        store: for_pages(first, "out", "stores_ok")?,
        load_cluster: for_pages("out", "cluster", "loads_ok")?,
        load_random: for_pages("again", last, "loads_ok")?,
        invalidate: ratio(
            kicks(first, last, |why| why == "invalidate"),
            given_up.max(1),
        )?,
        interrupts: ratio(taken(last)?.saturating_sub(taken(first)?), moved)?,
    })
}

fn ratio(count: u64, of: u64) -> Result<f64> {
    let [count, of] = [count, of].map(u32::try_from);
    Ok(f64::from(count?) / f64::from(of?))
}

/// Runs the guests in the outer machine, and calls `done` behind each.
///
/// # Errors
/// As [`run`], and those of the machine.
pub fn nested(mut done: impl FnMut(Counted, &Counts)) -> Result<All> {
    let mut found = [None; Counted::ALL.len()];
    let mut lines = Vec::new();
    let status = Outer {
        arguments: "count-exits",
    }
    .run(|line| {
        for (guest, found) in Counted::ALL.into_iter().zip(&mut found) {
            if let (Some(counts), None) = (Counts::read(line, guest.name()), *found) {
                done(guest, &counts);
                *found = Some(counts);
            }
        }
        lines.push(line.to_owned());
    })?;
    if status != 0 {
        bail!("tmem-scenario ended with {status}:\n{}", lines.join("\n"));
    }
    let mut all = All::default();
    for ((guest, found), to) in Counted::ALL.into_iter().zip(found).zip(&mut all) {
        *to = found.with_context(|| format!("the machine told no counts of {}", guest.name()))?;
    }
    Ok(all)
}

/// What runs in the outer machine: [`run`], and the counts on lines.
///
/// # Errors
/// As [`run`].
pub fn tell() -> Result<()> {
    run(|guest, counts| println!("{}", counts.line(guest.name()))).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read_as_they_were_written() {
        let counts = Counts {
            stored: 4096.0,
            store: 1.0,
            load_cluster: 0.125,
            load_random: 1.0,
            invalidate: 0.015_625,
            interrupts: 0.0,
        };
        let read = |line: &str| Counts::read(line, "inline");
        assert_eq!(read(&counts.line("inline")), Some(counts));
        assert_eq!(read(&counts.line("frontswap")), None);
        assert_eq!(read("exits inline 1 2 3 4 5"), None);
        assert_eq!(read("exits inline 1 2 3 4 5 6 7"), None);
        assert_eq!(read("[ 1.0] exits inline 1 2 3 4 5 6"), None);
    }

    /// A console with these counters at each look, and no interrupts.
    fn console(counters: &[(&str, [u32; 5])]) -> Console {
        let looks = ["filled", "out", "cluster", "again", "random"];
        let mut lines = Vec::new();
        for (at, look) in looks.iter().enumerate() {
            lines.push(format!("irq {look} 4: 0 virtio0"));
            for (name, values) in counters {
                lines.push(format!("counter {look} tmem.{name} {}", values[at]));
            }
        }
        Console::new(lines)
    }

    #[test]
    fn doorbells_of_any_kind_count_for_pages_and_those_of_invalidates_do_not() {
        let found = counts(&console(&[
            ("block_stores_ok", [0, 4000, 4000, 8000, 8000]),
            ("block_loads_ok", [0, 0, 4000, 4000, 8000]),
            ("block_invalidates_sent", [0, 0, 3200, 3200, 6400]),
            ("kicks_page", [1, 1, 501, 1001, 5001]),
            ("kicks_staged", [0, 400, 400, 400, 400]),
            ("kicks_invalidate", [0, 0, 50, 50, 100]),
        ]));
        let expected = Counts {
            stored: 4000.0,
            store: 0.1,
            load_cluster: 0.125,
            load_random: 1.0,
            invalidate: 0.015_625,
            interrupts: 0.0,
        };
        assert_eq!(found.expect("all is there"), expected);
    }

    #[test]
    fn a_guest_that_swapped_nothing_gives_no_counts() {
        let error = counts(&console(&[("kicks_page", [0; 5])])).expect_err("no pages");
        assert!(error.to_string().contains("only 0 stores_ok"), "{error}");
    }
}
