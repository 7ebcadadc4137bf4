//! What a guest does while its host stands still, and while it sleeps itself: no page is given back too early, none is
//! lost.
//!
//! The log of a guest begins with its command line, and so with these commands: what they look for in the log must not
//! match itself.

use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::entry::Scenario;
use crate::guest::{Guest, Setup};
use crate::service::Service;

/// The scenarios of this file, and what each runs on.
pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::on_kvm("sleep", sleep),
    Scenario::on_kvm("sleep-staged", sleep_staged),
    Scenario::on_kvm("stays-awake", stays_awake),
    Scenario::on_kvm("service-hangs", hangs),
];

/// Longer than a guest with `tmem.timeout_ms=3000` waits, and long enough for two lines about its wait.
const HANG: Duration = Duration::from_secs(25);

/// A service that hangs with requests of the guest in its hands, is given up, and goes on later: what it then writes
/// goes to pages that are still those of the requests. A process that has memory of its own meanwhile keeps its bytes.
fn hangs() -> Result<()> {
    let service = Service::start("512M", &[("vm1", "")])?;
    let setup = Setup {
        memory: "64M".into(),
        service: Some(service.socket("vm1")),
        kernel_words: "tmem=1 tmem.frontswap=0 tmem.timeout_ms=3000 page_poison=1",
        ..Setup::default()
    };
    let mut guest = Guest::start(
        &setup,
        "swap_on tmemswap0; hog size=12M phases=fill,pageout,wait & first=$!; at_wait; counters out; pause out; \
         go; sleep 12; echo guest first $(kill -0 $first && echo alive); \
         hog size=20M phases=fill,wait,verify seed=2 & at_wait; pause hung; \
         wait $first; echo guest lost $?; go; wait $!; echo guest work $?; splats; counters end; \
         dmesg | grep -c 'no end of a rese[t]' | sed 's|^|guest waited |'",
    )?;
    guest.wait_for("guest pause out")?;
    service.hang()?;
    guest.go_on()?;
    let first = guest.wait_for("guest first")?;
    ensure!(
        first == "guest first alive",
        "a page was given back while the service may write to it"
    );
    guest.wait_for("guest pause hung")?;
    thread::sleep(HANG);
    service.proceed()?;
    guest.go_on()?;
    let lost = guest.wait_for("guest lost")?;
    ensure!(
        lost == "guest lost 135",
        "the worker ended otherwise: {lost}"
    );
    let console = guest.finish()?;
    console.verified(1)?;
    ensure!(
        console.counter("end", "tmem.broken")? == 1,
        "the driver did not give the device up"
    );
    ensure!(
        !console.lines().iter().any(|line| line == "guest waited 0"),
        "the guest's log does not say that it waits"
    );
    Ok(())
}

/// A guest sleeps and wakes with pages at the host, in every way its kernel has, and they are there afterwards. Where
/// its memory has no room for them it stays awake and says so.
fn sleep() -> Result<()> {
    const NAP: &str = "nap() { echo $2 >/sys/power/$1; echo guest slept $1 $2 $?; }; \
         cd /sys/power; echo devices >pm_test; echo 1 >/sys/module/suspend/parameters/pm_test_delay";
    let setup = Setup {
        // To hibernate, memory has room for the image and for the pages that are loaded.
        memory: "88M".into(),
        kernel_words: "tmem=1",
        ..Setup::default()
    };
    let mut guest = Guest::start(
        &setup,
        &format!(
            "{NAP}; nap state mem; swap_on tmemswap0; swapoff /dev/tmemswap0; \
             nap state mem; nap state freeze; swapon /dev/tmemswap0; \
             hog size=8M phases=fill,pageout,wait,verify,overwrite & at_wait; counters out; pause out; \
             nap state mem; nap state freeze; nap state disk; counters back; pause back; \
             go; wait $!; echo guest work $?; \
             hog size=96M phases=fill,wait,verify seed=2 & at_wait; nap state mem; nap state disk; \
             go; wait $!; echo guest work $?; splats; counters end; \
             dmesg | grep -c 'cannot slee[p], no room' | sed 's|^|guest refused |'"
        ),
    )?;
    let out = guest.stats_at_pause("out")?.get("/pages");
    let back = guest.stats_at_pause("back")?;
    let console = guest.finish()?;
    console.verified(2)?;
    ensure!(out > 1500, "only {out} pages were out");
    println!("{out} pages before, {} after", back.get("/pages"));
    ensure!(
        back.get("/pages") >= 1500,
        "after the sleep the host has {} of {out} pages",
        back.get("/pages")
    );
    for (line, times) in [
        ("guest slept state mem 0", 3),
        ("guest slept state freeze 0", 2),
        ("guest slept state disk 0", 1),
        ("guest slept state mem 1", 1),
        ("guest slept state disk 1", 1),
    ] {
        ensure!(
            console.count(line) == times,
            "{line:?} {} times, not {times}:\n{}",
            console.count(line),
            console.lines().join("\n")
        );
    }
    ensure!(
        !console.lines().iter().any(|line| line == "guest refused 0"),
        "the guest's log does not say why it stayed awake"
    );
    ensure!(
        console.counter("end", "tmem.broken")? == 0,
        "the device was given up"
    );
    Ok(())
}

