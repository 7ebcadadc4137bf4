//! One `tmem serve`, many guests: User Mode Linux with the real driver, at native speed.

use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tmem_tests::console::Console;
use tmem_tests::service::{Service, domain_stats};
use tmem_tests::stats::Stats;
use tmem_tests::uml::guest::{END, Guest, Setup};
use tmem_tests::uml::{eventually, eventually_with};

const MIB: u64 = 1 << 20;

fn start(service: &Service, name: &str, setup: &Setup<'_>) -> Result<Guest> {
    Guest::start(&service.socket(name), service.folder(), setup)
}

/// A guest that works on `size`, then says its counters as often as it is asked, see [`agree`]. Its shell reads them by
/// itself: each process that it started for that would take memory, and in a guest this small move pages.
fn work(swap: &str, size: &str) -> String {
    format!(
        "{swap}; work size={size} phases=fill; splats; pause still; answer=; \
         until [ x$answer = xdone ]; do \
         while read name value; do echo counter end tmem.$name $value; done </sys/kernel/debug/tmem/stats; \
         pause end; done; {END}"
    )
}

/// Times that a guest is asked for its counters: its kernel may move a page of its own accord meanwhile.
const TRIES: u32 = 20;

/// Asks guest and service until nothing moved in between; then they must have counted the same. Ends the guest.
fn agree(service: &Service, name: &str, guest: &mut Guest, before: &Stats) -> Result<Stats> {
    guest.go_on()?;
    let mut tries = 0;
    loop {
        guest.wait_for("guest pause end")?;
        let host = service.domain_stats(name)?;
        let same = same_stats(name, &guest.console(), before, &host);
        tries += 1;
        if same.is_ok() || tries == TRIES {
            guest.answer("done")?;
            return same.map(|()| host);
        }
        guest.go_on()?;
    }
}

/// What the guest counted since it booted, and the service since `before`, must be the same.
fn same_stats(name: &str, console: &Console, before: &Stats, host: &Stats) -> Result<()> {
    let grown = |counter: &str| host.device(counter) - before.device(counter);
    let both = |counters: &[&str]| -> Result<u64> {
        let mut sum = 0;
        for user in ["frontswap", "block"] {
            for counter in counters {
                sum += console.counter("end", &format!("tmem.{user}_{counter}"))?;
            }
        }
        Ok(sum)
    };
    let refused = [
        "stores_no_space",
        "stores_frozen",
        "stores_no_memory",
        "stores_refused_other",
    ];
    for (what, guests, hosts) in [
        ("pages stored", both(&["stores_ok"])?, grown("pages_stored")),
        ("pages loaded", both(&["loads_ok"])?, grown("pages_loaded")),
        (
            "pages invalidated",
            both(&["invalidates_sent"])?,
            grown("pages_invalidated"),
        ),
        (
            "pages refused",
            both(&refused)?,
            host.refused() - before.refused(),
        ),
        ("pages held", both(&["pages"])?, host.get("/pages")),
    ] {
        println!("{name}: {what}: guest {guests}, host {hosts}");
        ensure!(
            guests == hosts,
            "{name}: {what}: the guest says {guests}, the host {hosts}"
        );
    }
    Ok(())
}

fn used(stats: &Value) -> u64 {
    stats
        .pointer("/used")
        .and_then(Value::as_u64)
        .unwrap_or(u64::MAX)
}

/// After all guests have ended: no page is left.
fn is_empty(service: &Service) -> Result<()> {
    eventually("the service holds no page", || {
        let stats = service.stats()?;
        let domains = stats.pointer("/domains").and_then(Value::as_array);
        let held = domains.into_iter().flatten().map(|domain| {
            domain
                .pointer("/pages")
                .and_then(Value::as_u64)
                .unwrap_or(u64::MAX)
        });
        Ok(held.sum::<u64>() == 0)
    })
}

/// Nobody has more than it may, whatever it wants.
fn within_bounds(service: &Service, budget: u64, limits: &[(&str, u64)]) -> Result<()> {
    let stats = service.stats()?;
    let used = used(&stats);
    ensure!(used <= budget, "over the budget: {used}");
    for (name, limit) in limits {
        let used = domain_stats(&stats, name)?.get("/bytes_used");
        ensure!(used <= *limit, "{name} is over its limit: {used}");
    }
    Ok(())
}

