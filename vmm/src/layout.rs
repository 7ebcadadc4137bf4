//! Guest physical address space: where RAM lies, what the boot structures and the devices occupy.
//!
//! ```text
//! 0x0000_0000  RAM   GDT 0x500, zero page 0x7000, page tables 0x9000, command line 0x2_0000
//! 0x0009_fc00  EBDA  MP table (reserved in the e820 map)
//! 0x000e_0000  BIOS  ACPI tables (reserved in the e820 map)
//! 0x0010_0000  RAM   kernel, initrd at the top of what lies below the gap
//! 0xd000_0000  gap   virtio-mmio windows, IOAPIC, LAPIC, KVM's TSS and identity map
//! 0x1_0000_0000 RAM  what did not fit below
//! ```

use std::fs::File;
use std::io;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, SealFlags};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestRegionMmap};

/// Global descriptor table of the boot CPU.
pub(crate) const GDT: u64 = 0x500;
/// Linux "zero page" (`struct boot_params`).
pub(crate) const ZERO_PAGE: u64 = 0x7000;
/// Identity map of the first 4 GiB: PML4, PDPT and four page directories.
pub(crate) const PAGE_TABLES: u64 = 0x9000;
/// Kernel command line, NUL terminated.
pub(crate) const CMDLINE: u64 = 0x2_0000;
/// Longest command line in bytes without its NUL (`COMMAND_LINE_SIZE` of Linux on x86 is 2048).
pub const CMDLINE_MAX: usize = 2047;
/// Extended BIOS data area: the last KiB of base memory, one of the places Linux scans for an MP table.
pub(crate) const EBDA: u64 = 0x9_fc00;
/// Size of the EBDA in bytes.
pub(crate) const EBDA_SIZE: u64 = 0x400;
/// ACPI tables: the BIOS area, which is the other place that Linux scans for their root pointer.
pub(crate) const ACPI: u64 = 0xe_0000;
/// Size of the BIOS area in bytes.
pub(crate) const ACPI_SIZE: u64 = HIGH_MEMORY - ACPI;
/// Start of extended memory; no kernel is loaded below.
pub(crate) const HIGH_MEMORY: u64 = 0x10_0000;

/// Start of the 32-bit gap that holds no RAM.
pub(crate) const GAP_START: u64 = 0xd000_0000;
/// First address behind the gap.
pub(crate) const GAP_END: u64 = 0x1_0000_0000;

/// First virtio-mmio window.
pub(crate) const MMIO_BASE: u64 = GAP_START;
/// Distance and size of virtio-mmio windows.
pub(crate) const MMIO_WINDOW: u64 = 0x1000;
/// Interrupt lines for virtio devices, in the order in which they are given out. They are the ISA lines that
/// nothing else here uses (0 timer, 1 keyboard, 2 cascade, 4 serial, 8 clock, 9 ACPI, 13 FPU).
pub(crate) const DEVICE_IRQS: [u32; 9] = [5, 6, 7, 10, 11, 12, 14, 15, 3];
/// How many virtio devices a machine can have.
pub const MAX_DEVICES: usize = DEVICE_IRQS.len();

/// I/O APIC registers.
pub(crate) const IOAPIC: u32 = 0xfec0_0000;
/// Local APIC registers.
pub(crate) const LAPIC: u32 = 0xfee0_0000;
/// One page KVM needs for real mode on Intel, followed by three pages of TSS.
pub(crate) const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;
/// Three pages KVM needs for its task state segment on Intel.
pub(crate) const KVM_TSS: usize = 0xfffb_d000;

/// First serial port.
pub(crate) const SERIAL_PORT: u16 = 0x3f8;
/// Interrupt line of the first serial port.
pub(crate) const SERIAL_IRQ: u32 = 4;

/// ACPI's interrupt line, the usual one.
pub(crate) const SCI_IRQ: u32 = 9;
/// PM1 event block: status and enable register, 16 bits each.
pub(crate) const PM1_EVENT: u16 = 0x600;
/// PM1 control register, 16 bits, right behind it.
pub(crate) const PM1_CONTROL: u16 = PM1_EVENT + 4;
/// Reset control register, where PCs have it.
pub(crate) const RESET_PORT: u16 = 0xcf9;
/// The value that ACPI writes there.
pub(crate) const RESET_VALUE: u8 = 6;
/// pvpanic, where QEMU has it.
pub(crate) const PVPANIC_PORT: u16 = 0x505;

