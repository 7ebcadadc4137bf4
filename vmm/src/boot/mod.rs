//! Puts a kernel, its initrd and what the boot protocol wants into guest memory.
//!
//! Both kernel formats are entered through the 64-bit boot protocol of Linux (Documentation/x86/boot.rst): long
//! mode, identity map, `rsi` = zero page. So a vmlinux needs no PVH entry.

mod acpi;
mod error;
mod kernel;
mod mptable;
mod tables;

use std::fs::File;
use std::io;
use std::path::Path;

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::layout;
pub use error::BootError;
pub(crate) use tables::enter_long_mode;

/// The files to load, and the command line.
#[derive(Debug)]
pub(crate) struct Payload<'a> {
    pub(crate) kernel: &'a Path,
    pub(crate) initrd: Option<&'a Path>,
    /// Complete command line, device entries included.
    pub(crate) cmdline: &'a str,
    pub(crate) cpus: u8,
    /// Bytes of guest memory.
    pub(crate) memory: u64,
}

/// Loads everything and returns the address of the 64-bit entry point.
pub(crate) fn load(mem: &GuestMemoryMmap, payload: &Payload<'_>) -> Result<u64, BootError> {
    check_cmdline(payload.cmdline)?;
    let kernel = kernel::load(mem, payload.kernel, layout::low_ram_end(payload.memory))?;
    let mut params = boot_params {
        hdr: kernel.header,
        ..Default::default()
    };

    mem.write_slice(payload.cmdline.as_bytes(), GuestAddress(layout::CMDLINE))?;
    mem.write_obj(
        0u8,
        GuestAddress(layout::CMDLINE + payload.cmdline.len() as u64),
    )?;
    params.hdr.cmd_line_ptr = low32(layout::CMDLINE);
    params.hdr.cmdline_size = u32::try_from(payload.cmdline.len()).unwrap_or(u32::MAX);

    if let Some(path) = payload.initrd {
        let top = layout::low_ram_end(payload.memory).min(kernel.initrd_limit);
        let (address, size) = load_initrd(mem, path, kernel.end, top)?;
        params.hdr.ramdisk_image = low32(address);
        params.hdr.ramdisk_size = low32(size);
    }

    // An unknown boot loader has the type 0xff (boot.rst).
    params.hdr.type_of_loader = 0xff;
    for (slot, (addr, size, kind)) in params
        .e820_table
        .iter_mut()
        .zip(layout::e820(payload.memory))
    {
        *slot = boot_e820_entry {
            addr,
            size,
            r#type: kind as u32,
        };
        params.e820_entries += 1;
    }
    params.acpi_rsdp_addr = layout::ACPI;
    mem.write_obj(params, GuestAddress(layout::ZERO_PAGE))?;
    mem.write_slice(&acpi::build(payload.cpus), GuestAddress(layout::ACPI))?;
    mem.write_slice(&mptable::build(payload.cpus), GuestAddress(layout::EBDA))?;
    tables::write(mem)?;
    Ok(kernel.entry)
}

/// Refuses what the kernel would cut off or misread.
fn check_cmdline(cmdline: &str) -> Result<(), BootError> {
    if cmdline.len() > layout::CMDLINE_MAX {
        return Err(BootError::CmdlineTooLong(cmdline.len()));
    }
    if cmdline.chars().any(|c| c.is_control() && c != '\t') {
        return Err(BootError::CmdlineControl);
    }
    Ok(())
}

/// Reads the initrd to the highest page below `top`; `floor` is the first byte behind the kernel.
fn load_initrd(
    mem: &GuestMemoryMmap,
    path: &Path,
    floor: u64,
    top: u64,
) -> Result<(u64, u64), BootError> {
    let failed = |source| BootError::ReadInitrd {
        path: path.to_owned(),
        source,
    };
    let mut file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(failed(io::Error::other("not a regular file")));
    }
    let size = metadata.len();
    let start = top.checked_sub(size).map(|start| start & !0xfff);
    let Some(start) = start.filter(|start| *start >= floor) else {
        return Err(BootError::InitrdTooBig {
            path: path.to_owned(),
            size,
            room: top.saturating_sub(floor),
        });
    };
    let count = usize::try_from(size).map_err(|error| failed(io::Error::other(error)))?;
    mem.read_exact_volatile_from(GuestAddress(start), &mut file, count)
        .map_err(|error| failed(io::Error::other(error)))?;
    Ok((start, size))
}

