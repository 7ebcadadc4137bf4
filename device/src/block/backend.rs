//! The storage behind a disk.

use tmem_protocol::PAGE_SIZE;
use vm_memory::GuestMemory;

use super::request::{BlkStatus, Clear, Extent, Geometry};
use crate::chain::Cursor;

/// The storage behind a disk. The device checks every extent against the [`Geometry`], which does not change,
/// before it calls.
///
/// Several threads may call at once. Only this crate can implement the trait, since others have no name for a cursor.
pub trait Backend {
    /// Size and limits.
    fn geometry(&self) -> Geometry;

    /// Reads an extent to the next bytes of guest memory at `to`. `page` is a scratch buffer.
    ///
    /// Returns how many of the bytes were never written, as far as the backend knows.
    ///
    /// # Errors
    /// The status that tells the driver. Guest memory then holds a part of the extent, or none.
    fn read<M: GuestMemory>(
        &self,
        mem: &M,
        extent: Extent,
        to: &mut Cursor<'_>,
        page: &mut [u8; PAGE_SIZE],
    ) -> Result<u64, BlkStatus>;

    /// Writes the next bytes of guest memory at `from` to an extent. `page` is a scratch buffer.
    ///
    /// # Errors
    /// The status that tells the driver. A part of the extent may be written.
    fn write<M: GuestMemory>(
        &self,
        mem: &M,
        extent: Extent,
        from: &mut Cursor<'_>,
        page: &mut [u8; PAGE_SIZE],
    ) -> Result<(), BlkStatus>;

    /// Makes everything durable that was written: as durable as it ever is.
    ///
    /// # Errors
    /// The status that tells the driver.
    fn flush(&self) -> Result<(), BlkStatus>;

    /// Discards or zeroes an extent.
    ///
    /// # Errors
    /// The status that tells the driver. A part of the extent may be cleared.
    fn clear(&self, extent: Extent, clear: Clear) -> Result<(), BlkStatus>;
}
