//! ACPI tables (Advanced Configuration and Power Interface 4.0): processors and interrupt lines as the MP table tells
//! them, and what an MP table cannot tell: the power button, how to sleep for good, the reset register, and where the
//! guest says that it panicked. The registers are those of [`crate::power`].

use crate::layout;

const OEM_ID: [u8; 6] = *b"TMEM  ";
const OEM_TABLE_ID: [u8; 8] = *b"MICROVM ";
const CREATOR: [u8; 4] = *b"TMEM";
/// Length and header of every table but RSDP and FACS.
const HEADER: usize = 36;

/// FADT: WBINVD works (bit 0), C1 on every processor (2), no fixed sleep button (5), no clock that wakes (6), there is
/// a reset register (10). Bit 4, clear, is the fixed power button.
const FADT_FLAGS: u32 = 1 | 1 << 2 | 1 << 5 | 1 << 6 | 1 << 10;
/// FADT: no VGA (bit 2), no message signalled interrupts (3), no CMOS clock (5). No keyboard controller is claimed (1):
/// there is nothing of it but its reset line.
const FADT_BOOT_FLAGS: u16 = 1 << 2 | 1 << 3 | 1 << 5;
/// MADT: a pair of 8259s is there, too.
const PCAT_COMPAT: u32 = 1;
/// MADT: polarity active high, trigger edge.
const HIGH_EDGE: u16 = 1 | 1 << 2;

/// All tables, to be placed at [`layout::ACPI`]. The RSDP comes first, where Linux scans for it.
pub(super) fn build(cpus: u8) -> Vec<u8> {
    let mut tables = Tables {
        bytes: vec![0; RSDP_LENGTH],
    };
    let facs = tables.place(&facs(), 64);
    let dsdt = tables.place(&table(*b"DSDT", 2, &dsdt()), 16);
    let fadt = tables.place(&table(*b"FACP", 4, &fadt(facs, dsdt)), 16);
    let madt = tables.place(&table(*b"APIC", 3, &madt(cpus)), 16);
    let mut entries = Vec::new();
    for address in [fadt, madt] {
        entries.extend_from_slice(&u64::from(address).to_le_bytes());
    }
    let xsdt = tables.place(&table(*b"XSDT", 1, &entries), 16);
    for (to, byte) in tables.bytes.iter_mut().zip(rsdp(xsdt)) {
        *to = byte;
    }
    tables.bytes
}

/// Tables one behind the other.
struct Tables {
    bytes: Vec<u8>,
}

impl Tables {
    /// Appends a table and returns its address.
    fn place(&mut self, table: &[u8], alignment: usize) -> u32 {
        self.bytes
            .resize(self.bytes.len().next_multiple_of(alignment), 0);
        let offset = self.bytes.len();
        self.bytes.extend_from_slice(table);
        low32(layout::ACPI).saturating_add(u32::try_from(offset).unwrap_or(u32::MAX))
    }
}

/// A table: header and body.
fn table(signature: [u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER + body.len()).unwrap_or(u32::MAX);
    let mut table = Vec::from(signature);
    table.extend_from_slice(&length.to_le_bytes());
    table.extend_from_slice(&[revision, 0]);
    table.extend_from_slice(&OEM_ID);
    table.extend_from_slice(&OEM_TABLE_ID);
    table.extend_from_slice(&1u32.to_le_bytes());
    table.extend_from_slice(&CREATOR);
    table.extend_from_slice(&1u32.to_le_bytes());
    table.extend_from_slice(body);
    table[9] = checksum(&table);
    table
}

const RSDP_LENGTH: usize = 36;

/// Root pointer, revision 2: it has the 64-bit address of the XSDT and no RSDT.
fn rsdp(xsdt: u32) -> Vec<u8> {
    let mut rsdp = Vec::from(*b"RSD PTR ");
    rsdp.push(0);
    rsdp.extend_from_slice(&OEM_ID);
    rsdp.push(2);
    rsdp.extend_from_slice(&[0; 4]);
    rsdp[8] = checksum(&rsdp);
    rsdp.extend_from_slice(&36u32.to_le_bytes());
    rsdp.extend_from_slice(&u64::from(xsdt).to_le_bytes());
    rsdp.extend_from_slice(&[0; 4]);
    rsdp[32] = checksum(&rsdp);
    rsdp
}

/// Firmware control structure: the global lock is not shared, and there is no wake-up vector.
fn facs() -> Vec<u8> {
    let mut facs = Vec::from(*b"FACS");
    facs.extend_from_slice(&64u32.to_le_bytes());
    facs.resize(64, 0);
    facs[32] = 1;
    facs
}

