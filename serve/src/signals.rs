//! Signals that must not end the process: all guests would lose their pages.

use std::io;

/// A store that grows beyond the limit on the size of files (`RLIMIT_FSIZE`) is refused by the kernel, and then only
/// refused: without this the process ends by SIGXFSZ. For every process that has a store.
///
/// # Errors
/// Not on Linux.
pub fn ignore_file_size_limit() -> io::Result<()> {
    ignore(libc::SIGXFSZ)
}

fn ignore(signal: libc::c_int) -> io::Result<()> {
    // SAFETY: no handler, so nothing that runs in one. A number that is no signal is refused.
    if unsafe { libc::signal(signal, libc::SIG_IGN) } == libc::SIG_ERR {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