/// Smallest guest memory that is accepted: a kernel of a few MiB and its page structures.
pub const MIN_MEMORY: u64 = 16 << 20;
/// Largest guest memory that is accepted.
pub const MAX_MEMORY: u64 = 1 << 40;
/// Largest number of vCPUs.
pub const MAX_CPUS: u8 = 8;

/// Regions of guest RAM as (start, length) for `size` bytes of memory.
pub(crate) fn ram_regions(size: u64) -> Vec<(u64, u64)> {
    if size <= GAP_START {
        vec![(0, size)]
    } else {
        vec![(0, GAP_START), (GAP_END, size - GAP_START)]
    }
}

/// End of the RAM below the gap.
pub(crate) fn low_ram_end(size: u64) -> u64 {
    size.min(GAP_START)
}

/// Kind of an e820 entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum E820Kind {
    /// Usable memory.
    Ram = 1,
    /// Not to be touched.
    Reserved = 2,
}

/// The memory map for the kernel: (start, length, kind).
pub(crate) fn e820(size: u64) -> Vec<(u64, u64, E820Kind)> {
    let mut map = vec![
        (0, EBDA, E820Kind::Ram),
        (EBDA, EBDA_SIZE, E820Kind::Reserved),
        (ACPI, ACPI_SIZE, E820Kind::Reserved),
    ];
    for (start, length) in ram_regions(size) {
        let end = start + length;
        let start = start.max(HIGH_MEMORY);
        if end > start {
            map.push((start, end - start, E820Kind::Ram));
        }
    }
    map
}

/// Guest memory could not be reserved.
#[derive(Debug, thiserror::Error)]
#[error("Cannot reserve {size} bytes of guest memory")]
pub struct GuestRamError {
    size: u64,
    #[source]
    source: Box<dyn std::error::Error + Send + Sync>,
}

/// Maps `size` bytes of guest RAM (not reserved, zero until touched): anonymous, or, for another process to map,
/// `shared`: one memory file whose size cannot be changed any more. If the file shrank, an access here would raise
/// SIGBUS.
pub(crate) fn guest_ram(size: u64, shared: bool) -> Result<GuestMemoryMmap, GuestRamError> {
    let failed = |source| GuestRamError { size, source };
    let file = shared
        .then(|| memory_file(size))
        .transpose()
        .map_err(|error| failed(error.into()))?;
    let mut ranges = Vec::new();
    let mut offset = 0;
    for (start, length) in ram_regions(size) {
        let part = file.clone().map(|file| FileOffset::from_arc(file, offset));
        offset += length;
        let length = usize::try_from(length).map_err(|error| failed(error.into()))?;
        ranges.push((GuestAddress(start), length, part));
    }
    let memory =
        GuestMemoryMmap::from_ranges_with_files(&ranges).map_err(|error| failed(error.into()))?;
    memory.iter().for_each(dont_dump);
    Ok(memory)
}

/// Guest memory must not be in a core file of the machine monitor.
fn dont_dump(region: &GuestRegionMmap) {
    // SAFETY: the whole of a mapping; none of its bytes changes. Where the advice is refused, a core file is larger.
    let _ = unsafe {
        rustix::mm::madvise(
            region.as_ptr().cast(),
            region.size(),
            rustix::mm::Advice::LinuxDontDump,
        )
    };
}

