//! The guest's driver when its host is slow, full or has ended: User Mode Linux, at native speed.

use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use tmem_tests::service::Service;
use tmem_tests::uml::guest::{END, Guest, Setup};

/// How the work of a guest ended that had to be killed for want of memory.
const SIGKILL: &str = "guest work 137";

fn start(service: &Service, name: &str, setup: &Setup<'_>) -> Result<Guest> {
    Guest::start(&service.socket(name), service.folder(), setup)
}

/// Waits until the guest moves pages.
fn works(service: &Service, guest: &mut Guest) -> Result<()> {
    let from = service.domain_stats("vm1")?.device("pages_loaded");
    guest.eventually("the guest loads pages", || {
        Ok(service.domain_stats("vm1")?.device("pages_loaded") > from + 100)
    })
}

#[test]
fn a_guest_whose_host_stands_still_for_longer_than_its_patience_keeps_every_byte() -> Result<()> {
    let service = Service::start("256M", &[("vm1", ",swap=128M")])?;
    let commands = format!(
        "swap_on tmemswap0; work size=40M phases=fill,random,random; splats; counters end; {END}"
    );
    let setup = Setup {
        words: "tmem=1 tmem.timeout_ms=4000",
        commands: &commands,
        ..Setup::default()
    };
    let mut guest = start(&service, "vm1", &setup)?;
    for service_first in [true, false] {
        works(&service, &mut guest)?;
        // A guest that waits already is the one whose clock would jump.
        service.hang()?;
        thread::sleep(Duration::from_millis(300));
        guest.stop()?;
        thread::sleep(Duration::from_secs(6));
        if service_first {
            service.proceed()?;
            thread::sleep(Duration::from_millis(500));
            guest.proceed()?;
        } else {
            guest.proceed()?;
            thread::sleep(Duration::from_millis(500));
            service.proceed()?;
        }
    }
    let console = guest.finish()?;
    console.verified(1)?;
    for counter in ["broken", "request_timeouts"] {
        ensure!(
            console.counter("end", &format!("tmem.{counter}"))? == 0,
            "the guest lost its patience while it stood still itself"
        );
    }
    Ok(())
}

#[test]
fn a_guest_waits_for_a_service_that_hangs_and_its_log_says_so() -> Result<()> {
    let service = Service::start("256M", &[("vm1", ",swap=128M")])?;
    // More tasks than a queue has requests: some of them wait for their turn. There is memory to spare, so no task waits
    // for memory instead, and work enough that none is done before the service hangs, however fast the machine is.
    let rounds = ",pageout,random".repeat(20);
    let commands = format!(
        "swap_on tmemswap0; work size=20M procs=20 phases=fill{rounds}; splats; counters end; \
         dmesg | grep 'no answer from the host'; {END}"
    );
    let setup = Setup {
        // Stores wait as loads do, and on the same queue.
        words: "tmem=1 tmem.stage=0 tmem.load_queues=0",
        memory: "64M",
        commands: &commands,
        ..Setup::default()
    };
    let mut guest = start(&service, "vm1", &setup)?;
    works(&service, &mut guest)?;
    service.hang()?;
    // Longer than the ten seconds after which the driver says that it waits.
    thread::sleep(Duration::from_secs(13));
    service.proceed()?;
    let console = guest.finish()?;
    console.verified(1)?;
    ensure!(
        console.counter("end", "tmem.broken")? == 0,
        "the guest gave its device up"
    );
    ensure!(
        console.counter("end", "tmem.slot_waits")? > 0,
        "no task had to wait for its turn"
    );
    ensure!(
        console
            .lines()
            .iter()
            .any(|line| line.contains("no answer from the host for 10 s")),
        "the guest's log does not say that it waits"
    );
    Ok(())
}

#[test]
fn a_page_that_the_host_refuses_costs_a_full_guest_one_try() -> Result<()> {
    let service = Service::start("256M", &[("vm1", ",swap=256M,limit=16M")])?;
    let commands = format!(
        "swap_on tmemswap0; work size=96M kinds=random phases=fill; splats; counters end; {END}"
    );
    let setup = Setup {
        memory: "64M",
        commands: &commands,
        ..Setup::default()
    };
    let console = start(&service, "vm1", &setup)?.finish()?;
    let lines = console.lines();
    ensure!(
        lines.iter().any(|line| line == SIGKILL),
        "the guest did not run out of memory:\n{}",
        lines.join("\n")
    );
    ensure!(
        lines.iter().any(|line| line == "guest splats 0"),
        "the guest's kernel wrote warnings"
    );
    // Reclaim offers a page to frontswap, to the disk's entry for single pages and in a bio, again and again.
    let counter = |name: &str| -> Result<u64> {
        Ok(console.counter("end", &format!("tmem.frontswap_{name}"))?
            + console.counter("end", &format!("tmem.block_{name}"))?)
    };
    let (withheld, refused) = (
        counter("stores_withheld")?,
        service.domain_stats("vm1")?.refused(),
    );
    println!("{refused} refused by the host, {withheld} not offered");
    ensure!(refused > 0, "the host never refused a page");
    ensure!(
        refused == counter("stores_no_space")?,
        "the guest counted other refusals than the host"
    );
    let pages = console.counter("end", "vmstat.pswpout")?;
    ensure!(
        refused < pages,
        "{refused} tries at the host for {pages} pages"
    );
    ensure!(
        withheld > refused,
        "each refused page was offered to the host again"
    );
    Ok(())
}

#[test]
fn a_guest_has_tmem_again_when_its_service_is_killed_and_started_again() -> Result<()> {
    has_tmem_again("tmem=1")
}

#[test]
fn without_staging_pages_a_guest_has_tmem_again_when_its_service_is_killed_and_started_again()
-> Result<()> {
    has_tmem_again("tmem=1 tmem.stage=0")
}

/// A service is killed and started again; `words` are for the guest's kernel.
fn has_tmem_again(words: &str) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let guests = [("vm1", ",swap=128M")];
    let mut service = Service::start_in(folder.path(), "256M", &guests)?;
    // Enough memory, so that only pages of hog are swapped out, and nothing else is lost.
    let commands = format!(
        "swap_on tmemswap0; hog size=16M phases=fill,pageout,wait & at_wait; pause out; go; wait $!; \
         echo guest lost $?; pause lost; at_counter revived 1; work size=16M phases=fill,pageout; \
         splats; counters end; pause end; {END}"
    );
    let setup = Setup {
        memory: "64M",
        words,
        commands: &commands,
        ..Setup::default()
    };
    let mut guest = start(&service, "vm1", &setup)?;
    guest.wait_for("guest pause out")?;
    service.kill()?;
    guest.go_on()?;
    // A bus error, not a verify that failed: no byte was wrong.
    let lost = guest.wait_for("guest lost")?;
    ensure!(
        lost == "guest lost 135",
        "the worker ended otherwise: {lost}"
    );
    guest.wait_for("guest pause lost")?;
    let service = Service::start_in(folder.path(), "256M", &guests)?;
    guest.go_on()?;
    guest.wait_for("guest pause end")?;
    let stored = service.domain_stats("vm1")?.device("pages_stored");
    guest.go_on()?;
    let console = guest.finish()?;
    console.verified(1)?;
    ensure!(
        console.counter("end", "tmem.broken")? == 1 && console.counter("end", "tmem.revived")? == 1,
        "the device was given up or came back another number of times"
    );
    ensure!(
        stored > 3000,
        "only {stored} pages went to the second service"
    );
    Ok(())
}
