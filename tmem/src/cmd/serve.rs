//! `tmem serve`: one store for the guests of a machine. Arguments become a [`Config`] that can be
//! compared, which then is started.

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::DumpableBehavior;
use sd_notify::NotifyState;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXCPU};
use signal_hook::iterator::Signals;
use tmem_base::Size;
use tmem_base::error::one_line;
use tmem_control::{Role, Server, Source};
use tmem_serve::activation::{Sockets, address};
use tmem_serve::listen::listen_for;
use tmem_serve::seccomp::{Thread, confine, confine_or_abort, prepare};
use tmem_serve::{Config, ConfigError, ConfigFile, Service, parse_guest};

use super::statistics::{BACKLOG, Statistics};
use crate::guest_keys::KEYS;
use crate::host_memory::memory_info::MemoryInfo;
use crate::host_memory::{HostMemory, Relief};
use crate::own_process::OwnProcess;
use crate::source::service::Operator;
use reload::Reload;
use watchdog::Watchdog;

mod reload;
mod watchdog;

/// Exit code for arguments that cannot be meant.
const USAGE: u8 = 2;

/// How long the end waits for a thread of the lowest priority, on which the memory should not be freed.
const EXIT_PATIENCE: Duration = Duration::from_millis(500);

/// The command line of `tmem serve`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Configuration in TOML; instead of the other options
    #[arg(long, value_name = "FILE", conflicts_with_all = ["memory", "control", "statistics", "statistics_mode", "statistics_group", "guest", "host_reserve", "reserve_populate", "mlock"])]
    config: Option<PathBuf>,
    /// Host memory for the pages of all guests: bytes, or a number with K, M, G or T
    #[arg(long, value_name = "SIZE", required_unless_present = "config")]
    memory: Option<String>,
    /// Unix socket to make for the control plane
    #[arg(long, value_name = "SOCKET")]
    control: Option<PathBuf>,
    #[command(flatten)]
    statistics: Statistics,
    /// Memory of the host that is left alone: pages that would need it are refused. Without it, a 32nd part of what there is,
    /// but 8M to 512M
    #[arg(long, value_name = "SIZE")]
    host_reserve: Option<String>,
    /// Take the reserves of guests from the host at the start, or do not start
    #[arg(long)]
    reserve_populate: bool,
    /// Keep the pages of guests in memory: the host may not swap them out
    #[arg(long)]
    mlock: bool,
    /// A guest, and the vhost-user socket to make for it; can be given several times
    #[arg(
        long,
        value_name = KEYS
    )]
    guest: Vec<String>,
}

impl TryFrom<Args> for Config {
    type Error = ConfigError;

    fn try_from(args: Args) -> Result<Self, ConfigError> {
        let file = match args.config {
            Some(path) => ConfigFile::read(&path)?,
            None => ConfigFile {
                memory: args.memory.as_deref().map(str::parse::<Size>).transpose()?,
                control: args.control,
                statistics_mode: args.statistics.mode()?,
                statistics_group: args.statistics.group()?,
                statistics: args.statistics.statistics,
                host_reserve: args
                    .host_reserve
                    .as_deref()
                    .map(str::parse::<Size>)
                    .transpose()?,
                reserve_populate: Some(args.reserve_populate),
                mlock: Some(args.mlock),
                guests: args
                    .guest
                    .iter()
                    .map(|text| parse_guest(text))
                    .collect::<Result<_, _>>()?,
            },
        };
        Self::try_from(file)
    }
}

/// Serves until a signal ends it.
pub(crate) fn main(args: Args) -> ExitCode {
    crate::logger::install();
    // From here on a signal waits for its turn, or does nothing, instead of ending the process.
    tmem_serve::signals::ignore();
    let mut signals = match Signals::new([SIGTERM, SIGINT, SIGHUP, SIGXCPU]) {
        Ok(signals) => signals,
        Err(error) => {
            eprintln!("tmem: Cannot handle signals: {error}");
            return ExitCode::FAILURE;
        }
    };
    let file = args.config.clone();
    let config = match Config::try_from(args) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("tmem: {}", one_line(&error));
            return ExitCode::from(USAGE);
        }
    };
    // Passed and configured sockets must agree; if not, it is a usage error, too.
    let sockets = match Sockets::take(&config) {
        Ok(sockets) => sockets,
        Err(error) => {
            eprintln!("tmem: {}", one_line(&error));
            return ExitCode::from(USAGE);
        }
    };
    match serve(config, sockets, file, &mut signals) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tmem: {}", one_line(&*error));
            ExitCode::FAILURE
        }
    }
}