#[test]
fn eight_guests_on_one_service_keep_every_byte_and_count_the_same() -> Result<()> {
    // Less than the guests without a limit want.
    const BUDGET: u64 = 48 * MIB;
    const LIMITS: [(&str, u64); 3] = [("vm2", 4 * MIB), ("vm3", 6 * MIB), ("vm7", 16 * MIB)];
    const VICTIMS: [&str; 3] = ["vm5", "vm6", "vm7"];
    let names: Vec<String> = (0..8).map(|number| format!("vm{number}")).collect();
    let settings = [
        ",weight=300",
        ",weight=200,reserve=8M",
        ",limit=4M",
        ",limit=6M,weight=50",
        ",reserve=16M",
        "",
        ",weight=10",
        ",limit=16M",
    ];
    let guests: Vec<(&str, &str)> = names
        .iter()
        .map(String::as_str)
        .zip(settings.iter().copied())
        .collect();
    let service = Service::start("48M", &guests)?;
    // Every guest has a disk of its own below tmem, for the pages that the service refuses.
    let commands = work("swap_on ubda", "56M");
    let setup = Setup {
        words: "tmem=1 tmem.swap=0",
        disk: Some(96 * MIB),
        commands: &commands,
        ..Setup::default()
    };
    let mut running: BTreeMap<&str, Guest> = BTreeMap::new();
    // What the service had counted of a guest that was killed before it was started again.
    let mut before: BTreeMap<&str, Stats> = BTreeMap::new();
    for name in &names {
        running.insert(name, start(&service, name, &setup)?);
    }
    // Killed while they work, each at another point; two are started again on their sockets.
    for (number, name) in (1u64..).zip(VICTIMS) {
        let mut all: Vec<&mut Guest> = running.values_mut().collect();
        eventually_with(&mut all, "a guest has stored pages", || {
            within_bounds(&service, BUDGET, &LIMITS)?;
            Ok(service.domain_stats(name)?.device("pages_stored") >= 400 * number)
        })?;
        if let Some(mut guest) = running.remove(name) {
            guest.kill();
        }
        eventually("its pages are freed", || {
            let held = service.domain_stats(name)?;
            Ok(held.get("/pages") == 0 && held.get("/bytes_used") < MIB)
        })?;
        if name != "vm7" {
            let commands = format!("pause up; {commands}");
            let again = Setup {
                commands: &commands,
                ..setup
            };
            let mut guest = start(&service, name, &again)?;
            guest.wait_for("guest pause up")?;
            before.insert(name, service.domain_stats(name)?);
            guest.go_on()?;
            running.insert(name, guest);
        }
    }
    // The others go on, and what they have is theirs.
    for guest in running.values_mut() {
        guest.wait_for("guest pause still")?;
        within_bounds(&service, BUDGET, &LIMITS)?;
    }
    let mut refused_by_budget = 0;
    for (name, mut guest) in running {
        let before = before.remove(name).unwrap_or_default();
        let host = agree(&service, name, &mut guest, &before)?;
        guest.finish()?.verified(1)?;
        if LIMITS.iter().any(|(limited, _)| *limited == name) {
            ensure!(host.refused() > 0, "{name} never came to its limit");
        } else {
            refused_by_budget += host.refused();
        }
    }
    ensure!(refused_by_budget > 0, "the guests never came to the budget");
    is_empty(&service)
}

#[test]
fn a_guest_that_is_killed_and_started_again_begins_empty() -> Result<()> {
    let service = Service::start("128M", &[("vm1", ""), ("kept", ",keep-seconds=3600")])?;
    for (name, keeps) in [("vm1", false), ("kept", true)] {
        let commands = format!("swap_on tmemswap0; hog size=48M phases=fill,wait; {END}");
        let setup = Setup {
            words: "tmem=1 tmem.swap=128M",
            commands: &commands,
            ..Setup::default()
        };
        let mut guest = start(&service, name, &setup)?;
        guest.eventually("it has stored pages", || {
            Ok(service.domain_stats(name)?.get("/pages") > 1000)
        })?;
        guest.kill();
        eventually("the service has noticed", || {
            Ok(service
                .operate(&["list"])?
                .lines()
                .any(|line| line.starts_with(name) && line.contains("waiting")))
        })?;
        let left = service.domain_stats(name)?.get("/pages");
        ensure!(
            keeps == (left > 0),
            "{name}: {left} pages after the guest was killed"
        );
        // A new boot sets its rings up at 0: it is another driver, and what the old one had goes.
        let commands =
            format!("pause up; swap_on tmemswap0; work size=40M phases=fill; splats; {END}");
        let mut again = start(
            &service,
            name,
            &Setup {
                commands: &commands,
                ..setup
            },
        )?;
        again.wait_for("guest pause up")?;
        let left = service.domain_stats(name)?.get("/pages");
        ensure!(left == 0, "{name}: begins with {left} pages");
        again.go_on()?;
        again.finish()?.verified(1)?;
    }
    Ok(())
}

