//! The system calls that each kind of thread may make.
//!
//! A thread that is taken over by a guest or a client finds no way to a file, a network or another
//! program: any call that is not in [`CALLS`] ends the process. The table is the same in debug builds.
//! Seccomp(2) has the rules: a thread inherits the filter of the thread that makes it, and both hold.

use std::collections::BTreeMap;
use std::sync::{Once, OnceLock};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition,
    SeccompFilter, SeccompRule,
};

use crate::memory::{
    FANOTIFY_MARK, UFFDIO_API, UFFDIO_REGISTER, UFFDIO_ZEROPAGE, USERFAULTFD_FLAGS,
};

/// Heaps that the threads share.
#[cfg(target_env = "gnu")]
const ARENAS: libc::c_int = 8;

/// A kind of thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thread {
    /// The first one, from when everything is started: it waits for a signal, reads the configuration again and
    /// stops the others. No guest or client talks to it.
    Main,
    /// The control server. It also starts the threads of guests that are added.
    Control,
    /// Serves one guest.
    Guest,
    /// The background thread of the store.
    Upkeep,
    /// Measures what memory the host has, in files that are open.
    Memory,
    /// The statistics server, which changes nothing.
    Statistics,
    /// Tells the service manager that the service works.
    Watchdog,
}

/// Kinds of threads.
const THREADS: usize = Thread::Watchdog as usize + 1;

