//! Bodies of requests that change something, and their replies.

use serde::{Deserialize, Serialize};

use super::guest::Compression;
use super::number::{present, some, some_whole, whole};

/// Body of `PATCH /v1/domains/{name}`. What is left out stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// Share in the memory that no guest has reserved, at least 1.
    #[serde(
        default,
        deserialize_with = "some_whole",
        skip_serializing_if = "Option::is_none"
    )]
    pub weight: Option<u32>,
    /// Bytes of the budget that only this domain may use.
    #[serde(
        default,
        deserialize_with = "some_whole",
        skip_serializing_if = "Option::is_none"
    )]
    pub reserve: Option<u64>,
    /// Hard cap in bytes; `null` (here `Some(None)`) takes it away.
    #[serde(
        default,
        deserialize_with = "present",
        skip_serializing_if = "Option::is_none"
    )]
    pub limit: Option<Option<u64>>,
    /// How hard pages are compressed.
    #[serde(
        default,
        deserialize_with = "some",
        skip_serializing_if = "Option::is_none"
    )]
    pub compression: Option<Compression>,
    /// Whether new pages are refused.
    #[serde(
        default,
        deserialize_with = "some",
        skip_serializing_if = "Option::is_none"
    )]
    pub frozen: Option<bool>,
}

/// Body of `POST /v1/domains/{name}/flush`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Flush {
    /// Bytes to free at least, if there are as many to be freed.
    #[serde(deserialize_with = "whole")]
    pub bytes: u64,
}

/// Reply of `POST /v1/domains/{name}/flush`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flushed {
    /// Bytes that were freed.
    pub flushed: u64,
}

/// Reply (202) to what takes longer than a client should wait.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// For people.
    pub message: String,
}

/// Body of every reply with a status of 400 or more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorReply {
    /// What was wrong, for people.
    pub error: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_that_is_left_out_stays_and_null_takes_it_away() {
        let parse = |text| serde_json::from_str::<Change>(text).expect(text).limit;
        assert_eq!(parse("{}"), None);
        assert_eq!(parse(r#"{"limit":null}"#), Some(None));
        assert_eq!(parse(r#"{"limit":5}"#), Some(Some(5)));
        for limit in [None, Some(None), Some(Some(5))] {
            let change = Change {
                limit,
                ..Change::default()
            };
            let text = serde_json::to_string(&change).expect("serializes");
            assert_eq!(
                serde_json::from_str::<Change>(&text).expect("parses"),
                change
            );
        }
    }

    #[test]
    fn numbers_are_whole_and_nothing_but_the_limit_is_null() {
        let parse = |text| serde_json::from_str::<Change>(text);
        assert_eq!(
            parse(r#"{"weight":5.0}"#).expect("an integer").weight,
            Some(5)
        );
        assert_eq!(
            parse(r#"{"limit":5e3}"#).expect("an integer").limit,
            Some(Some(5000))
        );
        for text in [
            r#"{"weight":5.5}"#,
            r#"{"weight":-1}"#,
            r#"{"weight":4294967296}"#,
            r#"{"reserve":1e30}"#,
            r#"{"weight":null}"#,
            r#"{"reserve":null}"#,
            r#"{"frozen":null}"#,
            r#"{"compression":null}"#,
            r#"{"limit":"5"}"#,
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert!(serde_json::from_str::<Flush>(r#"{"bytes":null}"#).is_err());
    }

    #[test]
    fn a_misspelt_field_is_refused() {
        assert!(serde_json::from_str::<Change>(r#"{"wieght":1}"#).is_err());
    }
}