#[test]
fn a_guest_that_reboots_in_place_gets_its_device_back_each_time() -> Result<()> {
    const CYCLES: usize = 10;
    let service = Service::start("128M", &[("vm1", ",swap=128M")])?;
    let commands = "swap_on tmemswap0; work size=40M phases=fill; splats; counters end; pause cycle; reboot -f";
    let setup = Setup {
        commands,
        ..Setup::default()
    };
    let mut guest = start(&service, "vm1", &setup)?;
    for cycle in 1..=CYCLES {
        guest
            .wait_for("guest pause cycle")
            .with_context(|| format!("boot {cycle}"))?;
        let console = guest.console();
        console.verified(cycle)?;
        let lost = console
            .lines()
            .iter()
            .filter(|line| line.starts_with("counter end tmem.broken ") && !line.ends_with(" 0"));
        ensure!(
            lost.count() == 0,
            "boot {cycle}: the driver gave the device up"
        );
        if cycle < CYCLES {
            guest.go_on()?;
        }
    }
    guest.kill();
    is_empty(&service)
}

/// Often enough that no guest is done before it loses its device.
const ROUNDS: usize = 60;

/// For a guest that is about to lose its device: work that has memory to spare, so that nothing but pages that cannot
/// be loaded harms it. From the first `pageout` on, each page is at the host, and each that is here as well may go again.
fn doomed() -> String {
    let rounds = ",pageout,random".repeat(ROUNDS);
    format!("swap_on tmemswap0; exec guard /bin/hog size=24M phases=fill{rounds}")
}

/// A guest with memory to spare for such work.
fn roomy(commands: &str) -> Setup<'_> {
    Setup {
        memory: "64M",
        commands,
        ..Setup::default()
    }
}

/// How the work of a guest ended, as a shell says it: 128 and the number of the signal.
const SIGBUS: &str = "guest work 135";
const SIGKILL: &str = "guest work 137";

/// A guest that lost its device: its work got no wrong data and ended in one of `ends`, and the guest stayed up.
fn survived(guest: Guest, ends: &[&str]) -> Result<Console> {
    let console = guest.finish()?;
    let lines = console.lines();
    let text = lines.join("\n");
    ensure!(
        !text.contains("verify FAILED"),
        "the guest got wrong data:\n{text}"
    );
    let has = |line: &str| lines.iter().any(|other| other == line);
    ensure!(
        ends.iter().any(|end| has(end)),
        "the workload did not end with any of {ends:?}:\n{text}"
    );
    ensure!(
        has("guest splats 0"),
        "the guest's kernel wrote warnings:\n{text}"
    );
    ensure!(
        console.counter("end", "tmem.broken")? == 1,
        "the guest did not see a broken device:\n{text}"
    );
    Ok(console)
}

/// The same, of a guest that was told that its device has failed.
fn survived_at_once(guest: Guest, ends: &[&str]) -> Result<()> {
    let console = survived(guest, ends)?;
    ensure!(
        console.counter("end", "tmem.request_timeouts")? == 0,
        "the guest had to lose its patience first:\n{}",
        console.lines().join("\n")
    );
    Ok(())
}

#[test]
fn sigterm_leaves_the_guests_a_broken_device_and_never_wrong_data() -> Result<()> {
    let mut service = Service::start("256M", &[("vm1", ",swap=128M"), ("vm2", ",swap=128M")])?;
    let mut first = start(&service, "vm1", &roomy(&doomed()))?;
    // A guest without memory to spare: when its swap is lost, it may also run out of memory.
    let rounds = ",random".repeat(ROUNDS);
    let tight = Setup {
        commands: &format!("swap_on tmemswap0; exec guard /bin/hog size=40M phases=fill{rounds}"),
        ..Setup::default()
    };
    let mut second = start(&service, "vm2", &tight)?;
    for (name, guest) in [("vm1", &mut first), ("vm2", &mut second)] {
        guest.eventually("it loads pages", || {
            Ok(service.domain_stats(name)?.device("pages_loaded") > 100)
        })?;
    }
    let (status, took) = service.terminate()?;
    println!("from SIGTERM to the end: {} ms", took.as_millis());
    ensure!(status.success(), "the service ended with {status}");
    ensure!(took < Duration::from_secs(10), "it took {took:?}");
    survived_at_once(first, &[SIGBUS])?;
    survived_at_once(second, &[SIGBUS, SIGKILL])
}

