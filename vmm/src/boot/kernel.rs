//! Kernel images: an ELF vmlinux or a bzImage.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use linux_loader::loader::bootparam::setup_header;
use linux_loader::loader::{BzImage, Elf, KernelLoader};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::error::BootError;
use crate::layout;

/// `HdrS`: magic of the setup header.
const SETUP_MAGIC: u32 = 0x5372_6448;
/// Offset of that magic in a bzImage.
const SETUP_MAGIC_OFFSET: usize = 0x202;
/// `XLF_KERNEL_64`: the image has a 64-bit entry 0x200 behind its start.
const XLF_KERNEL_64: u16 = 1;
/// Distance of that entry from the load address.
const ENTRY_64: u64 = 0x200;
/// Highest initrd address of a kernel that does not say (boot.rst, `initrd_addr_max`).
const INITRD_LIMIT: u64 = 0x8000_0000;

/// A kernel in guest memory.
#[derive(Debug)]
pub(super) struct Loaded {
    /// 64-bit entry point.
    pub(super) entry: u64,
    /// First byte behind all the kernel uses before it knows the memory map.
    pub(super) end: u64,
    /// First address an initrd may not reach.
    pub(super) initrd_limit: u64,
    /// Setup header for the zero page.
    pub(super) header: setup_header,
}

/// Loads the kernel at `path`; RAM ends at `ram_end`.
pub(super) fn load(mem: &GuestMemoryMmap, path: &Path, ram_end: u64) -> Result<Loaded, BootError> {
    let failed = |source| BootError::OpenKernel {
        path: path.to_owned(),
        source,
    };
    let mut file = File::open(path).map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(failed(io::Error::other("not a regular file")));
    }
    let mut head = Vec::new();
    file.by_ref()
        .take(0x1000)
        .read_to_end(&mut head)
        .map_err(failed)?;
    file.seek(SeekFrom::Start(0)).map_err(failed)?;

    let bad = |reason| BootError::BadKernel {
        path: path.to_owned(),
        reason,
    };
    let loaded = if head.starts_with(b"\x7fELF") {
        load_elf(mem, &mut file, &head, ram_end).map_err(|reason| match reason {
            Reason::Bad(reason) => bad(reason),
            Reason::TooBig(needed) => too_big(path, needed, ram_end),
        })?
    } else if head.get(SETUP_MAGIC_OFFSET..SETUP_MAGIC_OFFSET + 4)
        == Some(&SETUP_MAGIC.to_le_bytes())
    {
        load_bzimage(mem, &mut file, ram_end).map_err(|reason| match reason {
            Reason::Bad(reason) => bad(reason),
            Reason::TooBig(needed) => too_big(path, needed, ram_end),
        })?
    } else {
        return Err(bad("is neither an ELF vmlinux nor a bzImage"));
    };
    if loaded.end > ram_end {
        return Err(too_big(path, loaded.end, ram_end));
    }
    Ok(loaded)
}

fn too_big(path: &Path, needed: u64, memory: u64) -> BootError {
    BootError::KernelTooBig {
        path: path.to_owned(),
        needed,
        memory,
    }
}

