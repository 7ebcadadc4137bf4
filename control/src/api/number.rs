//! Numbers of JSON bodies: whole ones, and `null` only where it says something.

use serde::{Deserialize, Deserializer};

/// Tells `null` from a field that is left out.
pub(super) fn present<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Option<u64>>, D::Error> {
    let number = Option::<serde_json::Number>::deserialize(from)?;
    number.map(|number| integer(&number)).transpose().map(Some)
}

/// A field that may be left out and is not `null`.
pub(super) fn some<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    from: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(from).map(Some)
}

/// As [`some`], for integers.
pub(super) fn some_whole<'de, D: Deserializer<'de>, T: TryFrom<u64>>(
    from: D,
) -> Result<Option<T>, D::Error> {
    whole(from).map(Some)
}

/// An integer, however it is written: JSON has no other numbers than `5` and `5.0`, which are one.
pub(super) fn whole<'de, D: Deserializer<'de>, T: TryFrom<u64>>(from: D) -> Result<T, D::Error> {
    let number = serde_json::Number::deserialize(from)?;
    integer(&number)
}

fn integer<T: TryFrom<u64>, E: serde::de::Error>(number: &serde_json::Number) -> Result<T, E> {
    let value = number.as_u64().or_else(|| {
        let float = number.as_f64().filter(|f| f.fract() == 0.0 && *f >= 0.0)?;
        format!("{float:.0}").parse().ok()
    });
    value
        .and_then(|value| T::try_from(value).ok())
        .ok_or_else(|| E::custom(format!("{number} is not an integer in range")))
}
