//! vCPU threads: one each, owned by [`VcpuThreads`], which stops and joins them when it is dropped.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;

use kvm_bindings::{
    KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_UNINITIALIZED,
    KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN,
};
use kvm_ioctls::{KvmRunWrapper, VcpuExit, VcpuFd};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use crate::bus::Bus;
use crate::power::Effect;
use crate::stop::Wake;
use crate::vcpu_fault::{InternalError, at, memory_fault};

const RFLAGS_IF: u64 = 1 << 9;

/// How a guest ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExitReason {
    /// It pulled the reset line (`reboot`), or its kernel panicked and has no driver to say so.
    Reset,
    /// It powered itself off.
    PowerOff,
    /// All its CPUs halted with interrupts off: `halt`, `poweroff` of a kernel without ACPI, or a kernel that gave up.
    Halted,
    /// A triple fault.
    TripleFault,
    /// Its kernel panicked and said so, whatever it did then.
    Panic,
    /// This signal cut its power.
    Signal(i32),
    /// The user typed the escape.
    Escape,
}

/// A vCPU that cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VcpuError {
    /// `KVM_RUN` failed.
    #[error("vCPU {id} cannot run{}", at(*rip))]
    Run {
        /// Which.
        id: u8,
        /// Address of the instruction at which it is, if it is known.
        rip: Option<u64>,
        /// Cause.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// KVM left the guest for a reason that has no handler here.
    #[error("vCPU {id} stopped: {reason}")]
    Stopped {
        /// Which.
        id: u8,
        /// KVM's reason.
        reason: String,
    },
    /// A device model panicked; the panic's own message came before.
    #[error("The thread of vCPU {id} panicked")]
    Panicked {
        /// Which.
        id: u8,
    },
}

/// How a guest's kernel panicked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Panic {
    /// It is about to stop or reset.
    Plain,
    /// Another kernel takes over, saves what there is to save, and ends the guest.
    CrashKernel,
}

/// The first end anyone reports is how the machine ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    result: OnceLock<Mutex<Option<Result<ExitReason, VcpuError>>>>,
    /// Set before the end that follows it.
    panic: OnceLock<Panic>,
    /// A vCPU left the guest since the last check.
    exited: AtomicBool,
    /// The main thread must be woken by the next exit.
    asleep: AtomicBool,
    pub(crate) wake: Wake,
}

impl Outcome {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            result: OnceLock::new(),
            panic: OnceLock::new(),
            exited: AtomicBool::new(false),
            asleep: AtomicBool::new(false),
            wake: Wake::new()?,
        })
    }

    pub(crate) fn report(&self, result: Result<ExitReason, VcpuError>) {
        let _ = self.result.set(Mutex::new(Some(result)));
        self.wake.wake();
    }

    /// The guest reports a panic. The machine goes on.
    fn report_panic(&self, how: Panic) {
        // Only the first report wakes the main thread.
        if self.panic.set(how).is_ok() {
            self.wake.wake();
        }
    }

    /// Whether it did, and how. To be asked after [`take`](Self::take).
    pub(crate) fn panic(&self) -> Option<Panic> {
        self.panic.get().copied()
    }

    /// A vCPU left the guest. This is one load, except for the first exit after a check.
    fn note_exit(&self) {
        if self.exited.load(Ordering::Relaxed) {
            return;
        }
        self.exited.store(true, Ordering::SeqCst);
        if self.asleep.swap(false, Ordering::SeqCst) {
            self.wake.wake();
        }
    }

    /// Whether a vCPU left the guest since this was asked last.
    pub(crate) fn exits_since_last_look(&self) -> bool {
        self.exited.swap(false, Ordering::SeqCst)
    }

    /// Asks for `wake` at the next exit; `false` when there was one already.
    pub(crate) fn sleep_until_exit(&self) -> bool {
        self.asleep.store(true, Ordering::SeqCst);
        // Either this load sees the exit, or the exit sees `asleep` and wakes the thread.
        !self.exited.load(Ordering::SeqCst)
    }

    /// The reported end; it can be taken once.
    pub(crate) fn take(&self) -> Option<Result<ExitReason, VcpuError>> {
        self.result
            .get()?
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }
}

/// Flags a vCPU thread shares with its owner.
#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    /// At the last kick it was halted for good: no interrupt can wake it.
    halted: AtomicBool,
}

#[derive(Debug)]
struct Vcpu {
    thread: Option<JoinHandle<()>>,
    shared: Arc<Shared>,
    /// A mapping of the run area of our own, so that `immediate_exit` can be set while the thread is in KVM.
    run: KvmRunWrapper,
    /// `/proc/self/task/TID/schedstat`, once the thread has said who it is.
    schedstat: Arc<OnceLock<String>>,
    last_schedstat: String,
}

