//! First state of a vCPU: CPUID, model-specific registers, local APIC lines, and for the boot CPU long mode.

mod cpuid;

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_lapic_state, kvm_msr_entry, kvm_regs};
use kvm_ioctls::{Cap, Kvm, VcpuFd};

use crate::boot;
use crate::layout;

/// Offset of the local vector table entry of LINT0 in the register page of a local APIC.
const APIC_LVT0: usize = 0x350;
/// The same of LINT1.
const APIC_LVT1: usize = 0x360;
const APIC_MODE_NMI: u32 = 4 << 8;
const APIC_MODE_EXTINT: u32 = 7 << 8;
/// Vector, delivery mode and mask of a local vector table entry.
const APIC_LVT_FIELDS: u32 = 0xff | 7 << 8 | 1 << 16;

const MSR_IA32_MISC_ENABLE: u32 = 0x1a0;
/// Fast string operations.
const MISC_ENABLE_FAST_STRINGS: u64 = 1;
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
/// Memory type range registers on, default type write-back.
const MTRR_ENABLED_WRITE_BACK: u64 = 1 << 11 | 6;

/// Reserved bit of RFLAGS that is always set.
const RFLAGS_FIXED: u64 = 2;

/// Setting up a vCPU failed in KVM.
#[derive(Debug, thiserror::Error)]
#[error("Cannot {what} of vCPU {id}")]
pub struct CpuSetupError {
    what: &'static str,
    id: u8,
    #[source]
    source: kvm_ioctls::Error,
}

/// The capabilities that the host's KVM offers to every vCPU.
#[derive(Debug)]
pub(crate) struct CpuTemplate {
    supported: CpuId,
    tsc_deadline: bool,
}

impl CpuTemplate {
    pub(crate) fn new(kvm: &Kvm) -> Result<Self, kvm_ioctls::Error> {
        Ok(Self {
            supported: kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?,
            tsc_deadline: kvm.check_extension(Cap::TscDeadlineTimer),
        })
    }

    /// Gives vCPU `id` of `count` its CPUID, registers and APIC lines; vCPU 0 starts at `entry`, the others wait for
    /// their start-up interrupt.
    pub(crate) fn apply(
        &self,
        vcpu: &VcpuFd,
        id: u8,
        count: u8,
        entry: u64,
    ) -> Result<(), CpuSetupError> {
        let failed = |what| move |source| CpuSetupError { what, id, source };
        let mut cpuid = self.supported.clone();
        cpuid::adapt(cpuid.as_mut_slice(), id, count, self.tsc_deadline);
        vcpu.set_cpuid2(&cpuid).map_err(failed("set the CPUID"))?;

        let msrs = [
            kvm_msr_entry {
                index: MSR_IA32_MISC_ENABLE,
                data: MISC_ENABLE_FAST_STRINGS,
                ..Default::default()
            },
            kvm_msr_entry {
                index: MSR_MTRR_DEF_TYPE,
                data: MTRR_ENABLED_WRITE_BACK,
                ..Default::default()
            },
        ];
        // Both are conveniences: a KVM that refuses one still runs the guest.
        if let Ok(msrs) = Msrs::from_entries(&msrs) {
            vcpu.set_msrs(&msrs)
                .map_err(failed("set the model-specific registers"))?;
        }

        let mut lapic = vcpu.get_lapic().map_err(failed("read the local APIC"))?;
        set_lvt(&mut lapic, APIC_LVT0, APIC_MODE_EXTINT);
        set_lvt(&mut lapic, APIC_LVT1, APIC_MODE_NMI);
        vcpu.set_lapic(&lapic)
            .map_err(failed("set the local APIC"))?;

        if id == 0 {
            let mut sregs = vcpu.get_sregs().map_err(failed("read the segments"))?;
            boot::enter_long_mode(&mut sregs);
            vcpu.set_sregs(&sregs).map_err(failed("set the segments"))?;
            let regs = kvm_regs {
                rip: entry,
                rsi: layout::ZERO_PAGE,
                rflags: RFLAGS_FIXED,
                ..Default::default()
            };
            vcpu.set_regs(&regs).map_err(failed("set the registers"))?;
        }
        Ok(())
    }
}

/// Sets the delivery mode of a local vector table entry and unmasks it.
fn set_lvt(lapic: &mut kvm_lapic_state, offset: usize, mode: u32) {
    let mut bytes = [0; 4];
    for (byte, register) in bytes.iter_mut().zip(&lapic.regs[offset..]) {
        *byte = register.to_ne_bytes()[0];
    }
    let value = (u32::from_le_bytes(bytes) & !APIC_LVT_FIELDS) | mode;
    for (byte, register) in value.to_le_bytes().iter().zip(&mut lapic.regs[offset..]) {
        *register = std::ffi::c_char::from_ne_bytes([*byte]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lint0_takes_the_pic_and_lint1_the_nmi_and_other_bits_stay() {
        let mut lapic = kvm_lapic_state { regs: [-1; 1024] };
        set_lvt(&mut lapic, APIC_LVT0, APIC_MODE_EXTINT);
        let bytes: Vec<u8> = lapic.regs[APIC_LVT0..APIC_LVT0 + 4]
            .iter()
            .map(|b| b.to_ne_bytes()[0])
            .collect();
        let value = u32::from_le_bytes(bytes.try_into().unwrap());
        assert_eq!(value & APIC_LVT_FIELDS, APIC_MODE_EXTINT);
        assert_eq!(value | APIC_LVT_FIELDS, u32::MAX);
        assert_eq!(lapic.regs[APIC_LVT0 + 4], -1);
    }
}
