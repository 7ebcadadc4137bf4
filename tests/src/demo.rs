//! The demo: a guest of 96 MiB works on 256 MiB, watched from the host; then the same work over a swap disk and
//! over zram in the guest, in a table.

use std::fs;
use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};

use crate::guest::{Guest, Poll, Setup};
use crate::stats::Stats;

const GUEST_MIB: u64 = 96;
const WORK_MIB: u64 = 256;
const MIB: u64 = 1 << 20;
/// Readahead as the kernel has it, eight pages; the guest's init turns it off otherwise. On zram there is none.
const READAHEAD: &str = "test.page_cluster=3";
/// Readahead on the driver's disk, too: eight pages for one exit.
const TMEM_WORDS: &str = "tmem=1 tmem.sync=0 test.page_cluster=3";
/// Time between two lines of the live view.
const GLANCE: Duration = Duration::from_secs(1);
/// The same under emulation, where asking for the stats takes the guest's time.
const NESTED_GLANCE: Duration = Duration::from_secs(5);
/// Time without anything from a guest until it is given up.
const PATIENCE: Duration = Duration::from_secs(240);

/// Begins the line with the figures.
const FIGURES: &str = "demo figures ";

/// The figures of the demo, an object of JSON, if this line of its output has them. For each of `tmem`, `disk` and `zram`
/// there are `_ms`, the time of the work; `_major_faults`; `_host_mib`, memory of the host; `_file_mib`, blocks of the
/// swap disk; and `_exits`, where the host's kernel tells them.
pub fn figures(line: &str) -> Option<Value> {
    serde_json::from_str(line.strip_prefix(FIGURES)?).ok()
}

/// What one guest needed.
struct Row {
    /// What it swapped to.
    key: &'static str,
    name: &'static str,
    milliseconds: u64,
    major_faults: u64,
    memory: u64,
    file: u64,
    exits: Option<u64>,
}

/// Runs the demo; an error if any guest did not verify every byte.
pub fn run() -> Result<()> {
    say(&format!(
        "A guest of {GUEST_MIB} MiB works on {WORK_MIB} MiB: pages of zeros, repeated words, text, pointers and random \
         bytes.\nWhat does not fit goes to host memory through tmem.\n"
    ));
    let (tmem, store) = with_tmem()?;
    say("\nThe same work in the same guest, with a swap disk on a host file:");
    let disk = compared(
        "disk",
        "(b) virtio-blk swap disk",
        &Setup {
            tmem: None,
            kernel_words: READAHEAD,
            disk: Some((WORK_MIB + GUEST_MIB) * MIB),
            memory: format!("{GUEST_MIB}M"),
            show: false,
            ..Setup::default()
        },
        "swap_on vda",
    )?;
    // A multiple of what the processor maps as one, as the memory of the other guests is.
    let zram_memory = (GUEST_MIB + store.div_ceil(MIB)).next_multiple_of(2);
    say(&format!(
        "\nAnd with zram in the guest, which gets the memory the store used: {zram_memory} MiB in all:"
    ));
    let zram = compared(
        "zram",
        "(c) zram in the guest",
        &Setup {
            tmem: None,
            kernel_words: READAHEAD,
            memory: format!("{zram_memory}M"),
            show: false,
            ..Setup::default()
        },
        &format!("zram_on {}M", WORK_MIB + GUEST_MIB),
    )?;
    let rows = [tmem, disk, zram];
    table(&rows);
    say(&format!("{FIGURES}{}", written(&rows)));
    Ok(())
}

fn work() -> String {
    format!("work size={WORK_MIB}M phases=fill; splats; pause end")
}

