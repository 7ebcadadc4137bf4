//! What a guest's driver is interrupted for at a service: User Mode Linux, at native speed.

use anyhow::{Result, ensure};
use tmem_tests::interrupts::taken;
use tmem_tests::service::Service;
use tmem_tests::uml::guest::{END, Guest, Setup};

#[test]
fn a_driver_that_polls_is_interrupted_at_a_service_only_while_it_sleeps() -> Result<()> {
    const PAGES: u64 = 4096;
    let service = Service::start("64M", &[("vm1", ",swap=32M")])?;
    let commands = format!(
        "counters before; irqs before; dio /dev/tmemswap0 {PAGES}; echo guest dio $?; \
         irqs after; counters after; splats; {END}"
    );
    let setup = Setup {
        memory: "64M",
        words: "tmem=1 tmem.frontswap=0",
        commands: &commands,
        ..Setup::default()
    };
    let guest = Guest::start(&service.socket("vm1"), service.folder(), &setup)?;
    let console = guest.finish()?;
    ensure!(
        console.lines().iter().any(|line| line == "guest dio 0"),
        "a page did not come back:\n{}",
        console.lines().join("\n")
    );
    let grown = |name: &str| -> Result<u64> {
        let name = format!("tmem.{name}");
        Ok(console.counter("after", &name)? - console.counter("before", &name)?)
    };
    let pages = grown("block_stores_ok")? + grown("block_loads_ok")?;
    let (sleeps, events) = (grown("poll_timeouts")?, grown("events")?);
    let interrupts = taken(&console, "after")? - taken(&console, "before")?;
    println!("{pages} pages, {interrupts} interrupts, {sleeps} sleeps, {events} events");
    ensure!(pages >= 3 * PAGES, "only {pages} pages were moved");
    // One task has one request at a time: while it sleeps, one answer comes.
    ensure!(
        interrupts <= sleeps + events,
        "{interrupts} interrupts for {sleeps} sleeps and {events} events"
    );
    Ok(())
}