/// Why a thread was not confined.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// The table does not make a filter.
    #[error("The table of system calls is wrong")]
    Table(#[source] seccompiler::BackendError),
    /// The kernel does not accept it.
    #[error("The kernel takes no seccomp filter")]
    Kernel(#[source] seccompiler::Error),
}

/// Calls are allowed with any arguments, or only like this.
enum Only {
    Any,
    /// Argument, and its value in 32 bits.
    Is(u8, u32),
    /// The request of an `ioctl` is one of these.
    Requests(&'static [u64]),
    /// The first argument is one of two.
    OneOf(u32, u32),
    /// No memory that can be executed: the third argument has protection bits.
    NotExecutable,
    /// The first argument has all these bits.
    Has(u32),
    /// The first argument is this process.
    Own,
    /// `fanotify_mark` makes the kernel report when the file of a descriptor is deleted, and takes no path.
    Gone,
    /// `fchownat` changes the group and not the owner, and follows no link.
    Group,
}

use Only::{Any, Gone, Group, Has, Is, NotExecutable, OneOf, Own, Requests};

const IOCTLS: &[u64] = &[libc::FIONBIO, UFFDIO_API, UFFDIO_REGISTER, UFFDIO_ZEROPAGE];

const M: u8 = 1 << Thread::Main as u8;
const C: u8 = 1 << Thread::Control as u8;
const G: u8 = 1 << Thread::Guest as u8;
const U: u8 = 1 << Thread::Upkeep as u8;
const H: u8 = 1 << Thread::Memory as u8;
const S: u8 = 1 << Thread::Statistics as u8;
const W: u8 = 1 << Thread::Watchdog as u8;
const ALL: u8 = M | C | G | U | H | S | W;
/// The flags that std opens a file with to read it, and no wait for a writer.
const TO_READ: u32 = (libc::O_CLOEXEC | libc::O_NONBLOCK).cast_unsigned();

/// Call, the threads that may make it, how, and what for.
#[rustfmt::skip]
const CALLS: &[(libc::c_long, u8, Only, &str)] = &[
    // The language and the C library.
    (libc::SYS_brk, ALL, Any, "heap"),
    (libc::SYS_mmap, ALL, NotExecutable, "heap, stacks; guest and segment memory; SIGBUS handler"),
    (libc::SYS_mprotect, ALL, NotExecutable, "heap of a thread, guard pages"),
    (libc::SYS_mremap, ALL, Any, "heap: large lists grow"),
    (libc::SYS_munmap, ALL, Any, "heap, stacks, guest memory, segments of a domain that ends"),
    (libc::SYS_madvise, ALL, Any, "heap; frames for segments, stacks given back"),
    (libc::SYS_mlock2, ALL, Any, "segments that the host may not swap out"),
    (libc::SYS_futex, ALL, Any, "locks, waiting for a thread"),
    (libc::SYS_sched_yield, ALL, Any, "the background lets others go first"),
    (libc::SYS_getrandom, ALL, Any, "keys of hash tables"),
    (libc::SYS_clock_gettime, ALL, Any, "clocks that the vDSO does not read"),
    (libc::SYS_clock_nanosleep, ALL, Any, "waiting for a thread to end"),
    (libc::SYS_nanosleep, ALL, Any, "as above, older C libraries"),
    (libc::SYS_gettid, ALL, Any, "start of a thread"),
    (libc::SYS_getpid, ALL, Any, "signals to own threads"),
    (libc::SYS_sched_getaffinity, ALL, Any, "start of a thread: size of its stack guard and heaps"),
    (libc::SYS_set_robust_list, ALL, Any, "start of a thread"),
    (libc::SYS_rseq, ALL, Any, "start of a thread"),
    (libc::SYS_prctl, ALL, OneOf(libc::PR_SET_NAME as u32, libc::PR_SET_NO_NEW_PRIVS as u32), "name of a thread; its filter"),
    (libc::SYS_seccomp, ALL, Is(0, libc::SECCOMP_SET_MODE_FILTER), "a thread confines itself further"),
    (libc::SYS_sigaltstack, ALL, Any, "stack overflow is told apart"),
    (libc::SYS_rt_sigprocmask, ALL, Any, "start and end of a thread"),
    (libc::SYS_rt_sigaction, ALL, Any, "handlers of SIGBUS and of the wake signal; abort"),
    (libc::SYS_rt_sigreturn, ALL, Any, "end of a handler"),
    (libc::SYS_tgkill, ALL, Own, "wake signal to a guest's thread; abort"),
    (libc::SYS_restart_syscall, ALL, Any, "a wait goes on after a signal"),
    (libc::SYS_exit, ALL, Any, "end of a thread"),
    (libc::SYS_exit_group, ALL, Any, "end of the process; abort"),
    (libc::SYS_write, ALL, Any, "log; eventfds: wake-ups, calls of rings"),
    (libc::SYS_writev, ALL, Any, "log; replies of the control server"),
    (libc::SYS_close, ALL, Any, "descriptors"),
    (libc::SYS_fcntl, ALL, Any, "descriptors are duplicated, made non-blocking, checked when closed"),
    // Segments of the store: it makes room on the thread that needs it.
    (libc::SYS_fallocate, ALL, Any, "frames go back to the kernel"),
    (libc::SYS_ftruncate, ALL, Any, "the file behind segments grows"),
    (libc::SYS_memfd_create, M | C | G, Any, "the file behind segments of a domain or share group"),
    // Waiting for many things.
    (libc::SYS_epoll_create1, M | C | G, Any, "a connection's rings and messages"),
    (libc::SYS_epoll_ctl, M | C | G | S, Any, "as above"),
    (libc::SYS_epoll_pwait, M | C | G | S, Any, "as above"),
    (libc::SYS_ppoll, M | C | G | H, Any, "a connection or a wake-up; a signal; processes that wait for memory"),
    (libc::SYS_eventfd2, M | C | G, Any, "wake-ups of a guest that is added"),
    (libc::SYS_read, M | C | G | H | S, Any, "eventfds: kicks, wake-ups; signals"),
    (libc::SYS_readv, M | C | G | S, Any, "requests of clients"),
    (libc::SYS_recvfrom, M | C | G | S, Any, "requests of clients; signals"),
    (libc::SYS_sendto, ALL, Any, "calls of rings that are sockets; replies; a signal, on any thread, wakes the first"),
    (libc::SYS_recvmsg, M | C | G, Any, "messages of a front end, and requests of clients, with descriptors"),
    (libc::SYS_sendmsg, M | C | G | W, Any, "replies to a front end; the service manager"),
    (libc::SYS_accept4, M | C | G | S, Any, "connections"),
    (libc::SYS_shutdown, M | C | G | S, Any, "ends connections"),
    (libc::SYS_fstat, M | C | G, Any, "size of the file behind guest memory"),
    (libc::SYS_lseek, M | C | G | S | W, Any, "as above; the list of descriptors from its begin"),
    (libc::SYS_getsockopt, M | C | G | S, Any, "errors of a connection; whether a socket listens"),
    (libc::SYS_getsockname, M | C, Any, "where a socket is that was passed"),
    (libc::SYS_getdents64, C | S | W, Any, "number of descriptors, in a folder that is open"),
    (libc::SYS_fstatfs, M | C | G, Any, "is it of tmpfs or hugetlbfs, and what are its pages"),
    (libc::SYS_userfaultfd, M | C | G, Is(0, USERFAULTFD_FLAGS), "pages of guest memory that nobody touched: of user mode only"),
    (libc::SYS_fanotify_mark, M | C | G, Gone, "when a file is gone in which pages of guest memory were made"),
    (libc::SYS_name_to_handle_at, M | C | G, Is(4, libc::AT_EMPTY_PATH as u32), "as above: which file it is"),
    // The configuration, read again. Read only: these are all the flags there may be.
    (libc::SYS_openat, M, Is(2, TO_READ), "the configuration file, and the names of groups"),
    // Guests that are added and removed, and the end.
    (libc::SYS_clone3, M | C, Any, "answered with ENOSYS by a second filter: its flags are in memory, where no filter looks"),
    (libc::SYS_clone, M | C, Has(libc::CLONE_THREAD as u32), "a thread for a guest, and no process"),
    (libc::SYS_socket, M | C | W, Is(0, libc::AF_UNIX as u32), "socket of a guest; the service manager"),
    (libc::SYS_bind, M | C, Any, "socket of a guest"),
    (libc::SYS_listen, M | C, Any, "as above"),
    (libc::SYS_connect, M | C | W, Any, "is the owner of a socket file alive; the service manager"),
    (libc::SYS_ioctl, M | C | G, Requests(IOCTLS), "a socket becomes non-blocking; pages that nobody touched"),
    (libc::SYS_fchmod, M | C, Any, "mode of a socket, before it listens"),
    (libc::SYS_fchownat, M | C, Group, "group of a socket, before it listens"),
    (libc::SYS_unlinkat, M | C, Any, "socket files are removed"),
    (libc::SYS_statx, M | C, Any, "is a socket file still ours"),
    (libc::SYS_newfstatat, M | C, Any, "as above"),
    (libc::SYS_pread64, M | C | H | S | W, Any, "figures of the host's memory; number of mappings"),
    (libc::SYS_setpriority, C | S | U, Is(0, libc::PRIO_PROCESS), "the control thread and the cold tier step behind guests"),
];

/// Calls that newer architectures do not have.
#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
const OLD_CALLS: &[(libc::c_long, u8, Only, &str)] = &[
    (libc::SYS_epoll_wait, M | C | G | S, Any, "as `epoll_pwait`"),
    (libc::SYS_poll, M | C | G | H, Any, "as `ppoll`"),
    (libc::SYS_unlink, M | C, Any, "as `unlinkat`"),
    (libc::SYS_stat, M | C, Any, "as `statx`"),
];
#[cfg(not(target_arch = "x86_64"))]
const OLD_CALLS: &[(libc::c_long, u8, Only, &str)] = &[];

/// Has the C library do now what it would do later, when it no longer may, lets the process have as
/// many descriptors as the system grants, and takes the umask away: all files that a service makes are sockets, which get
/// their mode when they are made. To be called before the first thread is confined.
pub fn prepare() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        rustix::process::umask(rustix::fs::Mode::empty());
        if let Err(error) = raise_descriptor_limit() {
            log::warn!("Cannot raise the limit of descriptors: {error}");
        }
        #[cfg(target_env = "gnu")]
        // It would count the processors of the machine, with files in older versions.
        // SAFETY: sets a number inside the allocator.
        unsafe {
            libc::mallopt(libc::M_ARENA_MAX, ARENAS);
        }
        // The first time that a thread's heap shrinks, glibc reads a file (overcommit_memory).
        let shrinks = std::thread::Builder::new().spawn(|| {
            let list: Vec<Vec<u8>> = (0..128).map(|_| Vec::with_capacity(16 << 10)).collect();
            drop(std::hint::black_box(list));
        });
        // Without a thread there is no service either, which its start says.
        if shrinks.is_ok_and(|thread| thread.join().is_err()) {
            log::warn!("Cannot prepare the heap of threads");
        }
    });
}

