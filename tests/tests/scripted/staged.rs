//! Requests that the fast path saves: pages of zeroes, requests of many pages, staging pages.

use anyhow::{Result, ensure};
use tmem_protocol::{Op, Status};
use tmem_tests::uml::guest::Guest;

use crate::device::{Device, Seen};
use crate::{OK, begin, no_warnings, saw, start, start_with};

/// Random pages in a file, to the disk and compared: `fill` makes so many, `put` stores the file, `same` loads and
/// compares it. `idle` returns when no staging page is in use, `stuck` when so many were refused.
const FILE: &str = "\
    fill() { dd if=/dev/urandom of=/tmp/pages bs=4096 count=$1 status=none; }; \
    put() { dd if=/tmp/pages of=/dev/tmemswap0 bs=$1 oflag=direct status=none; echo guest put $?; }; \
    same() { dd if=/dev/tmemswap0 of=/tmp/back bs=$1 count=$2 iflag=direct status=none; cmp /tmp/back /tmp/pages; echo guest same $?; }; \
    idle() { state staged 0; }; stuck() { state stuck $1; }";

fn entries(device: &Device, op: Op) -> usize {
    let script = device.script();
    let of_op = script.seen.iter().filter(|(seen, ..)| *seen == op);
    of_op.map(|(_, count, _)| count).sum()
}

fn seen(device: &Device) -> Vec<Seen> {
    device.script().seen.clone()
}

#[test]
fn a_page_of_zeroes_is_no_request() -> Result<()> {
    let (_folder, device, mut guest) = start(
        "zeroes() { dd if=/dev/zero of=/dev/tmemswap0 bs=4096 count=$1 oflag=direct status=none; }; \
         out 0 1; pause out; zeroes 5; heard; \
         dd if=/dev/tmemswap0 bs=4096 count=5 iflag=direct status=none | tr -d '\\0' | wc -c | sed 's|^|guest other bytes |'; \
         give 0 5; counters end",
    )?;
    begin(&device, &mut guest, "out")?;
    guest.go_on()?;
    let console = guest.finish()?;
    ensure!(
        console.count("guest other bytes 0") == 1,
        "a page of zeroes is another: {:?}",
        console.lines()
    );
    // The page that was there before them.
    saw(&device, &[(Op::InvalidatePage, 1, OK)])?;
    for counter in ["stores_zero", "loads_zero"] {
        let counted = console.counter("end", &format!("tmem.block_{counter}"))?;
        ensure!(counted == 5, "{counter}: {counted}");
    }
    Ok(())
}

#[test]
fn a_bio_of_many_pages_is_a_request_for_each_64() -> Result<()> {
    let (_folder, device, mut guest) = start(&format!(
        "{FILE}; fill 200; pause out; put 32k; pause eight; same 32k 25; pause back; put 512k; pause big; same 800k 1"
    ))?;
    begin(&device, &mut guest, "out")?;
    guest.go_on()?;
    begin_after(&device, &mut guest, "eight", &[(Op::Store, 8, OK); 25])?;
    begin_after(&device, &mut guest, "back", &[(Op::Load, 8, OK); 25])?;
    let stores = [64, 64, 64, 8].map(|count| (Op::Store, count, OK));
    begin_after(&device, &mut guest, "big", &stores)?;
    let console = guest.finish()?;
    saw(&device, &[64, 64, 64, 8].map(|count| (Op::Load, count, OK)))?;
    ensure!(
        console.count("guest same 0") == 2,
        "pages came back as others: {:?}",
        console.lines()
    );
    Ok(())
}

/// At the guest's next pause, the device has seen what it should.
fn begin_after(device: &Device, guest: &mut Guest, word: &str, expected: &[Seen]) -> Result<()> {
    guest.wait_for(&format!("guest pause {word}"))?;
    saw(device, expected)?;
    guest.go_on()
}