fn serve(
    config: Config,
    sockets: Sockets,
    file: Option<PathBuf>,
    signals: &mut Signals,
) -> Result<(), Box<dyn Error>> {
    // For every thread from the first on; their filters follow when they are started.
    rustix::thread::set_no_new_privs(true)?;
    quiet_panics();
    let memory_info = MemoryInfo::open();
    // No core file and no other process of this user has the pages of guests. From here on files of /proc/self are root's.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    memory_info.leave(config.host_reserve);
    crate::limits::warn(config.memory, &memory_info);
    let reserved = config.guests.iter().map(|guest| guest.reserve).sum();
    crate::limits::warn_of_reserves(reserved, &memory_info);
    // Its thread is the first to be confined.
    prepare();
    // Dropped last, after the store that asks it.
    let memory = Arc::new(HostMemory::watch(memory_info, || {
        confine_or_abort(Thread::Memory);
    })?);
    let own_process = OwnProcess::open()
        .inspect_err(|error| log::warn!("Cannot look at own descriptors and mappings: {error}"));
    let control = config.control.clone();
    let (statistics, statistics_access) = (config.statistics.clone(), config.statistics_access);
    let mut reload = Reload::new(file, config.clone(), Arc::clone(&memory));
    let service = Service::start_with(config, sockets.guests, Some(memory.gate()))?;
    let (statistics, statistics_file) = match (sockets.statistics, statistics) {
        (Some(listener), _) => (Some(listener), None),
        (None, Some(path)) => {
            let (listener, file) = listen_for(&path, statistics_access, BACKLOG)?;
            (Some(listener), Some(file))
        }
        (None, None) => (None, None),
    };
    let own_sockets = [
        sockets.control.as_ref().map(address).or(control.clone()),
        statistics.as_ref().map(address),
    ];
    let own_sockets = own_sockets.into_iter().flatten().collect();
    let operator = Arc::new(Operator::new(
        service,
        Arc::clone(&memory),
        own_process.ok(),
        own_sockets,
    ));
    let source = Arc::clone(&operator) as Arc<dyn Source>;
    let monitor = statistics
        .map(|listener| {
            let confine = || confine_or_abort(Thread::Statistics);
            Server::start_as(Role::Monitor, listener, Arc::clone(&source), confine)
        })
        .transpose()?;
    let confine_control = || confine_or_abort(Thread::Control);
    let server = match (sockets.control, control) {
        (Some(listener), _) => Some(Server::start_on(listener, source, confine_control)?),
        (None, Some(path)) => {
            tmem_serve::listen::remove_stale(&path)?;
            Some(Server::start_with(&path, source, confine_control)?)
        }
        (None, None) => None,
    };
    let watchdog = sd_notify::watchdog_enabled()
        .map(|patience| watch(patience, Arc::clone(&operator)))
        .transpose()?;
    confine(Thread::Main)?;
    // Nothing fails from here on, so that [`HostMemory::let_be`] is always called.
    memory.relieve(Guests(Arc::clone(&operator)));
    notify(NotifyState::Ready);
    for signal in signals.forever() {
        match signal {
            SIGHUP => {
                notify(NotifyState::Reloading);
                reload.run(&operator);
                notify(NotifyState::Ready);
            }
            SIGXCPU => log::warn!(
                "The limit of processor time (RLIMIT_CPU) is reached: the kernel ends this process at its hard limit"
            ),
            _ => break,
        }
    }
    notify(NotifyState::Stopping);
    memory.let_be();
    drop(watchdog);
    // No more changes; then the guests finish what they are at.
    drop(server);
    drop(monitor);
    drop(statistics_file);
    operator.stop();
    // The sockets are removed, and each line of the log was written at once. Only memory is left, which the kernel
    // frees faster than a walk over the pages.
    operator.service().store().prepare_exit(EXIT_PATIENCE);
    std::process::exit(0)
}

