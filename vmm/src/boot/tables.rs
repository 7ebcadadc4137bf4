//! Long mode: descriptor table, identity map, and the registers that use them.

use kvm_bindings::{kvm_segment, kvm_sregs};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use crate::layout;

const PRESENT_WRITABLE: u64 = 3;
const LARGE_PAGE: u64 = 0x80;
const PAGE: u64 = 0x1000;

/// Flat 64-bit code and flat data, at the selectors the boot protocol names (`__BOOT_CS` 0x10, `__BOOT_DS` 0x18).
const GDT: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
const BOOT_CS: u16 = 0x10;
const BOOT_DS: u16 = 0x18;

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

/// Writes the descriptor table and an identity map of the first 4 GiB in 2 MiB pages.
pub(super) fn write(mem: &GuestMemoryMmap) -> Result<(), GuestMemoryError> {
    for (index, descriptor) in (0u64..).zip(GDT) {
        mem.write_obj(descriptor, GuestAddress(layout::GDT + index * 8))?;
    }
    let pml4 = layout::PAGE_TABLES;
    let pdpt = pml4 + PAGE;
    mem.write_obj(pdpt | PRESENT_WRITABLE, GuestAddress(pml4))?;
    for gib in 0..4 {
        let directory = pdpt + PAGE * (gib + 1);
        mem.write_obj(directory | PRESENT_WRITABLE, GuestAddress(pdpt + gib * 8))?;
        for entry in 0..512 {
            let address = (gib << 30) | (entry << 21);
            mem.write_obj(
                address | LARGE_PAGE | PRESENT_WRITABLE,
                GuestAddress(directory + entry * 8),
            )?;
        }
    }
    Ok(())
}

/// Sets the boot CPU's segment and control registers for 64-bit entry.
pub(crate) fn enter_long_mode(sregs: &mut kvm_sregs) {
    let code = kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector: BOOT_CS,
        type_: 0xb,
        present: 1,
        s: 1,
        l: 1,
        g: 1,
        ..Default::default()
    };
    let data = kvm_segment {
        selector: BOOT_DS,
        type_: 3,
        l: 0,
        db: 1,
        ..code
    };
    sregs.cs = code;
    sregs.ds = data;
    sregs.es = data;
    sregs.fs = data;
    sregs.gs = data;
    sregs.ss = data;
    sregs.gdt.base = layout::GDT;
    sregs.gdt.limit = 31;
    sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
    sregs.cr3 = layout::PAGE_TABLES;
    sregs.cr4 = CR4_PAE;
    sregs.efer = EFER_LME | EFER_LMA;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_identity_map_translates_every_2_mib_page_to_itself() {
        let mem = layout::guest_ram(16 << 20, false).unwrap();
        write(&mem).unwrap();
        let read = |address| mem.read_obj::<u64>(GuestAddress(address)).unwrap();
        let mut sregs = kvm_sregs::default();
        enter_long_mode(&mut sregs);
        for address in [0u64, 0x10_0000, 0x100_0000, 0x7fff_f000, 0xffe0_0000] {
            let pdpt = read(sregs.cr3) & !0xfff;
            let directory = read(pdpt + (address >> 30) * 8) & !0xfff;
            let entry = read(directory + ((address >> 21) & 511) * 8);
            assert_eq!(entry & !0xfff, address & !0x1f_ffff);
            assert_eq!(entry & 0x83, 0x83);
        }
    }
}
