//! A process that a test starts, as the test sees it: what it writes, line by line, and its end.
//!
//! It runs under a [keeper](crate::keeper), so that it and whatever it starts end when it does, when the test drops
//! it, and when the test itself is killed. Its output ends with it for the same reason: nothing is left that could
//! hold the pipe open.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::paths;

/// Time without progress until a wait is given up. What works tells of it each second, and on a busy machine, or
/// under emulation, does not come to speak for minutes.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// How much of the output an error shows.
const SHOWN_LINES: usize = 100;

/// A line is progress unless it is one of so many before it: who repeats itself has not moved.
const REPEATED_LINES: usize = 16;

/// Time between two checks of a condition.
const GLANCE: Duration = Duration::from_millis(50);

/// What [`Process::listen`] heard.
pub enum Poll {
    /// A line.
    Line(String),
    /// No line in time.
    Nothing,
    /// The process has ended, and every line has been read.
    Ended,
}

/// A running process; killed when dropped, with everything it started.
pub struct Process {
    name: String,
    keeper: Child,
    program: Pid,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    log: Vec<String>,
    /// Lines of the log that [`Self::listen`] has returned.
    read: usize,
    /// When it last said something new.
    progress: Instant,
    patience: Duration,
    ended: bool,
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails only when it has ended already.
        let _ = self.kill();
    }
}

impl Process {
    /// Starts the program, arguments and environment of `command`; errors call it `name`.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(name: &str, command: &Command, stdin: Stdio) -> Result<Self> {
        let program = command.get_program();
        ensure!(
            exists(program),
            "cannot run {}: there is no such program",
            program.display()
        );
        let keeper = paths::keeper()?;
        let mut kept = Command::new(&keeper);
        kept.args(["keep", &std::process::id().to_string()])
            .arg(program)
            .args(command.get_args())
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        for (variable, value) in command.get_envs() {
            match value {
                Some(value) => kept.env(variable, value),
                None => kept.env_remove(variable),
            };
        }
        let mut keeper = kept
            .spawn()
            .with_context(|| format!("cannot run {}", keeper.display()))?;
        let stdin = keeper.stdin.take();
        let stdout = keeper.stdout.take().context("standard output is piped")?;
        let stderr = keeper.stderr.take().context("standard error is piped")?;
        let mut stdout = BufReader::new(stdout);
        let (sender, lines) = mpsc::channel();
        let to_stdout = sender.clone();
        thread::spawn(move || forward(BufReader::new(stderr), &sender));
        let mut first = String::new();
        let read = stdout.read_line(&mut first);
        thread::spawn(move || forward(stdout, &to_stdout));
        let Some(program) = first.trim_end().parse().ok().and_then(Pid::from_raw) else {
            let _ = keeper.kill();
            let _ = keeper.wait();
            let said: Vec<String> = lines.iter().collect();
            bail!("cannot start {name}: {read:?} {first:?}\n{}", tail(&said));
        };
        Ok(Self {
            name: name.to_owned(),
            keeper,
            program,
            stdin,
            lines,
            log: Vec::new(),
            read: 0,
            progress: Instant::now(),
            patience: PATIENCE,
            ended: false,
        })
    }

    /// Has waits for it last longer than [`PATIENCE`] without progress.
    pub fn have_patience(&mut self, patience: Duration) {
        self.patience = patience;
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.program.as_raw_nonzero().get().unsigned_abs()
    }

    /// What each of its threads does, for an error that says that it does nothing.
    fn threads(&self) -> String {
        threads(self.id())
    }

    /// Sends a signal to this process alone.
    ///
    /// # Errors
    /// It has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(self.program, signal).with_context(|| format!("{} has ended", self.name))
    }

    /// Kills it and what it started, and waits for the end.
    ///
    /// # Errors
    /// It cannot be waited for.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        // As long as the keeper runs, no other process gets this number. The program leads a group from its start.
        if self.keeper.try_wait()?.is_none() {
            let _ = kill_process_group(self.program, Signal::KILL);
        }
        Ok(self.keeper.wait()?)
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// It cannot be waited for.
    pub fn try_wait(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.keeper.try_wait()?)
    }

    /// Takes the next line into the log, if one comes within `patience`.
    fn gather(&mut self, patience: Duration) -> Poll {
        match self.lines.recv_timeout(patience) {
            Ok(line) => {
                let mut before = self.log.iter().rev().take(REPEATED_LINES);
                if !before.any(|other| *other == line) {
                    self.progress = Instant::now();
                }
                self.log.push(line.clone());
                Poll::Line(line)
            }
            Err(RecvTimeoutError::Timeout) => Poll::Nothing,
            Err(RecvTimeoutError::Disconnected) => {
                self.ended = true;
                Poll::Ended
            }
        }
    }

    /// The next line, if there is one within `patience`.
    pub fn listen(&mut self, patience: Duration) -> Poll {
        let heard = match self.log.get(self.read) {
            Some(line) => Poll::Line(line.clone()),
            None => self.gather(patience),
        };
        if matches!(heard, Poll::Line(_)) {
            self.read += 1;
        }
        heard
    }

    /// The next line; none when the process has ended.
    ///
    /// # Errors
    /// It made no progress for [`PATIENCE`].
    pub fn next_line(&mut self) -> Result<Option<String>> {
        self.next_line_with(|_| ())
    }

    /// As [`Self::next_line`], with something to do each second that it says nothing.
    ///
    /// # Errors
    /// As [`Self::next_line`].
    pub fn next_line_with(
        &mut self,
        mut meanwhile: impl FnMut(&mut Self),
    ) -> Result<Option<String>> {
        let since = Instant::now();
        loop {
            match self.listen(Duration::from_secs(1)) {
                Poll::Line(line) => return Ok(Some(line)),
                Poll::Ended => return Ok(None),
                Poll::Nothing => ensure!(
                    self.progress.max(since).elapsed() < self.patience,
                    "{} says nothing new for {} s; its threads:\n{}its output ends:\n{}",
                    self.name,
                    self.patience.as_secs(),
                    self.threads(),
                    self.shown()
                ),
            }
            meanwhile(self);
        }
    }

    /// Reads up to a line that starts with `prefix`, shows each line to `show`, and returns the last.
    ///
    /// # Errors
    /// The process ended before, or made no progress for [`PATIENCE`].
    pub fn wait_for(&mut self, prefix: &str, mut show: impl FnMut(&str)) -> Result<String> {
        // Whatever came before, the wait begins now.
        let since = Instant::now();
        loop {
            let waiting = || format!("waiting for a line {prefix:?}");
            let Some(line) = self.next_line().with_context(waiting)? else {
                bail!(
                    "{} ended before a line {prefix:?}; its output ends:\n{}",
                    self.name,
                    self.shown()
                );
            };
            show(&line);
            if line.starts_with(prefix) {
                return Ok(line);
            }
            ensure!(
                self.progress.max(since).elapsed() < self.patience,
                "{} repeats itself for {} s, waiting for a line {prefix:?}; its threads:\n{}its output ends:\n{}",
                self.name,
                self.patience.as_secs(),
                self.threads(),
                self.shown()
            );
        }
    }

    /// Reads to the end, shows each line to `show`, and returns how it ended.
    ///
    /// # Errors
    /// It made no progress for [`PATIENCE`].
    pub fn end(&mut self, mut show: impl FnMut(&str)) -> Result<ExitStatus> {
        while let Some(line) = self.next_line().context("waiting for the end")? {
            show(&line);
        }
        Ok(self.keeper.wait()?)
    }

    /// Sends a line to its standard input.
    ///
    /// # Errors
    /// Its standard input is not ours, or is not read any more.
    pub fn write(&mut self, line: &str) -> Result<()> {
        let stdin = self.stdin.as_mut().context("the console is open")?;
        stdin
            .write_all(format!("{line}\n").as_bytes())
            .and_then(|()| stdin.flush())
            .with_context(|| format!("cannot write to {}", self.name))
    }

    /// What it has written so far.
    pub fn log(&self) -> &[String] {
        &self.log
    }

    /// The end of what it has written, for an error.
    pub fn shown(&self) -> String {
        tail(&self.log)
    }

    /// Everything it writes until its end, however long that takes.
    pub fn drain(&mut self) -> &[String] {
        while !self.ended {
            self.gather(PATIENCE);
        }
        &self.log
    }
}

