//! The keeper: a process between a test and what it starts, which leaves nothing behind.
//!
//! A guest starts processes of its own and puts them into sessions of their own, and neither a signal to the test's
//! group nor the parent-death signal of one process reaches them all. The keeper has a session of its own, too, so that
//! a signal that interrupts the test does not interrupt it. Processes that it starts, and those below it that lose
//! their parent, are its children. When the program ends, or the test does, it kills its children until it has none,
//! and ends as the program did.
//!
//! `tmem-scenario keep TEST PROGRAM...` is the keeper of a program, `tmem-scenario announce PROGRAM...` becomes the
//! program after its process id is on a line of standard output.

use std::convert::Infallible;
use std::fs;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Resource, Rlimit, Signal, WaitId, WaitIdOptions, WaitIdStatus, WaitOptions,
    getpid, getppid, kill_process, kill_process_group, pidfd_open, set_child_subreaper,
    set_parent_process_death_signal, setrlimit, setsid, wait, waitid,
};

/// The program of this very process, whatever has happened to its file since.
const OURSELVES: &str = "/proc/self/exe";

/// Runs `command` until it ends, or until the process `test` does, which must be our parent.
///
/// # Errors
/// It cannot be started or watched.
pub fn keep(test: &str, command: &[String]) -> Result<ExitCode> {
    let test = number(test)?;
    // Not one of the group that a person or a test runner sends its signals to.
    setsid().context("cannot have a session")?;
    set_child_subreaper(Some(getpid())).context("cannot adopt orphans")?;
    let watched = pidfd_open(test, PidfdFlags::empty()).context("cannot watch the test")?;
    // A process of that number that is our parent is the test; otherwise it has ended.
    ensure!(getppid() == Some(test), "the test has ended");
    let child = Command::new(OURSELVES)
        .args(["announce", &getpid().to_string()])
        .args(command)
        .spawn()
        .with_context(|| format!("cannot run {OURSELVES}"))?;
    let program = Pid::from_child(&child);
    let running = pidfd_open(program, PidfdFlags::empty()).context("cannot watch the program");
    if let Ok(running) = &running {
        let mut both = [
            PollFd::new(&watched, PollFlags::IN),
            PollFd::new(running, PollFlags::IN),
        ];
        while poll(&mut both, None) == Err(Errno::INTR) {}
    }
    let status = end_all(program)?;
    running?;
    end_like(status)
}

/// Says our process id and becomes the program.
///
/// # Errors
/// There is no such program, or the process `keeper` has ended, which must be our parent.
pub fn announce(keeper: &str, command: &[String]) -> Result<Infallible> {
    let keeper = number(keeper)?;
    setsid().context("cannot have a session")?;
    set_parent_process_death_signal(Some(Signal::KILL)).context("cannot follow our keeper")?;
    ensure!(getppid() == Some(keeper), "the keeper has ended");
    println!("{}", getpid().as_raw_nonzero());
    let (program, arguments) = command.split_first().context("no program")?;
    Err(Command::new(program).args(arguments).exec())
        .with_context(|| format!("cannot run {program}"))
}

fn number(text: &str) -> Result<Pid> {
    let found = text.parse().ok().and_then(Pid::from_raw);
    found.with_context(|| format!("{text:?} is not a process"))
}

/// Kills the program and whatever it has started. Returns how the program ended.
fn end_all(program: Pid) -> Result<Option<WaitIdStatus>> {
    // Not reaped yet, so that its number remains its group's. All of the group at once: fewer are left to look for.
    let ended = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
    let status = waitid(WaitId::Pid(program), ended).context("cannot wait for the program")?;
    let _ = kill_process_group(program, Signal::KILL);
    // A child that has been killed comes to its end, and what it leaves behind is our child by then.
    loop {
        for child in children()? {
            let _ = kill_process(child, Signal::KILL);
        }
        match wait(WaitOptions::empty()) {
            Ok(_) | Err(Errno::INTR) => (),
            Err(Errno::CHILD) => return Ok(status),
            Err(error) => return Err(error).context("cannot wait for what is left"),
        }
    }
}

/// The processes whose parent we are.
fn children() -> Result<Vec<Pid>> {
    let mut children = Vec::new();
    for entry in fs::read_dir("/proc").context("cannot list the processes")? {
        let Ok(entry) = entry else { continue };
        let Some(process) = entry
            .file_name()
            .to_str()
            .and_then(|name| number(name).ok())
        else {
            continue;
        };
        // One that has ended meanwhile has no file.
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        // The name before it may hold anything: state and parent follow its last bracket.
        let parent = stat
            .rsplit_once(") ")
            .and_then(|(_, rest)| rest.split(' ').nth(1))
            .and_then(|parent| number(parent).ok());
        if parent == Some(getpid()) {
            children.push(process);
        }
    }
    Ok(children)
}

/// Ends as the program did; a failure if we ended it.
fn end_like(status: Option<WaitIdStatus>) -> Result<ExitCode> {
    let Some(status) = status else {
        return Ok(ExitCode::FAILURE);
    };
    if let Some(signal) = status.terminating_signal().and_then(Signal::from_named_raw) {
        let none = Rlimit {
            current: Some(0),
            maximum: Some(0),
        };
        setrlimit(Resource::Core, none).context("cannot do without a core file")?;
        kill_process(getpid(), signal)?;
    }
    let code = status
        .exit_status()
        .and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}