/// Fixed description, behind its header. Offsets are those of the specification, table 5-9.
fn fadt(facs: u32, dsdt: u32) -> Vec<u8> {
    let mut fadt = vec![0; 244];
    let mut put = |offset: usize, bytes: &[u8]| {
        for (to, byte) in fadt.iter_mut().skip(offset).zip(bytes) {
            *to = *byte;
        }
    };
    put(36, &facs.to_le_bytes());
    put(40, &dsdt.to_le_bytes());
    put(46, &layout::SCI_IRQ.to_le_bytes()[..2]);
    // No SMI command port: the machine is in ACPI mode from the start.
    put(56, &u32::from(layout::PM1_EVENT).to_le_bytes());
    put(64, &u32::from(layout::PM1_CONTROL).to_le_bytes());
    put(88, &[4, 2]);
    // Latencies of C2 and C3 that say "not supported".
    put(96, &101u16.to_le_bytes());
    put(98, &1001u16.to_le_bytes());
    put(109, &FADT_BOOT_FLAGS.to_le_bytes());
    put(112, &FADT_FLAGS.to_le_bytes());
    put(116, &port(layout::RESET_PORT, 8));
    put(128, &[layout::RESET_VALUE]);
    put(140, &u64::from(dsdt).to_le_bytes());
    put(148, &port(layout::PM1_EVENT, 32));
    put(172, &port(layout::PM1_CONTROL, 16));
    fadt.split_off(HEADER)
}

/// Generic address structure of an I/O port.
fn port(port: u16, bits: u8) -> Vec<u8> {
    const SYSTEM_IO: u8 = 1;
    // Accesses of the width a register has: 1 a byte, 2 a word. The event block is two words.
    let access = if bits == 8 { 1 } else { 2 };
    let mut address = vec![SYSTEM_IO, bits, 0, access];
    address.extend_from_slice(&u64::from(port).to_le_bytes());
    address
}

/// Interrupt controllers, behind the header.
fn madt(cpus: u8) -> Vec<u8> {
    let mut madt = Vec::from(layout::LAPIC.to_le_bytes());
    madt.extend_from_slice(&PCAT_COMPAT.to_le_bytes());
    for id in 0..cpus {
        madt.extend_from_slice(&[0, 8, id, id, 1, 0, 0, 0]);
    }
    madt.extend_from_slice(&[1, 12, cpus, 0]);
    madt.extend_from_slice(&layout::IOAPIC.to_le_bytes());
    madt.extend_from_slice(&[0; 4]);
    let mut wired = |irq: u8, pin: u8, flags: u16| {
        madt.extend_from_slice(&[2, 10, 0, irq, pin, 0, 0, 0]);
        madt.extend_from_slice(&flags.to_le_bytes());
    };
    // The timer is at pin 2. An SCI is level and low unless this says otherwise, and ours is a pulse.
    wired(0, 2, 0);
    let sci = layout::SCI_IRQ.to_le_bytes()[0];
    wired(sci, sci, HIGH_EDGE);
    // LINT1 of all processors is NMI.
    madt.extend_from_slice(&[4, 6, 0xff, 0, 0, 1]);
    madt
}

/// The parts that the fixed tables cannot describe, as AML: the value for S5, and the pvpanic device.
///
/// ```text
/// Name (_S5, Package () {5, 5, 0, 0})
/// Scope (\_SB) {
///   Device (PEVT) {
///     Name (_HID, "QEMU0001")
///     Name (_STA, 0x0f)
///     Name (_CRS, ResourceTemplate () { IO (Decode16, 0x0505, 0x0505, 1, 1) })
///   }
/// }
/// ```
fn dsdt() -> Vec<u8> {
    const NAME: u8 = 0x08;
    const BYTE: u8 = 0x0a;
    const STRING: u8 = 0x0d;
    const SCOPE: u8 = 0x10;
    const BUFFER: u8 = 0x11;
    const PACKAGE: u8 = 0x12;
    const DEVICE: [u8; 2] = [0x5b, 0x82];

    let sleep = crate::power::SLEEP_TYPE_S5;
    let mut aml = vec![NAME];
    aml.extend_from_slice(b"_S5_");
    aml.push(PACKAGE);
    aml.extend(sized(&[4, BYTE, sleep, BYTE, sleep, 0, 0]));

    let port = layout::PVPANIC_PORT.to_le_bytes();
    let mut device = Vec::from(*b"PEVT");
    device.push(NAME);
    device.extend_from_slice(b"_HID");
    device.push(STRING);
    device.extend_from_slice(b"QEMU0001\0");
    device.push(NAME);
    device.extend_from_slice(b"_STA");
    device.extend_from_slice(&[BYTE, 0x0f]);
    device.push(NAME);
    device.extend_from_slice(b"_CRS");
    device.push(BUFFER);
    // An I/O port descriptor (16-bit decode, lowest, highest, alignment, length), then the end tag.
    let resources = [0x47, 1, port[0], port[1], port[0], port[1], 1, 1, 0x79, 0];
    let mut buffer = vec![BYTE, 10];
    buffer.extend_from_slice(&resources);
    device.extend(sized(&buffer));

    let mut scope = Vec::from(*b"\\_SB_");
    scope.extend_from_slice(&DEVICE);
    scope.extend(sized(&device));
    aml.push(SCOPE);
    aml.extend(sized(&scope));
    aml
}