fn raise_descriptor_limit() -> Result<(), rustix::io::Errno> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            ..limit
        },
    )
}

/// Confines the calling thread for the rest of its life, and keeps it from gaining privileges.
///
/// # Errors
/// See [`ConfineError`]. The thread is not confined then.
pub fn confine(thread: Thread) -> Result<(), ConfineError> {
    static PROGRAMS: [OnceLock<BpfProgram>; THREADS] = [const { OnceLock::new() }; THREADS];
    let known = &PROGRAMS[thread as usize];
    let program = match known.get() {
        Some(program) => program,
        None => {
            let program = compile(thread).map_err(ConfineError::Table)?;
            known.get_or_init(|| program)
        }
    };
    if matches!(thread, Thread::Main | Thread::Control) {
        // Of two filters the stricter answer holds, and an error is stricter than leave.
        let program = without_clone3().map_err(ConfineError::Table)?;
        seccompiler::apply_filter(&program).map_err(ConfineError::Kernel)?;
    }
    seccompiler::apply_filter(program).map_err(ConfineError::Kernel)
}

/// [`confine`] for a caller that cannot report an error: ends the process when it fails.
pub fn confine_or_abort(thread: Thread) {
    if let Err(error) = confine(thread) {
        log::error!("Cannot confine a thread: {error}");
        std::process::abort();
    }
}

