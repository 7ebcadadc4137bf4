//! A guest of User Mode Linux outlives its service, and has its device back when the service is.

use std::path::Path;

use anyhow::{Result, ensure};
use tmem_tests::console::Console;
use tmem_tests::service::Service;
use tmem_tests::uml::guest::{END, Guest, Setup};

fn service(folder: &Path) -> Result<Service> {
    Service::start_in(folder, "64M", &[("vm1", ",swap=64M")])
}

fn start(service: &Service, commands: &str) -> Result<Guest> {
    let setup = Setup {
        memory: "64M",
        commands,
        ..Setup::default()
    };
    Guest::start(&service.socket("vm1"), service.folder(), &setup)
}

/// The driver bound to no device, and bound to it again.
const UNBIND: &str =
    "cd /sys/bus/virtio/drivers/virtio-tmem; echo virtio0 >unbind; echo guest unbound $?";
const BIND: &str = "echo virtio0 >bind; echo guest bound $?";
/// Moves every page of some work to the service and back, except what the kernel may keep of them.
const WORK: &str = "swap_on tmemswap0; work size=8M phases=fill,pageout,random";
const PAGES: u64 = 1000;

fn has(console: &Console, line: &str) -> Result<()> {
    let lines = console.lines();
    ensure!(
        lines.iter().any(|other| other == line),
        "no line {line:?}:\n{}",
        lines.join("\n")
    );
    Ok(())
}

/// The work after the service came back: it was this one that had the pages.
fn finished(service: &Service, mut guest: Guest) -> Result<Console> {
    guest.wait_for("guest pause end")?;
    let stored = service.domain_stats("vm1")?.device("pages_stored");
    guest.go_on()?;
    let console = guest.finish()?;
    has(&console, "guest work 0")?;
    has(&console, "guest splats 0")?;
    ensure!(
        stored >= PAGES,
        "the service stored {stored} pages only:\n{}",
        console.lines().join("\n")
    );
    Ok(console)
}

#[test]
fn a_driver_has_its_device_back_when_the_service_is() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut first = service(folder.path())?;
    let commands = format!(
        "pause up; at_counter broken 1; pause broken; at_counter revived 1; pause back; \
         at_counter broken 2; at_counter revived 2; {WORK}; splats; irqs end; pause end; {END}"
    );
    let mut guest = start(&first, &commands)?;
    guest.wait_for("guest pause up")?;
    guest.go_on()?;
    first.kill()?;
    guest.wait_for("guest pause broken")?;
    let mut second = service(folder.path())?;
    guest.go_on()?;
    guest.wait_for("guest pause back")?;
    guest.go_on()?;
    // Once more: what the first time has left must not be in the way.
    second.kill()?;
    let third = service(folder.path())?;
    let console = finished(&third, guest)?;
    // Each queue has its interrupt once: that of events, the four for loads, and the first of those for stores.
    let interrupts = console
        .lines()
        .iter()
        .filter(|line| line.starts_with("irq end"));
    let interrupts = interrupts.count();
    ensure!(interrupts == 6, "{interrupts} interrupts of six queues");
    Ok(())
}

#[test]
fn a_driver_that_is_bound_after_its_service_came_back_has_a_device() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut first = service(folder.path())?;
    // Without a service the driver leaves, does not come, and does when there is one.
    let commands = format!(
        "pause up; at_counter broken 1; {UNBIND}; {BIND}; pause gone; {BIND}; cd /; {WORK}; splats; pause end; {END}"
    );
    let mut guest = start(&first, &commands)?;
    guest.wait_for("guest pause up")?;
    guest.go_on()?;
    first.kill()?;
    guest.wait_for("guest unbound 0")?;
    guest.wait_for("guest bound 1")?;
    guest.wait_for("guest pause gone")?;
    let second = service(folder.path())?;
    guest.go_on()?;
    guest.wait_for("guest bound 0")?;
    finished(&second, guest).map(drop)
}

#[test]
fn a_service_that_goes_while_no_driver_is_bound_is_found_again() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut first = service(folder.path())?;
    let commands =
        format!("{UNBIND}; pause unbound; {BIND}; cd /; {WORK}; splats; pause end; {END}");
    let mut guest = start(&first, &commands)?;
    guest.wait_for("guest pause unbound")?;
    first.kill()?;
    let second = service(folder.path())?;
    guest.go_on()?;
    guest.wait_for("guest bound 0")?;
    finished(&second, guest).map(drop)
}

#[test]
fn a_device_without_its_service_is_reset_stays_and_lets_the_guest_power_off() -> Result<()> {
    let mut service = Service::start("64M", &[("vm1", ",swap=64M")])?;
    let commands = format!(
        "pause up; at_counter broken 1; \
         until grep -q 0x00000000 /sys/bus/virtio/devices/virtio0/status; do usleep 50000; done; \
         {UNBIND}; {BIND}; test -e /sys/bus/virtio/devices/virtio0; echo guest device $?; splats; {END}"
    );
    let mut guest = start(&service, &commands)?;
    guest.wait_for("guest pause up")?;
    service.kill()?;
    guest.go_on()?;
    let console = guest.finish()?;
    has(&console, "guest splats 0")?;
    has(&console, "guest unbound 0")?;
    // It comes with its service.
    has(&console, "guest bound 1")?;
    has(&console, "guest device 0")
}