/// All vCPU threads of a machine.
#[derive(Debug)]
pub(crate) struct VcpuThreads {
    vcpus: Vec<Vcpu>,
}

impl VcpuThreads {
    /// Starts a thread for each vCPU. `run_size` is what `KVM_GET_VCPU_MMAP_SIZE` said.
    pub(crate) fn start(
        fds: Vec<VcpuFd>,
        run_size: usize,
        bus: &Arc<Bus>,
        outcome: &Arc<Outcome>,
    ) -> io::Result<Self> {
        // The handler does nothing: the signal's only effect is that it ends a blocking call with EINTR.
        register_signal_handler(SIGRTMIN(), no_op)?;
        let mut threads = Self { vcpus: Vec::new() };
        for (id, fd) in (0u8..).zip(fds) {
            let run = KvmRunWrapper::mmap_from_fd(&fd, run_size)?;
            let shared = Arc::new(Shared::default());
            let schedstat = Arc::new(OnceLock::new());
            let runner = Runner {
                id,
                fd,
                shared: Arc::clone(&shared),
                bus: Arc::clone(bus),
                outcome: Arc::clone(outcome),
            };
            let path = Arc::clone(&schedstat);
            let thread = std::thread::Builder::new()
                .name(format!("vcpu{id}"))
                .spawn(move || {
                    let tid = rustix::thread::gettid().as_raw_nonzero();
                    let _ = path.set(format!("/proc/self/task/{tid}/schedstat"));
                    runner.run();
                })?;
            threads.vcpus.push(Vcpu {
                thread: Some(thread),
                shared,
                run,
                schedstat,
                last_schedstat: String::new(),
            });
        }
        Ok(threads)
    }

    /// Whether every vCPU is halted with interrupts off, so that nothing will ever happen again. Looks at threads
    /// that have not run since the last call; it kicks those out of the guest and knows at the next call.
    pub(crate) fn all_halted(&mut self) -> bool {
        let halted = self
            .vcpus
            .iter()
            .all(|vcpu| vcpu.shared.halted.load(Ordering::SeqCst));
        if halted {
            return true;
        }
        let mut all_idle = true;
        for vcpu in &mut self.vcpus {
            let now = vcpu
                .schedstat
                .get()
                .and_then(|path| std::fs::read_to_string(path).ok())
                .unwrap_or_default();
            all_idle &= !now.is_empty() && now == vcpu.last_schedstat;
            vcpu.last_schedstat = now;
        }
        if all_idle {
            for vcpu in &self.vcpus {
                // Forgets the results of an earlier kick.
                vcpu.shared.halted.store(false, Ordering::SeqCst);
            }
            for vcpu in &self.vcpus {
                if let Some(thread) = &vcpu.thread {
                    let _ = thread.kill(SIGRTMIN());
                }
            }
        }
        false
    }

    fn stop(&mut self) {
        for vcpu in &mut self.vcpus {
            vcpu.shared.stop.store(true, Ordering::SeqCst);
            // Before KVM_RUN the flag makes it return at once, inside of it the signal does: no window is left.
            vcpu.run.as_mut_ref().immediate_exit = 1;
            if let Some(thread) = &vcpu.thread {
                let _ = thread.kill(SIGRTMIN());
            }
        }
        for vcpu in &mut self.vcpus {
            if let Some(thread) = vcpu.thread.take() {
                // A panic was reported by the thread itself.
                let _ = thread.join();
            }
        }
    }
}

impl Drop for VcpuThreads {
    fn drop(&mut self) {
        self.stop();
    }
}

extern "C" fn no_op(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

/// The function of a vCPU thread.
struct Runner {
    id: u8,
    fd: VcpuFd,
    shared: Arc<Shared>,
    bus: Arc<Bus>,
    outcome: Arc<Outcome>,
}

/// Reports a panic of the thread it lives in.
struct PanicReport(Arc<Outcome>, u8);

impl Drop for PanicReport {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.report(Err(VcpuError::Panicked { id: self.1 }));
        }
    }
}

impl Runner {
    fn run(mut self) {
        let _report = PanicReport(Arc::clone(&self.outcome), self.id);
        while !self.shared.stop.load(Ordering::SeqCst) {
            if let Some(result) = self.step() {
                self.outcome.report(result);
                return;
            }
        }
    }

