//! The guest's bytes are loaded unchanged, whatever it does with its memory and however much the host can store.

use anyhow::{Context, Result, ensure};

use super::entry::Scenario;
use crate::guest::{Guest, Machine, Setup};
use crate::uml::eventually;

/// The scenarios of this file, and what each runs on.
pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::on_kvm("first-page", first_page),
    Scenario::on_kvm("two-cpus", two_cpus),
    Scenario::on_kvm("compressed-kernel", compressed_kernel),
    Scenario::anywhere("every-kind-of-page", every_kind_of_page),
    Scenario::anywhere("fork", fork),
    Scenario::anywhere("readahead", readahead),
    Scenario::anywhere("swapoff", swapoff),
    Scenario::anywhere("limit", limit),
    Scenario::anywhere("wrong-byte", wrong_byte),
];

const MIB: u64 = 1 << 20;

fn first_page() -> Result<()> {
    let mut guest = Guest::start(
        &Setup::default(),
        "swap_on tmemswap0; work size=40M; splats; pause end; counters end",
    )?;
    let host = guest.stats_at_pause("end")?;
    let console = guest.finish()?;
    console.verified(1)?;
    ensure!(
        host.device("pages_stored") > 0,
        "the guest swapped, and the host saw no page"
    );
    ensure!(
        host.device("pages_loaded") > 0,
        "the guest read its pages, and the host gave none"
    );
    ensure!(
        console.counter("end", "tmem.frontswap_loads_ok")? > 0,
        "the guest had no need to swap"
    );
    Ok(())
}

fn every_kind_of_page(machine: Machine) -> Result<()> {
    let guest = Guest::start(
        &Setup::on(machine),
        "swap_on tmemswap0; work size=112M phases=fill,overwrite,drop; splats; counters end",
    )?;
    let console = guest.finish()?;
    console.verified(1)?;
    ensure!(
        console.counter("end", "vmstat.pgmajfault")? > 112 * MIB / 4096 / 2,
        "the guest hardly swapped"
    );
    Ok(())
}

fn fork(machine: Machine) -> Result<()> {
    let guest = Guest::start(
        &Setup::on(machine),
        "swap_on tmemswap0; work size=32M phases=fill,fork; splats; counters end",
    )?;
    let console = guest.finish()?;
    console.verified(1)?;
    ensure!(
        console.counter("end", "tmem.frontswap_loads_ok")? > 0,
        "the guest had no need to swap"
    );
    Ok(())
}

/// A guest that reads ahead while it has hardly any memory: pages wait in the plug of a task that sleeps for memory.
fn readahead(machine: Machine) -> Result<()> {
    for user in ["", "tmem.frontswap=0"] {
        let words = format!("tmem=1 tmem.sync=0 test.page_cluster=3 {user}");
        let setup = Setup {
            kernel_words: Box::leak(words.into_boxed_str()),
            ..Setup::on(machine)
        };
        let guest = Guest::start(
            &setup,
            "swap_on tmemswap0; work size=96M phases=fill,overwrite,fork; splats; counters end",
        )?;
        let console = guest.finish()?;
        console.verified(1)?;
        let counted = |name: &str| console.counter("end", name);
        let loads = counted("tmem.frontswap_loads_ok")? + counted("tmem.block_loads_ok")?;
        let faults = counted("vmstat.pgmajfault")?;
        println!("{user}: {loads} pages were loaded in {faults} faults");
        ensure!(
            loads > 10_000 && faults < loads,
            "{user}: {loads} pages were loaded in {faults} faults"
        );
    }
    Ok(())
}

