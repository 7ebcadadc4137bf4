//! Signals that must not end the process: all guests would lose their pages.

use libc::c_int;

/// Signals that end a process that does not handle them, and of which a service has no use.
const USELESS: [c_int; 11] = [
    libc::SIGQUIT,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGALRM,
    libc::SIGVTALRM,
    libc::SIGPROF,
    libc::SIGIO,
    libc::SIGPWR,
    libc::SIGSTKFLT,
    libc::SIGPIPE,
    libc::SIGXFSZ,
];

/// Ignores the signals of which a service has no use, and all real-time signals until a guest's thread takes the first of
/// them. To be called first of all. Signals for faults keep their effect, and so do those to stop and to end.
pub fn ignore() {
    let real_time = libc::SIGRTMIN()..=libc::SIGRTMAX();
    USELESS.into_iter().chain(real_time).for_each(ignore_one);
}

/// A store that grows beyond the limit on the size of files (`RLIMIT_FSIZE`) is refused by the kernel, and then only
/// refused: without this the process ends by SIGXFSZ. For every process that has a store; [`ignore`] does it too.
pub fn ignore_file_size_limit() {
    ignore_one(libc::SIGXFSZ);
}

/// Makes a bad page of the store's memory cost only the guests' pages on it, and not the process. For every process
/// that has a store and no [`crate::Service`], which does it too.
pub fn survive_bad_memory() {
    crate::sigbus::install();
}

fn ignore_one(signal: c_int) {
    // SAFETY: no handler, so nothing that runs in one. A number that is no signal is refused.
    if unsafe { libc::signal(signal, libc::SIG_IGN) } == libc::SIG_ERR {
        log::warn!("Cannot ignore signal {signal}");
    }
}
