//! What the guest said, as numbers.

use anyhow::{Context, Result, ensure};
use tmem_testkit::report;
use tmem_tests::console::Console;
use tmem_tests::exits::doorbells;
use tmem_tests::interrupts::taken;

use crate::setup::{Disk, RAM};

/// What a request of a page may do.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    Store,
    Load,
}

/// Which of the times of a pass, ns a page.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Time {
    /// The median request.
    Median = 0,
    /// All requests but those in which the host ran something else.
    Mean = 1,
    /// The whole pass, and all that the driver did of it later.
    Whole = 2,
}

/// The times of requests of a part of the run.
pub(crate) struct Requests<'a> {
    lines: &'a [String],
    pages: u32,
}

/// A part of the console: from behind `guest pause AFTER`, or the beginning, to `guest pause UPTO`, or the end.
fn part<'a>(console: &'a Console, after: Option<&str>, upto: Option<&str>) -> Result<&'a [String]> {
    let lines = console.lines();
    let find = |name: &str| {
        let wanted = format!("guest pause {name}");
        let at = lines.iter().position(|line| *line == wanted);
        at.with_context(|| format!("no line \"{wanted}\" on the console"))
    };
    let from = after.map_or(Ok(0), find)?;
    let to = upto.map_or(Ok(lines.len()), find)?;
    lines
        .get(from..to)
        .context("the guest paused in a wrong order")
}

impl<'a> Requests<'a> {
    /// Those with guest and service on a processor each.
    pub(crate) fn two_cpus(console: &'a Console, pages: u32) -> Result<Self> {
        let lines = part(console, None, Some("requests"))?;
        Ok(Self { lines, pages })
    }

    /// Those with both on one.
    pub(crate) fn one_cpu(console: &'a Console, pages: u32) -> Result<Self> {
        let lines = part(console, Some("requests"), Some("one_cpu"))?;
        Ok(Self { lines, pages })
    }

    /// A time of each round; an error unless every round checked all bytes.
    pub(crate) fn times(&self, disk: Disk, mode: &str, op: Op, time: Time) -> Result<Vec<f64>> {
        let device = disk.device;
        let what = match op {
            Op::Store => "write",
            Op::Load => "read",
        };
        let prefix = format!("dio /dev/{device} {mode} {what} ");
        let times: Vec<f64> = self
            .lines
            .iter()
            .filter_map(|line| line.strip_prefix(&prefix))
            .map(|times| {
                let time = times.split_whitespace().nth(time as usize);
                let time = time.with_context(|| format!("{prefix}{times}"))?;
                time.parse().with_context(|| format!("{prefix}{times}"))
            })
            .collect::<Result<_>>()?;
        let whole = format!("dio /dev/{device} {mode} ok pages={}", self.pages);
        let checked = self.lines.iter().filter(|line| **line == whole).count();
        ensure!(
            !times.is_empty() && times.len() == checked,
            "{device} did not get through its rounds of {mode}; the console:\n{}",
            self.lines.join("\n")
        );
        Ok(times)
    }

    /// The median of the rounds.
    pub(crate) fn median(&self, disk: Disk, mode: &str, op: Op, time: Time) -> Result<f64> {
        Ok(report::median(&mut self.times(disk, mode, op, time)?))
    }

    /// What a page takes above the same request of the ram disk in the same round: the median of the rounds. Of the
    /// whole pass it is the lower quartile, as nothing takes out of it what other processes of the host did.
    pub(crate) fn net(&self, disk: Disk, mode: &str, op: Op, time: Time) -> Result<f64> {
        let times = self.times(disk, mode, op, time)?;
        let floor = self.times(RAM, mode, op, time)?;
        let pairs = times.iter().zip(&floor);
        let mut nets: Vec<f64> = pairs.map(|(time, floor)| (time - floor).max(0.0)).collect();
        if time == Time::Whole {
            nets.sort_by(f64::total_cmp);
            return Ok(nets[nets.len() / 4]);
        }
        Ok(report::median(&mut nets))
    }
}

/// What a phase of the task on swap took.
#[derive(Clone, Copy, Default)]
pub(crate) struct Phase {
    pub(crate) pages: f64,
    /// Nanoseconds of the task, and of what the driver did behind it.
    pub(crate) task: f64,
    pub(crate) drain: f64,
    pub(crate) reclaimed: f64,
    /// Pages that came from the swap disk, and that went there.
    pub(crate) in_: f64,
    pub(crate) out: f64,
}

