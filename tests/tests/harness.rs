//! The harness itself: what hangs, dies or is interrupted is seen as that, and leaves nothing behind.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tmem_tests::outer::Outer;
use tmem_tests::platform;
use tmem_tests::process::Process;
use tmem_tests::service::Service;
use tmem_tests::uml::guest::{self, Guest, Setup};
use tmem_tests::uml::{eventually, eventually_with};

/// Time that a busy machine needs to boot a kernel that has no first process; much less than the time limit of a silent
/// guest.
const AT_ONCE: Duration = Duration::from_secs(60);

/// The wait failed with the end of the console, and not because time ran out.
fn failed_at_once<T>(result: Result<T>, start: Instant) -> Result<()> {
    let Err(error) = result else {
        bail!("the guest never ran, and the wait for it came to a good end");
    };
    let text = format!("{error:#}");
    ensure!(
        text.contains("Kernel panic") && text.contains(" ended before"),
        "the error does not say how the guest ended: {text}"
    );
    ensure!(
        start.elapsed() < AT_ONCE,
        "it took {:?} to see that the guest was gone: {text}",
        start.elapsed()
    );
    Ok(())
}

#[test]
fn a_guest_that_dies_at_once_fails_every_wait_for_it_at_once() -> Result<()> {
    let service = Service::start("64M", &[("vm1", ""), ("vm2", ""), ("vm3", "")])?;
    let setup = Setup {
        words: "tmem=1 rdinit=/missing",
        ..Setup::default()
    };
    let start = |name| Guest::start(&service.socket(name), service.folder(), &setup);
    let begun = Instant::now();
    failed_at_once(start("vm1")?.wait_for("guest up"), begun)?;

    let begun = Instant::now();
    let mut guest = start("vm2")?;
    let stores = || Ok(service.domain_stats("vm2")?.device("pages_stored") > 0);
    failed_at_once(guest.eventually("it stores pages", stores), begun)?;

    let begun = Instant::now();
    let mut guest = start("vm3")?;
    let waited = eventually_with(&mut [&mut guest], "nothing", || Ok(false));
    failed_at_once(waited, begun)?;
    let status = guest.finish().map(drop);
    ensure!(status.is_err(), "a guest that panicked ended well");
    Ok(())
}

/// Says to the test that is to be ended that it is, and where it writes that all runs.
const VICTIM: &str = "TMEM_VICTIM";

#[test]
#[ignore = "is run, and ended, by the tests about what a test leaves behind"]
fn victim() -> Result<()> {
    let Some(file) = std::env::var_os(VICTIM) else {
        return Ok(());
    };
    let service = Service::start("64M", &[("vm1", "")])?;
    let setup = Setup {
        commands: "hog size=4M phases=fill,wait & at_wait; pause forever",
        ..Setup::default()
    };
    let mut guest = Guest::start(&service.socket("vm1"), service.folder(), &setup)?;
    guest.wait_for("guest pause forever")?;
    if platform::kvm_is_usable() {
        fs::write(file, "")?;
        guest.wait_for("nothing").map(drop)
    } else {
        // It has no other use here than to run, until it is ended. Its first process has the number 1.
        let outer = Outer {
            arguments: "announce 1 sleep 1000000",
        };
        outer.run(|_| drop(fs::write(&file, ""))).map(drop)
    }
}

/// Processes by number and time of their start, which name one for good; their parents and names.
type Processes = BTreeMap<(u32, String), (u32, String)>;

/// Those that run; not what has ended and is only not waited for.
fn processes() -> Result<Processes> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(process) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        // One that has ended meanwhile has no file.
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let Some((name, rest)) = stat.rsplit_once(") ") else {
            continue;
        };
        let fields: Vec<&str> = rest.split(' ').collect();
        if let [state, parent, ..] = fields[..]
            && state != "Z"
            && let Some(start) = fields.get(19)
        {
            found.insert(
                (process, (*start).to_owned()),
                (parent.parse()?, name.to_owned()),
            );
        }
    }
    Ok(found)
}

/// All processes below `ancestor`.
fn below(ancestor: u32) -> Result<Processes> {
    let all = processes()?;
    let mut family = BTreeSet::from([ancestor]);
    loop {
        let known = family.len();
        let children = all
            .iter()
            .filter(|(_, (parent, _))| family.contains(parent));
        let children: Vec<u32> = children.map(|((process, _), _)| *process).collect();
        family.extend(children);
        if family.len() == known {
            break;
        }
    }
    family.remove(&ancestor);
    Ok(all
        .into_iter()
        .filter(|((process, _), _)| family.contains(process))
        .collect())
}

