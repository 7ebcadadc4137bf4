//! Can a guest run here, or only inside an emulated machine?

use std::fs::{self, File};

/// KVM is usable when `/dev/kvm` opens for writing and the processor has hardware virtualization. A KVM with
/// no hardware behind it creates machines too, but emulates their code so slowly that Linux never boots.
pub fn kvm_is_usable() -> bool {
    let opens = File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .is_ok();
    let processor = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    opens && has_virtualization(&processor)
}

fn has_virtualization(cpuinfo: &str) -> bool {
    let flags = cpuinfo.lines().filter(|line| line.starts_with("flags"));
    flags
        .flat_map(str::split_whitespace)
        .any(|flag| flag == "svm" || flag == "vmx")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_flags_line_tells_of_virtualization() {
        assert!(has_virtualization(
            "model name\t: x\nflags\t\t: fpu svm lm\n"
        ));
        assert!(has_virtualization("flags\t\t: vmx\n"));
        assert!(!has_virtualization(
            "model name\t: vmx svm\nflags\t\t: fpu svm_lock lm\n"
        ));
    }
}
