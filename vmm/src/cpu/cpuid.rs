//! CPUID of one vCPU: what KVM supports, with the leaves that speak of topology made true for this machine. Every
//! vCPU is a core of its own in one package, and its APIC id is its index.

use kvm_bindings::kvm_cpuid_entry2;

const EBX_APIC_ID_SHIFT: u32 = 24;
const EBX_LOGICAL_COUNT_SHIFT: u32 = 16;
const ECX_TSC_DEADLINE: u32 = 1 << 24;
/// Set only under a hypervisor. Without it Linux does not look for the KVM leaves at 0x4000_0000.
const ECX_HYPERVISOR: u32 = 1 << 31;
const EDX_HTT: u32 = 1 << 28;
/// AMD: the legacy logical count of leaf 1 counts cores.
const ECX_CMP_LEGACY: u32 = 1 << 1;

/// Adapts the supported CPUID to vCPU `id` of `count`.
pub(super) fn adapt(entries: &mut [kvm_cpuid_entry2], id: u8, count: u8, tsc_deadline: bool) {
    let apic_id = u32::from(id);
    let cores = u32::from(count.max(1));
    let core_bits = cores.next_power_of_two().trailing_zeros();
    for entry in entries {
        match entry.function {
            1 => {
                entry.ebx &= 0x0000_ffff;
                entry.ebx |= apic_id << EBX_APIC_ID_SHIFT | cores << EBX_LOGICAL_COUNT_SHIFT;
                entry.ecx |= ECX_HYPERVISOR;
                set(&mut entry.ecx, ECX_TSC_DEADLINE, tsc_deadline);
                set(&mut entry.edx, EDX_HTT, cores > 1);
            }
            // Deterministic cache parameters: level 3 is shared by the package, the rest belongs to one core.
            4 => {
                let level = (entry.eax >> 5) & 7;
                entry.eax &= 0x3fff;
                entry.eax |= (cores - 1) << 26;
                if level == 3 {
                    entry.eax |= (cores - 1) << 14;
                }
            }
            // Extended topology: subleaf 0 threads, subleaf 1 cores, then the end of the list.
            0xb | 0x1f => {
                let (shift, logical, kind) = match entry.index {
                    0 => (0, 1, 1),
                    1 => (core_bits, cores, 2),
                    _ => (0, 0, 0),
                };
                entry.eax = shift;
                entry.ebx = logical;
                entry.ecx = (entry.index & 0xff) | kind << 8;
                entry.edx = apic_id;
            }
            0x8000_0001 => set(&mut entry.ecx, ECX_CMP_LEGACY, cores > 1),
            // AMD: number of cores less one, and how many bits of the APIC id they take.
            0x8000_0008 => {
                entry.ecx &= !0xf0ff;
                entry.ecx |= core_bits << 12 | (cores - 1);
            }
            // AMD cache properties: as leaf 4.
            0x8000_001d => {
                let level = (entry.eax >> 5) & 7;
                entry.eax &= !(0xfff << 14);
                if level == 3 {
                    entry.eax |= (cores - 1) << 14;
                }
            }
            // AMD: extended APIC id, core id with one thread, one node.
            0x8000_001e => {
                entry.eax = apic_id;
                entry.ebx = apic_id;
                entry.ecx = 0;
            }
            _ => {}
        }
    }
}

fn set(register: &mut u32, bits: u32, on: bool) {
    if on {
        *register |= bits;
    } else {
        *register &= !bits;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapted(function: u32, index: u32, id: u8, count: u8) -> kvm_cpuid_entry2 {
        let mut entries = [kvm_cpuid_entry2 {
            function,
            index,
            eax: 0xffff_ff63,
            ebx: 0xffff_ffff,
            ecx: 0x7eff_ffff,
            ..Default::default()
        }];
        adapt(&mut entries, id, count, true);
        entries[0]
    }

    #[test]
    fn leaf_1_names_the_apic_id_the_count_and_the_hypervisor() {
        let leaf = adapted(1, 0, 3, 4);
        assert_eq!(leaf.ebx, 0x0304_ffff);
        assert_ne!(leaf.ecx & ECX_HYPERVISOR, 0);
        assert_ne!(leaf.ecx & ECX_TSC_DEADLINE, 0);
        assert_ne!(leaf.edx & EDX_HTT, 0);
        assert_eq!(adapted(1, 0, 0, 1).edx & EDX_HTT, 0);
    }

    #[test]
    fn extended_topology_has_one_thread_a_core_and_all_cores_in_one_package() {
        let threads = adapted(0xb, 0, 5, 6);
        assert_eq!(
            (threads.eax, threads.ebx, threads.ecx, threads.edx),
            (0, 1, 0x100, 5)
        );
        let cores = adapted(0xb, 1, 5, 6);
        assert_eq!(
            (cores.eax, cores.ebx, cores.ecx, cores.edx),
            (3, 6, 0x201, 5)
        );
        assert_eq!(adapted(0xb, 2, 5, 6).ebx, 0);
    }

    #[test]
    fn amd_leaves_agree_with_the_count() {
        let leaf = adapted(0x8000_0008, 0, 1, 8);
        assert_eq!((leaf.ecx & 0xff, (leaf.ecx >> 12) & 0xf), (7, 3));
        let leaf = adapted(0x8000_001e, 0, 1, 8);
        assert_eq!((leaf.eax, leaf.ebx, leaf.ecx), (1, 1, 0));
        assert_eq!(
            (adapted(0x8000_001d, 3, 0, 8).eax >> 14) & 0xfff,
            7,
            "level 3 is shared"
        );
    }
}