/// Sends the C library back to `clone`, whose flags can be seen.
fn without_clone3() -> Result<BpfProgram, seccompiler::BackendError> {
    let filter = SeccompFilter::new(
        BTreeMap::from([(libc::SYS_clone3, Vec::new())]),
        SeccompAction::Allow,
        SeccompAction::Errno(libc::ENOSYS.unsigned_abs()),
        std::env::consts::ARCH.try_into()?,
    )?;
    filter.try_into()
}

fn compile(thread: Thread) -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules = BTreeMap::<i64, Vec<SeccompRule>>::new();
    for (call, threads, only, _) in CALLS.iter().chain(OLD_CALLS) {
        if threads & 1 << thread as u8 != 0 {
            rules.insert(*call, only.rules()?);
        }
    }
    let arch = std::env::consts::ARCH.try_into()?;
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::KillProcess,
        SeccompAction::Allow,
        arch,
    )?;
    filter.try_into()
}

impl Only {
    fn rules(&self) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
        let one = |argument, operator, value: u32| {
            let condition =
                SeccompCondition::new(argument, Len::Dword, operator, u64::from(value))?;
            SeccompRule::new(vec![condition])
        };
        let masked = |bits: u32| Op::MaskedEq(u64::from(bits));
        Ok(match *self {
            Any => Vec::new(),
            Is(argument, value) => vec![one(argument, Op::Eq, value)?],
            Requests(values) => {
                let rule = |value: &u64| {
                    let condition = SeccompCondition::new(1, Len::Qword, Op::Eq, *value)?;
                    SeccompRule::new(vec![condition])
                };
                values.iter().map(rule).collect::<Result<_, _>>()?
            }
            OneOf(a, b) => vec![one(0, Op::Eq, a)?, one(0, Op::Eq, b)?],
            NotExecutable => vec![one(2, masked(libc::PROT_EXEC.cast_unsigned()), 0)?],
            Has(bits) => vec![one(0, masked(bits), bits)?],
            Own => vec![one(0, Op::Eq, std::process::id())?],
            Gone => {
                let (flags, mask) = FANOTIFY_MARK;
                let is =
                    |argument, value| SeccompCondition::new(argument, Len::Qword, Op::Eq, value);
                let flags = SeccompCondition::new(1, Len::Dword, Op::Eq, u64::from(flags))?;
                vec![SeccompRule::new(vec![flags, is(2, mask)?, is(4, 0)?])?]
            }
            Group => {
                let is = |argument, value: u32| {
                    SeccompCondition::new(argument, Len::Dword, Op::Eq, u64::from(value))
                };
                // One rule with two conditions: both have to hold.
                let as_it_is = is(2, u32::MAX)?;
                let no_link = is(4, libc::AT_SYMLINK_NOFOLLOW.cast_unsigned())?;
                vec![SeccompRule::new(vec![as_it_is, no_link])?]
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use rustix::fs::AtFlags;

    use super::*;

    /// Calls that no thread may make.
    const ATTEMPTS: usize = 10;

    const KINDS: [Thread; THREADS] = [
        Thread::Main,
        Thread::Control,
        Thread::Guest,
        Thread::Upkeep,
        Thread::Memory,
        Thread::Statistics,
        Thread::Watchdog,
    ];
    /// Those that read streams.
    const READERS: [Thread; 5] = [
        Thread::Main,
        Thread::Control,
        Thread::Guest,
        Thread::Memory,
        Thread::Statistics,
    ];

    /// The forbidden calls that a confined thread makes in the child below, by the number in its environment.
    fn forbidden(number: usize) {
        // The first thread may read: its configuration.
        let write = KINDS[number / ATTEMPTS] == Thread::Main;
        let file = || {
            let mut options = std::fs::OpenOptions::new();
            drop(options.read(!write).write(write).open("/etc/hostname"));
        };
        let network = || drop(std::net::UdpSocket::bind("127.0.0.1:0"));
        let program = || drop(Command::new("/bin/true").status());
        let code = || {
            // SAFETY: a new mapping at an address that the kernel chooses.
            let made = unsafe {
                libc::mmap(
                    std::ptr::null_mut(),
                    4096,
                    libc::PROT_READ | libc::PROT_EXEC,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                    -1,
                    0,
                )
            };
            assert_ne!(made, libc::MAP_FAILED);
        };
        let process = || {
            // SAFETY: the child of it, if there should be one, ends at once.
            if unsafe { libc::fork() } == 0 {
                std::process::exit(0);
            }
        };
        let signal = || {
            // SAFETY: the signal 0 does nothing to anybody.
            unsafe { libc::kill(1, 0) };
        };
        let late_code = || {
            let page = vec![0u8; 8192];
            let at = page.as_ptr().map_addr(|at| at.next_multiple_of(4096));
            // SAFETY: a whole page of an own allocation, which stays readable.
            unsafe {
                libc::mprotect(
                    at.cast_mut().cast(),
                    4096,
                    libc::PROT_READ | libc::PROT_EXEC,
                );
            }
        };
        let terminal = || {
            std::io::IsTerminal::is_terminal(&std::io::stdin());
        };
        let chown = |owner, flags| {
            use rustix::fs::{CWD, Gid, Uid, chownat};
            let owner: Option<Uid> = owner;
            let _ = chownat(CWD, "/nowhere", owner, Some(Gid::ROOT), flags);
        };
        let owner = || chown(Some(rustix::fs::Uid::ROOT), AtFlags::SYMLINK_NOFOLLOW);
        let group_behind_a_link = || chown(None, AtFlags::empty());
        let attempts: [&dyn Fn(); ATTEMPTS] = [
            &file,
            &network,
            &program,
            &code,
            &process,
            &signal,
            &late_code,
            &terminal,
            &owner,
            &group_behind_a_link,
        ];
        attempts[number % ATTEMPTS]();
    }

    fn child(number: usize) -> std::process::ExitStatus {
        Command::new(std::env::current_exe().expect("own path"))
            .args(["--ignored", "--exact", "seccomp::tests::confined_child"])
            .env("TMEM_TEST_CALL", number.to_string())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .status()
            .expect("starts")
    }

    #[test]
    fn a_forbidden_call_kills_the_process_whatever_thread_makes_it() {
        for number in 0..KINDS.len() * ATTEMPTS {
            let status = child(number);
            assert_eq!(status.signal(), Some(libc::SIGSYS), "{number}: {status}");
        }
    }

    #[test]
    fn a_thread_that_keeps_to_its_table_lives_and_cannot_gain_privileges() {
        for kind in KINDS {
            let status = std::thread::spawn(move || {
                // Read through what was open before.
                let mut file = std::fs::File::open("/proc/thread-self/status").expect("proc");
                confine(kind).expect("confined");
                let list: Vec<u64> = (0..1 << 20).collect();
                assert_eq!(list.len(), 1 << 20);
                let mut text = [0; 4096];
                // Not every kind reads; `recv` and friends are not for files.
                if READERS.contains(&kind) {
                    let _ = std::io::Read::read(&mut file, &mut text);
                }
                text
            })
            .join()
            .expect("lives");
            if READERS.contains(&kind) {
                let text = String::from_utf8_lossy(&status).into_owned();
                assert!(text.contains("NoNewPrivs:\t1"), "{kind:?}: {text}");
                assert!(text.contains("Seccomp:\t2"), "{kind:?}: {text}");
            }
        }
    }

    #[test]
    fn a_confined_thread_can_give_memory_back() {
        prepare();
        for kind in KINDS {
            let child = std::thread::spawn(move || {
                confine(kind).expect("confined");
                let list: Vec<Vec<u8>> = (0..1024).map(|_| Vec::with_capacity(16 << 10)).collect();
                drop(std::hint::black_box(list));
            });
            child.join().expect("lives");
        }
    }

    #[test]
    fn the_control_thread_can_start_a_thread_for_a_guest() {
        prepare();
        let outer = std::thread::spawn(|| {
            confine(Thread::Control).expect("confined");
            std::thread::spawn(|| {
                confine(Thread::Guest).expect("confined twice");
                std::thread::current().id()
            })
            .join()
            .expect("lives")
        });
        outer.join().expect("lives");
    }

    #[test]
    fn a_guest_that_was_added_later_may_do_what_the_others_may() {
        // Its thread has the filter of the control thread, or of the first one, too.
        for (call, threads, ..) in CALLS.iter().chain(OLD_CALLS) {
            let both = threads & (M | C) == M | C;
            assert!(threads & G == 0 || both, "call {call}");
        }
    }

    #[test]
    fn every_call_is_there_once_and_says_why() {
        let mut seen = std::collections::BTreeSet::new();
        for (call, threads, _, why) in CALLS.iter().chain(OLD_CALLS) {
            assert!(seen.insert(*call), "call {call} is there twice");
            assert!(*threads != 0 && !why.is_empty());
        }
        // Calls that leave a sandbox, or that access other processes and files.
        for call in [
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_ptrace,
            libc::SYS_process_vm_readv,
            libc::SYS_pidfd_getfd,
            libc::SYS_io_uring_setup,
        ] {
            assert!(!seen.contains(&call));
        }
        let open = CALLS.iter().find(|(call, ..)| *call == libc::SYS_openat);
        assert!(
            matches!(open, Some((_, M, Is(2, TO_READ), _)))
                && TO_READ & 3 == libc::O_RDONLY.cast_unsigned(),
            "the first thread alone, to read"
        );
    }

    #[test]
    #[ignore = "run by a_forbidden_call_kills_the_process_whatever_thread_makes_it"]
    fn confined_child() {
        let number = std::env::var("TMEM_TEST_CALL").expect("set");
        let number: usize = number.parse().expect("a number");
        confine(KINDS[number / ATTEMPTS]).expect("confined");
        forbidden(number);
    }
}