fn swapoff(machine: Machine) -> Result<()> {
    // On the swap disk the area's header is a page too: it goes with the disk's content.
    for (words, device, last) in [
        ("tmem=1 tmem.swap=0", machine.disk(), "true"),
        (
            "tmem=1 tmem.frontswap=0",
            "tmemswap0",
            "blkdiscard /dev/tmemswap0",
        ),
    ] {
        let setup = Setup {
            kernel_words: words,
            disk: Some(128 * MIB),
            // After `swapoff` there is room for the pages that are loaded.
            memory: "40M".into(),
            ..Setup::on(machine)
        };
        let commands = format!(
            "swap_on {device}; hog size=14M phases=fill,wait & at_wait; \
             work size=32M phases=fill; pause full; swapoff /dev/{device}; echo guest swapoff $?; \
             {last}; pause empty; go; wait $!; echo guest work $?; splats"
        );
        let mut guest = Guest::start(&setup, &commands)?;
        let full = guest.stats_at_pause("full")?;
        guest.wait_for("guest swapoff 0")?;
        guest.wait_for("guest pause empty")?;
        // The guest sends invalidates a little later.
        let mut left = (0, 0);
        let waited = eventually("the store is empty", || {
            let host = guest.stats()?;
            left = (host.get("/pages"), host.get("/bytes_stored"));
            Ok(left == (0, 0))
        });
        waited.with_context(|| format!("{words}: pages and bytes are left: {left:?}"))?;
        guest.go_on()?;
        guest.finish()?.verified(2)?;
        ensure!(
            full.get("/pages") > 1000,
            "{words}: only {} pages were out",
            full.get("/pages")
        );
    }
    Ok(())
}

fn limit(machine: Machine) -> Result<()> {
    let setup = Setup {
        tmem: Some("4M"),
        kernel_words: "tmem=1 tmem.swap=0",
        disk: Some(256 * MIB),
        ..Setup::on(machine)
    };
    let mut guest = Guest::start(
        &setup,
        &format!(
            "swap_on {}; work size=64M phases=fill; splats; pause end; counters end",
            machine.disk()
        ),
    )?;
    guest.wait_for("guest pause end")?;
    let host = guest.stats()?;
    let disk = guest.disk_used()?;
    guest.go_on()?;
    let console = guest.finish()?;
    console.verified(1)?;
    ensure!(
        host.device("pages_stored") > 0,
        "no page was offered to the host"
    );
    ensure!(host.refused() > 0, "the host never refused a page");
    ensure!(
        host.get("/bytes_used") <= 4 * MIB,
        "{} bytes used, 4 MiB allowed",
        host.get("/bytes_used")
    );
    ensure!(disk > 8 * MIB, "only {disk} bytes went to the disk");
    ensure!(
        console.counter("end", "tmem.frontswap_stores_no_space")? > 0,
        "the guest counted no refusal"
    );
    Ok(())
}

/// With staging pages and without.
fn two_cpus() -> Result<()> {
    const PROCESSES: &str = "work size=40M procs=2 phases=fill";
    const THREADS: &str = "work size=40M threads=2 phases=fill,overwrite";
    for (words, work) in [
        ("tmem=1", &[THREADS, PROCESSES][..]),
        ("tmem=1 tmem.stage=0", &[PROCESSES]),
    ] {
        let setup = Setup {
            cpus: 2,
            kernel_words: words,
            ..Setup::default()
        };
        let guest = Guest::start(
            &setup,
            &format!(
                "swap_on tmemswap0; {}; splats; counters end",
                work.join("; ")
            ),
        )?;
        let console = guest.finish()?;
        console.verified(work.len())?;
        ensure!(
            console.lines().iter().any(|line| line.ends_with(" cpus 2")),
            "the guest has not two processors"
        );
        ensure!(
            console.counter("end", "tmem.frontswap_loads_ok")? > 0,
            "{words}: the guest had no need to swap"
        );
        let staged = console.counter("end", "tmem.frontswap_stores_staged")?;
        ensure!(
            (staged > 0) == (words == "tmem=1"),
            "{words}: {staged} pages were staged"
        );
    }
    Ok(())
}

/// The judge itself: a flipped bit must not pass.
fn wrong_byte(machine: Machine) -> Result<()> {
    let console = Guest::start(
        &Setup::on(machine),
        "swap_on tmemswap0; work size=32M phases=fill,corrupt",
    )?
    .finish()?;
    ensure!(
        console.verified(1).is_err(),
        "a flipped bit passed as verified"
    );
    ensure!(
        console
            .lines()
            .iter()
            .any(|line| line.starts_with("verify FAILED page=")),
        "nothing named the page"
    );
    Ok(())
}

fn compressed_kernel() -> Result<()> {
    let setup = Setup {
        compressed: true,
        // It unpacks itself high up, and the initramfs has to fit below.
        memory: "48M".into(),
        ..Setup::default()
    };
    let console = Guest::start(
        &setup,
        "swap_on tmemswap0; work size=40M; splats; counters end",
    )?
    .finish()?;
    console.verified(1)?;
    ensure!(
        console.counter("end", "tmem.frontswap_loads_ok")? > 0,
        "the guest had no need to swap"
    );
    Ok(())
}
