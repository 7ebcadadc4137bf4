//! `tmem run`: boots one guest. Arguments become a [`Config`] that can be compared, which then is started.

mod config;
mod start;

use std::path::PathBuf;
use std::process::ExitCode;

use tmem_base::error::one_line;
use tmem_vmm::{ExitReason, VmError, signal_name};

pub(crate) use config::Config;

/// Exit codes that say more than that something failed. Those of a guest that did not power itself off are numbers
/// that neither shells nor common programs use.
mod code {
    /// Arguments that cannot be meant, as clap has it.
    pub(super) const USAGE: u8 = 2;
    /// The guest reset itself.
    pub(super) const RESET: u8 = 32;
    /// A triple fault.
    pub(super) const TRIPLE_FAULT: u8 = 33;
    /// Its kernel panicked.
    pub(super) const PANIC: u8 = 34;
    /// Its processors halted for good.
    pub(super) const HALTED: u8 = 35;
    /// KVM or this program cannot go on with it.
    pub(super) const BROKEN: u8 = 36;
    /// What shells add to the number of the signal that ended a process.
    pub(super) const SIGNAL: i32 = 128;
}

const EXIT_CODES: &str = "\
Exit codes:
  0       the guest powered itself off, asked or not; or the user typed Ctrl-A x
  1       it could not be started
  2       the arguments cannot be meant
  32      the guest reset itself: `reboot`, or a panic that its kernel has no driver to tell
  33      triple fault
  34      the guest's kernel panicked and said so (pvpanic)
  35      all its processors halted: `halt`, `poweroff` of a kernel without ACPI, or one that gave up
  36      KVM or tmem could not go on with the guest
  128+N   signal N cut its power: 143 for SIGTERM, 130 for SIGINT, 129 for SIGHUP, 131 for SIGQUIT

SIGTERM, SIGINT and SIGHUP press the guest's power button. It has the grace time to power itself off; then, or on a
second SIGTERM or SIGINT, or on SIGQUIT, its power is cut. The last line on standard error says how it ended.";

/// The command line of `tmem run`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct Args {
    /// Guest kernel: an ELF vmlinux or a bzImage.
    #[arg(long, value_name = "FILE")]
    kernel: PathBuf,
    /// Initial RAM disk of the guest.
    #[arg(long, value_name = "FILE")]
    initrd: PathBuf,
    /// Disk of the guest, over a file or block device; can be given several times.
    #[arg(long, value_name = "path=FILE[,readonly]")]
    disk: Vec<String>,
    /// Number of virtual CPUs, 1 to 8.
    #[arg(long, value_name = "N", default_value = "1")]
    cpus: String,
    /// Memory of the guest: bytes, or a number with K, M, G or T (powers of 1024).
    #[arg(long, value_name = "SIZE", default_value = "256M")]
    memory: String,
    /// Host memory for the guest's pages; without it, or with 0, the guest has no tmem device.
    #[arg(long, value_name = "SIZE", default_value = "0")]
    tmem: String,
    /// Memory of the host that is left alone: pages that would need it are refused. Without it, a 32nd part of what there is,
    /// but 8M to 512M
    #[arg(long, value_name = "SIZE")]
    host_reserve: Option<String>,
    /// Keep the guest's pages in memory: the host may not swap them out
    #[arg(long, conflicts_with = "tmem_socket")]
    mlock: bool,
    /// The guest's pages go to a running `tmem serve`: the socket that it made for this guest.
    #[arg(long, value_name = "SOCKET", conflicts_with = "tmem")]
    tmem_socket: Option<PathBuf>,
    /// Words for the kernel command line, after "console=ttyS0 reboot=k panic=-1".
    #[arg(
        long,
        value_name = "STRING",
        default_value = "",
        allow_hyphen_values = true
    )]
    cmdline: String,
    /// Unix socket to make for statistics. One that a killed tmem left behind is replaced.
    #[arg(long, value_name = "SOCKET")]
    control: Option<PathBuf>,
    /// Unix socket to make that shows all figures and changes nothing
    #[arg(long, value_name = "SOCKET")]
    statistics: Option<PathBuf>,
    /// Its permission bits; 0600 when left out, or 0660 with a group
    #[arg(long, value_name = "OCTAL", requires = "statistics")]
    statistics_mode: Option<String>,
    /// Its group, by name or number
    #[arg(long, value_name = "GROUP", requires = "statistics")]
    statistics_group: Option<String>,
    /// Serial console of the guest: standard input and output, nothing, or output to a file. The file and what was
    /// moved from it to FILE.1 have at most SIZE bytes (16M if not given, at least 8K), the newest ones.
    #[arg(
        long,
        value_name = "stdio|none|file=FILE[,limit=SIZE]",
        default_value = "stdio"
    )]
    console: String,
    /// Time for the guest to power itself off when SIGTERM, SIGINT or SIGHUP pressed its power button; with 0, they
    /// cut its power.
    #[arg(long, value_name = "SECONDS", default_value = "10")]
    grace: String,
}

