//! `tmem set`: changes what a guest may have.

use std::process::ExitCode;

use tmem_base::Size;
use tmem_control::api::{Change, Compression};

use super::change::apply;
use crate::client::{self, Target};

/// Arguments of `tmem set`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Name of the guest
    name: String,
    /// What to change: weight=N, reserve=SIZE, limit=SIZE, limit=none, compression=fast, compression=dense
    #[arg(required = true, value_name = "KEY=VALUE")]
    changes: Vec<String>,
    #[command(flatten)]
    target: Target,
}

pub(crate) fn main(args: Args) -> ExitCode {
    match parse(&args.changes) {
        Ok(change) => apply(&args.name, &change, args.target),
        Err(message) => client::usage(&message),
    }
}

fn parse(changes: &[String]) -> Result<Change, String> {
    let mut change = Change::default();
    for text in changes {
        let bad = || {
            format!(
                "{text:?} is not a change: there are weight=N, reserve=SIZE, limit=SIZE, limit=none, \
                 compression=fast and compression=dense"
            )
        };
        let (key, value) = text.split_once('=').ok_or_else(bad)?;
        let size = || {
            value
                .parse::<Size>()
                .map(|size| size.0)
                .map_err(|error| error.to_string())
        };
        let again = match key {
            "weight" => {
                let weight = value.parse().map_err(|_| bad())?;
                change.weight.replace(weight).is_some()
            }
            "reserve" => change.reserve.replace(size()?).is_some(),
            "limit" => {
                let limit = if value == "none" { None } else { Some(size()?) };
                change.limit.replace(limit).is_some()
            }
            "compression" => {
                let compression = match value {
                    "fast" => Compression::Fast,
                    "dense" => Compression::Dense,
                    _ => return Err(bad()),
                };
                change.compression.replace(compression).is_some()
            }
            _ => return Err(bad()),
        };
        if again {
            return Err(format!("{key} is given twice"));
        }
    }
    Ok(change)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Change, String> {
        super::parse(&text.split(' ').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn changes_are_read() {
        let change = parse("weight=2 reserve=1M limit=none compression=dense").expect("valid");
        assert_eq!(change.weight, Some(2));
        assert_eq!(change.reserve, Some(1 << 20));
        assert_eq!(change.limit, Some(None));
        assert_eq!(change.compression, Some(Compression::Dense));
        assert_eq!(change.frozen, None);
    }

    #[test]
    fn what_is_no_change_is_refused() {
        for text in [
            "weight",
            "weight=x",
            "colour=red",
            "limit=1X",
            "weight=1 weight=2",
            "limit=",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
