//! A small virtual machine on KVM for x86-64 Linux guests.
//!
//! | module | holds |
//! |---|---|
//! | [`host`] | whether this machine can run guests at all |
//! | [`vm`] | the machine: [`Vm::new`](vm::Vm::new) boots it, [`Vm::run`](vm::Vm::run) waits for its end |
//! | `layout` | guest physical addresses, memory map |
//! | `boot` | kernel, initrd, command line, MP table, page tables |
//! | `cpu` | CPUID and first registers of a vCPU |
//! | `vcpu` | vCPU threads and their exits |
//! | `bus` | I/O ports and MMIO windows |
//! | `serial`, `console` | 16550 and the terminal |
//! | [`virtio`] | queues, the virtio-mmio transport, block device, tmem device here or at a service |
//! | `signals`, `stop` | how a machine ends |
//!
//! See README.md for threads and locks.

mod boot;
mod bus;
mod console;
mod cpu;
pub mod host;
mod layout;
mod serial;
mod signals;
mod stop;
mod vcpu;
pub mod virtio;
pub mod vm;

pub use boot::BootError;
pub use layout::{CMDLINE_MAX, MAX_CPUS, MAX_DEVICES, MAX_MEMORY, MIN_MEMORY};
pub use signals::Signals;
pub use vcpu::{ExitReason, VcpuError};
pub use vm::{Vm, VmConfig, VmError};
