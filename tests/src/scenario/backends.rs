//! Which way a page takes: frontswap, our swap disk, zswap or a disk; and what a page costs on ours.

use anyhow::{Context, Result, ensure};

use super::entry::Scenario;
use crate::console::Console;
use crate::guest::{Guest, Machine, Setup};

/// The scenarios of this file, and what each runs on.
pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::on_kvm("exits", exits),
    Scenario::anywhere("frontswap-alone", frontswap_alone),
    Scenario::anywhere("block-alone", block_alone),
    Scenario::anywhere("off", off),
    Scenario::anywhere("zswap", zswap),
];

const MIB: u64 = 1 << 20;
/// Exits allowed for each page that is stored or loaded.
const EXITS_PER_PAGE: f64 = 1.05;
/// Exits allowed for each page that is stored: eight pages share one, and what is left after 20 ms is sent as it is.
pub(super) const EXITS_PER_STORE: f64 = 0.25;

fn frontswap_alone(machine: Machine) -> Result<()> {
    let setup = Setup {
        kernel_words: "tmem=1 tmem.swap=0",
        disk: Some(256 * MIB),
        ..Setup::on(machine)
    };
    let mut guest = Guest::start(
        &setup,
        &format!(
            "ls /dev/tmemswap0; swap_on {}; work size=48M phases=fill; splats; pause end; counters end",
            machine.disk()
        ),
    )?;
    guest.wait_for("guest pause end")?;
    let disk = guest.disk_used()?;
    guest.go_on()?;
    let console = guest.finish()?;
    console.verified(1)?;
    ensure!(
        !console.lines().iter().any(|line| line == "/dev/tmemswap0"),
        "tmem.swap=0, and there is a swap disk"
    );
    ensure!(
        console.counter("end", "tmem.frontswap_stores_ok")? > 0,
        "frontswap stored nothing"
    );
    ensure!(
        console.counter("end", "tmem.block_stores_ok")? == 0,
        "the swap disk stored something"
    );
    // The swap area's header is all a disk gets.
    ensure!(disk <= 64 << 10, "{disk} bytes went to the disk");
    Ok(())
}

fn block_alone(machine: Machine) -> Result<()> {
    let setup = Setup {
        kernel_words: "tmem=1 tmem.frontswap=0",
        ..Setup::on(machine)
    };
    let console = Guest::start(
        &setup,
        "swap_on tmemswap0; work size=48M phases=fill,drop; splats; counters end",
    )?
    .finish()?;
    console.verified(1)?;
    ensure!(
        console.counter("end", "tmem.block_stores_ok")? > 0,
        "the swap disk stored nothing"
    );
    ensure!(
        console.counter("end", "tmem.block_loads_ok")? > 0,
        "the swap disk gave nothing back"
    );
    ensure!(
        console.counter("end", "tmem.frontswap_stores_ok")? == 0,
        "frontswap stored something"
    );
    Ok(())
}

fn off(machine: Machine) -> Result<()> {
    for words in ["tmem=0 zswap.enabled=1", "zswap.enabled=1"] {
        let setup = Setup {
            kernel_words: words,
            disk: Some(192 * MIB),
            ..Setup::on(machine)
        };
        let mut guest = Guest::start(
            &setup,
            &format!(
                "swap_on {}; work size=36M; splats; counters end; pause end",
                machine.disk()
            ),
        )?;
        let host = guest.stats_at_pause("end")?;
        let console = guest.finish()?;
        console.verified(1)?;
        ensure!(
            host.device("doorbell_exits") == 0 && host.device("requests") == 0,
            "{words}: the doorbell rang"
        );
        ensure!(
            host.device("pages_stored") == 0 && host.get("/stores") == 0,
            "{words}: the host got a page"
        );
        ensure!(zswap_used(&console)?, "{words}: zswap got nothing");
    }
    Ok(())
}

/// Has zswap held anything?
fn zswap_used(console: &Console) -> Result<bool> {
    let held = console.counter("end", "zswap.stored_pages")?;
    let written = console.counter("end", "zswap.written_back_pages")?;
    Ok(held + written + console.counter("end", "zswap.reject_compress_poor")? > 0)
}