enum Reason {
    Bad(&'static str),
    TooBig(u64),
}

/// The few fields of an ELF header that decide whether the loader may have it, and how far its segments reach.
fn load_elf(
    mem: &GuestMemoryMmap,
    file: &mut File,
    head: &[u8],
    ram_end: u64,
) -> Result<Loaded, Reason> {
    let class_and_machine = (head.get(4), head.get(18..20));
    if class_and_machine != (Some(&2), Some(&[62, 0])) {
        return Err(Reason::Bad("is not an x86-64 ELF file"));
    }
    let length = file.metadata().map(|metadata| metadata.len()).unwrap_or(0);
    let segments =
        segments(file, head).ok_or(Reason::Bad("is truncated: its program headers are missing"))?;
    let mut end = 0;
    for segment in &segments {
        if segment
            .offset
            .checked_add(segment.file_size)
            .is_none_or(|end| end > length)
        {
            return Err(Reason::Bad(
                "is truncated: a segment ends behind the end of the file",
            ));
        }
        if segment.address < layout::HIGH_MEMORY {
            return Err(Reason::Bad("has a segment below 1 MiB"));
        }
        let segment_end = segment
            .address
            .checked_add(segment.memory_size.max(segment.file_size));
        end = end.max(segment_end.ok_or(Reason::Bad("has a segment that wraps around"))?);
    }
    if segments.is_empty() {
        return Err(Reason::Bad("has nothing to load"));
    }
    if end > ram_end {
        return Err(Reason::TooBig(end));
    }
    let result =
        Elf::load(mem, None, file, None).map_err(|_| Reason::Bad("is not a loadable ELF file"))?;
    let entry = result.kernel_load.0;
    if !segments
        .iter()
        .any(|s| (s.address..s.address + s.file_size).contains(&entry))
    {
        return Err(Reason::Bad("has its entry point outside of its segments"));
    }
    let header = setup_header {
        header: SETUP_MAGIC,
        boot_flag: 0xaa55,
        kernel_alignment: 0x20_0000,
        ..Default::default()
    };
    Ok(Loaded {
        entry,
        end,
        initrd_limit: INITRD_LIMIT,
        header,
    })
}

/// A `PT_LOAD` program header.
struct Segment {
    offset: u64,
    address: u64,
    file_size: u64,
    memory_size: u64,
}

fn segments(file: &mut File, head: &[u8]) -> Option<Vec<Segment>> {
    let u16_at = |at: usize| Some(u16::from_le_bytes(head.get(at..at + 2)?.try_into().ok()?));
    let offset = u64::from_le_bytes(head.get(32..40)?.try_into().ok()?);
    let count = u16_at(56)?;
    file.seek(SeekFrom::Start(offset)).ok()?;
    let mut segments = Vec::new();
    for _ in 0..count {
        let mut header = [0; 56];
        file.read_exact(&mut header).ok()?;
        let u64_at = |at: usize| Some(u64::from_le_bytes(header.get(at..at + 8)?.try_into().ok()?));
        let is_load = header.starts_with(&[1, 0, 0, 0]);
        let segment = Segment {
            offset: u64_at(8)?,
            address: u64_at(24)?,
            file_size: u64_at(32)?,
            memory_size: u64_at(40)?,
        };
        if is_load && segment.memory_size > 0 {
            segments.push(segment);
        }
    }
    file.seek(SeekFrom::Start(0)).ok()?;
    Some(segments)
}

fn load_bzimage(mem: &GuestMemoryMmap, file: &mut File, ram_end: u64) -> Result<Loaded, Reason> {
    let length = file.metadata().map(|metadata| metadata.len()).unwrap_or(0);
    if length + layout::HIGH_MEMORY > ram_end {
        return Err(Reason::TooBig(length + layout::HIGH_MEMORY));
    }
    let load_at = GuestAddress(layout::HIGH_MEMORY);
    let result = BzImage::load(mem, Some(load_at), file, None)
        .map_err(|_| Reason::Bad("is not a loadable bzImage"))?;
    let Some(header) = result.setup_header else {
        return Err(Reason::Bad("has no setup header"));
    };
    if header.version < 0x020c || header.xloadflags & XLF_KERNEL_64 == 0 {
        return Err(Reason::Bad("has no 64-bit entry point"));
    }
    // `syssize` counts the protected-mode code in paragraphs of 16 bytes, so a cut image shows.
    let sectors = match header.setup_sects {
        0 => 4,
        sectors => u64::from(sectors),
    };
    if (sectors + 1) * 512 + u64::from(header.syssize) * 16 > length.next_multiple_of(16) {
        return Err(Reason::Bad("is truncated"));
    }
    // The decompressor works in `init_size` bytes from the preferred address, or from where it was loaded.
    let start = result.kernel_load.0.max(header.pref_address);
    let end = start
        .saturating_add(u64::from(header.init_size))
        .max(result.kernel_end);
    let limit = match header.initrd_addr_max {
        0 => INITRD_LIMIT,
        last => u64::from(last) + 1,
    };
    Ok(Loaded {
        entry: result.kernel_load.0 + ENTRY_64,
        end,
        initrd_limit: limit,
        header,
    })
}

#[cfg(test)]
pub(super) mod tests {
    use std::io::Write;

