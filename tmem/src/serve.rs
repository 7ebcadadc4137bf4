//! `tmem serve`: one store for the guests of a machine. Arguments become a [`Config`] that can be
//! compared, which then is started.

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use sd_notify::NotifyState;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXCPU};
use signal_hook::iterator::Signals;
use tmem_control::{Server, Source};
use tmem_serve::activation::Sockets;
use tmem_serve::seccomp::{Thread, confine, confine_or_abort, prepare};
use tmem_serve::{Config, ConfigError, ConfigFile, GuestFile, Service, Size};

use crate::host_memory::HostMemory;
use crate::host_memory::figures::Figures;
use crate::run::one_line;
use operator::Operator;
use reload::Reload;

mod operator;
mod reload;

/// Exit code for arguments that cannot be meant.
const USAGE: u8 = 2;

/// The command line of `tmem serve`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Configuration in TOML; instead of the other options
    #[arg(long, value_name = "FILE", conflicts_with_all = ["memory", "control", "guest"])]
    config: Option<PathBuf>,
    /// Host memory for the pages of all guests: bytes, or a number with K, M, G or T
    #[arg(long, value_name = "SIZE", required_unless_present = "config")]
    memory: Option<String>,
    /// Unix socket to make for the control plane
    #[arg(long, value_name = "SOCKET")]
    control: Option<PathBuf>,
    /// A guest, and the vhost-user socket to make for it; can be given several times
    #[arg(
        long,
        value_name = "name=NAME,socket=PATH[,socket-mode=OCTAL][,socket-group=GROUP][,reserve=SIZE][,limit=SIZE][,weight=N][,swap=SIZE][,queues=N][,keep-seconds=N][,group=NAME]...[,compression=fast|dense][,dedup=auto|off|on|adaptive][,frozen=true]"
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
                guests: args
                    .guest
                    .iter()
                    .map(|text| text.parse::<GuestFile>())
                    .collect::<Result<_, _>>()?,
                ..ConfigFile::default()
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
    // What was passed and what is configured must agree: it is a usage error too.
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
    let figures = Figures::open();
    crate::limits::warn(config.memory, &figures);
    // Its thread is the first to be confined.
    prepare();
    // Dropped last, after the store that asks it.
    let memory = HostMemory::watch(figures, || confine_or_abort(Thread::Memory))?;
    let control = config.control.clone();
    let mut reload = Reload::new(file, config.clone());
    let service = Service::start_with(config, sockets.guests, Some(memory.gate()))?;
    let operator = Arc::new(Operator::new(service));
    let source = Arc::clone(&operator) as Arc<dyn Source>;
    let confine_control = || confine_or_abort(Thread::Control);
    let server = match (sockets.control, control) {
        (Some(listener), _) => Some(Server::start_on(listener, source, confine_control)?),
        (None, Some(path)) => {
            tmem_serve::listen::remove_stale(&path)?;
            Some(Server::start_with(&path, source, confine_control)?)
        }
        (None, None) => None,
    };
    confine(Thread::Main)?;
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
    // No more changes; then the guests finish what they are at.
    drop(server);
    drop(operator);
    Ok(())
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
            "--guest=name=vm1,socket=/run/tmem/vm1.sock,reserve=256M,limit=1G,weight=200,swap=1G",
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
    }

    #[test]
    fn what_cannot_be_meant_is_refused_on_one_line() {
        assert!(parse(&[]).is_err(), "no memory");
        assert!(parse(&["--config=/x", "--memory=1G"]).is_err());
        for words in [
            &["--memory=0"][..],
            &["--memory=much"],
            &["--config=/does/not/exist"],
            &["--memory=1G", "--guest=name=a"],
        ] {
            let error = parse(words).expect_err("refused");
            assert!(!error.contains('\n'), "{error}");
        }
    }
}
