//! A guest of User Mode Linux outlives its service, and has its device back when the service is.

use std::path::Path;

use anyhow::{Result, ensure};
use tmem_tests::guest::Console;
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
    let stored = service.figures("vm1")?.device("pages_stored");
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
fn a_device_without_its_service_stays_is_reset_and_lets_the_guest_power_off() -> Result<()> {
    let mut service = Service::start("64M", &[("vm1", ",swap=64M")])?;
    let commands = format!(
        "pause up; at_counter broken 1; \
         until grep -q 0x00000000 /sys/bus/virtio/devices/virtio0/status; do usleep 50000; done; \
         echo guest reset; splats; {END}"
    );
    let mut guest = start(&service, &commands)?;
    guest.wait_for("guest pause up")?;
    service.kill()?;
    guest.go_on()?;
    let console = guest.finish()?;
    has(&console, "guest splats 0")?;
    has(&console, "guest reset")
}