/// A body behind its PkgLength, which counts itself: one byte up to 63, else two with four bits in the first.
fn sized(body: &[u8]) -> Vec<u8> {
    let short = body.len() + 1;
    let mut all = match u8::try_from(short) {
        Ok(length @ 0..=63) => vec![length],
        _ => {
            let [low, high, ..] = (body.len() + 2).to_le_bytes();
            vec![0x40 | (low & 0xf), low >> 4 | high << 4]
        }
    };
    all.extend_from_slice(body);
    all
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

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte))
    }

    fn number(bytes: &[u8], at: usize, length: usize) -> u64 {
        let mut number = [0; 8];
        number[..length].copy_from_slice(&bytes[at..at + length]);
        u64::from_le_bytes(number)
    }

    /// The table at a guest address, its sum checked.
    fn at(all: &[u8], address: u64) -> &[u8] {
        let from = usize::try_from(address - layout::ACPI).unwrap();
        let length = usize::try_from(number(all, from + 4, 4)).unwrap();
        let table = &all[from..from + length];
        assert_eq!(sum(table), 0, "{:?}", &table[..4]);
        table
    }

    /// As a kernel walks them: root pointer, XSDT, FADT and MADT.
    fn walk(all: &[u8]) -> (&[u8], &[u8]) {
        assert_eq!(&all[..8], b"RSD PTR ");
        assert_eq!((sum(&all[..20]), sum(&all[..36])), (0, 0));
        let xsdt = at(all, number(all, 24, 8));
        assert_eq!(&xsdt[..4], b"XSDT");
        let fadt = at(all, number(xsdt, 36, 8));
        let madt = at(all, number(xsdt, 44, 8));
        assert_eq!((&fadt[..4], &madt[..4]), (&b"FACP"[..], &b"APIC"[..]));
        (fadt, madt)
    }

    #[test]
    fn a_kernel_finds_every_table_from_the_root_pointer_and_all_fit_where_they_are_reserved() {
        for cpus in 1..=layout::MAX_CPUS {
            let all = build(cpus);
            assert!(all.len() as u64 <= layout::ACPI_SIZE);
            let (fadt, madt) = walk(&all);
            assert_eq!(fadt.len(), 244);
            assert_eq!(&at(&all, number(fadt, 140, 8))[..4], b"DSDT");
            assert_eq!(number(fadt, 40, 4), number(fadt, 140, 8));
            let facs = usize::try_from(number(fadt, 36, 4) - layout::ACPI).unwrap();
            assert_eq!(&all[facs..facs + 4], b"FACS");
            assert!((layout::ACPI + facs as u64).is_multiple_of(64));
            let processors = madt[44..].chunks(8).take_while(|entry| entry[0] == 0);
            assert_eq!(processors.count(), usize::from(cpus));
        }
    }

    #[test]
    fn the_fixed_registers_are_where_the_device_model_has_them() {
        let all = build(1);
        let (fadt, _) = walk(&all);
        assert_eq!(number(fadt, 46, 2), u64::from(layout::SCI_IRQ));
        assert_eq!(number(fadt, 56, 4), u64::from(layout::PM1_EVENT));
        assert_eq!(number(fadt, 64, 4), u64::from(layout::PM1_CONTROL));
        for (at, port) in [
            (116, layout::RESET_PORT),
            (148, layout::PM1_EVENT),
            (172, layout::PM1_CONTROL),
        ] {
            assert_eq!(fadt[at], 1, "system I/O");
            assert_eq!(number(fadt, at + 4, 8), u64::from(port));
        }
        let flags = number(fadt, 112, 4);
        assert_eq!(flags & 1 << 4, 0, "the power button is a fixed one");
        assert_eq!(flags & 1 << 20, 0, "not hardware-reduced");
    }

    #[test]
    fn the_lines_of_the_timer_and_of_the_power_button_are_told_and_no_device_has_either() {
        let all = build(2);
        let (_, madt) = walk(&all);
        let overrides = &madt[44 + 2 * 8 + 12..];
        assert_eq!(overrides[..10], [2, 10, 0, 0, 2, 0, 0, 0, 0, 0]);
        assert_eq!(overrides[10..20], [2, 10, 0, 9, 9, 0, 0, 0, 5, 0]);
        assert!(!layout::DEVICE_IRQS.contains(&layout::SCI_IRQ));
    }

    #[test]
    fn the_length_of_a_package_counts_itself() {
        assert_eq!(sized(&[7; 62])[0], 63);
        let long = sized(&[7; 63]);
        assert_eq!((long[0], long[1], long.len()), (0x41, 4, 65));
        let longer = sized(&[7; 300]);
        assert_eq!((longer[0], longer[1], longer.len()), (0x40 | 14, 18, 302));
    }
}
