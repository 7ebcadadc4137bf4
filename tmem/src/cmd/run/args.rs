//! The command line of `tmem run`.

use std::path::PathBuf;

use super::end::EXIT_CODES;
use crate::cmd::statistics::Statistics;

/// The command line of `tmem run`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct Args {
    /// Guest kernel: an ELF vmlinux or a bzImage.
    #[arg(long, value_name = "FILE")]
    pub(super) kernel: PathBuf,
    /// Initial RAM disk of the guest.
    #[arg(long, value_name = "FILE")]
    pub(super) initrd: PathBuf,
    /// Disk of the guest, over a file or block device; can be given several times.
    #[arg(long, value_name = "path=FILE[,readonly]")]
    pub(super) disk: Vec<String>,
    /// Number of virtual CPUs, 1 to 8.
    #[arg(long, value_name = "N", default_value = "1")]
    pub(super) cpus: String,
    /// Memory of the guest: bytes, or a number with K, M, G or T (powers of 1024).
    #[arg(long, value_name = "SIZE", default_value = "256M")]
    pub(super) memory: String,
    /// Host memory for the guest's pages; without it, or with 0, the guest has no tmem device.
    #[arg(long, value_name = "SIZE", default_value = "0")]
    pub(super) tmem: String,
    /// Memory of the host that is left alone: pages that would need it are refused. Without it, a 32nd part of what there is,
    /// but 8M to 512M
    #[arg(long, value_name = "SIZE")]
    pub(super) host_reserve: Option<String>,
    /// Keep the guest's pages in memory: the host may not swap them out
    #[arg(long, conflicts_with = "tmem_socket")]
    pub(super) mlock: bool,
    /// Threads that take the guest's stores off its virtual CPUs. With 0 a virtual CPU waits until its pages are compressed;
    /// auto is 1 where the host has more processors for this process than the guest has virtual CPUs, else 0. At most one
    /// for each virtual CPU
    #[arg(
        long,
        value_name = "auto|N",
        default_value = "auto",
        conflicts_with = "tmem_socket"
    )]
    pub(super) store_threads: String,
    /// The guest's pages go to a running `tmem serve`: the socket that it made for this guest.
    #[arg(long, value_name = "SOCKET", conflicts_with = "tmem")]
    pub(super) tmem_socket: Option<PathBuf>,
    /// Words for the kernel command line, after "console=ttyS0 reboot=k panic=-1".
    #[arg(
        long,
        value_name = "STRING",
        default_value = "",
        allow_hyphen_values = true
    )]
    pub(super) cmdline: String,
    /// Unix socket to make for statistics. One that a killed tmem left behind is replaced.
    #[arg(long, value_name = "SOCKET")]
    pub(super) control: Option<PathBuf>,
    #[command(flatten)]
    pub(super) statistics: Statistics,
    /// Serial console of the guest: standard input and output, nothing, or output to a file. The file and what was
    /// moved from it to FILE.1 have at most SIZE bytes (16M if not given, at least 8K), the newest ones.
    #[arg(
        long,
        value_name = "stdio|none|file=FILE[,limit=SIZE]",
        default_value = "stdio"
    )]
    pub(super) console: String,
    /// Time for the guest to power itself off when SIGTERM, SIGINT or SIGHUP pressed its power button; with 0, they
    /// cut its power.
    #[arg(long, value_name = "SECONDS", default_value = "10")]
    pub(super) grace: String,
}
