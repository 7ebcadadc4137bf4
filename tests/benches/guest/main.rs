//! `cargo xtask bench guest [--quick] [--json]`: what a page costs a guest whose driver is the real one.
//!
//! The benches of the service have a client that does what an ideal driver would. Here the ring is written and read by
//! ours, so that what it and the service cost each other shows: doorbells, interrupts, sleeps. A User Mode Linux guest
//! on one processor writes and reads pages of `/dev/tmemswap0`, of zram and of a ram disk (`images/workload/dio.c`), its
//! `tmem serve` is on another processor. What the ram disk takes is the price of a request and is subtracted from both.
//! Prints a table and writes `bench/guest.json` in the target directory.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "measured numbers are small"
)]

use anyhow::{Context, Result, ensure};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use tmem_testkit::report;
use tmem_tests::console::Console;
use tmem_tests::interrupts::taken;
use tmem_tests::service::Service;
use tmem_tests::uml::guest::{END, Guest, Setup};

const RAM: &str = "/dev/ram1";
const ZRAM: &str = "/dev/zram0";
const TMEM: &str = "/dev/tmemswap0";

/// How much to do.
struct Scale {
    /// Pages of each disk.
    pages: u32,
    /// Times that each disk has its turn, after one that does not count.
    rounds: usize,
}

fn main() -> Result<()> {
    let quick = std::env::args().any(|argument| argument == "--quick");
    let scale = if quick {
        Scale {
            pages: 2048,
            rounds: 5,
        }
    } else {
        Scale {
            pages: 4096,
            rounds: 21,
        }
    };
    let processors = processors()?;
    if processors.len() < 2 {
        println!("one processor: guest and service take turns, figures say little\n");
    }
    let console = run(&scale, &processors)?;

    let mut report = report::Report::default();
    report.put("processors", processors.len() as f64);
    report.put("pages", f64::from(scale.pages));
    report.put("rounds", scale.rounds as f64);
    println!("ns a page, medians of {} rounds:", scale.rounds);
    println!("                   store       load");
    let mut nets = Vec::new();
    let floor = [
        times(&console, RAM, "write", &scale)?,
        times(&console, RAM, "read", &scale)?,
    ];
    print_row("ram disk", &floor);
    for (device, name) in [(ZRAM, "zram"), (TMEM, "tmem")] {
        let net = [
            above(&times(&console, device, "write", &scale)?, &floor[0]),
            above(&times(&console, device, "read", &scale)?, &floor[1]),
        ];
        print_row(&format!("{name}, net"), &net);
        let [store, load] = net.map(|mut times| report::quantile(&mut times, 0.5));
        report.put(&format!("{name}_store_ns"), store);
        report.put(&format!("{name}_load_ns"), load);
        nets.push([store, load]);
    }
    let [mut stores, mut loads] = floor;
    report.put("floor_store_ns", report::quantile(&mut stores, 0.5));
    report.put("floor_load_ns", report::quantile(&mut loads, 0.5));
    println!();
    if let [zram, tmem] = nets[..] {
        report.goal("store_zram_ratio", tmem[0] / zram[0].max(1.0), "");
        report.goal("load_zram_ratio", tmem[1] / zram[1].max(1.0), "");
    }

    let grown = |name: &str| -> Result<f64> {
        let name = format!("tmem.{name}");
        Ok((console.counter("after", &name)? - console.counter("before", &name)?) as f64)
    };
    let thousands = (grown("block_stores_ok")? + grown("block_loads_ok")?) / 1000.0;
    let mut doorbells = 0.0;
    for why in ["page", "invalidate", "control", "again"] {
        doorbells += grown(&format!("kicks_{why}"))?;
    }
    let interrupts = taken(&console, "after")? - taken(&console, "before")?;
    for (what, count) in [
        ("interrupts", interrupts as f64),
        ("doorbells", doorbells),
        ("sleeps", grown("poll_timeouts")?),
    ] {
        report.goal(&format!("{what}_per_1000_pages"), count / thousands, "");
    }
    report.write("guest");
    Ok(())
}

/// Processors that this process may use.
fn processors() -> Result<Vec<usize>> {
    let allowed = sched_getaffinity(None).context("cannot ask for the processors")?;
    Ok((0..CpuSet::MAX_CPU)
        .filter(|processor| allowed.is_set(*processor))
        .collect())
}

/// Runs `start` on one processor, where what it starts stays.
fn on<T>(processor: usize, start: impl FnOnce() -> Result<T>) -> Result<T> {
    let before = sched_getaffinity(None)?;
    let mut set = CpuSet::new();
    set.set(processor);
    sched_setaffinity(None, &set).context("cannot choose a processor")?;
    let started = start();
    sched_setaffinity(None, &before)?;
    started
}

/// Boots the guest, which does all the work, and returns what it said.
fn run(scale: &Scale, processors: &[usize]) -> Result<Console> {
    let &first = processors.first().context("no processor")?;
    let &second = processors.get(1).unwrap_or(&first);
    let Scale { pages, rounds } = *scale;
    let kilobytes = u64::from(pages) * 4;
    let service = on(second, || {
        Service::start("256M", &[("vm1", &format!(",swap={kilobytes}K"))])
    })?;
    let turn = format!("dio {RAM} {pages}; dio {ZRAM} {pages}; dio {TMEM} {pages}");
    let commands = format!(
        "echo lz4 >/sys/block/zram0/comp_algorithm; echo {kilobytes}K >/sys/block/zram0/disksize; \
         turn() {{ {turn}; }}; turn >/tmp/first; counters before; irqs before; \
         for round in $(seq {rounds}); do turn; done; irqs after; counters after; {END}"
    );
    let words = format!("tmem=1 tmem.frontswap=0 brd.rd_size={kilobytes}");
    let setup = Setup {
        memory: "128M",
        words: &words,
        commands: &commands,
        ..Setup::default()
    };
    let socket = service.socket("vm1");
    on(first, || Guest::start(&socket, service.folder(), &setup))?.finish()
}

/// What each round's page took.
fn times(console: &Console, device: &str, what: &str, scale: &Scale) -> Result<Vec<u32>> {
    let prefix = format!("dio {device} {what} ");
    let lines = console.lines().iter();
    let times: Vec<u32> = lines
        .filter_map(|line| line.strip_prefix(&prefix))
        .map(|time| time.parse().with_context(|| format!("{prefix}{time}")))
        .collect::<Result<_>>()?;
    let whole = format!("dio {device} ok pages={}", scale.pages);
    let checked = console.lines().iter().filter(|line| **line == whole);
    ensure!(
        times.len() == scale.rounds && checked.count() == scale.rounds,
        "{device} did not get through {} rounds; the console:\n{}",
        scale.rounds,
        console.lines().join("\n")
    );
    Ok(times)
}

/// Each round's time above the floor of the same round.
fn above(times: &[u32], floor: &[u32]) -> Vec<u32> {
    let pairs = times.iter().zip(floor);
    pairs
        .map(|(time, floor)| time.saturating_sub(*floor))
        .collect()
}

fn print_row(name: &str, [stores, loads]: &[Vec<u32>; 2]) {
    let [store, load] = [stores, loads].map(|times| report::quantile(&mut times.clone(), 0.5));
    println!("{name:14} {store:9.0} {load:10.0}");
}