impl Phase {
    /// Pages reclaimed a second of the task.
    pub(crate) fn rate(&self) -> f64 {
        self.reclaimed / (self.task / 1e9)
    }
}

/// How a task on swap got its memory.
#[derive(Clone, Copy)]
pub(crate) struct Fill {
    /// A part of it, for which there was room.
    pub(crate) room: Phase,
    pub(crate) all: Phase,
}

impl Fill {
    /// Nanoseconds for a page that was reclaimed: what the task took beyond allocating its pages where there is room.
    pub(crate) fn reclaim(&self) -> f64 {
        let allocating = self.room.task / self.room.pages * self.all.pages;
        (self.all.task - allocating).max(0.0) / self.all.reclaimed.max(1.0)
    }

    /// The same until the driver has done all of it.
    pub(crate) fn sustained_reclaim(&self) -> f64 {
        self.reclaim() + self.all.drain / self.all.reclaimed.max(1.0)
    }

    /// Pages reclaimed a second of the whole time.
    pub(crate) fn rate(&self) -> f64 {
        self.all.rate()
    }
}

/// The rounds in which a task got its memory.
pub(crate) fn fills(console: &Console, name: &str, kind: &str) -> Result<Vec<Fill>> {
    let room = phases(console, name, kind, "room")?;
    let all = phases(console, name, kind, "fill")?;
    let pairs = room.into_iter().zip(all);
    Ok(pairs.map(|(room, all)| Fill { room, all }).collect())
}

/// The rounds of a phase of the task on one swap disk; an error unless each checked all bytes.
pub(crate) fn phases(console: &Console, name: &str, kind: &str, phase: &str) -> Result<Vec<Phase>> {
    let lines = part(console, Some("one_cpu"), None)?;
    let prefix = format!("alloc {name} {kind} {phase} ");
    let found: Vec<Phase> = lines
        .iter()
        .filter_map(|line| line.strip_prefix(&prefix))
        .map(|words| read_phase(words).with_context(|| format!("{prefix}{words}")))
        .collect::<Result<_>>()?;
    let whole = format!("alloc {name} {kind} ok");
    let checked = lines.iter().filter(|line| **line == whole).count();
    ensure!(
        !found.is_empty() && found.len() == checked,
        "the task on {name} ({kind}) did not get its memory back; the console:\n{}",
        lines.join("\n")
    );
    Ok(found)
}

fn read_phase(words: &str) -> Option<Phase> {
    let mut phase = Phase::default();
    for word in words.split_whitespace() {
        let (key, value) = word.split_once('=')?;
        let field = match key {
            "pages" => &mut phase.pages,
            "ns" => &mut phase.task,
            "drain_ns" => &mut phase.drain,
            "reclaimed" => &mut phase.reclaimed,
            "in" => &mut phase.in_,
            "out" => &mut phase.out,
            _ => continue,
        };
        *field = value.parse().ok()?;
    }
    Some(phase)
}

/// The median of a number of the rounds.
pub(crate) fn middle<T>(rounds: &[T], number: impl Fn(&T) -> f64) -> f64 {
    report::median(&mut rounds.iter().map(number).collect::<Vec<_>>())
}

/// Counts of the requests, with a processor each, for a page of `/dev/tmemswap0`.
pub(crate) struct Counts {
    pub(crate) interrupts: f64,
    pub(crate) doorbells: f64,
    pub(crate) sleeps: f64,
}

/// By the counters of the guest. One that its driver does not have counts nothing.
pub(crate) fn counts(console: &Console) -> Result<Counts> {
    let counter = |moment: &str, name: &str| -> f64 {
        console
            .counter(moment, &format!("tmem.{name}"))
            .map_or(0.0, |count| count as f64)
    };
    let grown = |name: &str| counter("after", name) - counter("before", name);
    let pages = grown("block_stores_ok") + grown("block_loads_ok");
    ensure!(pages > 0.0, "the driver counted no page");
    let rung = |moment| doorbells(console, moment, |_| true) as f64;
    let interrupts = taken(console, "after")? - taken(console, "before")?;
    Ok(Counts {
        interrupts: interrupts as f64 / pages,
        doorbells: (rung("after") - rung("before")) / pages,
        sleeps: grown("poll_timeouts") / pages,
    })
}
