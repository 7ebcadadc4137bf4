//! Whether this machine can run a guest.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::IntoRawFd;
use std::path::Path;

use kvm_ioctls::Kvm;

/// The device node of KVM.
pub const KVM_PATH: &str = "/dev/kvm";
/// The only version of the API there ever was.
const API_VERSION: i32 = 12;

/// Why no guest can run here. Each text is one line for a user.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HostError {
    /// The device node is not there.
    #[error(
        "{KVM_PATH} does not exist: load the kvm module, or use a machine with hardware virtualization"
    )]
    Missing,
    /// The device node belongs to another user.
    #[error("No permission to open {KVM_PATH}: join the group that owns it (usually kvm)")]
    Permission,
    /// Opening failed otherwise.
    #[error("Cannot open {KVM_PATH}")]
    Open(#[source] io::Error),
    /// KVM is there, but nothing behind it that could run 64-bit code at a usable speed.
    #[error(
        "{KVM_PATH} has no hardware virtualization behind it (neither svm nor vmx in /proc/cpuinfo)"
    )]
    NoHardware,
    /// Not the KVM this was written for.
    #[error("{KVM_PATH} speaks version {0} of the KVM API, not {API_VERSION}")]
    ApiVersion(i32),
}

/// Opens KVM if guests can run: the node opens for writing and the processor has `svm` or `vmx`.
pub fn open_kvm() -> Result<Kvm, HostError> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(Path::new(KVM_PATH))
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => HostError::Missing,
            io::ErrorKind::PermissionDenied => HostError::Permission,
            _ => HostError::Open(error),
        })?;
    if !has_virtualization(&std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default()) {
        return Err(HostError::NoHardware);
    }
    // SAFETY: the descriptor is an open /dev/kvm and ours alone, `into_raw_fd` having given it up.
    let kvm = unsafe { <Kvm as std::os::fd::FromRawFd>::from_raw_fd(file.into_raw_fd()) };
    match kvm.get_api_version() {
        API_VERSION => Ok(kvm),
        other => Err(HostError::ApiVersion(other)),
    }
}

/// Looks for the flags in the text of /proc/cpuinfo.
fn has_virtualization(cpuinfo: &str) -> bool {
    cpuinfo
        .lines()
        .filter(|line| line.starts_with("flags"))
        .any(|line| {
            line.split_whitespace()
                .any(|flag| flag == "svm" || flag == "vmx")
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_flags_line_of_a_processor_counts() {
        assert!(has_virtualization("processor : 0\nflags\t\t: fpu svm lm\n"));
        assert!(has_virtualization("flags : vmx\n"));
        assert!(!has_virtualization(
            "flags : fpu svm_lock vmx_ept\nbugs : svm\nvmx flags : vnmi\n"
        ));
        assert!(!has_virtualization(""));
    }
}
