//! A small virtual machine on KVM for x86-64 Linux guests.
//!
//! | module | holds |
//! |---|---|
//! | [`host`] | whether this machine can run guests at all |
//! | [`vm`] | the machine: [`Vm::new`](vm::Vm::new) boots it, [`Vm::run`](vm::Vm::run) waits for its end |
//! | `layout` | guest physical addresses, memory map |
//! | `boot` | kernel, initrd, command line, MP table, ACPI tables, page tables |
//! | `cpu` | CPUID and first registers of a vCPU |
//! | `vcpu` | vCPU threads and their exits |
//! | `vcpu_fault` | what KVM says of a vCPU that cannot go on |
//! | `bus` | I/O ports and MMIO windows |
//! | `serial`, `console` | 16550, and where its output goes and its input comes from |
//! | `power` | power button, power-off, reset register, pvpanic |
//! | [`virtio`] | queues, the virtio-mmio transport, block device, tmem device here or at a service |
//! | `ending`, `signals`, `stop` | how a machine ends |
//!
//! See README.md for threads and locks.

mod boot;
mod bus;
mod console;
mod cpu;
mod ending;
pub mod host;
mod layout;
mod power;
mod serial;
mod signals;
mod stop;
mod vcpu;
mod vcpu_fault;
pub mod virtio;
pub mod vm;

pub use boot::BootError;
pub use console::{ConsoleConfig, MIN_CONSOLE_LIMIT};
pub use layout::{CMDLINE_MAX, MAX_CPUS, MAX_DEVICES, MAX_MEMORY, MIN_MEMORY};
pub use signals::{Signals, signal_name};
pub use vcpu::{ExitReason, VcpuError};
pub use vm::{Vm, VmConfig, VmError};