fn with_tmem() -> Result<(Row, u64)> {
    let setup = Setup {
        memory: format!("{GUEST_MIB}M"),
        tmem: Some("512M"),
        kernel_words: TMEM_WORDS,
        show: false,
        ..Setup::default()
    };
    let mut guest = Guest::start(&setup, &format!("swap_on tmemswap0; {}", work()))?;
    let start = Instant::now();
    let mut progress = String::from("booting");
    let mut last = start;
    let mut heard = start;
    let mut peak = 0;
    let end = loop {
        match guest.poll(Duration::from_millis(200))? {
            Poll::Line(line) => {
                heard = Instant::now();
                if let Some(words) = line.strip_prefix("progress ") {
                    progress = progress_of(words).unwrap_or(progress);
                } else if line.starts_with("guest up") {
                    progress = "up".into();
                } else if line == "guest pause end" {
                    break guest.stats()?;
                }
            }
            Poll::Nothing => ensure!(heard.elapsed() < PATIENCE, "the guest is silent"),
            Poll::Ended => break Stats::default(),
        }
        if last.elapsed() >= glance_every() {
            last = Instant::now();
            // Until the control socket is there, nothing is known of the store.
            let stats = guest.stats().unwrap_or_default();
            peak = peak.max(stats.get("/bytes_used"));
            say(&glance(start.elapsed(), &progress, &stats));
        }
    };
    peak = peak.max(end.get("/bytes_used"));
    say(&glance(start.elapsed(), "done", &end));
    let mut row = row("tmem", "(a) tmem", guest)?;
    // The store's segments are a file in memory that is not mapped, so they are not in the process's figure.
    row.memory += peak;
    Ok((row, peak))
}

/// `phase=fill pages=65536 done=1234` in words.
fn progress_of(words: &str) -> Option<String> {
    let value = |key: &str| {
        words
            .split_whitespace()
            .find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
    };
    let mib = |key| Some(value(key)?.parse::<u64>().ok()? * 4096 / MIB);
    Some(format!(
        "{} {} of {} MiB",
        value("phase")?,
        mib("done")?,
        mib("pages")?
    ))
}

fn glance_every() -> Duration {
    if crate::paths::inside_outer() {
        NESTED_GLANCE
    } else {
        GLANCE
    }
}

/// One line of the live view.
fn glance(since: Duration, progress: &str, stats: &Stats) -> String {
    let stored = stats.device("pages_stored");
    let loaded = stats.device("pages_loaded");
    let exits = stats.device("doorbell_exits");
    let held = stats.get("/pages") * 4096;
    let used = stats.get("/bytes_used");
    format!(
        "{:>4} s  {progress:<26} stored {stored:>7}  loaded {loaded:>7}  held {:>4} MiB in {:>3} MiB ({})  {} exits/page",
        since.as_secs(),
        held / MIB,
        used.div_ceil(MIB),
        hundredths(held, used).map_or("-".into(), |ratio| format!("{ratio}:1")),
        hundredths(exits, stored + loaded).unwrap_or_else(|| "-".into()),
    )
}

/// `a / b` with two digits after the point.
fn hundredths(a: u64, b: u64) -> Option<String> {
    let ratio = (a * 100).checked_div(b)?;
    Some(format!("{}.{:02}", ratio / 100, ratio % 100))
}

fn compared(key: &'static str, name: &'static str, setup: &Setup, swap_on: &str) -> Result<Row> {
    let mut guest = Guest::start(setup, &format!("{swap_on}; {}", work()))?;
    let start = Instant::now();
    let mut last = start;
    let mut heard = start;
    loop {
        match guest.poll(Duration::from_millis(200))? {
            Poll::Line(line) => {
                heard = Instant::now();
                if line == "guest pause end" {
                    break;
                }
                if let Some(words) = line.strip_prefix("progress ")
                    && last.elapsed() >= glance_every()
                {
                    last = Instant::now();
                    let progress = progress_of(words).unwrap_or_default();
                    say(&format!("{:>4} s  {progress}", start.elapsed().as_secs()));
                }
            }
            Poll::Nothing => ensure!(heard.elapsed() < PATIENCE, "the guest is silent"),
            Poll::Ended => break,
        }
    }
    row(key, name, guest)
}

