//! Guests whose pages are at a service in another process.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::entry::Scenario;
use crate::console::Console;
use crate::guest::{Guest, Setup};
use crate::interrupts::taken;
use crate::service::{Service, processor_time};
use crate::stats::Stats;

/// The scenarios of this file, and what each runs on.
pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::on_kvm("two-guests", two_guests),
    Scenario::on_kvm("service-dies", dies),
    Scenario::on_kvm("service-cost", cost),
];

/// Pages stored and loaded by the driver, by whichever way.
fn both(console: &Console, moment: &str, name: &str) -> Result<u64> {
    Ok(console.counter(moment, &format!("tmem.frontswap_{name}"))?
        + console.counter(moment, &format!("tmem.block_{name}"))?)
}

/// What `tmem run` says of its service.
fn link(stats: &Stats, name: &str) -> Result<Value> {
    let value = stats.0.pointer(&format!("/service/{name}"));
    value
        .cloned()
        .with_context(|| format!("the front end does not say {name}"))
}

fn two_guests() -> Result<()> {
    // On one emulated processor a guest that waits for its page keeps the service from it, so not more than that.
    let names = ["vm1", "vm2"];
    let sizes = ["48M", "32M"];
    let mut service = Service::start("512M", &names.map(|name| (name, "")))?;
    let mut guests = Vec::new();
    for (name, size) in names.into_iter().zip(sizes) {
        let setup = Setup {
            service: Some(service.socket(name)),
            ..Setup::default()
        };
        let seed = name.trim_start_matches("vm");
        guests.push(Guest::start(
            &setup,
            &format!(
                "swap_on tmemswap0; hog size={size} phases=fill,wait seed={seed} & at_wait; sleep 2; counters end; \
                 pause end; counters later; go; wait $!; echo guest work $?; splats"
            ),
        )?);
    }
    for guest in &mut guests {
        guest.wait_for("guest pause end")?;
    }
    let mut stats = Vec::new();
    for (guest, name) in guests.iter().zip(names) {
        stats.push(service.domain_stats(name)?);
        let front = guest.stats()?;
        ensure!(
            link(&front, "connected")? == true && link(&front, "doorbell_exits")? == 0,
            "{name}: {}",
            front.0
        );
    }
    for guest in &mut guests {
        guest.go_on()?;
    }
    for ((guest, host), name) in guests.into_iter().zip(&stats).zip(names) {
        let console = guest.finish()?;
        console.verified(1)?;
        // The kernel swaps on its own too: the guest prints its counters before and after the service's are read.
        for (counter, figure) in [("stores_ok", "/stores"), ("loads_ok", "/loads")] {
            let (before, after) = (
                both(&console, "end", counter)?,
                both(&console, "later", counter)?,
            );
            let held = host.get(figure);
            println!("{name}: {counter}: guest {before} to {after}, service {held}");
            ensure!(
                (before..=after).contains(&held),
                "{name}: {counter}: the guest says {before} to {after}, the service {held}"
            );
        }
        ensure!(
            host.get("/stores") > 1_000,
            "{name}: too little was swapped to compare"
        );
    }
    let (status, time) = service.terminate()?;
    ensure!(status.success(), "the service ended with {status}");
    println!("the service ended after {} ms", time.as_millis());
    Ok(())
}

