//! Numbers of bytes: the grammar in which an operator writes them, and the form in which they are shown.

use std::fmt;
use std::str::FromStr;

/// A number of bytes as an operator writes it: `4096`, `64K`, `256M`, `4G`, `1T`.
///
/// The units are powers of 1024, in either case, and may end with `iB` or `B`. Spaces around the whole are ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(
    /// Bytes.
    pub u64,
);

/// A text that is no [`Size`], or one beyond 64 bits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a size: write bytes, or a number with K, M, G or T")]
pub struct SizeError(
    /// The text.
    pub String,
);

impl FromStr for Size {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        let bad = || SizeError(text.to_owned());
        let trimmed = text.trim();
        let digits = trimmed
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(digits);
        let shift = match unit.to_ascii_lowercase().as_str() {
            "" | "b" => 0,
            "k" | "kb" | "kib" => 10,
            "m" | "mb" | "mib" => 20,
            "g" | "gb" | "gib" => 30,
            "t" | "tb" | "tib" => 40,
            _ => return Err(bad()),
        };
        let number: u64 = number.parse().map_err(|_| bad())?;
        number.checked_mul(1 << shift).map(Self).ok_or_else(bad)
    }
}

/// Shows a number of bytes: in binary units from KiB on, with one digit after the point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes(
    /// Bytes.
    pub u64,
);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const KIB: u64 = 1 << 10;
        const MIB: u64 = 1 << 20;
        const GIB: u64 = 1 << 30;
        let (unit, name) = match self.0 {
            0..KIB => return write!(f, "{} B", self.0),
            KIB..MIB => (KIB, "KiB"),
            MIB..GIB => (MIB, "MiB"),
            _ => (GIB, "GiB"),
        };
        write!(f, "{:.1} {name}", self.0 as f64 / unit as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_binary_units_and_do_not_wrap() {
        let size = |text: &str| text.parse::<Size>().map(|size| size.0).ok();
        for (text, bytes) in [
            ("0", 0),
            ("17", 17),
            ("17b", 17),
            ("1k", 1024),
            ("96M", 96 << 20),
            ("96mb", 96 << 20),
            ("1GiB", 1 << 30),
            ("2t", 2 << 40),
            ("16T", 16 << 40),
            (" 1 ", 1),
        ] {
            assert_eq!(size(text), Some(bytes), "{text:?}");
        }
        for text in [
            "",
            "M",
            "G",
            "-1",
            "+1",
            "1.5G",
            "0x10",
            "1 M",
            "3 G",
            "4X",
            "1K1",
            "99999999T",
            "99999999999999999999",
            "99999999999T",
        ] {
            assert_eq!(size(text), None, "{text:?}");
        }
    }

    #[test]
    fn bytes_are_shown_with_one_digit_after_the_point() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (5 << 19, "2.5 MiB"),
            (1 << 40, "1024.0 GiB"),
        ] {
            assert_eq!(Bytes(bytes).to_string(), text);
        }
    }
}
