//! `tmem list`: the guests in one table.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use tmem_control::{Client, stats::Domain};

use crate::reply::{self, Bytes, Target};

/// Arguments of `tmem list`.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    target: Target,
}

pub(crate) fn main(args: Args) -> ExitCode {
    let Target { control, json } = args.target;
    reply::finish(json, list(control), |domains| table(domains))
}

fn list(control: PathBuf) -> Result<Vec<Domain>, tmem_control::ClientError> {
    Client::new(control).stats().map(|stats| stats.domains)
}

fn table(domains: &[Domain]) -> String {
    let mut text = format!(
        "{:<20} {:<9} {:>10} {:>10} {:>10} {:>10} {:>6}\n",
        "NAME", "STATE", "PAGES", "USED", "RESERVE", "LIMIT", "WEIGHT"
    );
    for domain in domains {
        let state = match (&domain.device, domain.frozen) {
            (_, true) => "frozen",
            (Some(_), false) => "connected",
            (None, false) => "waiting",
        };
        let limit = domain
            .limit
            .map_or("-".to_owned(), |limit| Bytes(limit).to_string());
        let _ = writeln!(
            text,
            "{:<20} {state:<9} {:>10} {:>10} {:>10} {limit:>10} {:>6}",
            domain.name,
            domain.counters.pages,
            Bytes(domain.counters.bytes_used).to_string(),
            Bytes(domain.reserve).to_string(),
            domain.weight,
        );
    }
    text
}
