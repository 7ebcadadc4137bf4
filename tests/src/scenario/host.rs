//! The host's side: true statistics, clients that misbehave, no work for an idle guest, a clean end.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::write;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, tcgetattr};

use super::entry::Scenario;
use crate::guest::{Guest, Machine, Setup};

/// The scenarios of this file, and what each runs on.
pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::on_kvm("clients", clients),
    Scenario::on_kvm("idle", idle),
    Scenario::on_kvm("terminate", terminate),
    Scenario::on_kvm("deaf", deaf),
    Scenario::on_kvm("terminal", terminal),
    Scenario::anywhere("statistics", statistics),
];

/// Moments at which both sides are asked. A guest may do something in between, so not all of them can be compared.
const MOMENTS: [u32; 6] = [1, 2, 3, 4, 5, 6];

fn statistics(machine: Machine) -> Result<()> {
    for (words, user) in [
        ("tmem=1", "frontswap"),
        ("tmem=1 tmem.frontswap=0", "block"),
    ] {
        let setup = Setup {
            kernel_words: words,
            ..Setup::on(machine)
        };
        let mut guest = Guest::start(
            &setup,
            "swap_on tmemswap0; hog size=36M phases=fill,drop,wait & at_wait; \
             for n in 1 2 3 4 5 6; do sleep 1; counters before$n; pause moment$n; counters after$n; done; \
             go; wait $!; echo guest work $?; splats",
        )?;
        let mut hosts = Vec::new();
        for moment in MOMENTS {
            guest.wait_for(&format!("guest pause moment{moment}"))?;
            hosts.push((moment, guest.stats()?));
            guest.go_on()?;
        }
        let console = guest.finish()?;
        console.verified(1)?;
        // The swap area's header goes through the swap disk on either path.
        let both = |moment: &str, name: &str| -> Result<u64> {
            Ok(console.counter(moment, &format!("tmem.frontswap_{name}"))?
                + console.counter(moment, &format!("tmem.block_{name}"))?)
        };
        let counters = |moment: &str| -> Result<[u64; 4]> {
            Ok([
                both(moment, "stores_ok")?,
                both(moment, "loads_ok")?,
                both(moment, "pages")?,
                both(moment, "stores_no_space")?,
            ])
        };
        let mut compared = 0;
        for (moment, host) in hosts {
            let before = counters(&format!("before{moment}"))?;
            if before != counters(&format!("after{moment}"))? {
                println!("{words}: the guest was not quiet at moment {moment}");
                continue;
            }
            compared += 1;
            let host = [
                host.get("/stores"),
                host.get("/loads"),
                host.get("/pages"),
                host.refused(),
            ];
            println!("{words}: moment {moment}: guest {before:?}, host {host:?}");
            ensure!(
                before == host,
                "{words}: stores, loads, pages held and refused pages: the guest says {before:?}, the host {host:?}"
            );
        }
        ensure!(compared > 0, "{words}: the guest was never quiet");
        ensure!(
            console.counter("after1", &format!("tmem.{user}_stores_ok"))? > 1000,
            "{words}: too little was swapped to compare"
        );
    }
    Ok(())
}

fn clients() -> Result<()> {
    let mut guest = Guest::start(
        &Setup::default(),
        "swap_on tmemswap0; echo guest working; work size=48M phases=fill; splats; pause end",
    )?;
    guest.wait_for("guest working")?;
    let socket = guest.folder().join("control");
    // Clients that connect and say nothing, or half a request, and stay.
    let mut stalled = Vec::new();
    for start in [
        "",
        "GET /v1/st",
        "GET /v1/stats HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n",
    ] {
        let mut stream =
            UnixStream::connect(&socket).context("cannot connect to the control socket")?;
        stream.write_all(start.as_bytes())?;
        stalled.push(stream);
    }
    // Clients killed at any point of their life.
    for delay in 0..10 {
        let mut client = guest
            .stats_command()?
            .stdout(Stdio::null())
            .spawn()
            .context("cannot run tmem stats")?;
        thread::sleep(Duration::from_millis(delay * 5));
        client.kill()?;
        client.wait()?;
    }
    guest.wait_for("guest pause end")?;
    let host = guest.stats()?;
    ensure!(host.get("/stores") > 0, "the host got no page");
    drop(stalled);
    guest.go_on()?;
    guest.finish()?.verified(1)
}

/// How often each thread that is not a vCPU has been given a processor, and for how many nanoseconds.
pub(super) fn turns(process: u32) -> Result<BTreeMap<String, (u64, u64)>> {
    let mut turns = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{process}/task"))? {
        let path = entry?.path();
        let name = fs::read_to_string(path.join("comm"))?.trim().to_owned();
        if name.starts_with("vcpu") {
            continue;
        }
        // Nanoseconds on a processor, nanoseconds waiting for one, turns.
        let stat = fs::read_to_string(path.join("schedstat"))?;
        let numbers: Vec<u64> = stat
            .split_whitespace()
            .map(str::parse)
            .collect::<Result<_, _>>()?;
        let [nanoseconds, _, count] = numbers[..] else {
            bail!("schedstat is {stat:?}");
        };
        turns.insert(format!("{name} {}", path.display()), (count, nanoseconds));
    }
    Ok(turns)
}

