//! The guest's driver before a device that answers as a test wants, and notes what it is asked for: User Mode Linux. Without
//! staging pages, so that a store is a request, except in `staged.rs`.

mod device;
mod readahead;
mod staged;

use std::path::Path;

use anyhow::{Result, ensure};
use device::{Device, Seen};
use tempfile::TempDir;
use tmem_protocol::{Op, Status};
use tmem_tests::console::Console;
use tmem_tests::uml::guest::{END, Guest, Setup};

/// Pages of the swap disk past the page cache, from one page on so many: `out` stores, `back` loads, `give` gives up.
/// `heard` returns when the host knows of all that was given up.
const PAGES: &str = "\
    out() { dd if=/dev/urandom of=/dev/tmemswap0 bs=4096 seek=$1 count=$2 oflag=direct status=none; echo guest out $?; }; \
    back() { dd if=/dev/tmemswap0 of=/dev/null bs=4096 skip=$1 count=$2 iflag=direct status=none; echo guest back $?; }; \
    give() { blkdiscard -o $(($1 * 4096)) -l $(($2 * 4096)) /dev/tmemswap0; }; \
    heard() { until grep -qx 'pending_invalidates 0' /sys/kernel/debug/tmem/stats; do usleep 50000; done; }";

/// A device and a guest on it that runs `commands`.
fn start(commands: &str) -> Result<(TempDir, Device, Guest)> {
    start_with("tmem.stage=0", commands)
}

/// The same with more words for the driver.
fn start_with(words: &str, commands: &str) -> Result<(TempDir, Device, Guest)> {
    start_on_disk(None, &format!("tmem.frontswap=0 {words}"), commands)
}

/// The same with a disk `/dev/ubda`, and without a word on the driver's users.
fn start_on_disk(
    disk: Option<u64>,
    words: &str,
    commands: &str,
) -> Result<(TempDir, Device, Guest)> {
    start_before(Device::listen, disk, words, commands)
}

/// The same before a device that `listen` makes.
fn start_before(
    listen: impl FnOnce(&Path) -> Result<Device>,
    disk: Option<u64>,
    words: &str,
    commands: &str,
) -> Result<(TempDir, Device, Guest)> {
    let folder = tempfile::tempdir()?;
    let socket = folder.path().join("vm1");
    let device = listen(&socket)?;
    let setup = Setup {
        words: &format!("tmem=1 {words}"),
        disk,
        commands: &format!("{PAGES}; {commands}; splats; {END}"),
        ..Setup::default()
    };
    let guest = Guest::start(&socket, folder.path(), &setup)?;
    Ok((folder, device, guest))
}

/// The guest waits for it; what the device is asked for from now on is looked at.
fn begin(device: &Device, guest: &mut Guest, word: &str) -> Result<()> {
    guest.wait_for(&format!("guest pause {word}"))?;
    device.script().seen.clear();
    Ok(())
}

/// Lets the guest give one page up. The worker is then at the device with it, and sends nothing else.
fn occupy_worker(device: &Device, guest: &mut Guest) -> Result<()> {
    device.script().hold = true;
    guest.go_on()?;
    guest.eventually("the worker has a batch at the device", || {
        Ok(device.script().seen == [(Op::InvalidatePage, 1, None)])
    })?;
    begin(device, guest, "held")
}

fn saw(device: &Device, expected: &[Seen]) -> Result<()> {
    let seen = std::mem::take(&mut device.script().seen);
    ensure!(
        seen == expected,
        "the device was asked for\n{seen:?}\nand should have been asked for\n{expected:?}"
    );
    Ok(())
}

fn no_warnings(console: &Console) -> Result<()> {
    ensure!(
        console.count("guest splats 0") == 1,
        "the guest's kernel wrote warnings"
    );
    Ok(())
}

const OK: Option<Status> = Some(Status::Ok);

#[test]
fn a_load_takes_the_invalidates_of_others_along_only_with_1024_of_them() -> Result<()> {
    let (_folder, device, mut guest) = start(
        "out 0 1026; pause out; give 0 1; pause held; \
         give 1 1023; back 1025 1; pause few; give 1024 1; back 1025 1; pause many; heard",
    )?;
    begin(&device, &mut guest, "out")?;
    occupy_worker(&device, &mut guest)?;
    guest.go_on()?;
    guest.wait_for("guest pause few")?;
    saw(&device, &[(Op::Load, 1, OK)])?;
    guest.go_on()?;
    guest.wait_for("guest pause many")?;
    saw(&device, &[(Op::InvalidatePage, 64, OK), (Op::Load, 1, OK)])?;
    device.release()?;
    guest.go_on()?;
    let console = guest.finish()?;
    ensure!(console.count("guest back 0") == 2, "a load failed");
    no_warnings(&console)?;
    // None was forgotten.
    let seen = &device.script().seen;
    let sent: usize = seen.iter().map(|(_, count, _)| count).sum();
    ensure!(
        sent == 1024 - 64,
        "{sent} invalidates came afterwards: {seen:?}"
    );
    Ok(())
}

