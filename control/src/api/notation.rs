//! How the settings of a guest are read.
//!
//! JSON has whole numbers, and modes as octal text. An operator writes `512M`, `0o660`, or the name of a group. A deserializer of the
//! operator's notation knows such a value by the name of its newtype, one of the constants here, and gives its number to `visit_u64`. All
//! others hand the value itself to `visit_newtype_struct`, so a client of the API can write none of it.

use std::fmt;
use std::marker::PhantomData;
use std::ops::RangeInclusive;

use serde::de::{Error, SeqAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serializer};

use super::number::whole;

/// Name of the newtype of a number of bytes.
pub const SIZE: &str = "Size";
/// Name of the newtype of permission bits.
pub const MODE: &str = "Mode";
/// Name of the newtype of the number of a group.
pub const GROUP: &str = "Group";
/// Name of the newtype of another number.
pub const NUMBER: &str = "Number";

/// What the name of a guest takes.
pub const NAME_TAKES: &str = "the name of the guest";
/// What the socket of a guest takes.
pub const SOCKET_TAKES: &str = "the path of a socket";

pub(super) fn size<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    newtype(from, SIZE, 0..=u64::MAX)
}

pub(super) fn mode<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u32>, D::Error> {
    newtype(from, MODE, 0..=u64::MAX)
}

pub(super) fn group<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u32>, D::Error> {
    newtype(from, GROUP, 0..=u64::MAX)
}

/// A number that an operator may write from `LEAST` to `MOST`. That of a client is checked with the other settings.
pub(super) fn number<
    'de,
    const LEAST: u32,
    const MOST: u32,
    T: TryFrom<u64>,
    D: Deserializer<'de>,
>(
    from: D,
) -> Result<Option<T>, D::Error> {
    newtype(from, NUMBER, u64::from(LEAST)..=u64::from(MOST))
}

fn newtype<'de, D: Deserializer<'de>, T: TryFrom<u64>>(
    from: D,
    kind: &'static str,
    range: RangeInclusive<u64>,
) -> Result<Option<T>, D::Error> {
    let visitor = Newtype {
        kind,
        range,
        of: PhantomData,
    };
    from.deserialize_newtype_struct(kind, visitor).map(Some)
}

struct Newtype<T> {
    kind: &'static str,
    range: RangeInclusive<u64>,
    of: PhantomData<T>,
}

impl<'de, T: TryFrom<u64>> Visitor<'de> for Newtype<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "a number from {} to {}",
            self.range.start(),
            self.range.end()
        )
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<T, E> {
        let within = self
            .range
            .contains(&number)
            .then(|| T::try_from(number).ok());
        within
            .flatten()
            .ok_or_else(|| E::invalid_value(Unexpected::Unsigned(number), &self))
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, from: D) -> Result<T, D::Error> {
        if self.kind != MODE {
            return whole(from);
        }
        let text = String::deserialize(from)?;
        let octal = (3..=4).contains(&text.len()) && text.bytes().all(|b| matches!(b, b'0'..=b'7'));
        let mode = octal.then(|| u64::from_str_radix(&text, 8).ok()).flatten();
        mode.and_then(|mode| T::try_from(mode).ok())
            .ok_or_else(|| D::Error::custom("a mode is 3 or 4 octal digits"))
    }
}

/// Writes a mode as text in octal: `"0660"`.
pub(super) fn octal<S: Serializer>(mode: &Option<u32>, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(&format_args!("{:04o}", mode.unwrap_or_default()))
}

pub(super) fn name<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    from.deserialize_str(Text(NAME_TAKES))
}

pub(super) fn path<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    from.deserialize_str(Text(SOCKET_TAKES))
}

struct Text(&'static str);

impl Visitor<'_> for Text {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<String, E> {
        Ok(text.to_owned())
    }
}

pub(super) fn groups<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    from.deserialize_seq(Groups)
}

struct Groups;

impl<'de> Visitor<'de> for Groups {
    type Value = Vec<String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("names of share groups")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<String>, A::Error> {
        let mut groups = Vec::new();
        while let Some(group) = seq.next_element()? {
            groups.push(group);
        }
        Ok(groups)
    }
}
