//! `tmem run`: boots one guest.

use std::path::PathBuf;
use std::process::ExitCode;

/// The command line of `tmem run`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Guest kernel: an ELF vmlinux or a bzImage.
    #[arg(long, value_name = "FILE")]
    kernel: PathBuf,
    /// Initial RAM disk of the guest.
    #[arg(long, value_name = "FILE")]
    initrd: PathBuf,
}

/// Runs the guest until it ends.
pub(crate) fn main(args: Args) -> ExitCode {
    eprintln!(
        "tmem run: {} and {} cannot be started yet",
        args.kernel.display(),
        args.initrd.display()
    );
    ExitCode::FAILURE
}
