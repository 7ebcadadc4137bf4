//! The machine: made from a [`VmConfig`] and a list of virtio devices, run until the guest ends or we are told to
//! end it.

use std::fmt::Write as _;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, kvm_pit_config, kvm_userspace_memory_region};
use kvm_ioctls::{IoEventAddress, Kvm, VmFd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use crate::boot::{self, BootError, Payload};
use crate::bus::Bus;
use crate::console::{ConsoleConfig, Input, Opened};
use crate::cpu::{CpuSetupError, CpuTemplate};
use crate::ending::{Ending, Step};
use crate::host::{self, HostError};
use crate::layout::{self, GuestRamError};
use crate::power::PowerPorts;
use crate::serial::SerialPort;
use crate::signals::{Signals, signal_name};
use crate::stop::StopFlag;
use crate::vcpu::{ExitReason, Outcome, VcpuError, VcpuThreads};
use crate::virtio::mmio::{self, MmioTransport};
use crate::virtio::{Interrupt, VirtioDevice};

/// How often a machine that has just fallen silent is asked whether it halted for good.
const HALT_WATCH: Duration = Duration::from_secs(1);
/// Number of checks without an exit after which a machine counts as idle. A guest that halts writes that to its console
/// just before, and three checks find it.
const QUIET_LOOKS: u32 = 6;
/// How often an idle machine is asked, in case it halted without a word.
const IDLE_WATCH: Duration = Duration::from_secs(60);

/// The configuration of a machine, except for its devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmConfig {
    /// ELF vmlinux or bzImage.
    pub kernel: PathBuf,
    /// Initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// Kernel command line; the entries that announce the virtio devices are appended.
    pub cmdline: String,
    /// vCPUs, 1 to [`layout::MAX_CPUS`].
    pub cpus: u8,
    /// Bytes of memory, whole pages from [`layout::MIN_MEMORY`] to [`layout::MAX_MEMORY`].
    pub memory: u64,
    /// Where its serial console is.
    pub console: ConsoleConfig,
    /// The time that the guest has to power itself off when a signal presses its power button; with none, the signal
    /// cuts its power.
    pub grace: Duration,
}

