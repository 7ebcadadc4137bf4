//! Pages in the driver's staging pages, when the host refuses all, hangs, ends, or changes its limit, and when the driver
//! goes: each comes back. User Mode Linux and `tmem serve`.

use anyhow::{Result, ensure};
use tmem_tests::service::Service;
use tmem_tests::stats::Stats;
use tmem_tests::uml::guest::{END, Guest, Setup};

/// `put` stores random pages on the swap disk, `same` loads them and compares.
const WORDS: &str = "\
    put() { dd if=/dev/urandom of=/tmp/pages bs=4096 count=$1 status=none; dd if=/tmp/pages of=/dev/tmemswap0 bs=4096 oflag=direct status=none; }; \
    same() { dd if=/dev/tmemswap0 bs=4096 count=$1 iflag=direct status=none | cmp - /tmp/pages; echo guest same $?; }";

/// 50 pages of a process, fewer than there are staging pages.
const HOG: &str = "hog size=200K kinds=random phases=fill,pageout,wait";

fn start(service: &Service, words: &str, commands: &str) -> Result<Guest> {
    let setup = Setup {
        memory: "64M",
        words,
        commands: &format!("{WORDS}; {commands}; splats; counters end; {END}"),
        ..Setup::default()
    };
    Guest::start(&service.socket("vm1"), service.folder(), &setup)
}

/// The guest ends; everything that it compared was the same.
fn finish(guest: Guest, same: usize) -> Result<()> {
    let console = guest.finish()?;
    ensure!(
        console.count("guest same 0") == same && console.count("guest splats 0") == 1,
        "pages are lost, or the kernel wrote warnings:\n{}",
        console.lines().join("\n")
    );
    Ok(())
}

#[test]
fn a_service_that_is_killed_takes_no_staged_page_with_it() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let guests = [("vm1", ",swap=16M")];
    let mut service = Service::start_in(folder.path(), "64M", &guests)?;
    let commands = "pause ready; put 48; same 48; pause staged; same 48; pause dead; \
                    at_counter revived 1; same 48; state staged 0; same 48; pause sent";
    let mut guest = start(&service, "tmem=1 tmem.stage=64 tmem.frontswap=0", commands)?;
    guest.wait_for("guest pause ready")?;
    service.hang()?;
    guest.go_on()?;
    guest.wait_for("guest pause staged")?;
    service.kill()?;
    guest.go_on()?;
    guest.wait_for("guest pause dead")?;
    let service = Service::start_in(folder.path(), "64M", &guests)?;
    guest.go_on()?;
    guest.wait_for("guest pause sent")?;
    let held = service.domain_stats("vm1")?.get("/pages");
    ensure!(held == 48, "the second service has {held} pages of 48");
    guest.go_on()?;
    finish(guest, 4)
}

#[test]
fn a_guest_reads_its_statistics_while_its_host_hangs() -> Result<()> {
    let service = Service::start("64M", &[("vm1", ",swap=16M")])?;
    let commands = "put 48; state staged 0; pause sent; blkdiscard /dev/tmemswap0; \
                    sleep 1; cat /sys/kernel/debug/tmem/stats >/tmp/stats & sleep 2; grep -q pending_invalidates /tmp/stats; \
                    echo guest same $?; pause read; wait $!";
    let mut guest = start(&service, "tmem=1 tmem.frontswap=0", commands)?;
    guest.wait_for("guest pause sent")?;
    service.hang()?;
    guest.go_on()?;
    guest.wait_for("guest pause read")?;
    service.proceed()?;
    guest.go_on()?;
    finish(guest, 1)
}

/// The host refuses every page, and begins with that when the guest has staged all: no store is staged any more after the
/// first refusal.
fn refuse_all_once_staged(service: &Service, guest: &mut Guest) -> Result<()> {
    service.operate(&["freeze", "vm1"])?;
    service.hang()?;
    guest.go_on()?;
    guest.wait_for("guest pause staged")?;
    service.proceed()?;
    guest.go_on()
}