/// A guest sleeps and wakes with pages that its host refused, so that they are in staging pages, and with others at the
/// host. It has them all when it is awake, and the host gets those from the staging pages when it takes pages again.
fn sleep_staged() -> Result<()> {
    ["mem", "disk"].into_iter().try_for_each(sleep_staged_to)
}

/// Sleep to memory, or hibernation.
fn sleep_staged_to(state: &str) -> Result<()> {
    // Of 48 pages each, in one request of the disk, so that they are staged before the first of them is refused.
    const DISK: &str = "put() { dd if=/tmp/pages of=/dev/tmemswap0 bs=192k skip=$1 seek=$1 count=$2 oflag=direct status=none; }; \
         same() { dd if=/dev/tmemswap0 bs=192k count=6 iflag=direct status=none | cmp - /tmp/pages; echo guest same $?; }";
    let setup = Setup {
        // To hibernate, a guest needs room for its image.
        memory: "88M".into(),
        kernel_words: "tmem=1 tmem.frontswap=0 tmem.stage=64",
        ..Setup::default()
    };
    let mut guest = Guest::start(
        &setup,
        &format!(
            "{DISK}; echo devices >/sys/power/pm_test; echo 1 >/sys/module/suspend/parameters/pm_test_delay; \
             dd if=/dev/urandom of=/tmp/pages bs=192k count=6 status=none; put 0 5; state staged 0; pause full; \
             put 5 1; state stuck 48; pause stuck; echo {state} >/sys/power/state; echo guest slept $?; same; counters awake; pause awake; \
             state staged 0; same; counters end; pause end; splats"
        ),
    )?;
    guest.wait_for("guest pause full")?;
    guest.operate(&["freeze", "guest"])?;
    guest.go_on()?;
    let asleep = guest.stats_at_pause("stuck")?;
    guest.wait_for("guest pause awake")?;
    guest.operate(&["thaw", "guest"])?;
    guest.go_on()?;
    let end = guest.stats_at_pause("end")?;
    let console = guest.finish()?;
    for (line, times) in [
        ("guest slept 0", 1),
        ("guest same 0", 2),
        ("guest splats 0", 1),
    ] {
        ensure!(
            console.count(line) == times,
            "{line:?} not {times} times:\n{}",
            console.lines().join("\n")
        );
    }
    ensure!(
        asleep.get("/pages") == 240 && asleep.refused() >= 48,
        "before the sleep the host had {} pages, and had refused {}",
        asleep.get("/pages"),
        asleep.refused()
    );
    ensure!(
        console.counter("awake", "tmem.staged_pages")? == 48,
        "the pages did not sleep in staging pages"
    );
    ensure!(
        end.get("/pages") >= 48,
        "the host has {} pages, and should have what it had refused",
        end.get("/pages")
    );
    ensure!(
        console.counter("end", "tmem.broken")? == 0,
        "the device was given up"
    );
    Ok(())
}

/// Nobody freezes the kernel: what it reads from the host while a guest tries to sleep, and stays awake for want of
/// memory, comes late and is no error.
fn stays_awake() -> Result<()> {
    let setup = Setup {
        // Requests of this disk come due seconds after they were made, so also when who made them is frozen.
        // Pages of zeroes take no memory of the host: there are as many as the test wants.
        kernel_words: "tmem=1 tmem.zero=0 dm-mod.create=\"late,,,ro,0 8192 delay /dev/tmemswap0 0 3000\"",
        ..Setup::default()
    };
    let guest = Guest::start(
        &setup,
        "cd /sys/power; echo devices >pm_test; echo 1 >/sys/module/suspend/parameters/pm_test_delay; \
         dd if=/dev/zero of=/dev/tmemswap0 bs=64k count=640 oflag=direct status=none; dio /dev/tmemswap0 1024; \
         late /dev/dm-0 /dev/tmemswap0 1024 5 & at_wait; echo mem >state; echo guest slept $?; \
         go; wait $!; echo guest late $?; splats; counters end; \
         dmesg | grep -c 'cannot slee[p], no room' | sed 's|^|guest refused |'",
    )?;
    let console = guest.finish()?;
    for line in [
        "guest slept 1",
        "guest refused 1",
        "guest late 0",
        "guest splats 0",
    ] {
        ensure!(
            console.lines().iter().any(|other| other == line),
            "no line {line:?}:\n{}",
            console.lines().join("\n")
        );
    }
    ensure!(
        console.counter("end", "tmem.broken")? == 0,
        "the device was given up"
    );
    Ok(())
}
