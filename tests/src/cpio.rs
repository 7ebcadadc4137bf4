//! Writes initramfs archives (cpio "newc", as the kernel's `early-userspace/buffer-format` describes it).
//! The same files give the same bytes: owners are root, times are zero, inodes count up.

use std::io::{self, Write};

const DIRECTORY: u32 = 0o040_755;
const REGULAR: u32 = 0o100_000;
const CHARACTER: u32 = 0o020_600;

/// An archive being written to `out`.
pub struct Archive<W: Write> {
    out: W,
    inode: u32,
    written: usize,
}

impl<W: Write> Archive<W> {
    /// Starts an archive.
    pub fn new(out: W) -> Self {
        Self {
            out,
            inode: 0,
            written: 0,
        }
    }

    /// Adds an empty folder.
    pub fn folder(&mut self, name: &str) -> io::Result<()> {
        self.entry(name, DIRECTORY, (0, 0), &[])
    }

    /// Adds a file with the permission bits of `mode`.
    pub fn file(&mut self, name: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        self.entry(name, REGULAR | mode, (0, 0), content)
    }

    /// Adds a character device.
    pub fn character_device(&mut self, name: &str, major: u32, minor: u32) -> io::Result<()> {
        self.entry(name, CHARACTER, (major, minor), &[])
    }

    /// Ends the archive and gives back what it was written to.
    pub fn finish(mut self) -> io::Result<W> {
        self.inode = 0;
        self.entry("TRAILER!!!", 0, (0, 0), &[])?;
        // The kernel skips zeros between archives; whole sectors let another one follow.
        let rest = self.written.next_multiple_of(512) - self.written;
        self.out.write_all(&vec![0; rest])?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn entry(
        &mut self,
        name: &str,
        mode: u32,
        device: (u32, u32),
        content: &[u8],
    ) -> io::Result<()> {
        let too_big = |_| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                "File too big for a cpio archive",
            )
        };
        let size = u32::try_from(content.len()).map_err(too_big)?;
        let name_size = u32::try_from(name.len() + 1).map_err(too_big)?;
        let links = if mode & 0o170_000 == 0o040_000 { 2 } else { 1 };
        // magic, then: ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
        let fields = [
            self.inode, mode, 0, 0, links, 0, size, 0, 0, device.0, device.1, name_size, 0,
        ];
        self.inode += 1;
        let mut header = String::from("070701");
        for field in fields {
            header.push_str(&format!("{field:08x}"));
        }
        self.put(header.as_bytes())?;
        self.put(name.as_bytes())?;
        self.put(&[0])?;
        self.align()?;
        self.put(content)?;
        self.align()
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written += bytes.len();
        self.out.write_all(bytes)
    }

    fn align(&mut self) -> io::Result<()> {
        let rest = self.written.next_multiple_of(4) - self.written;
        self.put(&[0; 4][..rest])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_have_the_documented_layout() {
        let mut archive = Archive::new(Vec::new());
        archive.folder("bin").expect("folder");
        archive.file("bin/a", 0o755, b"hello").expect("file");
        let bytes = archive.finish().expect("end");
        assert_eq!(bytes.len() % 512, 0);
        assert_eq!(&bytes[..6], b"070701");
        assert_eq!(&bytes[110..114], b"bin\0");
        // 110 bytes of header and "bin\0" need 2 bytes to the next multiple of 4.
        assert_eq!(&bytes[116..122], b"070701");
        assert_eq!(&bytes[116 + 14..116 + 22], b"000081ed");
        assert_eq!(&bytes[116 + 54..116 + 62], b"00000005");
        assert_eq!(&bytes[116 + 110..116 + 116], b"bin/a\0");
        assert_eq!(&bytes[232..237], b"hello");
        assert_eq!(&bytes[240 + 110..240 + 121], b"TRAILER!!!\0");
    }
}
