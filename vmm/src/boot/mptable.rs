//! MP table (Intel MultiProcessor Specification 1.4): processors, one ISA bus, one I/O APIC and its lines. It is
//! how a kernel without ACPI learns of its processors.

use crate::layout;

/// Local APIC version that KVM's model reports.
const LAPIC_VERSION: u8 = 0x14;
/// I/O APIC version that KVM's model reports.
const IOAPIC_VERSION: u8 = 0x11;
const BUS_ISA: u8 = 0;
/// Destination "all local APICs".
const ALL_LAPICS: u8 = 0xff;

const TYPE_INT: u8 = 0;
const TYPE_NMI: u8 = 1;
const TYPE_EXTINT: u8 = 3;

/// Pin of the I/O APIC for an ISA line. The timer's line 0 is wired to pin 2 (KVM's default routing), line 2 is the
/// cascade of the second PIC and has no pin.
fn pin(irq: u8) -> Option<u8> {
    match irq {
        0 => Some(2),
        2 => None,
        irq => Some(irq),
    }
}

/// Floating pointer structure followed by the configuration table, to be placed at the EBDA.
pub(super) fn build(cpus: u8) -> Vec<u8> {
    let mut entries = Vec::new();
    let mut count = 0u16;
    let mut entry = |bytes: &[u8]| {
        entries.extend_from_slice(bytes);
        count += 1;
    };

    for id in 0..cpus {
        // Flags: bit 0 enabled, bit 1 boot processor. Signature and features are informative (family 6, FPU, APIC).
        let flags = if id == 0 { 3 } else { 1 };
        entry(&[
            0,
            id,
            LAPIC_VERSION,
            flags,
            0,
            6,
            0,
            0,
            1,
            2,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
        ]);
    }
    entry(&[1, BUS_ISA, b'I', b'S', b'A', b' ', b' ', b' ']);
    let ioapic_id = cpus;
    let address = layout::IOAPIC.to_le_bytes();
    entry(&[
        2,
        ioapic_id,
        IOAPIC_VERSION,
        1,
        address[0],
        address[1],
        address[2],
        address[3],
    ]);
    for irq in 0..16 {
        if let Some(pin) = pin(irq) {
            // Polarity and trigger 0: as the bus does it, for ISA active high and edge.
            entry(&[3, TYPE_INT, 0, 0, BUS_ISA, irq, ioapic_id, pin]);
        }
    }
    entry(&[4, TYPE_EXTINT, 0, 0, BUS_ISA, 0, ALL_LAPICS, 0]);
    entry(&[4, TYPE_NMI, 0, 0, BUS_ISA, 0, ALL_LAPICS, 1]);

    let table_address = low32(layout::EBDA + 16);
    let mut pointer = Vec::from(*b"_MP_");
    pointer.extend_from_slice(&table_address.to_le_bytes());
    // Length in paragraphs, revision 1.4, checksum, five feature bytes (0: there is a configuration table).
    pointer.extend_from_slice(&[1, 4, 0, 0, 0, 0, 0, 0]);
    pointer[10] = checksum(&pointer);

    let length = u16::try_from(44 + entries.len()).unwrap_or(u16::MAX);
    let mut table = Vec::from(*b"PCMP");
    table.extend_from_slice(&length.to_le_bytes());
    table.extend_from_slice(&[4, 0]);
    table.extend_from_slice(b"TMEM    ");
    table.extend_from_slice(b"MICROVM     ");
    table.extend_from_slice(&[0; 6]);
    table.extend_from_slice(&count.to_le_bytes());
    table.extend_from_slice(&layout::LAPIC.to_le_bytes());
    table.extend_from_slice(&[0; 4]);
    table.extend_from_slice(&entries);
    table[7] = checksum(&table);

    pointer.extend_from_slice(&table);
    pointer
}

/// The byte that makes the sum of all zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte))
}

fn low32(address: u64) -> u32 {
    u32::try_from(address).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_the_largest_machine_fits_the_ebda_and_its_sums_are_zero() {
        for cpus in 1..=layout::MAX_CPUS {
            let bytes = build(cpus);
            assert!(bytes.len() as u64 <= layout::EBDA_SIZE);
            let sum = |bytes: &[u8]| bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
            assert_eq!(sum(&bytes[..16]), 0);
            assert_eq!(sum(&bytes[16..]), 0);
            let length = usize::from(u16::from_le_bytes([bytes[20], bytes[21]]));
            assert_eq!(length, bytes.len() - 16);
        }
    }

    #[test]
    fn each_processor_has_its_apic_id_and_only_the_first_is_the_boot_processor() {
        let bytes = build(3);
        let entries = &bytes[16 + 44..];
        for id in 0..3u8 {
            let entry = &entries[usize::from(id) * 20..];
            assert_eq!(
                (entry[0], entry[1], entry[3]),
                (0, id, if id == 0 { 3 } else { 1 })
            );
        }
        assert_eq!(entries[60], 1, "the bus follows the processors");
    }

    #[test]
    fn the_timer_has_pin_2_and_each_device_line_its_own_pin() {
        assert_eq!(pin(0), Some(2));
        assert_eq!(pin(2), None);
        for irq in layout::DEVICE_IRQS {
            let irq = u8::try_from(irq).unwrap();
            assert_eq!(pin(irq), Some(irq));
        }
    }
}