/// Waits until `condition` is true. It depends on the processes in `watched`, all of which must run until then.
///
/// # Errors
/// One of `watched` ended before. Or [`PATIENCE`] is over, which starts again whenever one of them prints a new line.
pub fn eventually(
    watched: &mut [&mut Process],
    what: &str,
    mut condition: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let mut progress = Instant::now();
    loop {
        for process in watched.iter_mut() {
            while matches!(process.gather(Duration::ZERO), Poll::Line(_)) {}
            progress = progress.max(process.progress);
        }
        // Checked after the processes, so that the last action of one counts.
        if condition()? {
            return Ok(());
        }
        for process in watched.iter() {
            ensure!(
                !process.ended,
                "{} ended before: {what}; its output ends:\n{}",
                process.name,
                process.shown()
            );
        }
        if progress.elapsed() >= PATIENCE {
            let ends: String = watched
                .iter()
                .map(|process| {
                    format!(
                        "\nthe output of {} ends:\n{}",
                        process.name,
                        process.shown()
                    )
                })
                .collect();
            bail!("not in time: {what}{ends}");
        }
        thread::sleep(GLANCE);
    }
}

/// Is there such a program, at its path or in `PATH`?
fn exists(program: &OsStr) -> bool {
    let path = Path::new(program);
    if path.components().count() > 1 {
        return path.is_file();
    }
    std::env::var_os("PATH").is_some_and(|folders| {
        std::env::split_paths(&folders).any(|folder| folder.join(path).is_file())
    })
}

/// The end of a log, indented.
pub fn tail(log: &[String]) -> String {
    let shown = log
        .get(log.len().saturating_sub(SHOWN_LINES)..)
        .unwrap_or_default();
    shown
        .iter()
        .map(|line| format!("    | {line}"))
        .collect::<Vec<_>>()
        .join("\n")
}

/// What each thread of a process does, twice, a second apart.
fn threads(process: u32) -> String {
    let mut text = String::new();
    for _ in 0..2 {
        for entry in std::fs::read_dir(format!("/proc/{process}/task"))
            .into_iter()
            .flatten()
            .flatten()
        {
            let read = |name: &str| {
                let text = std::fs::read_to_string(entry.path().join(name)).unwrap_or_default();
                text.split_whitespace().collect::<Vec<_>>().join(" ")
            };
            let state = read("stat");
            let state = state.rsplit_once(") ").and_then(|(_, rest)| rest.get(..1));
            text += &format!(
                "    | {} {} schedstat {} syscall {} stack {}\n",
                read("comm"),
                state.unwrap_or("?"),
                read("schedstat"),
                read("syscall"),
                read("stack"),
            );
        }
        thread::sleep(Duration::from_secs(1));
    }
    text
}

/// Sends each line of a stream, without the terminal's line ends.
fn forward(stream: impl BufRead, to: &mpsc::Sender<String>) {
    for line in stream.split(b'\n') {
        let Ok(line) = line else { break };
        let text = String::from_utf8_lossy(&line)
            .trim_end_matches('\r')
            .to_owned();
        if to.send(text).is_err() {
            break;
        }
    }
}
