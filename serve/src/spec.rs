//! The settings of a guest from the keys of a configuration or a flag: the operator's notation, as a deserializer.
//!
//! The list of settings is that of [`GuestSpec`]. A key has `-` for each `_` of it.

use std::fmt;

use serde::de::value::{MapAccessDeserializer, StrDeserializer};
use serde::de::{self, DeserializeSeed, Expected, IntoDeserializer, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, forward_to_deserialize_any};
use tmem_control::api::GuestSpec;
use tmem_control::api::notation::{GROUP, MODE, NAME_TAKES, SIZE, SOCKET_TAKES};

use crate::access;
use crate::keys::{self, Bad, Keys, Value};

/// The guest of these keys. Nothing but notation and keys is checked.
pub(crate) fn guest(keys: &Keys<'_>) -> Result<GuestSpec, Bad> {
    let table = Table {
        rest: keys.values.iter(),
        value: None,
    };
    let missing = |what| Bad { at: keys.at, what };
    let guest = GuestSpec::deserialize(MapAccessDeserializer::new(table))
        .map_err(|error| error.found.unwrap_or_else(|| missing(error.what)))?;
    // Only a request to the API can have a socket beside it.
    if !keys.values.iter().any(|(key, ..)| *key == "socket") {
        return Err(missing(format!(
            "socket is missing; it takes {SOCKET_TAKES}"
        )));
    }
    Ok(guest)
}

/// The field of a key, and the key of a field.
fn turned(name: &str) -> String {
    let turn = |c| match c {
        '-' => '_',
        '_' => '-',
        c => c,
    };
    name.chars().map(turn).collect()
}

/// The fault of a value. Without a fault in particular, the values that its key takes.
#[derive(Debug)]
struct Fault {
    what: String,
    /// The same where it is known of which key.
    found: Option<Bad>,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for Fault {}

impl de::Error for Fault {
    fn custom<T: fmt::Display>(what: T) -> Self {
        Self {
            what: what.to_string(),
            found: None,
        }
    }

    fn invalid_type(_: Unexpected<'_>, takes: &dyn Expected) -> Self {
        Self::custom(takes)
    }

    fn invalid_value(_: Unexpected<'_>, takes: &dyn Expected) -> Self {
        Self::custom(takes)
    }

    fn unknown_variant(_: &str, variants: &'static [&'static str]) -> Self {
        Self::custom(one_of(variants))
    }

    fn unknown_field(field: &str, fields: &'static [&'static str]) -> Self {
        let known: Vec<String> = fields.iter().map(|field| turned(field)).collect();
        let known: Vec<&str> = known.iter().map(String::as_str).collect();
        Self::custom(keys::unknown(&turned(field), &known))
    }

    /// Of the name: no other field is required.
    fn missing_field(field: &'static str) -> Self {
        Self::custom(format_args!("{field} is missing; it takes {NAME_TAKES}"))
    }
}

/// `"a", "b" or "c"`
fn one_of(words: &[&str]) -> String {
    let words: Vec<String> = words.iter().map(|word| format!("{word:?}")).collect();
    match words.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => words.concat(),
    }
}

struct Table<'k, 'a> {
    rest: std::slice::Iter<'k, (&'a str, Value<'a>, usize)>,
    /// That of the last key.
    value: Option<&'k (&'a str, Value<'a>, usize)>,
}

impl<'de> de::MapAccess<'de> for Table<'_, '_> {
    type Error = Fault;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Fault> {
        self.value = self.rest.next();
        let Some((key, _, at)) = self.value else {
            return Ok(None);
        };
        let field = turned(key);
        let field: StrDeserializer<'_, Fault> = field.as_str().into_deserializer();
        seed.deserialize(field).map(Some).map_err(|fault| Fault {
            found: Some(Bad {
                at: *at,
                what: fault.what.clone(),
            }),
            ..fault
        })
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Fault> {
        let Some((key, value, at)) = self.value.take() else {
            return Err(de::Error::custom("There is no key before the value"));
        };
        seed.deserialize(Written(*value)).map_err(|fault| Fault {
            found: Some(keys::refused(key, *value, *at, &fault.what)),
            ..fault
        })
    }
}

/// A value, for the type that the field of its key has.
struct Written<'a>(Value<'a>);

fn refused<T>(takes: &dyn Expected) -> Result<T, Fault> {
    Err(de::Error::invalid_type(Unexpected::Other("value"), takes))
}

impl<'de> Deserializer<'de> for Written<'_> {
    type Error = Fault;

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        let (number, takes) = match name {
            SIZE => (self.0.size().map(|size| size.0), keys::SIZE),
            MODE => (access::mode(self.0).map(u64::from), access::MODE),
            GROUP => (access::group(self.0).map(u64::from), access::GROUP),
            _ => match self.0.integer() {
                Some(number) => return visitor.visit_u64(number),
                None => return refused(&visitor),
            },
        };
        match number {
            Some(number) => visitor.visit_u64(number),
            None => refused(&takes),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.0.text() {
            Some(text) => visitor.visit_str(text),
            None => refused(&visitor),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_str(visitor)
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.0.boolean() {
            Some(value) => visitor.visit_bool(value),
            None => refused(&"true or false"),
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.0.texts() {
            Some(texts) => texts.into_deserializer().deserialize_seq(visitor),
            None => refused(&visitor),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        match self.0.text() {
            Some(text) => visitor.visit_enum(IntoDeserializer::<Fault>::into_deserializer(text)),
            None => refused(&one_of(variants).as_str()),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_some(self)
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        refused(&visitor)
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char bytes byte_buf unit unit_struct tuple tuple_struct map struct
        identifier ignored_any
    }
}