/// Stats of a guest in its last pause; then its end, which must be good.
fn row(key: &'static str, name: &'static str, mut guest: Guest) -> Result<Row> {
    let memory = guest.host_memory();
    let file = guest.disk_used().unwrap_or(0);
    let exits = exits_of(guest.process());
    // A guest that ended early has no open console; its end below says why.
    let _ = guest.go_on();
    let console = guest.finish()?;
    console.verified(1)?;
    let line = console
        .lines()
        .iter()
        .find(|line| line.starts_with("verify ok "))
        .context("verified")?;
    say(line);
    let value = |key: &str| -> Result<u64> {
        let found = line
            .split_whitespace()
            .find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
        Ok(found
            .with_context(|| format!("no {key} in {line:?}"))?
            .parse()?)
    };
    Ok(Row {
        key,
        name,
        milliseconds: value("ms")?,
        major_faults: value("majflt")?,
        memory: memory?,
        file,
        exits,
    })
}

/// All exits of a guest, where the kernel's debugfs can be read.
fn exits_of(process: u32) -> Option<u64> {
    let entries = fs::read_dir("/sys/kernel/debug/kvm").ok()?;
    let own = |name: &str| name.split('-').next() == Some(process.to_string().as_str());
    let folder = entries
        .flatten()
        .find(|entry| own(&entry.file_name().to_string_lossy()))?;
    fs::read_to_string(folder.path().join("exits"))
        .ok()?
        .trim()
        .parse()
        .ok()
}

/// What [`figures`] reads.
fn written(rows: &[Row]) -> Value {
    let mut all = Map::new();
    let mut put = |key: String, value: Value| drop(all.insert(key, value));
    put("nested".into(), json!(crate::paths::inside_outer()));
    for row in rows {
        let Row {
            key,
            name: _,
            milliseconds,
            major_faults,
            memory,
            file,
            exits,
        } = *row;
        put(format!("{key}_ms"), json!(milliseconds));
        put(format!("{key}_major_faults"), json!(major_faults));
        put(format!("{key}_host_mib"), json!(memory.div_ceil(MIB)));
        put(format!("{key}_file_mib"), json!(file.div_ceil(MIB)));
        if let Some(exits) = exits {
            put(format!("{key}_exits"), json!(exits));
        }
    }
    Value::Object(all)
}

fn table(rows: &[Row]) {
    say(&format!(
        "\n{:<26}{:>9}{:>14}{:>30}{:>12}",
        "", "time", "major faults", "host memory", "exits"
    ));
    for row in rows {
        let file = match row.file {
            0 => String::new(),
            size => format!(" + {} MiB of file", size.div_ceil(MIB)),
        };
        say(&format!(
            "{:<26}{:>7}.{} s{:>14}{:>30}{:>12}",
            row.name,
            row.milliseconds / 1000,
            row.milliseconds % 1000 / 100,
            row.major_faults,
            format!("{} MiB{file}", row.memory.div_ceil(MIB)),
            row.exits
                .map_or("unknown".into(), |exits| exits.to_string()),
        ));
    }
    say(
        "(a) and (b) load up to eight pages with an exit of the guest, (c) loads each page without; (a) and (c) have the same memory \
         in all.",
    );
    if crate::paths::inside_outer() {
        say(
            "The times are those of an emulated processor, where an exit to the host's process costs about 0.3 ms, a hundred times \
             what it does\non a real one. Compare faults, memory and exits.",
        );
    }
    say("\nEvery guest verified every byte.");
}

fn say(text: &str) {
    println!("{text}");
    // Lost only when there is no reader any more.
    let _ = std::io::stdout().flush();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_as_they_were_written() {
        let row = |key, exits| Row {
            key,
            name: "(a)",
            milliseconds: 54_136,
            major_faults: 65_569,
            memory: 187 * MIB - 1,
            file: 0,
            exits,
        };
        let expected = written(&[row("tmem", Some(98_987)), row("zram", None)]);
        let found = figures(&format!("{FIGURES}{expected}")).expect("figures");
        assert_eq!(found, expected);
        assert_eq!(found["tmem_ms"], 54_136);
        assert_eq!(found["tmem_host_mib"], 187);
        assert_eq!(found["tmem_exits"], 98_987);
        assert!(found.get("zram_exits").is_none(), "{found}");
        assert_eq!(figures("Every guest verified every byte."), None);
    }
}
