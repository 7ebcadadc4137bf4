//! `tmem top`: budget, guests and their rates, live or as one frame.
//!
//! | module | holds |
//! |---|---|
//! | [`model`] | samples to rows, pure |
//! | [`column`] | which columns there are, and which fit |
//! | [`view`] | the grid of characters |
//! | [`terminal`] | keys, signals, and the terminal given back |

use std::process::ExitCode;
use std::time::Duration;

use tmem_control::{Client, ClientError};

use crate::client::{self, Target};
use model::{Model, Sort};
use view::View;

mod column;
mod model;
mod terminal;
mod view;

/// Columns of a frame where the number is not known.
const WIDTH: u16 = 80;

/// Arguments of `tmem top`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Seconds between two looks, 0.1 to 3600
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = interval)]
    interval: Duration,
    /// Print one frame of plain text, as wide as COLUMNS in the environment says (else 80), after one interval
    #[arg(long)]
    once: bool,
    /// What the guests are sorted by, the largest first
    #[arg(long, value_name = "KEY", value_enum, default_value_t)]
    sort: Sort,
    #[command(flatten)]
    target: Target,
}

fn interval(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text
        .parse()
        .map_err(|_| "not a number of seconds".to_owned())?;
    if (0.1..=3600.0).contains(&seconds) {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err("not between 0.1 and 3600".into())
    }
}

pub(crate) fn main(args: Args) -> ExitCode {
    let client = Client::new(args.target.control);
    let mut view = View {
        sort: args.sort,
        live: !args.once,
        ..View::default()
    };
    if !args.once {
        if args.target.json {
            return client::usage("--json is for --once");
        }
        return terminal::run(client, args.interval, view);
    }
    let reply = two_samples(&client, args.interval).map(|mut model| {
        model.sort(args.sort, false);
        model
    });
    client::finish(args.target.json, reply, |model| {
        view.show(model.clone());
        let width = std::env::var("COLUMNS").ok();
        let width = width.and_then(|columns| columns.parse().ok());
        view::text(&view, width.unwrap_or(WIDTH).clamp(20, 1000))
    })
}

/// Rates need two.
fn two_samples(client: &Client, interval: Duration) -> Result<Model, ClientError> {
    let before = client.stats()?;
    std::thread::sleep(interval);
    Ok(Model::new(Some(&before), &client.stats()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_that_make_no_sense_are_refused() {
        assert_eq!(interval("0.5"), Ok(Duration::from_millis(500)));
        for text in ["0", "-1", "nan", "inf", "1e9", "x", ""] {
            assert!(interval(text).is_err(), "{text}");
        }
    }
}
