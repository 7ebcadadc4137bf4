//! The tables, and the goals.

use anyhow::{Context, Result};
use serde_json::Value;
use tmem_testkit::report::Report;
use tmem_tests::exits::{All, Counted};

use crate::figures::{self, Fill, Op, Requests, Time, middle};
use crate::setup::{
    DISK, DISKS, Disk, FEW_MODES, MODES, Measured, ONE_CPU, RAM, SWAPS, SYNC, Scale, TMEM, ZRAM,
};
use crate::work::{PROGRAMS, Run, Worked};

/// Counts of the guests under KVM, or why there are none.
pub(crate) type Exits = Result<All, &'static str>;

/// What nothing is faster than.
pub(crate) fn floors(measured: &Measured, scale: &Scale, report: &mut Report) -> Result<()> {
    let Measured {
        console,
        codec,
        ideal,
    } = measured;
    let requests = Requests::two_cpus(console, scale.pages)?;
    let ram = |mode, op| requests.median(RAM, mode, op, Time::Mean);
    println!("floors, ns");
    let rows = [
        (
            "codec_compress_ns",
            codec.compress,
            "lz4, a page of the heap; on the host",
        ),
        (
            "codec_decompress_ns",
            codec.decompress,
            "the same page back; on the host",
        ),
        ("copy_ns", codec.copy, "a copy of the page; on the host"),
        (
            "ideal_store_ns",
            ideal.store,
            "store of a page at the service, ideal client on the host",
        ),
        ("ideal_load_ns", ideal.load, "load of a page"),
        (
            "ideal_store8_ns",
            ideal.store8,
            "store of eight pages in a request",
        ),
        (
            "ideal_load8_ns",
            ideal.load8,
            "load of eight pages in a request",
        ),
        (
            "ideal_wakeup_ns",
            ideal.wakeup,
            "a kick that wakes the service, more than one that does not",
        ),
        (
            "ram_store_ns",
            ram("random1", Op::Store)?,
            "request of a page to the ram disk, in the guest",
        ),
        (
            "ram_load_ns",
            ram("random1", Op::Load)?,
            "the same, reading",
        ),
        (
            "ram_store8_ns",
            ram("random8", Op::Store)?,
            "a page, in requests of eight",
        ),
        (
            "ram_load8_ns",
            ram("random8", Op::Load)?,
            "the same, reading",
        ),
    ];
    for (key, value, what) in rows {
        println!("  {key:22} {value:9.0}   {what}");
        report.put(key, value);
    }
    println!("  the heap's pages compress to {:.2}", codec.compressed);
    report.put("heap_compressed", codec.compressed);
    Ok(())
}

/// What requests cost.
pub(crate) fn requests(measured: &Measured, scale: &Scale, report: &mut Report) -> Result<()> {
    report.put("pages", f64::from(scale.pages));
    report.put("rounds", scale.rounds as f64);
    let two = Requests::two_cpus(&measured.console, scale.pages)?;
    println!(
        "\nrequests, ns a page above the ram disk; guest and service have a processor each; medians of {} rounds",
        scale.rounds
    );
    print_modes(&two, &DISKS, &MODES, "", report)?;
    let sync = Requests::two_cpus(&measured.console, scale.sync_pages)?;
    println!(
        "the same on a disk whose host file is written before the answer, without subtraction, {} pages",
        scale.sync_pages
    );
    for mode in FEW_MODES {
        let row = Row::of(mode, |op, time| sync.median(SYNC, mode, op, time))?;
        row.print(SYNC, "", report);
    }
    let one = Requests::one_cpu(&measured.console, scale.pages)?;
    println!(
        "the same with guest and service on one processor; medians of {} rounds",
        scale.one_cpu_rounds
    );
    print_modes(&one, &ONE_CPU, &FEW_MODES, "_one_cpu", report)
}

