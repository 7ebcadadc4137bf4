//! `tmem run`: boots one guest. Arguments become a [`Config`] that can be compared, which then is started.

mod config;
mod start;

use std::error::Error;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

pub(crate) use config::Config;

/// Exit code for arguments that cannot be meant.
const USAGE: u8 = 2;

/// The command line of `tmem run`.
#[derive(Debug, clap::Args)]
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
    /// Unix socket to make for statistics.
    #[arg(long, value_name = "SOCKET")]
    control: Option<PathBuf>,
}

/// Runs the guest until it ends.
pub(crate) fn main(args: Args) -> ExitCode {
    crate::logger::install();
    let config = match Config::try_from(args) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("tmem: {}", one_line(&error));
            return ExitCode::from(USAGE);
        }
    };
    match start::start(&config) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("tmem: {}", one_line(&*error));
            ExitCode::FAILURE
        }
    }
}

/// An error and its causes.
pub(crate) fn one_line(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let _ = write!(line, ": {error}");
        cause = error.source();
    }
    line.replace('\n', " ")
}