fn zswap(machine: Machine) -> Result<()> {
    let setup = Setup {
        kernel_words: "tmem=1 zswap.enabled=1",
        ..Setup::on(machine)
    };
    let mut guest = Guest::start(
        &setup,
        "swap_on tmemswap0; work size=36M; splats; dmesg; pause end; counters end",
    )?;
    let host = guest.stats_at_pause("end")?;
    let console = guest.finish()?;
    console.verified(1)?;
    ensure!(
        console.lines().iter().any(|line| line == "guest splats 0"),
        "the kernel wrote a warning"
    );
    ensure!(host.get("/stores") > 0, "the host got no page");
    ensure!(
        console.counter("end", "tmem.frontswap_stores_ok")? > 0,
        "frontswap did not get the slot"
    );
    // zswap without the slot has no files, or has held nothing.
    ensure!(
        !zswap_used(&console).unwrap_or(false),
        "zswap held pages too"
    );
    Ok(())
}

fn exits() -> Result<()> {
    for words in ["tmem=1", "tmem=1 tmem.frontswap=0"] {
        let setup = Setup {
            kernel_words: words,
            ..Setup::default()
        };
        let mut guest = Guest::start(
            &setup,
            "look() { counters before_$1; pause $1; counters after_$1; }; \
             swap_on tmemswap0; irqs before; look a; hog size=36M phases=fill,wait,random,wait & \
             at_wait; look b; go; at_wait; look c; irqs after; counters end; go; wait $!; \
             echo guest work $?; splats",
        )?;
        let mut moments = Vec::new();
        for moment in ["a", "b", "c"] {
            guest.wait_for(&format!("guest pause {moment}"))?;
            moments.push(guest.stats()?);
            guest.go_on()?;
        }
        let console = guest.finish()?;
        console.verified(1)?;
        for (moment, host) in ["a", "b", "c"].into_iter().zip(&moments) {
            // The kernel swaps on its own too, before and after the host is asked.
            let kicks = console.kicks(&format!("before_{moment}"))?
                ..=console.kicks(&format!("after_{moment}"))?;
            let exits = host.device("doorbell_exits");
            ensure!(
                kicks.contains(&exits),
                "{words}: the guest rang {kicks:?} times, and the host heard {exits}"
            );
        }
        for (pair, phase) in moments.windows(2).zip(["filling", "reading back"]) {
            let [before, after] = pair else { continue };
            let grown = |name: &str| after.device(name) - before.device(name);
            let (stored, loaded, exits) = (
                grown("pages_stored"),
                grown("pages_loaded"),
                grown("doorbell_exits"),
            );
            let per_page = ratio(exits, stored + loaded).context("no page was swapped")?;
            println!(
                "{words}, {phase}: {stored} stored, {loaded} loaded, {exits} exits, {per_page:.3} a page"
            );
            ensure!(
                per_page <= EXITS_PER_PAGE,
                "{words}, {phase}: {per_page:.3} exits a page"
            );
            // A load is an exit here, and stores are not.
            let stores = ratio(exits.saturating_sub(loaded), stored).unwrap_or(0.0);
            ensure!(
                stored < 1000 || stores <= EXITS_PER_STORE,
                "{words}, {phase}: {stores:.3} exits a store"
            );
        }
        ensure!(
            console.counter("end", "tmem.interrupts")? == 0,
            "{words}: the driver took an interrupt"
        );
        let interrupts = |moment: &str| {
            let prefix = format!("irq {moment} ");
            let lines = console
                .lines()
                .iter()
                .filter_map(|line| line.strip_prefix(&prefix));
            lines.map(str::to_owned).collect::<Vec<_>>()
        };
        let (before, after) = (interrupts("before"), interrupts("after"));
        ensure!(
            !before.is_empty(),
            "/proc/interrupts names no virtio device"
        );
        ensure!(
            before == after,
            "{words}: a virtio device interrupted: {before:?}, then {after:?}"
        );
    }
    Ok(())
}

pub(super) fn ratio(a: u64, b: u64) -> Option<f64> {
    let float = |value: u64| u32::try_from(value).map(f64::from).ok();
    (b > 0).then_some(())?;
    Some(float(a)? / float(b)?)
}