/// Low half of an address that the layout keeps below 4 GiB.
fn low32(address: u64) -> u32 {
    u32::try_from(address).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use vm_memory::GuestMemoryBackend;

    fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn payload<'a>(kernel: &'a Path, initrd: Option<&'a Path>) -> Payload<'a> {
        Payload {
            kernel,
            initrd,
            cmdline: "console=ttyS0",
            cpus: 2,
            memory: 32 << 20,
        }
    }

    #[test]
    fn a_booted_kernel_finds_command_line_initrd_and_memory_map_in_the_zero_page() {
        let mem = layout::guest_ram(32 << 20, false).unwrap();
        let kernel = file(&kernel::tests::elf(0x100_0000, b"code"));
        let initrd = file(&[7; 5000]);
        let entry = load(&mem, &payload(kernel.path(), Some(initrd.path()))).unwrap();
        assert_eq!(entry, 0x100_0000);
        let params: boot_params = mem.read_obj(GuestAddress(layout::ZERO_PAGE)).unwrap();
        let hdr = params.hdr;
        assert_eq!(({ hdr.header }, { hdr.boot_flag }), (0x5372_6448, 0xaa55));
        assert_eq!(u64::from(hdr.cmd_line_ptr), layout::CMDLINE);
        assert_eq!({ hdr.ramdisk_size }, 5000);
        assert_eq!(u64::from(hdr.ramdisk_image), (32 << 20) - 0x2000);
        assert_eq!(params.e820_entries, 4);
        assert_eq!({ params.acpi_rsdp_addr }, layout::ACPI);
        let mut root = [0; 8];
        mem.read_slice(&mut root, GuestAddress(layout::ACPI))
            .unwrap();
        assert_eq!(&root, b"RSD PTR ");
        let byte: u8 = mem
            .read_obj(GuestAddress(u64::from(hdr.ramdisk_image) + 4999))
            .unwrap();
        assert_eq!(byte, 7);
        let mut cmdline = [0; 14];
        mem.read_slice(&mut cmdline, GuestAddress(layout::CMDLINE))
            .unwrap();
        assert_eq!(&cmdline, b"console=ttyS0\0");
        assert_eq!(mem.num_regions(), 1);
    }

    #[test]
    fn an_initrd_bigger_than_memory_is_refused_by_name() {
        let mem = layout::guest_ram(32 << 20, false).unwrap();
        let kernel = file(&kernel::tests::elf(0x100_0000, b"code"));
        let initrd = tempfile::NamedTempFile::new().unwrap();
        initrd.as_file().set_len(64 << 20).unwrap();
        let error = load(&mem, &payload(kernel.path(), Some(initrd.path()))).unwrap_err();
        assert!(matches!(error, BootError::InitrdTooBig { size, .. } if size == 64 << 20));
        assert!(
            error
                .to_string()
                .contains(&initrd.path().display().to_string())
        );
        initrd.as_file().set_len(20 << 20).unwrap();
        let error = load(&mem, &payload(kernel.path(), Some(initrd.path()))).unwrap_err();
        assert!(
            matches!(error, BootError::InitrdTooBig { .. }),
            "over the kernel"
        );
    }

    #[test]
    fn missing_files_and_directories_are_named() {
        let mem = layout::guest_ram(32 << 20, false).unwrap();
        let missing = Path::new("/nonexistent/file");
        let error = load(&mem, &payload(missing, None)).unwrap_err();
        assert!(matches!(error, BootError::OpenKernel { .. }), "{error}");
        let kernel = file(&kernel::tests::elf(0x100_0000, b"code"));
        for path in [missing, Path::new("/")] {
            let error = load(&mem, &payload(kernel.path(), Some(path))).unwrap_err();
            assert!(matches!(error, BootError::ReadInitrd { .. }), "{error}");
        }
        let error = load(&mem, &payload(Path::new("/"), None)).unwrap_err();
        assert!(
            error.to_string().starts_with("Cannot read kernel /"),
            "{error}"
        );
    }

    #[test]
    fn a_command_line_linux_would_cut_off_is_refused() {
        assert!(check_cmdline(&"x".repeat(layout::CMDLINE_MAX)).is_ok());
        assert!(matches!(
            check_cmdline(&"x".repeat(2048)),
            Err(BootError::CmdlineTooLong(2048))
        ));
        assert!(matches!(
            check_cmdline("a\0b"),
            Err(BootError::CmdlineControl)
        ));
        assert!(matches!(
            check_cmdline("a\nb"),
            Err(BootError::CmdlineControl)
        ));
    }
}