fn memory_file(size: u64) -> io::Result<Arc<File>> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = rustix::fs::memfd_create("guest memory", flags)?;
    rustix::fs::ftruncate(&file, size)?;
    rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(Arc::new(File::from(file)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_below_the_gap_is_one_region() {
        assert_eq!(ram_regions(96 << 20), vec![(0, 96 << 20)]);
        assert_eq!(ram_regions(GAP_START), vec![(0, GAP_START)]);
    }

    #[test]
    fn memory_beyond_the_gap_continues_at_4_gib_and_none_is_lost() {
        let size = 6 << 30;
        let regions = ram_regions(size);
        assert_eq!(regions[0], (0, GAP_START));
        assert_eq!(regions[1].0, GAP_END);
        assert_eq!(regions.iter().map(|region| region.1).sum::<u64>(), size);
        assert_eq!(ram_regions(GAP_START + 4096)[1], (GAP_END, 4096));
    }

    #[test]
    fn e820_is_sorted_has_no_overlap_and_hides_the_bios_area_and_the_gap() {
        for size in [
            MIN_MEMORY,
            96 << 20,
            GAP_START,
            GAP_START + 4096,
            4 << 30,
            16 << 30,
        ] {
            let map = e820(size);
            let mut end = 0;
            for (start, length, _) in &map {
                assert!(*start >= end && *length > 0, "{map:x?}");
                end = start + length;
            }
            assert!(map.contains(&(EBDA, EBDA_SIZE, E820Kind::Reserved)));
            assert!(map.contains(&(ACPI, ACPI_SIZE, E820Kind::Reserved)));
            for (start, length, kind) in &map {
                if *kind == E820Kind::Ram {
                    let end = start + length;
                    assert!(end <= 0xa_0000 || *start >= HIGH_MEMORY, "{map:x?}");
                    assert!(end <= GAP_START || *start >= GAP_END, "{map:x?}");
                }
            }
            let ram: u64 = map
                .iter()
                .filter(|e| e.2 == E820Kind::Ram)
                .map(|e| e.1)
                .sum();
            assert_eq!(ram, size - (HIGH_MEMORY - EBDA));
        }
    }

    #[test]
    fn windows_of_all_devices_lie_in_the_gap_below_the_ioapic() {
        let end = MMIO_BASE + MMIO_WINDOW * u64::try_from(MAX_DEVICES).unwrap();
        assert!(MMIO_BASE >= GAP_START && end <= u64::from(IOAPIC));
    }

    #[test]
    fn boot_structures_do_not_overlap() {
        const { assert!(GDT + 0x100 <= ZERO_PAGE && ZERO_PAGE + 0x1000 <= PAGE_TABLES) };
        const { assert!(PAGE_TABLES + 6 * 0x1000 <= CMDLINE && CMDLINE + 2048 <= EBDA) };
    }

    #[test]
    fn guest_ram_maps_both_sides_of_the_gap() {
        use vm_memory::{Bytes, GuestMemoryBackend};
        for shared in [false, true] {
            let mem = guest_ram(GAP_START + (1 << 20), shared).unwrap();
            assert_eq!(mem.num_regions(), 2);
            mem.write_obj(7u64, GuestAddress(GAP_END + 8)).unwrap();
            assert!(mem.write_obj(7u64, GuestAddress(GAP_START)).is_err());
        }
    }

    #[test]
    fn guest_ram_is_not_dumped() {
        for shared in [false, true] {
            let mem = guest_ram(MIN_MEMORY, shared).unwrap();
            let start = format!("{:x}-", mem.iter().next().unwrap().as_ptr().addr());
            let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
            let mut here = smaps.lines().skip_while(|line| !line.starts_with(&start));
            let flags = here.find(|line| line.starts_with("VmFlags:"));
            assert!(
                flags.unwrap().split(' ').any(|flag| flag == "dd"),
                "{flags:?}"
            );
        }
    }

    #[test]
    fn shared_ram_is_one_file_that_nobody_can_shrink() {
        use std::os::unix::fs::FileExt;
        use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryRegion};
        let mem = guest_ram(GAP_START + (1 << 20), true).unwrap();
        let parts: Vec<_> = mem
            .iter()
            .map(|region| region.file_offset().unwrap())
            .collect();
        assert_eq!((parts[0].start(), parts[1].start()), (0, GAP_START));
        mem.write_obj(7u8, GuestAddress(GAP_END)).unwrap();
        let mut byte = [0];
        parts[0].file().read_exact_at(&mut byte, GAP_START).unwrap();
        assert_eq!(byte, [7], "both regions are of one file, and shared");
        assert!(parts[0].file().set_len(4096).is_err());
        let private = guest_ram(MIN_MEMORY, false).unwrap();
        assert!(private.iter().all(|region| region.file_offset().is_none()));
    }
}