/// Runs the guest until it ends.
pub(crate) fn main(args: Args) -> ExitCode {
    crate::logger::install();
    let config = match Config::try_from(args) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("tmem: {}", one_line(&error));
            return ExitCode::from(code::USAGE);
        }
    };
    let Err(error) = start::start(&config);
    eprintln!("tmem: {}", one_line(&*error));
    match error.downcast_ref() {
        Some(VmError::Vcpu(_)) => ExitCode::from(code::BROKEN),
        _ => ExitCode::FAILURE,
    }
}

/// Writes the last line and ends the process.
fn end(reason: ExitReason) -> ! {
    eprintln!("tmem: {}", how_it_ended(reason));
    std::process::exit(exit_code(reason).into())
}

fn exit_code(reason: ExitReason) -> u8 {
    match reason {
        ExitReason::PowerOff | ExitReason::Escape => 0,
        ExitReason::Reset => code::RESET,
        ExitReason::TripleFault => code::TRIPLE_FAULT,
        ExitReason::Panic => code::PANIC,
        ExitReason::Halted => code::HALTED,
        ExitReason::Signal(signal) => u8::try_from(code::SIGNAL + signal).unwrap_or(1),
        // An end that this version does not know is no success.
        _ => code::BROKEN,
    }
}

fn how_it_ended(reason: ExitReason) -> String {
    match reason {
        ExitReason::PowerOff => "The guest powered itself off".into(),
        ExitReason::Escape => "The user ended the guest".into(),
        ExitReason::Reset => "The guest reset itself".into(),
        ExitReason::TripleFault => "The guest ended with a triple fault".into(),
        ExitReason::Panic => "The guest's kernel panicked".into(),
        ExitReason::Halted => "The guest's processors halted for good".into(),
        ExitReason::Signal(signal) => {
            format!("{} cut the guest's power", signal_name(signal))
        }
        other => format!("The guest ended otherwise: {other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_ends_of_a_guest_have_one_code_but_those_that_somebody_asked_for() {
        let ends = [
            ExitReason::PowerOff,
            ExitReason::Reset,
            ExitReason::TripleFault,
            ExitReason::Panic,
            ExitReason::Halted,
            ExitReason::Signal(15),
            ExitReason::Signal(2),
        ];
        let mut codes: Vec<u8> = ends.into_iter().map(exit_code).collect();
        assert_eq!(codes, [0, 32, 33, 34, 35, 143, 130]);
        codes.extend([1, code::USAGE, code::BROKEN]);
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), ends.len() + 3);
        assert_eq!(exit_code(ExitReason::Escape), 0);
    }

    #[test]
    fn the_help_names_every_code() {
        for code in [
            code::USAGE,
            code::RESET,
            code::TRIPLE_FAULT,
            code::PANIC,
            code::HALTED,
            code::BROKEN,
        ] {
            let line = format!("\n  {code} ");
            assert!(EXIT_CODES.contains(&line), "{code}");
        }
    }
}
