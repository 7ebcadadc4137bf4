//! What the image of User Mode Linux itself promises to the tests that use it.

use anyhow::{Context, Result, ensure};
use tmem_tests::service::Service;
use tmem_tests::uml::guest::{END, Guest, Setup};

#[test]
fn a_swap_area_gets_the_priority_that_it_is_given() -> Result<()> {
    let service = Service::start("32M", &[("vm1", "")])?;
    let commands = format!(
        "swap_on ubda 5; echo guest status $?; swap_on tmemswap0; echo guest status $?; cat /proc/swaps; {END}"
    );
    let setup = Setup {
        words: "tmem=1 tmem.swap=16M",
        disk: Some(16 << 20),
        commands: &commands,
        ..Setup::default()
    };
    let guest = Guest::start(&service.socket("vm1"), service.folder(), &setup)?;
    let console = guest.finish()?;
    let text = console.lines().join("\n");
    let statuses = text.lines().filter(|line| *line == "guest status 0");
    ensure!(statuses.count() == 2, "an area is not in use:\n{text}");
    let priority = |device: &str| {
        let line = text.lines().find(|line| line.starts_with(device));
        line.and_then(|line| line.split_whitespace().last())
            .and_then(|priority| priority.parse::<i32>().ok())
            .with_context(|| format!("no priority of {device}:\n{text}"))
    };
    ensure!(priority("/dev/ubda")? == 5, "not the one given:\n{text}");
    ensure!(
        priority("/dev/tmemswap0")? < 0,
        "one that nobody gave:\n{text}"
    );
    Ok(())
}

#[test]
fn a_guest_has_the_same_memory_at_each_boot() -> Result<()> {
    let service = Service::start("32M", &[("vm1", "")])?;
    let commands = format!("grep MemTotal: /proc/meminfo; splats; {END}");
    let setup = Setup {
        commands: &commands,
        ..Setup::default()
    };
    let memory = || {
        let mut guest = Guest::start(&service.socket("vm1"), service.folder(), &setup)?;
        let line = guest.wait_for("MemTotal:")?;
        guest.finish().map(|_| line)
    };
    let first = memory()?;
    for boot in 2..=4 {
        let line = memory()?;
        ensure!(line == first, "{first} at first, {line} at boot {boot}");
    }
    Ok(())
}