/// Tells the service manager that guests and control clients can be served, as long as they can.
fn watch(patience: Duration, operator: Arc<Operator>) -> std::io::Result<Watchdog> {
    let prove = move || {
        // Takes the locks of the service and of the store.
        operator.stats();
        watchdog::prove_memory();
    };
    Watchdog::start(
        patience,
        || confine_or_abort(Thread::Watchdog),
        prove,
        || notify(NotifyState::Watchdog),
    )
}

/// The guests, for a host that is short of memory.
struct Guests(Arc<Operator>);

impl Relief for Guests {
    fn has_any(&self) -> bool {
        self.0.service().store().is_freeable()
    }

    fn shrink(&self) -> bool {
        self.0.service().store().shrink()
    }

    fn announce(&self, short: bool) -> bool {
        self.0.service().announce_host(short)
    }
}

/// A panic is one line in the log. A backtrace would read files, which no thread here may.
fn quiet_panics() {
    std::panic::set_hook(Box::new(|panic| log::error!("Bug: {panic}")));
}

/// Tells the service manager, where there is one.
fn notify(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        log::warn!("Cannot notify the service manager: {error}");
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use tmem_serve::Access;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn parse(words: &[&str]) -> Result<Config, String> {
        let words = std::iter::once(&"serve").chain(words);
        let args = Cli::try_parse_from(words)
            .map_err(|error| error.to_string())?
            .args;
        Config::try_from(args).map_err(|error| one_line(&error))
    }

    #[test]
    fn flags_become_a_configuration() {
        let config = parse(&[
            "--memory=4G",
            "--control=/run/tmem.sock",
            "--statistics=/run/tmem/stats.sock",
            "--statistics-group=7",
            "--guest=name=vm1,socket-mode=0666,socket=/run/tmem/vm1.sock,reserve=256M,limit=1G,weight=200,swap=1G",
            "--guest=name=vm2,socket=/run/tmem/vm2.sock",
        ])
        .expect("valid");
        assert_eq!(config.memory, 4 << 30);
        assert_eq!(config.control, Some("/run/tmem.sock".into()));
        let names: Vec<_> = config
            .guests
            .iter()
            .map(|guest| guest.name.as_str())
            .collect();
        assert_eq!(names, ["vm1", "vm2"]);
        assert_eq!(config.guests[0].weight, 200);
        assert_eq!(config.guests[0].access, Access::new(Some(0o666), None));
        assert_eq!(config.statistics, Some("/run/tmem/stats.sock".into()));
        assert_eq!(config.statistics_access, Access::new(None, Some(7)));
    }

    #[test]
    fn what_is_left_to_the_host_is_chosen_by_flags_too() {
        let config = parse(&[
            "--memory=4G",
            "--host-reserve=1G",
            "--mlock",
            "--reserve-populate",
        ])
        .expect("valid");
        assert_eq!(config.host_reserve, Some(1 << 30));
        assert!(config.mlock && config.reserve_populate);
        let config = parse(&["--memory=4G"]).expect("valid");
        assert_eq!(config.host_reserve, None);
        assert!(!config.mlock && !config.reserve_populate);
        for option in ["--mlock", "--reserve-populate", "--host-reserve=1G"] {
            assert!(parse(&["--config=/x", option]).is_err(), "{option}");
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused_on_one_line() {
        assert!(parse(&[]).is_err(), "no memory");
        assert!(parse(&["--config=/x", "--memory=1G"]).is_err());
        for words in [
            &["--memory=0"][..],
            &["--memory=much"],
            &["--memory=1G", "--host-reserve=some"],
            &["--config=/does/not/exist"],
            &["--memory=1G", "--guest=name=a"],
            &["--memory=1G", "--statistics=/a", "--statistics-mode=660x"],
            &[
                "--memory=1G",
                "--statistics=/a",
                "--statistics-group=no-such-group",
            ],
        ] {
            let error = parse(words).expect_err("refused");
            assert!(!error.contains('\n'), "{error}");
        }
    }
}