fn dies() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut service = Service::start_in(folder.path(), "512M", &[("vm1", "")])?;
    let setup = Setup {
        memory: "64M".into(),
        service: Some(service.socket("vm1")),
        kernel_words: "tmem=1 tmem.frontswap=0",
        ..Setup::default()
    };
    // Enough memory, so that only pages of hog are swapped out, and nothing else is lost.
    let mut guest = Guest::start(
        &setup,
        "swap_on tmemswap0; hog size=16M phases=fill,pageout,wait & at_wait; counters out; pause out; \
         go; wait $!; echo guest lost $?; counters lost; pause lost; at_counter revived 1; \
         echo 3 >/proc/sys/vm/drop_caches; dd if=/dev/tmemswap0 of=/dev/null bs=4096 count=1; echo guest header $?; \
         work size=16M phases=fill,pageout; splats; counters end; pause end",
    )?;
    guest.wait_for("guest pause out")?;
    let held = service.domain_stats("vm1")?.get("/pages");
    let (status, time) = service.terminate()?;
    println!(
        "{held} pages; the service ended with {status} after {} ms",
        time.as_millis()
    );
    ensure!(held > 3000, "only {held} pages were out");
    // Within a second, where time means something: `tmem/tests/serve.rs`.
    ensure!(
        status.success() && time < Duration::from_secs(10),
        "the service ended with {status} after {time:?}"
    );
    guest.go_on()?;
    // A bus error, not a verify that failed: no byte was wrong.
    let lost = guest.wait_for("guest lost")?;
    ensure!(
        lost == "guest lost 135",
        "the worker ended otherwise: {lost}"
    );
    guest.wait_for("guest pause lost")?;
    let front = guest.stats()?;
    ensure!(
        link(&front, "connected")? == false && link(&front, "faults")? == 1,
        "{}",
        front.0
    );
    // It comes back, and the driver finds it by itself.
    let service = Service::start_in(folder.path(), "512M", &[("vm1", "")])?;
    guest.go_on()?;
    guest.wait_for("guest pause end")?;
    let front = guest.stats()?;
    ensure!(
        link(&front, "connected")? == true
            && link(&front, "connections")? == 2
            && link(&front, "faults")? == 1,
        "{}",
        front.0
    );
    let stored = service.domain_stats("vm1")?.get("/stores");
    guest.go_on()?;
    let console = guest.finish()?;
    console.verified(1)?;
    ensure!(
        console.counter("lost", "tmem.broken")? == 1,
        "the driver did not give the device up"
    );
    ensure!(
        stored > 3000,
        "only {stored} pages went to the second service"
    );
    // The swap area's header was at the first service: it reads neither as what it was nor as zeroes.
    ensure!(
        console.lines().iter().any(|line| line == "guest header 1"),
        "a page that was lost could be read again"
    );
    ensure!(
        !console
            .lines()
            .iter()
            .any(|line| line.starts_with("verify FAILED")),
        "a wrong byte"
    );
    Ok(())
}

/// What a page costs at a service, against the store in the process of the guest: counts, and ratios of one run.
fn cost() -> Result<()> {
    let mut times = Vec::new();
    for at_service in [false, true] {
        let service = at_service
            .then(|| Service::start("512M", &[("vm1", "")]))
            .transpose()?;
        let setup = Setup {
            service: service.as_ref().map(|service| service.socket("vm1")),
            ..Setup::default()
        };
        let mut guest = Guest::start(
            &setup,
            "swap_on tmemswap0; hog size=36M phases=fill,wait,random,wait & at_wait; counters a; \
             irqs a; pause a; go; at_wait; irqs b; counters b; pause b; go; wait $!; echo guest work $?; splats",
        )?;
        let mut moments = Vec::new();
        let mut exits = Vec::new();
        for moment in ["a", "b"] {
            guest.wait_for(&format!("guest pause {moment}"))?;
            let mut time = processor_time(guest.process())?;
            let stats = guest.stats()?;
            if let Some(service) = &service {
                time += processor_time(service.process())?;
                let seen = link(&stats, "doorbell_exits")?;
                exits.push(seen.as_u64().context("not a number")?);
            } else {
                exits.push(stats.device("doorbell_exits"));
            }
            moments.push(time);
            guest.go_on()?;
        }
        let console = guest.finish()?;
        console.verified(1)?;
        let grown = |name: &str| -> Result<u64> {
            Ok(both(&console, "b", name)? - both(&console, "a", name)?)
        };
        let pages = grown("stores_ok")? + grown("loads_ok")?;
        let kicked = console.kicks("b")? - console.kicks("a")?;
        let exits = exits.last().unwrap_or(&0) - exits.first().unwrap_or(&0);
        let time = moments.last().unwrap_or(&0) - moments.first().unwrap_or(&0);
        ensure!(pages > 1000, "only {pages} pages were moved");
        let sleeps = console.counter("b", "tmem.poll_timeouts")?
            - console.counter("a", "tmem.poll_timeouts")?;
        let interrupts = taken(&console, "b")? - taken(&console, "a")?;
        let place = if at_service { "service" } else { "process" };
        println!(
            "{place}: {pages} pages, {} doorbells, {} interrupts and {} sleeps per 1000 pages, {} exits to the process, \
             {} ns of processor a page",
            kicked * 1000 / pages,
            interrupts * 1000 / pages,
            sleeps * 1000 / pages,
            exits * 1000 / pages,
            time / pages
        );
        if at_service {
            ensure!(exits == 0, "{exits} doorbells came to a vCPU thread");
        }
        // Two more exits each. While one task sleeps, the answers of others interrupt as well.
        ensure!(
            interrupts <= 2 * sleeps + pages / 10,
            "{place}: {interrupts} interrupts for {pages} pages and {sleeps} sleeps"
        );
        times.push(time / pages);
    }
    if let [process, service] = times[..] {
        println!(
            "processor time a page, service to process: {} %",
            service * 100 / process.max(1)
        );
    }
    Ok(())
}