/// A guest with pages of a process that its host refused, so that they are in staging pages; then it does `what`.
fn refused(what: &str) -> Result<()> {
    let service = Service::start("64M", &[("vm1", ",swap=16M")])?;
    let commands = format!(
        "swap_on tmemswap0; state staged 0; pause ready; {HOG},{what} & at_wait; pause staged; state stuck 5[0-9]; pause stuck; \
         {do_it}; go; wait $!; echo guest same $?",
        what = if what == "fork" { "fork" } else { "random" },
        do_it = match what {
            "swapoff" => "swapoff /dev/tmemswap0 && echo guest off",
            "unbind" => "echo virtio0 >/sys/bus/virtio/drivers/virtio-tmem/unbind",
            _ => "true",
        },
    );
    let mut guest = start(&service, "tmem=1 tmem.stage=64", &commands)?;
    guest.wait_for("guest pause ready")?;
    refuse_all_once_staged(&service, &mut guest)?;
    guest.wait_for("guest pause stuck")?;
    let host = service.domain_stats("vm1")?;
    ensure!(
        host.refused() >= 50,
        "the host refused only {}",
        host.refused()
    );
    guest.go_on()?;
    finish(guest, 1)
}

#[test]
fn swapoff_brings_home_what_the_host_refused() -> Result<()> {
    refused("swapoff")
}

#[test]
fn processes_that_share_pages_which_the_host_refused_each_see_their_own_bytes() -> Result<()> {
    refused("fork")
}

#[test]
fn a_driver_that_is_unbound_leaves_its_owners_what_the_host_refused() -> Result<()> {
    refused("unbind")
}

#[test]
fn a_host_that_takes_pages_again_gets_what_it_refused() -> Result<()> {
    let service = Service::start("64M", &[("vm1", ",swap=16M")])?;
    let commands = "pause ready; put 48; pause staged; state stuck 48; same 48; pause stuck; state staged 0; same 48";
    let mut guest = start(&service, "tmem=1 tmem.stage=64 tmem.frontswap=0", commands)?;
    guest.wait_for("guest pause ready")?;
    refuse_all_once_staged(&service, &mut guest)?;
    guest.wait_for("guest pause stuck")?;
    service.operate(&["thaw", "vm1"])?;
    guest.go_on()?;
    finish(guest, 2)
}

/// Times that the limit goes below what the guest has, a little above it, and away.
const MOVES: u32 = 6;

#[test]
fn a_limit_that_goes_up_and_down_under_a_guest_that_stores_costs_no_byte() -> Result<()> {
    let service = Service::start("256M", &[("vm1", "")])?;
    // The guest works until it is told that it is enough. What the host refuses, and is not staged, goes to a disk.
    let commands = "swap_on ubda; { read -r line </dev/console; touch /tmp/enough; } & \
                    for moment in 1 2 3; do state stuck '[1-9][0-9]*'; echo guest stuck; state stuck 0; done & \
                    until [ -f /tmp/enough ]; do work size=40M phases=fill,overwrite; done; pause end; counters end";
    let setup = Setup {
        disk: Some(96 << 20),
        commands: &format!("{commands}; splats; {END}"),
        words: "tmem=1 tmem.swap=0 tmem.stage=64",
        ..Setup::default()
    };
    let mut guest = Guest::start(&service.socket("vm1"), service.folder(), &setup)?;
    let set = |limit: &str| service.operate(&["set", "vm1", &format!("limit={limit}")]);
    let host = || service.domain_stats("vm1");
    let stored = |host: &Stats| host.get("/stores");
    let mut grows = |what: &str, count: &dyn Fn(&Stats) -> u64, amount: u64| {
        let from = count(&host()?);
        guest.eventually(what, || Ok(count(&host()?) >= from + amount))
    };
    grows("the guest stores", &stored, 1000)?;
    for _ in 0..MOVES {
        set(&(host()?.get("/bytes_used") / 2).to_string())?;
        grows("the host refuses pages", &Stats::refused, 10)?;
        set(&(host()?.get("/bytes_used") + (64 << 10)).to_string())?;
        grows("the guest finds the little that there is", &stored, 1)?;
        grows("the host refuses pages again", &Stats::refused, 10)?;
        set("none")?;
        grows("the guest stores again", &stored, 500)?;
    }
    guest.go_on()?;
    guest.wait_for("guest pause end")?;
    guest.go_on()?;
    let console = guest.finish()?;
    let lines = console.lines();
    let workers = lines.iter().filter(|line| line.starts_with("guest work "));
    console.verified(workers.count())?;
    ensure!(
        lines.iter().any(|line| line == "guest stuck"),
        "the host never refused a page that was staged"
    );
    let staged = console.counter("end", "tmem.frontswap_stores_staged")?;
    ensure!(staged > 1000, "only {staged} pages were staged");
    Ok(())
}