#[test]
fn a_full_guest_is_not_refused_before_its_host_has_heard_of_what_it_gave_up() -> Result<()> {
    // Fewer than a store takes along before it is refused.
    let (_folder, device, mut guest) = start(
        "out 1 20; pause out; give 1 1; pause held; \
         give 2 10; dio /dev/tmemswap0 1; echo guest stored $?; pause stored; heard",
    )?;
    begin(&device, &mut guest, "out")?;
    device.script().room = 0;
    occupy_worker(&device, &mut guest)?;
    guest.go_on()?;
    guest.wait_for("guest pause stored")?;
    let load = (Op::Load, 1, OK);
    saw(
        &device,
        &[
            (Op::Store, 1, Some(Status::NoSpace)),
            (Op::InvalidatePage, 10, OK),
            (Op::Store, 1, OK),
            load,
            load,
        ],
    )?;
    device.release()?;
    guest.go_on()?;
    let console = guest.finish()?;
    ensure!(
        console.count("guest stored 0") == 1,
        "the page was refused, or is not what was stored"
    );
    no_warnings(&console)?;
    Ok(())
}

/// Pages which a guest asks for in vain.
const LOST: usize = 20;
/// Seconds between two lines on lost pages. A line's time is not exactly that by which they are counted.
const BETWEEN: f64 = 9.0;

/// A guest whose host says `status` to every load of a page that it accepted. `counter` counts them.
fn loses(status: Status, counter: &str) -> Result<()> {
    let (_folder, device, mut guest) = start(&format!(
        "out 0 {LOST}; pause out; for i in $(seq 1 {LOST}); do back $((i - 1)) 1 2>/dev/null; done; counters end; \
         dmesg | grep 'virtio-tmem' | sed 's|^|guest log |'"
    ))?;
    begin(&device, &mut guest, "out")?;
    device.script().loads = status;
    guest.go_on()?;
    let console = guest.finish()?;
    let shown = || console.lines().join("\n");
    ensure!(
        console.count("guest back 1") == LOST && console.count("guest back 0") == 0,
        "a lost page was no error:\n{}",
        shown()
    );
    ensure!(
        console.counter("end", &format!("tmem.block_{counter}"))? == u64::try_from(LOST)?,
        "the guest counted other losses:\n{}",
        shown()
    );
    let log: Vec<&String> = console
        .lines()
        .iter()
        .filter(|line| line.starts_with("guest log ") && line.contains("has lost page"))
        .collect();
    let first = log.first().map_or("", |line| line.as_str());
    let number = u8::from(status);
    for what in [
        &format!("the host has lost page 0 of the swap disk, status {number}:"),
        "who needs it gets an I/O error",
        "the log of the host's tmem service may say why",
    ] {
        ensure!(
            first.contains(what),
            "the log does not say {what:?}:\n{}",
            shown()
        );
    }
    // However many pages are lost, and however slow the guest is.
    let times: Vec<f64> = log.iter().filter_map(|line| time(line)).collect();
    ensure!(
        times.len() == log.len() && times.windows(2).all(|two| two[1] - two[0] > BETWEEN),
        "lines on lost pages at {times:?} s:\n{}",
        shown()
    );
    Ok(())
}

/// When the kernel wrote a line: `guest log [ SECONDS] TEXT`.
fn time(line: &str) -> Option<f64> {
    let (_, rest) = line.split_once('[')?;
    rest.split_once(']')?.0.trim().parse().ok()
}

#[test]
fn an_accepted_page_that_the_host_does_not_know_is_a_line_that_says_what_to_do() -> Result<()> {
    loses(Status::NotFound, "loads_lost")
}

#[test]
fn a_page_that_the_host_has_damaged_is_a_line_that_says_what_to_do() -> Result<()> {
    loses(Status::IoError, "loads_io_error")
}

#[test]
fn a_device_with_more_queues_than_the_front_end_is_used_without_its_store_queues() -> Result<()> {
    // User Mode Linux has 64 queues for a device and warns when a driver wants more. The store queue of this one is the 66th.
    let (_folder, device, guest) = start_before(
        |socket| Device::listen_with((65, 1), socket),
        None,
        "tmem.frontswap=0 tmem.stage=64",
        "dio /dev/tmemswap0 200 && state staged 0; echo guest moved $?; \
         dmesg | grep -c 'WARNING.*vu_find_vq[s]' | sed 's|^|guest refused |'",
    )?;
    let console = guest.finish()?;
    ensure!(
        console.count("guest refused 1") == 1 && console.count("guest splats 1") == 1,
        "the front end did not refuse the queues once:\n{}",
        console.lines().join("\n")
    );
    ensure!(
        console.count("guest moved 0") == 1,
        "a page did not come back:\n{}",
        console.lines().join("\n")
    );
    let script = device.script();
    for (what, op) in [("store", Op::Store), ("load", Op::Load)] {
        let pages = script.seen.iter().filter(|(seen, ..)| *seen == op);
        let pages: usize = pages.map(|(_, count, _)| count).sum();
        ensure!(pages >= 100, "only {pages} pages with requests to {what}");
    }
    Ok(())
}