    use super::*;

    /// A minimal ELF with one segment.
    pub(in crate::boot) fn elf(address: u64, code: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 64 + 56];
        bytes[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        bytes[16] = 2;
        bytes[18] = 62;
        bytes[24..32].copy_from_slice(&address.to_le_bytes());
        bytes[32] = 64;
        bytes[52] = 64;
        bytes[54] = 56;
        bytes[56] = 1;
        let segment = &mut bytes[64..];
        segment[0] = 1;
        segment[8] = 120;
        segment[24..32].copy_from_slice(&address.to_le_bytes());
        segment[32..40].copy_from_slice(&(code.len() as u64).to_le_bytes());
        segment[40..48].copy_from_slice(&0x1000u64.to_le_bytes());
        bytes.extend_from_slice(code);
        bytes
    }

    fn load_bytes(bytes: &[u8]) -> Result<Loaded, BootError> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        let mem = layout::guest_ram(32 << 20, false).unwrap();
        load(&mem, file.path(), 32 << 20)
    }

    fn reason(bytes: &[u8]) -> String {
        load_bytes(bytes).unwrap_err().to_string()
    }

    #[test]
    fn an_elf_is_loaded_and_its_bss_counts() {
        let loaded = load_bytes(&elf(0x100_0000, b"code")).unwrap();
        assert_eq!((loaded.entry, loaded.end), (0x100_0000, 0x100_1000));
    }

    #[test]
    fn every_truncation_of_an_elf_is_refused() {
        let whole = elf(0x100_0000, b"code");
        for length in 0..whole.len() {
            assert!(
                load_bytes(&whole[..length]).is_err(),
                "{length} of {} bytes",
                whole.len()
            );
        }
        assert!(reason(&whole[..whole.len() - 1]).contains("truncated"));
    }

    #[test]
    fn files_that_are_no_kernel_are_refused() {
        assert!(reason(b"").contains("neither"));
        assert!(reason(&[0x55; 9000]).contains("neither"));
        let mut i386 = elf(0x100_0000, b"code");
        i386[4] = 1;
        assert!(reason(&i386).contains("not an x86-64 ELF"));
    }

    #[test]
    fn segments_outside_of_memory_are_refused() {
        assert!(reason(&elf(0x8000_0000, b"code")).contains("needs"));
        assert!(reason(&elf(0x8000, b"code")).contains("below 1 MiB"));
        assert!(reason(&elf(u64::MAX - 16, b"code")).contains("wraps around"));
        let mut outside = elf(0x100_0000, b"code");
        outside[24] = 0xff;
        assert!(reason(&outside).contains("entry point"));
    }

    #[test]
    fn a_bzimage_header_without_64_bit_entry_or_body_is_refused() {
        let mut image = vec![0; 4096];
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&0x020fu16.to_le_bytes());
        image[0x211] = 1;
        image[0x1f1] = 1;
        assert!(reason(&image).contains("64-bit entry"));
        image[0x236] = 1;
        let loaded = load_bytes(&image).unwrap();
        assert_eq!(loaded.entry, layout::HIGH_MEMORY + ENTRY_64);
        image[0x1f4..0x1f8].copy_from_slice(&0x1000u32.to_le_bytes());
        assert!(reason(&image).contains("truncated"));
        assert!(load_bytes(&image[..0x206]).is_err());
    }
}