#[test]
fn a_service_that_hangs_and_then_dies_leaves_a_guest_a_broken_device() -> Result<()> {
    let mut service = Service::start("256M", &[("vm1", ",swap=128M")])?;
    let commands = doomed();
    let setup = Setup {
        words: "tmem=1 tmem.timeout_ms=2000",
        ..roomy(&commands)
    };
    let mut guest = start(&service, "vm1", &setup)?;
    guest.eventually("it loads pages", || {
        Ok(service.domain_stats("vm1")?.device("pages_loaded") > 100)
    })?;
    service.hang()?;
    // The guest gives the device up and waits for what a reset has to be answered with.
    thread::sleep(Duration::from_secs(4));
    service.kill()?;
    survived(guest, &[SIGBUS]).map(drop)
}

#[test]
fn an_operator_changes_a_working_guest_and_it_keeps_every_byte() -> Result<()> {
    let service = Service::start("256M", &[("vm1", "")])?;
    let commands = format!(
        "swap_on ubda; work size=48M phases=fill,overwrite,overwrite,random; splats; pause end; counters end; {END}"
    );
    let setup = Setup {
        words: "tmem=1 tmem.swap=0",
        disk: Some(96 * MIB),
        commands: &commands,
        ..Setup::default()
    };
    let mut guest = start(&service, "vm1", &setup)?;
    let requests = || Ok::<_, anyhow::Error>(service.domain_stats("vm1")?.device("requests"));
    let moved = |guest: &mut Guest, amount: u64| {
        let from = requests()?;
        guest.eventually("the guest works", || Ok(requests()? > from + amount))
    };
    // It still fills its memory, so it stores.
    moved(&mut guest, 50)?;
    service.operate(&["set", "vm1", "weight=7", "reserve=16M"])?;
    moved(&mut guest, 20)?;
    service.operate(&["freeze", "vm1"])?;
    guest.eventually("the guest is refused", || {
        Ok(service.domain_stats("vm1")?.refused() > 0)
    })?;
    for change in [
        &["flush", "vm1", "64M"][..],
        &["thaw", "vm1"],
        &["set", "vm1", "limit=2M", "reserve=0"],
        &["flush", "vm1", "64M"],
        &["set", "vm1", "limit=none"],
    ] {
        service.operate(change)?;
        moved(&mut guest, 100)?;
    }
    guest.wait_for("guest pause end")?;
    guest.go_on()?;
    let console = guest.finish()?;
    console.verified(1)?;
    ensure!(
        console.counter("end", "tmem.frontswap_stores_frozen")? > 0,
        "the guest was never refused for being frozen"
    );
    is_empty(&service)
}

#[test]
fn a_guest_that_is_added_works_and_one_that_is_removed_suffers_alone() -> Result<()> {
    let service = Service::start("256M", &[("vm1", ",swap=128M")])?;
    service.add("vm2", ",swap=128M,weight=3")?;
    // It pauses in the middle of its work, so that it is still working when the other is removed, whichever starts
    // faster.
    let commands = format!(
        "swap_on tmemswap0; hog size=48M phases=fill,wait,random,random & at_wait; pause half; \
         go; wait $!; echo guest work $?; splats; {END}"
    );
    let setup = Setup {
        commands: &commands,
        ..Setup::default()
    };
    let mut first = start(&service, "vm1", &setup)?;
    let mut second = start(&service, "vm2", &roomy(&doomed()))?;
    first.wait_for("guest pause half")?;
    second.eventually("it loads pages", || {
        Ok(service.domain_stats("vm2")?.device("pages_loaded") > 100)
    })?;
    let from = service.domain_stats("vm1")?.device("pages_loaded");
    first.go_on()?;
    first.eventually("it goes on", || {
        Ok(service.domain_stats("vm1")?.device("pages_loaded") > from)
    })?;
    service.operate(&["guest", "remove", "vm2"])?;
    ensure!(service.domain_stats("vm2").is_err(), "it is still there");
    first.finish()?.verified(1)?;
    survived_at_once(second, &[SIGBUS])?;
    is_empty(&service)
}

#[test]
fn the_swap_disk_alone_keeps_every_byte() -> Result<()> {
    let service = Service::start("256M", &[("vm1", ",swap=128M")])?;
    let commands = work("swap_on tmemswap0", "48M");
    let setup = Setup {
        words: "tmem=1 tmem.frontswap=0",
        commands: &commands,
        ..Setup::default()
    };
    let mut guest = start(&service, "vm1", &setup)?;
    guest.wait_for("guest pause still")?;
    agree(&service, "vm1", &mut guest, &Stats::default())?;
    let console = guest.finish()?;
    console.verified(1)?;
    ensure!(
        console.counter("end", "tmem.frontswap_stores_ok")? == 0
            && console.counter("end", "tmem.block_loads_ok")? > 0,
        "the pages took another way"
    );
    is_empty(&service)
}