fn idle() -> Result<()> {
    let mut guest = Guest::start(
        &Setup::default(),
        "swap_on tmemswap0; work size=32M; pause idle; echo guest awake",
    )?;
    guest.wait_for("guest pause idle")?;
    // A request, so that every thread has been awake; then the connection's threads and timers settle.
    guest.stats()?;
    thread::sleep(Duration::from_secs(12));
    let before = turns(guest.process())?;
    ensure!(before.len() > 1, "tmem has no threads but {before:?}");
    thread::sleep(Duration::from_secs(10));
    let after = turns(guest.process())?;
    for (name, (count, nanoseconds)) in &before {
        let (more, later) = after
            .get(name)
            .context("a thread ended while the guest was idle")?;
        let (turns, time) = (more - count, later - nanoseconds);
        println!("{name}: {turns} turns, {time} ns in 10 idle seconds");
        ensure!(
            turns == 0,
            "thread {name} woke up {turns} times in 10 idle seconds, for {time} ns"
        );
    }
    guest.go_on()?;
    guest.finish()?.verified(1)
}

fn signal(guest: &Guest, signal: &str) -> Result<()> {
    Command::new("kill")
        .arg(signal)
        .arg(guest.process().to_string())
        .status()
        .context("cannot run kill")?;
    Ok(())
}

fn terminal() -> Result<()> {
    let keyboard = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).context("no pseudo terminal")?;
    grantpt(&keyboard)?;
    unlockpt(&keyboard)?;
    let name = ptsname(&keyboard, Vec::new())?;
    let terminal = open(name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty())?;
    let modes = || -> Result<_> {
        let now = tcgetattr(&terminal)?;
        Ok((now.input_modes, now.output_modes, now.local_modes))
    };
    let before = modes()?;
    for end in ["-TERM", "-HUP", "escape"] {
        let setup = Setup {
            terminal: Some(terminal.try_clone()?),
            options: &["--grace", "0"],
            ..Setup::default()
        };
        let mut guest = Guest::start(&setup, "pause typing; echo guest read; pause forever")?;
        guest.wait_for("guest pause typing")?;
        let raw = LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG;
        ensure!(
            !modes()?.2.intersects(raw),
            "the terminal is not raw while the guest runs"
        );
        write(&keyboard, b"x\r")?;
        guest.wait_for("guest pause forever")?;
        match end {
            "escape" => {
                write(&keyboard, b"\x01x")?;
            }
            _ => signal(&guest, end)?,
        }
        let status = guest.ended()?;
        println!("{end}: ended with {status}");
        ensure!(
            status.success() == (end == "escape"),
            "{end} ended tmem with {status}"
        );
        ensure!(modes()? == before, "{end}: the terminal is not as before");
    }
    Ok(())
}

/// A signal presses the guest's power button, the guest powers itself off, and nothing is left behind.
fn terminate() -> Result<()> {
    for end in ["-TERM", "-INT"] {
        let setup = Setup {
            // Longer than any test waits: the guest ends by itself or not at all.
            options: &["--grace", "86400"],
            ..Setup::default()
        };
        let mut guest = Guest::start(&setup, "echo guest waiting; pause forever")?;
        guest.wait_for("guest pause forever")?;
        let socket = guest.folder().join("control");
        ensure!(socket.exists(), "there is no control socket");
        let start = Instant::now();
        signal(&guest, end)?;
        let status = guest.ended()?;
        println!(
            "{end}: ended with {status} after {} ms",
            start.elapsed().as_millis()
        );
        ensure!(status.success(), "{end} ended the guest with {status}");
        said(&guest, "guest button")?;
        said(&guest, "tmem: The guest powered itself off")?;
        let left: Vec<_> = fs::read_dir(guest.folder())?
            .flatten()
            .map(|entry| entry.path())
            .collect();
        ensure!(left.is_empty(), "left behind: {left:?}");
    }
    Ok(())
}

/// A guest that does nothing when its power button is pressed loses its power after its grace time, or at a second signal.
fn deaf() -> Result<()> {
    const PRESSED: &str = "tmem: SIGTERM: pressed the guest's power button";
    for (options, insists) in [
        (&["--grace", "1"], false),
        (&["--grace", "86400"], true),
        (&["--grace", "0"], false),
    ] {
        let setup = Setup {
            kernel_words: "test.deaf",
            options,
            ..Setup::default()
        };
        let mut guest = Guest::start(&setup, "pause forever")?;
        guest.wait_for("guest pause forever")?;
        signal(&guest, "-TERM")?;
        if options != &["--grace", "0"] {
            guest.wait_for(PRESSED)?;
        }
        if insists {
            signal(&guest, "-TERM")?;
        }
        let status = guest.ended()?;
        println!("{options:?}: ended with {status}");
        ensure!(
            status.code() == Some(128 + 15),
            "{options:?}: ended with {status}"
        );
        said(&guest, "tmem: SIGTERM cut the guest's power")?;
    }
    Ok(())
}

/// A line on the console or on the standard error of `tmem run`.
pub(super) fn said(guest: &Guest, line: &str) -> Result<()> {
    let console = guest.console();
    ensure!(
        console.lines().iter().any(|other| other == line),
        "no line {line:?}:\n{}",
        console.lines().join("\n")
    );
    Ok(())
}