    /// Enters the guest once and handles why it left; `Some` when this ends the machine.
    fn step(&mut self) -> Option<Result<ExitReason, VcpuError>> {
        let id = self.id;
        let exit = match self.fd.run() {
            Ok(exit) => exit,
            Err(error) => {
                return match error.errno() {
                    libc::EINTR => {
                        self.look_if_halted();
                        None
                    }
                    // A vCPU that waits for its start-up interrupt returns so when it was woken.
                    libc::EAGAIN => None,
                    _ => Some(Err(VcpuError::Run {
                        id,
                        rip: self.rip(),
                        source: error,
                    })),
                };
            }
        };
        self.outcome.note_exit();
        let stopped = |reason: String| Some(Err(VcpuError::Stopped { id, reason }));
        match exit {
            VcpuExit::MmioWrite(address, data) => self.bus.mmio_write(address, data),
            VcpuExit::MmioRead(address, data) => self.bus.mmio_read(address, data),
            VcpuExit::IoOut(port, data) => match self.bus.port_out(port, data) {
                Effect::None => {}
                Effect::Reset => return Some(Ok(ExitReason::Reset)),
                Effect::PowerOff => return Some(Ok(ExitReason::PowerOff)),
                Effect::Panicked => self.outcome.report_panic(Panic::Plain),
                Effect::CrashKernel => self.outcome.report_panic(Panic::CrashKernel),
            },
            VcpuExit::IoIn(port, data) => self.bus.port_in(port, data),
            VcpuExit::Intr => {}
            VcpuExit::Shutdown => return Some(Ok(ExitReason::TripleFault)),
            VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _) => {
                return Some(Ok(ExitReason::PowerOff));
            }
            VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _) => return Some(Ok(ExitReason::Reset)),
            VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_CRASH, _) => return Some(Ok(ExitReason::Panic)),
            VcpuExit::FailEntry(reason, cpu) => {
                return stopped(format!(
                    "the processor refuses to enter the guest, reason {reason:#x} on CPU {cpu}"
                ));
            }
            VcpuExit::InternalError => {
                let error = self.internal_error();
                return stopped(error.describe(self.rip()));
            }
            VcpuExit::MemoryFault { flags, gpa, size } => {
                return stopped(memory_fault(flags, gpa, size, self.rip()));
            }
            other => return stopped(format!("unexpected exit {other:?}")),
        }
        None
    }

    /// Address of the next instruction.
    fn rip(&self) -> Option<u64> {
        self.fd.get_regs().ok().map(|regs| regs.rip)
    }

    /// KVM's description of the last exit, an internal error.
    fn internal_error(&mut self) -> InternalError {
        // SAFETY: the exit reason says that this is what KVM filled in; numbers, of which each value is one.
        let internal = unsafe { self.fd.get_kvm_run().__bindgen_anon_1.internal };
        InternalError {
            suberror: internal.suberror,
            ndata: internal.ndata,
            data: internal.data,
        }
    }

    fn look_if_halted(&mut self) {
        let halted = self
            .fd
            .get_mp_state()
            .is_ok_and(|state| match state.mp_state {
                KVM_MP_STATE_UNINITIALIZED | KVM_MP_STATE_INIT_RECEIVED => true,
                KVM_MP_STATE_HALTED => self
                    .fd
                    .get_regs()
                    .is_ok_and(|regs| regs.rflags & RFLAGS_IF == 0),
                _ => false,
            });
        self.shared.halted.store(halted, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_wakes_who_sleeps_and_is_known_when_its_reset_is() {
        let outcome = Outcome::new().expect("an eventfd");
        assert_eq!(outcome.panic(), None);
        outcome.report_panic(Panic::CrashKernel);
        outcome.report_panic(Panic::Plain);
        let mut fds = [rustix::event::PollFd::new(
            &outcome.wake,
            rustix::event::PollFlags::IN,
        )];
        let now = rustix::event::Timespec::default();
        assert_eq!(rustix::event::poll(&mut fds, Some(&now)), Ok(1));
        outcome.report(Ok(ExitReason::Reset));
        assert!(matches!(outcome.take(), Some(Ok(ExitReason::Reset))));
        assert_eq!(outcome.panic(), Some(Panic::CrashKernel));
    }

    #[test]
    fn an_exit_wakes_who_sleeps_and_is_seen_once() {
        let outcome = Outcome::new().expect("an eventfd");
        assert!(!outcome.exits_since_last_look());
        outcome.note_exit();
        assert!(!outcome.sleep_until_exit(), "there was an exit already");
        assert!(outcome.exits_since_last_look());
        assert!(!outcome.exits_since_last_look());
        assert!(outcome.sleep_until_exit());
        outcome.note_exit();
        let mut fds = [rustix::event::PollFd::new(
            &outcome.wake,
            rustix::event::PollFlags::IN,
        )];
        let now = rustix::event::Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        assert_eq!(rustix::event::poll(&mut fds, Some(&now)), Ok(1));
    }
}
