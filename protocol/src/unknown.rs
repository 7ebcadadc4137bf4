//! A number from the other side that this version does not know.

/// A number of the wire that names nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unknown(
    /// The number.
    pub u32,
);

impl core::fmt::Display for Unknown {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Unknown value {}", self.0)
    }
}

impl core::error::Error for Unknown {}