/// Why a machine could not be made or could not go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VmError {
    /// This host runs no guests.
    #[error(transparent)]
    Host(#[from] HostError),
    /// Kernel, initrd or command line cannot be used.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// More CPUs or fewer than there can be.
    #[error("A guest has 1 to {max} CPUs, not {0}", max = layout::MAX_CPUS)]
    Cpus(u8),
    /// Memory out of range.
    #[error("A guest has whole pages of memory from {min} to {max} bytes, not {0}", min = layout::MIN_MEMORY, max = layout::MAX_MEMORY)]
    MemorySize(u64),
    /// More devices than interrupt lines.
    #[error("A guest has at most {max} virtio devices, not {0}", max = layout::MAX_DEVICES)]
    TooManyDevices(usize),
    /// Guest memory could not be had.
    #[error(transparent)]
    GuestRam(#[from] GuestRamError),
    /// A device has queues of an impossible size.
    #[error("Bad queue size")]
    Queue(#[from] virtio_queue::Error),
    /// A call to KVM failed.
    #[error("KVM cannot {what}")]
    Kvm {
        /// What was asked.
        what: &'static str,
        /// Cause.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// The file for the console cannot be used.
    #[error("Cannot write the console to {}", path.display())]
    Console {
        /// File given.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// A vCPU could not be prepared.
    #[error(transparent)]
    CpuSetup(#[from] CpuSetupError),
    /// A vCPU could not go on.
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
    /// A thread of a device panicked; the panic's own message came before.
    #[error("The thread {0:?} of a device panicked")]
    DeviceThread(String),
    /// The operating system refused a descriptor, a thread or the terminal.
    #[error("Cannot {what}")]
    System {
        /// What was asked.
        what: &'static str,
        /// Cause.
        #[source]
        source: io::Error,
    },
}

fn kvm_failed(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> VmError {
    move |source| VmError::Kvm { what, source }
}

fn system_failed(what: &'static str) -> impl Fn(io::Error) -> VmError {
    move |source| VmError::System { what, source }
}

/// A guest that is loaded and has not run yet.
#[derive(Debug)]
pub struct Vm {
    fd: VmFd,
    run_size: usize,
    vcpus: Vec<kvm_ioctls::VcpuFd>,
    serial: Arc<Mutex<SerialPort>>,
    power: Arc<Mutex<PowerPorts>>,
    output: Option<Opened>,
    /// Whether standard input is the console's.
    reads_input: bool,
    grace: Duration,
    /// Ends what may never end: a round of requests.
    stop: StopFlag,
    transports: Vec<Arc<MmioTransport>>,
    /// Last, so that it is dropped last: KVM and the devices point into it.
    _mem: GuestMemoryMmap,
}

impl Vm {
    /// Makes the machine and loads the guest; nothing runs before [`run`](Self::run).
    pub fn new(config: &VmConfig, devices: Vec<Arc<dyn VirtioDevice>>) -> Result<Self, VmError> {
        if !(1..=layout::MAX_CPUS).contains(&config.cpus) {
            return Err(VmError::Cpus(config.cpus));
        }
        if !(layout::MIN_MEMORY..=layout::MAX_MEMORY).contains(&config.memory)
            || !config.memory.is_multiple_of(4096)
        {
            return Err(VmError::MemorySize(config.memory));
        }
        if devices.len() > layout::MAX_DEVICES {
            return Err(VmError::TooManyDevices(devices.len()));
        }
        // A private mapping costs the host less bookkeeping, and no other process can read it.
        let shared = devices.iter().any(|device| device.shares_memory());
        let mem = layout::guest_ram(config.memory, shared)?;
        let cmdline = full_cmdline(&config.cmdline, devices.len());
        let payload = Payload {
            kernel: &config.kernel,
            initrd: config.initrd.as_deref(),
            cmdline: &cmdline,
            cpus: config.cpus,
            memory: config.memory,
        };
        // Files are checked before KVM: the user can correct them on any machine.
        let entry = boot::load(&mem, &payload)?;
        let output = open_console(&config.console)?;
        let kvm = host::open_kvm()?;

        let fd = create_machine(&kvm, &mem)?;
        let stop = StopFlag::new().map_err(system_failed("create an eventfd"))?;
        let serial = SerialPort::new(output.as_ref().map(Opened::backlog))
            .map_err(system_failed("create an eventfd"))?;
        fd.register_irqfd(serial.line(), layout::SERIAL_IRQ)
            .map_err(kvm_failed("connect the serial interrupt"))?;
        let power = PowerPorts::new().map_err(system_failed("create an eventfd"))?;
        fd.register_irqfd(power.line(), layout::SCI_IRQ)
            .map_err(kvm_failed("connect the power button's interrupt"))?;
        let transports = connect(&fd, &mem, devices, &stop)?;
        let template = CpuTemplate::new(&kvm).map_err(kvm_failed("say what its CPUs support"))?;
        let mut vcpus = Vec::new();
        for id in 0..config.cpus {
            let vcpu = fd
                .create_vcpu(u64::from(id))
                .map_err(kvm_failed("create a vCPU"))?;
            template.apply(&vcpu, id, config.cpus, entry)?;
            vcpus.push(vcpu);
        }
        let run_size = kvm
            .get_vcpu_mmap_size()
            .map_err(kvm_failed("say how large a vCPU's run area is"))?;
        Ok(Self {
            fd,
            run_size,
            vcpus,
            serial: Arc::new(Mutex::new(serial)),
            power: Arc::new(Mutex::new(power)),
            output,
            reads_input: config.console == ConsoleConfig::Stdio,
            grace: config.grace,
            stop,
            transports,
            _mem: mem,
        })
    }

    /// Transports in the order of the devices given, for their counters.
    pub fn transports(&self) -> &[Arc<MmioTransport>] {
        &self.transports
    }

    /// Runs the guest on this thread's watch until it ends, `signals` end it or the escape is typed. When it returns,
    /// every thread of the machine is joined and the terminal is as it was.
    pub fn run(self, signals: &Signals) -> Result<ExitReason, VmError> {
        let Self {
            fd,
            run_size,
            vcpus,
            serial,
            power,
            output,
            reads_input,
            grace,
            stop,
            transports,
            _mem,
        } = self;
        if let Some(signal) = signals.take() {
            return Ok(ExitReason::Signal(signal));
        }
        let outcome = Arc::new(Outcome::new().map_err(system_failed("create an eventfd"))?);
        let output = output
            .map(Opened::start)
            .transpose()
            .map_err(system_failed("set up the console"))?;
        let quit = Arc::clone(&outcome);
        let input = reads_input
            .then(|| {
                Input::start(Arc::clone(&serial), move || {
                    quit.report(Ok(ExitReason::Escape))
                })
            })
            .transpose()
            .map_err(system_failed("set up the console"))?;
        let bus = Arc::new(Bus::new(serial, Arc::clone(&power), transports));
        let mut threads = VcpuThreads::start(vcpus, run_size, &bus, &outcome)
            .map_err(system_failed("start the vCPU threads"))?;

        let ended = Watch {
            signals,
            outcome: &outcome,
            threads: &mut threads,
            power: &power,
            stop: &stop,
            ending: Ending::new(grace),
        }
        .run();
        stop.stop();
        drop(threads);
        // The last output of the guest may not be written yet; the terminal stays raw until it is.
        drop(output);
        drop(input);
        drop(fd);
        ended
    }
}

/// Opens the destination of console output.
fn open_console(config: &ConsoleConfig) -> Result<Option<Opened>, VmError> {
    Opened::new(config).map_err(|source| match config {
        ConsoleConfig::File { path, .. } => VmError::Console {
            path: path.clone(),
            source,
        },
        _ => system_failed("set up the console")(source),
    })
}

/// Waits for the end.
struct Watch<'a> {
    signals: &'a Signals,
    outcome: &'a Outcome,
    threads: &'a mut VcpuThreads,
    power: &'a Mutex<PowerPorts>,
    /// Set here only at the end; before, by a thread that cannot go on.
    stop: &'a StopFlag,
    ending: Ending,
}

impl Watch<'_> {
    fn run(mut self) -> Result<ExitReason, VmError> {
        let mut quiet = 0;
        loop {
            let idle = quiet >= QUIET_LOOKS && self.outcome.sleep_until_exit();
            let halt_watch = if idle { IDLE_WATCH } else { HALT_WATCH };
            let ready = self.sleep(halt_watch);
            quiet = if self.outcome.exits_since_last_look() {
                0
            } else {
                quiet.saturating_add(1)
            };
            if let Some(thread) = self.stop.failed() {
                return Err(VmError::DeviceThread(thread.to_owned()));
            }
            let ended = self.outcome.take().transpose()?;
            if let Some(how) = self.outcome.panic() {
                self.ending.panicked(how, Instant::now());
            }
            if let Some(reason) = ended {
                return Ok(self.ending.reason(reason));
            }
            while let Some(signal) = self.signals.take() {
                if let Some(reason) = self.signal(signal) {
                    return Ok(reason);
                }
            }
            if let Some(reason) = self.ending.due(Instant::now()) {
                return Ok(reason);
            }
            if !ready && self.threads.all_halted() {
                return Ok(self.ending.reason(ExitReason::Halted));
            }
        }
    }

    /// Sleeps until something happens or a time is over; false when nothing happened.
    fn sleep(&self, halt_watch: Duration) -> bool {
        let mut fds = [
            PollFd::new(self.signals, PollFlags::IN),
            PollFd::new(&self.outcome.wake, PollFlags::IN),
            PollFd::new(self.stop, PollFlags::IN),
        ];
        let now = Instant::now();
        let until = |at: Instant| at.saturating_duration_since(now);
        let period = self.ending.next().map_or(halt_watch, |at| {
            // Up to a millisecond later, so that it is over then.
            halt_watch.min(until(at) + Duration::from_millis(1))
        });
        let ready = poll(&mut fds, Timespec::try_from(period).ok().as_ref());
        self.outcome.wake.clear();
        ready != Ok(0)
    }

    /// Does what a signal asks for; `Some` when that is the end.
    fn signal(&mut self, signal: i32) -> Option<ExitReason> {
        match self.ending.signal(signal, Instant::now()) {
            Step::End(reason) => Some(reason),
            Step::Wait => None,
            Step::Press => {
                let mut power = self.power.lock().unwrap_or_else(PoisonError::into_inner);
                let listens = power.press();
                log::warn!(
                    "{}: pressed the guest's power button{}; its power is cut in {} s, or by another signal",
                    signal_name(signal),
                    if listens {
                        ""
                    } else {
                        ", to which no driver of it listens yet"
                    },
                    self.ending.grace().as_secs(),
                );
                None
            }
        }
    }
}

/// An empty machine with interrupt controllers, timer and memory.
fn create_machine(kvm: &Kvm, mem: &GuestMemoryMmap) -> Result<VmFd, VmError> {
    let fd = kvm.create_vm().map_err(kvm_failed("create a machine"))?;
    fd.set_identity_map_address(layout::KVM_IDENTITY_MAP)
        .map_err(kvm_failed("place its identity map"))?;
    fd.set_tss_address(layout::KVM_TSS)
        .map_err(kvm_failed("place its task state segment"))?;
    fd.create_irq_chip()
        .map_err(kvm_failed("create the interrupt controllers"))?;
    let pit = kvm_pit_config {
        flags: KVM_PIT_SPEAKER_DUMMY,
        ..Default::default()
    };
    fd.create_pit2(pit)
        .map_err(kvm_failed("create the timer"))?;
    for (slot, region) in (0u32..).zip(mem.iter()) {
        let region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: region.start_addr().raw_value(),
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: the region is a mapping of that length that `Vm` owns and drops after every vCPU.
        unsafe { fd.set_user_memory_region(region) }
            .map_err(kvm_failed("map the guest's memory"))?;
    }
    Ok(fd)
}

/// Gives each device a window, a line, and its eventfds.
fn connect(
    fd: &VmFd,
    mem: &GuestMemoryMmap,
    devices: Vec<Arc<dyn VirtioDevice>>,
    stop: &StopFlag,
) -> Result<Vec<Arc<MmioTransport>>, VmError> {
    let mut transports = Vec::new();
    for ((device, irq), slot) in devices.into_iter().zip(layout::DEVICE_IRQS).zip(0u64..) {
        let interrupt = Arc::new(Interrupt::new().map_err(system_failed("create an eventfd"))?);
        let transport =
            MmioTransport::new(device, mem.clone(), Arc::clone(&interrupt), stop.clone())?;
        fd.register_irqfd(interrupt.line(), irq)
            .map_err(kvm_failed("connect a device's interrupt"))?;
        let notify = layout::MMIO_BASE + slot * layout::MMIO_WINDOW + mmio::QUEUE_NOTIFY;
        for (queue, doorbell) in transport.doorbell_fds() {
            fd.register_ioevent(doorbell, &IoEventAddress::Mmio(notify), u32::from(queue))
                .map_err(kvm_failed("connect a device's doorbell"))?;
        }
        transports.push(Arc::new(transport));
    }
    Ok(transports)
}

/// The command line with one `virtio_mmio.device=` for each device. The part behind ` -- ` is for init, so the entries
/// are inserted in front of it.
fn full_cmdline(cmdline: &str, devices: usize) -> String {
    let mut entries = String::new();
    for (slot, irq) in (0u64..).zip(layout::DEVICE_IRQS.iter().take(devices)) {
        let address = layout::MMIO_BASE + slot * layout::MMIO_WINDOW;
        // Writing to a string does not fail.
        let _ = write!(entries, " virtio_mmio.device=4K@{address:#x}:{irq}");
    }
    match cmdline.split_once(" -- ") {
        Some((kernel, init)) => format!("{kernel}{entries} -- {init}"),
        None => format!("{cmdline}{entries}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_announced_in_front_of_the_words_for_init() {
        assert_eq!(full_cmdline("a=b", 0), "a=b");
        let two = " virtio_mmio.device=4K@0xd0000000:5 virtio_mmio.device=4K@0xd0001000:6";
        assert_eq!(full_cmdline("a=b", 2), format!("a=b{two}"));
        assert_eq!(
            full_cmdline("a=b -- run all", 2),
            format!("a=b{two} -- run all")
        );
    }

    fn config() -> VmConfig {
        VmConfig {
            kernel: "/nonexistent".into(),
            initrd: None,
            cmdline: String::new(),
            cpus: 1,
            memory: 96 << 20,
            console: ConsoleConfig::None,
            grace: Duration::ZERO,
        }
    }

    #[test]
    fn a_device_thread_that_panics_ends_the_machine_with_its_name() {
        let serial = SerialPort::new(None).unwrap();
        let power = Arc::new(Mutex::new(PowerPorts::new().unwrap()));
        let outcome = Arc::new(Outcome::new().unwrap());
        let bus = Bus::new(Arc::new(Mutex::new(serial)), Arc::clone(&power), vec![]);
        let mut threads = VcpuThreads::start(vec![], 0, &Arc::new(bus), &outcome).unwrap();
        let (stop, signals) = (StopFlag::new().unwrap(), Signals::new().unwrap());
        stop.report_failure("tmem store 0");
        let ended = Watch {
            signals: &signals,
            outcome: &outcome,
            threads: &mut threads,
            power: &power,
            stop: &stop,
            ending: Ending::new(Duration::ZERO),
        }
        .run();
        let error = ended.unwrap_err();
        assert_eq!(
            error.to_string(),
            "The thread \"tmem store 0\" of a device panicked"
        );
    }

    #[test]
    fn impossible_machines_are_refused_before_kvm_is_opened() {
        for cpus in [0, 9] {
            assert!(matches!(
                Vm::new(&VmConfig { cpus, ..config() }, vec![]),
                Err(VmError::Cpus(_))
            ));
        }
        for memory in [0, 4096, (96 << 20) + 1, u64::MAX] {
            assert!(matches!(
                Vm::new(&VmConfig { memory, ..config() }, vec![]),
                Err(VmError::MemorySize(_))
            ));
        }
    }
}