/// Ends a test in the middle, with `end`, and waits until all processes below it have ended.
fn leaves_no_process_behind(end: impl FnOnce(Pid) -> rustix::io::Result<()>) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let runs = folder.path().join("runs");
    // In a group of its own, as a test runner has it, where our own end would not reach it.
    let mut victim = Command::new("setpriv")
        .args(["--pdeathsig", "KILL"])
        .arg(std::env::current_exe()?)
        .args(["--exact", "victim", "--ignored"])
        .env(VICTIM, &runs)
        .env("TMPDIR", folder.path())
        .stdin(Stdio::null())
        .process_group(0)
        .spawn()?;
    eventually("everything runs", || {
        ensure!(victim.try_wait()?.is_none(), "the victim ended by itself");
        Ok(runs.exists())
    })?;
    let before = below(victim.id())?;
    end(Pid::from_child(&victim))?;
    let status = victim.wait()?;
    ensure!(status.signal().is_some(), "the victim ended with {status}");
    println!("below the test: {:?}", before.values().collect::<Vec<_>>());
    for name in ["(tmem", "(linux", "(qemu"] {
        let there = before.values().any(|(_, other)| other.contains(name));
        ensure!(
            there || (name == "(qemu" && platform::kvm_is_usable()),
            "no {name} was running"
        );
    }
    all_end("all of them are gone", &before)
}

/// Waits until none of these processes runs.
fn all_end(what: &str, those: &Processes) -> Result<()> {
    eventually(what, || {
        let now = processes()?;
        Ok(!those.keys().any(|process| now.contains_key(process)))
    })
}

#[test]
fn a_test_that_is_killed_leaves_no_process_behind() -> Result<()> {
    leaves_no_process_behind(|victim| kill_process(victim, Signal::KILL))
}

/// Ctrl-C at the terminal is a signal to a group, and the test runner passes it on to that of each test.
#[test]
fn a_test_that_is_interrupted_leaves_no_process_behind() -> Result<()> {
    leaves_no_process_behind(|victim| kill_process_group(victim, Signal::INT))
}

/// What the test runner sends to the group of a test whose time is up.
#[test]
fn a_test_that_is_terminated_leaves_no_process_behind() -> Result<()> {
    leaves_no_process_behind(|victim| kill_process_group(victim, Signal::TERM))
}

/// The processes that `tracer` traces.
fn traced_by(tracer: u32) -> Result<Processes> {
    let mut found = processes()?;
    let traced = format!("TracerPid:\t{tracer}");
    found.retain(|(process, _), _| {
        let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
        status.lines().any(|line| line == traced)
    });
    Ok(found)
}

/// What they then call would be the host, and not their kernel.
#[test]
fn the_processes_of_a_guest_end_with_its_kernel() -> Result<()> {
    let service = Service::start("64M", &[("vm1", "")])?;
    let setup = Setup {
        commands: "while :; do :; done & pause forever",
        ..Setup::default()
    };
    let kernel = guest::command(&service.socket("vm1"), service.folder(), &setup)?;
    let variables = kernel.get_envs();
    let mut command = Command::new("sh");
    // It outlives the kernel: when it ends, its keeper kills whatever is left.
    command
        .args(["-c", r#""$@"; echo ended; exec sleep infinity"#, "sh"])
        .arg(kernel.get_program())
        .args(kernel.get_args())
        .envs(variables.filter_map(|(variable, value)| Some((variable, value?))));
    let mut shell = Process::start("the shell", &command, Stdio::piped())?;
    shell.wait_for("guest pause forever", |_| ())?;
    let shells = below(shell.id())?;
    let kernel = shells
        .iter()
        .find_map(|((process, _), (parent, _))| (*parent == shell.id()).then_some(*process))
        .context("the shell has started no kernel")?;
    let traced = traced_by(kernel)?;
    ensure!(!traced.is_empty(), "the kernel has no processes");
    println!("below the shell: {shells:?}, traced: {traced:?}");
    let kernel = i32::try_from(kernel)?;
    kill_process(Pid::from_raw(kernel).context("a process")?, Signal::KILL)?;
    shell.wait_for("ended", |_| ())?;
    all_end("the processes of the guest end", &traced)?;
    ensure!(
        shell.try_wait()?.is_none(),
        "the keeper may have ended them"
    );
    Ok(())
}
