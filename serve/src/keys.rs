//! Keys and values of the configuration, from TOML or from a flag. A value that does not do is refused by its key, with what
//! the key takes.

use std::fmt;
use std::ops::RangeInclusive;

use tmem_base::Size;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// The values of a key for a size.
pub(crate) const SIZE: &str = "a size: bytes, or a number with K, M, G or T as in \"64M\"";

/// Most characters of a bad value that are shown.
const SHOWN: usize = 64;

/// The fault, and its byte in the file.
#[derive(Debug)]
pub(crate) struct Bad {
    pub(crate) at: usize,
    pub(crate) what: String,
}

/// A value as it was written.
#[derive(Clone, Copy)]
pub(crate) enum Value<'a> {
    /// Of a flag: what it is depends on the key.
    Word(&'a str),
    Toml(&'a DeValue<'a>),
}

impl<'a> Value<'a> {
    pub(crate) fn text(self) -> Option<&'a str> {
        match self {
            Self::Word(text) => Some(text),
            Self::Toml(value) => value.as_str(),
        }
    }

    pub(crate) fn integer(self) -> Option<u64> {
        match self {
            Self::Word(text) => text.parse().ok(),
            Self::Toml(value) => {
                let integer = value.as_integer()?;
                u64::from_str_radix(integer.as_str(), integer.radix()).ok()
            }
        }
    }

    /// A number that is written in octal, also with a leading `0o`. A TOML integer must be written that way, too: `660`
    /// would be another mode than the reader expects.
    pub(crate) fn octal(self) -> Option<u32> {
        let digits = match self {
            Self::Toml(DeValue::Integer(integer)) if integer.radix() == 8 => integer.as_str(),
            _ => self.text()?,
        };
        let digits = digits.strip_prefix("0o").unwrap_or(digits);
        let octal = digits.bytes().all(|digit| matches!(digit, b'0'..=b'7'));
        octal.then(|| u32::from_str_radix(digits, 8).ok()).flatten()
    }

    /// An integer in `range`.
    pub(crate) fn number<T: TryFrom<u64> + PartialOrd>(
        self,
        range: &RangeInclusive<T>,
    ) -> Option<T> {
        let number = T::try_from(self.integer()?).ok()?;
        range.contains(&number).then_some(number)
    }

    pub(crate) fn size(self) -> Option<Size> {
        match self.text() {
            Some(text) => text.parse().ok(),
            None => self.integer().map(Size),
        }
    }

    pub(crate) fn boolean(self) -> Option<bool> {
        match self {
            Self::Word(text) => text.parse().ok(),
            Self::Toml(value) => value.as_bool(),
        }
    }

    pub(crate) fn texts(self) -> Option<Vec<String>> {
        let Self::Toml(DeValue::Array(values)) = self else {
            return None;
        };
        let texts = values.iter().map(|value| value.get_ref().as_str());
        texts.map(|text| text.map(str::to_owned)).collect()
    }
}

impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quoted = |text: &str| format!("{text:?}");
        let text = match self {
            Self::Word(text) => quoted(text),
            Self::Toml(DeValue::String(text)) => quoted(text),
            Self::Toml(DeValue::Integer(number)) => number.to_string(),
            Self::Toml(DeValue::Float(number)) => number.as_str().to_owned(),
            Self::Toml(DeValue::Boolean(value)) => value.to_string(),
            Self::Toml(DeValue::Datetime(time)) => time.to_string(),
            Self::Toml(DeValue::Array(_)) => "a list".to_owned(),
            Self::Toml(DeValue::Table(_)) => "a table".to_owned(),
        };
        if text.chars().count() <= SHOWN {
            return f.write_str(&text);
        }
        let begin: String = text.chars().take(SHOWN).collect();
        write!(f, "{begin}...")
    }
}

/// The keys of one table.
pub(crate) struct Keys<'a> {
    /// Where the table is.
    pub(crate) at: usize,
    /// Key, value and where the key is.
    pub(crate) values: Vec<(&'a str, Value<'a>, usize)>,
}

impl<'a> Keys<'a> {
    /// Of a table of the file.
    pub(crate) fn of_table(at: usize, table: &'a DeTable<'a>) -> Self {
        let place = |key: &Spanned<_>| key.span().start;
        let values = table.iter().map(|(key, value)| {
            let value = (Value::Toml(value.get_ref()), place(key));
            (key.get_ref().as_ref(), value.0, value.1)
        });
        Self {
            at,
            values: values.collect(),
        }
    }

    /// Of a flag.
    pub(crate) fn of_words(words: Vec<(&'a str, &'a str)>) -> Self {
        let values = words
            .into_iter()
            .map(|(key, word)| (key, Value::Word(word), 0));
        Self {
            at: 0,
            values: values.collect(),
        }
    }

    /// Refuses keys that are not `known`.
    pub(crate) fn only(&self, known: &[&str]) -> Result<(), Bad> {
        match self.values.iter().find(|(key, ..)| !known.contains(key)) {
            None => Ok(()),
            Some((key, _, at)) => Err(Bad {
                at: *at,
                what: unknown(key, known),
            }),
        }
    }

    /// The value of a key that may be left out.
    pub(crate) fn get<T>(
        &self,
        key: &str,
        takes: &str,
        read: impl FnOnce(Value<'a>) -> Option<T>,
    ) -> Result<Option<T>, Bad> {
        let Some((_, value, at)) = self.values.iter().find(|(name, ..)| *name == key) else {
            return Ok(None);
        };
        read(*value)
            .map(Some)
            .ok_or_else(|| refused(key, *value, *at, takes))
    }
}

/// A key that there is not.
pub(crate) fn unknown(key: &str, known: &[&str]) -> String {
    format!(
        "There is no key {key:?}, expected one of `{}`",
        known.join("`, `")
    )
}

/// A value that its key does not take.
pub(crate) fn refused(key: &str, value: Value<'_>, at: usize, takes: &str) -> Bad {
    Bad {
        at,
        what: format!("{key} is {value}; it takes {takes}"),
    }
}