fn print_modes(
    requests: &Requests<'_>,
    disks: &[Disk],
    modes: &[&'static str],
    suffix: &str,
    report: &mut Report,
) -> Result<()> {
    println!("                              store    with what is done later     load");
    for mode in modes {
        for disk in disks.iter().filter(|disk| **disk != RAM) {
            let row = Row::of(mode, |op, time| requests.net(*disk, mode, op, time))?;
            row.print(*disk, suffix, report);
        }
    }
    Ok(())
}

/// What the pages of a disk take.
struct Row {
    mode: &'static str,
    store: f64,
    store_median: f64,
    store_whole: f64,
    load: f64,
    load_median: f64,
}

impl Row {
    fn of(mode: &'static str, get: impl Fn(Op, Time) -> Result<f64>) -> Result<Self> {
        Ok(Self {
            mode,
            store: get(Op::Store, Time::Mean)?,
            store_median: get(Op::Store, Time::Median)?,
            store_whole: get(Op::Store, Time::Whole)?,
            load: get(Op::Load, Time::Mean)?,
            load_median: get(Op::Load, Time::Median)?,
        })
    }

    fn print(&self, disk: Disk, suffix: &str, report: &mut Report) {
        let Self {
            mode,
            store,
            store_median,
            store_whole,
            load,
            load_median,
        } = *self;
        let name = disk.name;
        println!("  {mode:12} {name:12} {store:9.0} {store_whole:16.0} {load:18.0}");
        let key = format!("{name}_{mode}{suffix}");
        for (what, value) in [
            ("store", store),
            ("store_median", store_median),
            ("store_sustained", store_whole),
            ("load", load),
            ("load_median", load_median),
        ] {
            report.put(&format!("{key}_{what}_ns"), value);
        }
    }
}

/// What a task on swap needed.
pub(crate) fn swap(measured: &Measured, scale: &Scale, report: &mut Report) -> Result<()> {
    println!(
        "\nswap: a task that allocates {} MiB in a guest of {} MiB (a ram disk has {} of them), then reads it in order with \
         \na readahead of eight pages (disk and zswap; the kernel reads ahead on no disk that is synchronous), then at \
         \nrandom, page by page; every byte checked; medians of {} rounds",
        scale.work, scale.memory, scale.ram, scale.swap_rounds
    );
    println!(
        "                          allocate   reclaimed   for a reclaimed     in order     at random"
    );
    println!(
        "                                ms       pages          page, us    us, a page    us, a page"
    );
    for kind in ["anonymous", "file"] {
        for name in SWAPS {
            let fills = figures::fills(&measured.console, name, kind)?;
            let per_page = |phase: &str| -> Result<f64> {
                let phases = figures::phases(&measured.console, name, kind, phase)?;
                Ok(middle(&phases, |phase| phase.task / phase.pages / 1e3))
            };
            let row = [
                ("allocate_ms", middle(&fills, |fill| fill.all.task / 1e6)),
                ("reclaimed", middle(&fills, |fill| fill.all.reclaimed)),
                ("reclaim_us", middle(&fills, |fill| fill.reclaim() / 1e3)),
                ("sequential_us", per_page("sequential")?),
                ("random_us", per_page("random")?),
                ("reclaimed_per_s", middle(&fills, Fill::rate)),
                ("written", middle(&fills, |fill| fill.all.out)),
            ];
            let [allocate, reclaimed, reclaim, sequential, random, ..] =
                row.map(|(_, value)| value);
            println!(
                "  {kind:10} {name:12} {allocate:7.0} {reclaimed:11.0} {reclaim:17.1} {sequential:13.1} {random:13.1}"
            );
            for (key, value) in row {
                report.put(&format!("swap_{kind}_{name}_{key}"), value);
            }
        }
    }
    Ok(())
}

/// What the guests under KVM counted.
pub(crate) fn exits(exits: &Exits, report: &mut Report) {
    println!("\nexits for a page under KVM");
    let all = match exits {
        Ok(all) => all,
        Err(why) => return println!("  {why}"),
    };
    println!("                   stored    store    load in order   load at random   given up");
    for (guest, counts) in Counted::ALL.into_iter().zip(all) {
        println!(
            "  {:12} {:10.0} {:8.3} {:16.3} {:16.3} {:10.3}",
            guest.name(),
            counts.stored,
            counts.store,
            counts.load_cluster,
            counts.load_random,
            counts.invalidate
        );
    }
    let [inline, ..] = all;
    report.put("exits_pages", inline.stored);
    report.put("exits_per_invalidate", inline.invalidate);
}

/// What programs took.
pub(crate) fn work(worked: &[Worked], report: &mut Report) {
    println!(
        "\nprograms in a guest with a third of the memory that they need; with zram the guest has as much more memory as the \
         \nstore held; each result checked; medians of {} rounds",
        worked.first().map_or(0, |worked| worked.rounds.len())
    );
    for worked in worked {
        let Worked {
            program,
            need,
            roomy,
            rounds,
        } = worked;
        let name = program.name;
        println!("  {name}: {}; needs {need:.0} MiB", program.what);
        report.put(&format!("work_{name}_need_mib"), *need);
        print!("                  guest, MiB   store, MiB   pages out    pages in    seconds");
        println!(
            "   {}",
            program
                .parts
                .iter()
                .map(|part| format!("{part:>8}"))
                .collect::<String>()
        );
        let roomy: Vec<&Run> = vec![roomy];
        let [tmem, zram]: [Vec<&Run>; 2] = [
            rounds.iter().map(|(tmem, _)| tmem).collect(),
            rounds.iter().map(|(_, zram)| zram).collect(),
        ];
        for (swap, runs) in [("room", roomy), ("tmem", tmem), ("zram", zram)] {
            let of = |number: &dyn Fn(&Run) -> f64| middle(&runs, |run| number(run));
            let row = [
                ("guest_mib", of(&|run| f64::from(run.memory))),
                ("held_mib", of(&|run| run.held)),
                ("pages_out", of(&|run| run.pages_out)),
                ("pages_in", of(&|run| run.pages_in)),
                ("s", of(&Run::seconds)),
            ];
            let [guest, held, out, back, seconds] = row.map(|(_, value)| value);
            print!(
                "    {swap:10} {guest:13.0} {held:12.0} {out:11.0} {back:11.0} {seconds:10.2}   "
            );
            for (key, value) in row {
                report.put(&format!("work_{name}_{swap}_{key}"), value);
            }
            for (at, part) in program.parts.iter().enumerate() {
                let seconds = of(&|run| run.parts[at]);
                print!("{seconds:8.2}");
                report.put(&format!("work_{name}_{swap}_{part}_s"), seconds);
            }
            println!();
        }
    }
}

/// The goals of programs.
pub(crate) fn work_goals(worked: &[Worked], report: &mut Report) {
    let ratios = worked
        .iter()
        .map(|worked| (worked.program.name, worked.ratio()));
    for (name, ratio) in ratios.clone() {
        report.goal(&format!("work_{name}_vs_zram"), ratio, "<= 0.95");
    }
    let worst = ratios.map(|(_, ratio)| ratio).fold(0.0, f64::max);
    if worked.len() == PROGRAMS.len() {
        report.goal("work_vs_zram", worst, "<= 0.95");
    }
}

/// The goals of the demo, by the figures that it wrote.
pub(crate) fn demo_goals(figures: &Value, report: &mut Report) -> Result<()> {
    let ms = |swap: &str| {
        let key = format!("{swap}_ms");
        let value = figures.get(&key).and_then(Value::as_f64);
        value.with_context(|| format!("the demo's figures have no {key}"))
    };
    let tmem = ms("tmem")?;
    report.goal("demo_vs_zram", tmem / ms("zram")?, "<= 1.6");
    report.goal("demo_vs_disk", tmem / ms("disk")?, "<= 0.5");
    Ok(())
}

/// The goals of exits.
pub(crate) fn exit_goals(all: &All, report: &mut Report) {
    let [inline, thread, ahead, frontswap] = all;
    report.goal("exits_per_store", inline.store, "<= 0.15");
    report.goal("exits_per_store_thread", thread.store, "<= 0.07");
    report.goal("exits_per_load_cluster", ahead.load_cluster, "<= 0.2");
    report.goal(
        "exits_per_load_cluster_frontswap",
        frontswap.load_cluster,
        "<= 0.2",
    );
    report.goal("exits_per_load_random", inline.load_random, "<= 1.0");
    report.goal("interrupts_per_page_kvm", inline.interrupts, "<= 0");
}

/// The goals of requests and of a task on swap.
pub(crate) fn goals(measured: &Measured, scale: &Scale, report: &mut Report) -> Result<()> {
    let console = &measured.console;
    let counts = figures::counts(console)?;
    // As exact as the report: another process of the host may put the driver to sleep.
    let interrupts = (counts.interrupts * 1000.0).round() / 1000.0;
    report.goal("interrupts_per_page", interrupts, "<= 0");
    for (what, count) in [
        ("interrupts", counts.interrupts),
        ("doorbells", counts.doorbells),
        ("sleeps", counts.sleeps),
    ] {
        report.goal(&format!("{what}_per_1000_pages"), count * 1000.0, "");
    }

    let two = Requests::two_cpus(console, scale.pages)?;
    let one = Requests::one_cpu(console, scale.pages)?;
    // Nothing can be said of rounds in which other processes hid what zram takes.
    let ratio = |requests: &Requests<'_>, mode, op, time| -> Result<Option<f64>> {
        let zram = requests.net(ZRAM, mode, op, time)?;
        let tmem = requests.net(TMEM, mode, op, time)?;
        Ok((zram > 1.0).then(|| tmem / zram))
    };
    for (key, requests, mode, op, goal) in [
        ("store", &two, "random1", Op::Store, "<= 0.3"),
        ("store8", &two, "random8", Op::Store, "<= 0.5"),
        ("load", &two, "random1", Op::Load, "<= 1.4"),
        ("load8", &two, "random8", Op::Load, "<= 1.2"),
        ("store_one_cpu", &one, "random1", Op::Store, "<= 1.2"),
        ("store8_one_cpu", &one, "random8", Op::Store, ""),
        ("load_one_cpu", &one, "random1", Op::Load, ""),
    ] {
        let key = match key.strip_suffix("_one_cpu") {
            Some(key) => format!("{key}_vs_zram_one_cpu"),
            None => format!("{key}_vs_zram"),
        };
        let Some(mean) = ratio(requests, mode, op, Time::Mean)? else {
            println!("{key}: left out, zram took no more than the ram disk");
            continue;
        };
        report.goal(&key, mean, goal);
        if op == Op::Store
            && let Some(sustained) = ratio(requests, mode, op, Time::Whole)?
        {
            report.goal(&format!("{key}_sustained"), sustained, "");
        }
    }
    let load = two.net(TMEM, "random1", Op::Load, Time::Mean)?;
    let disk = two.net(DISK, "random1", Op::Load, Time::Mean)?;
    report.goal("load_vs_disk", load / disk.max(1.0), "");

    let fill = |name, kind, of: fn(&Fill) -> f64| -> Result<f64> {
        Ok(middle(&figures::fills(console, name, kind)?, of))
    };
    for (kind, key, goal) in [
        ("file", "reclaim", ">= 2"),
        ("anonymous", "reclaim_anonymous", ""),
    ] {
        let zram = fill("zram", kind, Fill::reclaim)?;
        for (suffix, of, goal) in [
            ("", Fill::reclaim as fn(&_) -> _, goal),
            ("_sustained", Fill::sustained_reclaim, ""),
        ] {
            let ratio = zram / fill("tmem", kind, of)?.max(1.0);
            report.goal(&format!("{key}_vs_zram{suffix}"), ratio, goal);
        }
        // The whole time of the task. That of the ram disk is the best that any disk could have.
        let zram = fill("zram", kind, Fill::rate)?;
        for (name, suffix) in [("tmem", ""), ("ram", "_of_ram")] {
            let ratio = fill(name, kind, Fill::rate)? / zram;
            report.goal(&format!("{key}_wall_vs_zram{suffix}"), ratio, "");
        }
    }
    Ok(())
}
