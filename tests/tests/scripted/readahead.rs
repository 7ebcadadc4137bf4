//! Pages of one readahead are one request, and each of them comes to an end.

use anyhow::{Result, ensure};
use tempfile::TempDir;
use tmem_protocol::{Op, Status};
use tmem_tests::uml::guest::Guest;

use crate::device::{Device, Script};
use crate::{begin, no_warnings, start_on_disk};

/// Pages of frontswap over a disk.
const FRONTSWAP: &str = "tmem.swap=0";
/// Pages of the driver's disk, on which the kernel reads ahead.
const DISK: &str = "tmem.frontswap=0 tmem.sync=0";

/// A guest that pages 2 MiB of a process out, and then waits to read them one after the other.
fn start_walk(user: &str, words: &str) -> Result<(TempDir, Device, Guest)> {
    start_walk_that(user, words, "go; wait $!; echo guest walk $?")
}

fn swap_of(user: &str) -> &'static str {
    if user == FRONTSWAP {
        "ubda"
    } else {
        "tmemswap0"
    }
}

/// The same, and then it does `what`.
fn start_walk_that(user: &str, words: &str, what: &str) -> Result<(TempDir, Device, Guest)> {
    let (folder, device, mut guest) = start_on_disk(
        Some(64 << 20),
        &format!("{user} tmem.stage=64 test.page_cluster=3 {words}"),
        &format!(
            "swap_on {}; hog size=2M kinds=random phases=fill,pageout,wait & at_wait; pause out; {what}",
            swap_of(user)
        ),
    )?;
    begin(&device, &mut guest, "out")?;
    Ok((folder, device, guest))
}

/// How many pages each load of that guest asks for.
fn loads_of_a_walk(user: &str, words: &str) -> Result<Vec<usize>> {
    let (_folder, device, mut guest) = start_walk(user, words)?;
    guest.go_on()?;
    let console = guest.finish()?;
    ensure!(
        console.count("guest walk 0") == 1,
        "pages came back as others"
    );
    no_warnings(&console)?;
    let script = device.script();
    let loads = script.seen.iter().filter(|(op, ..)| *op == Op::Load);
    let loads: Vec<usize> = loads.map(|(_, count, _)| *count).collect();
    println!("{user} {words}: {loads:?}");
    Ok(loads)
}

fn are_together(loads: &[usize]) -> Result<()> {
    let pages: usize = loads.iter().sum();
    ensure!(
        pages >= 400 && loads.len() <= pages / 4 && loads.contains(&8),
        "{pages} pages were loaded with {} requests",
        loads.len()
    );
    Ok(())
}

fn are_apart(loads: &[usize]) -> Result<()> {
    ensure!(
        loads.len() >= 400 && loads.iter().all(|count| *count == 1),
        "{loads:?}"
    );
    Ok(())
}

/// The process that walks ends, and no task waits, when the device has that `fault`.
fn ends_with_a_bus_error(user: &str, words: &str, fault: fn(&mut Script)) -> Result<()> {
    let (_folder, device, mut guest) = start_walk(user, words)?;
    fault(&mut device.script());
    guest.go_on()?;
    let console = guest.finish()?;
    ensure!(
        console.count("guest walk 135") == 1,
        "the process did not end with a bus error: {:?}",
        console.lines()
    );
    no_warnings(&console)
}

#[test]
fn a_readahead_of_eight_pages_is_one_request() -> Result<()> {
    are_together(&loads_of_a_walk(FRONTSWAP, "")?)
}

#[test]
fn a_readahead_on_a_disk_that_is_not_synchronous_is_one_request() -> Result<()> {
    are_together(&loads_of_a_walk(DISK, "")?)
}

#[test]
fn a_synchronous_disk_has_no_readahead() -> Result<()> {
    are_apart(&loads_of_a_walk(DISK, "tmem.sync=1")?)
}

#[test]
fn without_the_plug_each_page_of_a_readahead_is_a_request() -> Result<()> {
    are_apart(&loads_of_a_walk(FRONTSWAP, "tmem.plug=0")?)?;
    are_apart(&loads_of_a_walk(DISK, "tmem.plug=0")?)
}

#[test]
fn a_lost_page_of_a_readahead_is_a_bus_error_and_leaves_no_task_waiting() -> Result<()> {
    let lose = |script: &mut Script| script.loads = Status::NotFound;
    ends_with_a_bus_error(FRONTSWAP, "", lose)?;
    ends_with_a_bus_error(DISK, "", lose)
}

#[test]
fn a_readahead_before_a_device_that_is_given_up_is_a_bus_error() -> Result<()> {
    let hang = |script: &mut Script| script.stall = true;
    ends_with_a_bus_error(FRONTSWAP, "tmem.timeout_ms=1000", hang)?;
    ends_with_a_bus_error(DISK, "tmem.timeout_ms=1000", hang)
}

/// A process is killed while the device has its readahead, which is answered later: no page stays locked.
fn is_killed(user: &str) -> Result<()> {
    let (_folder, device, mut guest) = start_walk_that(
        user,
        "",
        &format!(
            "go; pause asked; kill -9 $!; pause killed; wait $!; echo guest walk $?; swapoff /dev/{}; echo guest off $?",
            swap_of(user)
        ),
    )?;
    device.script().stall = true;
    guest.go_on()?;
    guest.wait_for("guest pause asked")?;
    guest.eventually("the device is asked for pages", || {
        Ok(device.script().is_stalled())
    })?;
    guest.go_on()?;
    guest.wait_for("guest pause killed")?;
    device.release()?;
    guest.go_on()?;
    let console = guest.finish()?;
    ensure!(
        console.count("guest walk 137") == 1 && console.count("guest off 0") == 1,
        "the process or its swap area did not end: {:?}",
        console.lines()
    );
    no_warnings(&console)
}

#[test]
fn a_task_that_is_killed_during_its_readahead_leaves_no_page_locked() -> Result<()> {
    is_killed(FRONTSWAP)?;
    is_killed(DISK)
}