#[test]
fn staged_pages_come_in_batches_and_each_once() -> Result<()> {
    let (_folder, device, mut guest) = start_with(
        "tmem.stage=64",
        &format!("{FILE}; fill 200; pause out; put 4k; idle; pause all; same 4k 200"),
    )?;
    begin(&device, &mut guest, "out")?;
    guest.go_on()?;
    guest.wait_for("guest pause all")?;
    let requests = seen(&device);
    ensure!(
        entries(&device, Op::Store) == 200 && device.script().held_pages() == 200,
        "200 pages were stored: {requests:?}"
    );
    ensure!(
        requests.len() <= 2 * 200 / 8 && requests.iter().all(|(_, count, _)| *count <= 8),
        "200 pages are 25 batches of 8: {requests:?}"
    );
    guest.go_on()?;
    let console = guest.finish()?;
    ensure!(
        console.count("guest same 0") == 1,
        "pages came back as others"
    );
    no_warnings(&console)?;
    Ok(())
}

#[test]
fn what_is_given_up_before_it_was_sent_is_not_sent_and_what_is_staged_is_loaded_without_the_host()
-> Result<()> {
    let (_folder, device, mut guest) = start_with(
        "tmem.stage=64",
        &format!(
            "{FILE}; fill 48; pause out; put 4k; same 4k 48; counters staged; give 0 48; pause gone; idle; heard; counters end"
        ),
    )?;
    begin(&device, &mut guest, "out")?;
    device.script().stall = true;
    guest.go_on()?;
    guest.wait_for("guest pause gone")?;
    ensure!(seen(&device).is_empty(), "the device was not stalled");
    device.release()?;
    guest.go_on()?;
    let console = guest.finish()?;
    ensure!(
        console.count("guest same 0") == 1,
        "pages came back as others"
    );
    let sent = entries(&device, Op::Store);
    let dropped = console.counter("end", "tmem.block_staged_dropped")?;
    // Three requests fit into the ring at a time.
    ensure!(
        sent <= 3 * 8 && usize::try_from(dropped)? == 48 - sent,
        "48 pages were given up, {dropped} of them before they were sent, and {sent} were sent"
    );
    ensure!(
        entries(&device, Op::InvalidatePage) == sent && device.script().held_pages() == 0,
        "the host was not told of all: {:?}",
        seen(&device)
    );
    Ok(())
}

#[test]
fn a_staged_page_that_the_host_refuses_stays_in_the_guest_until_there_is_room() -> Result<()> {
    let (_folder, device, mut guest) = start_with(
        "tmem.stage=64",
        &format!(
            "{FILE}; fill 8; pause out; put 32k; pause put; stuck 8; same 32k 1; out 100 1 2>/dev/null; pause refused; idle; pause sent; same 32k 1"
        ),
    )?;
    begin(&device, &mut guest, "out")?;
    device.script().room = 0;
    // Not before all are staged: after a refusal no store is.
    device.script().stall = true;
    guest.go_on()?;
    guest.wait_for("guest pause put")?;
    device.release()?;
    guest.go_on()?;
    guest.wait_for("guest pause refused")?;
    let requests = seen(&device);
    ensure!(
        requests.contains(&(Op::Store, 8, Some(Status::NoSpace))),
        "the pages were not refused: {requests:?}"
    );
    ensure!(
        entries(&device, Op::Load) == 0,
        "the host has none of them: {requests:?}"
    );
    device.script().room = usize::MAX;
    guest.go_on()?;
    guest.wait_for("guest pause sent")?;
    ensure!(
        device.script().held_pages() == 8,
        "the pages were not sent again"
    );
    guest.go_on()?;
    let console = guest.finish()?;
    ensure!(
        console.count("guest same 0") == 2,
        "pages came back as others"
    );
    // With pages that are stuck, a store is as it is without staging: it says whether the host took the page.
    ensure!(
        console.count("guest out 1") == 1,
        "a store to a full host succeeded"
    );
    no_warnings(&console)?;
    Ok(())
}
