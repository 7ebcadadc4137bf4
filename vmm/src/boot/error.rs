//! Why a guest could not be prepared.

use std::io;
use std::path::PathBuf;

use vm_memory::GuestMemoryError;

use crate::layout;

/// Why a guest could not be prepared. Each text names the file or option that is wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BootError {
    /// The kernel file cannot be opened or read.
    #[error("Cannot read kernel {}", path.display())]
    OpenKernel {
        /// File given.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The file is neither an x86-64 ELF nor a bzImage with a 64-bit entry, or is damaged.
    #[error("Kernel {} {reason}", path.display())]
    BadKernel {
        /// File given.
        path: PathBuf,
        /// The fault in it.
        reason: &'static str,
    },
    /// The kernel does not fit into the guest's memory.
    #[error("Kernel {} needs {needed} bytes of memory, the guest has {memory}", path.display())]
    KernelTooBig {
        /// File given.
        path: PathBuf,
        /// Address behind the last byte the kernel uses before it reads the memory map.
        needed: u64,
        /// Guest memory below the 32-bit gap, in bytes.
        memory: u64,
    },
    /// The initrd cannot be opened or read.
    #[error("Cannot read initrd {}", path.display())]
    ReadInitrd {
        /// File given.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The initrd does not fit between the kernel and the end of memory.
    #[error("Initrd {} has {size} bytes, but the guest's memory has only {room} free behind the kernel", path.display())]
    InitrdTooBig {
        /// File given.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
        /// Free bytes.
        room: u64,
    },
    /// The command line is longer than Linux takes.
    #[error("Command line has {0} bytes, Linux takes {max}", max = layout::CMDLINE_MAX)]
    CmdlineTooLong(usize),
    /// The command line holds a NUL or a line break.
    #[error("Command line holds a control character")]
    CmdlineControl,
    /// Guest memory refused a write of the loader.
    #[error("Cannot write boot structures")]
    Memory(#[from] GuestMemoryError),
}
