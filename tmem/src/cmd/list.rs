//! `tmem list`: the guests in one table.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use tmem_base::Bytes;
use tmem_control::{Client, api::Domain};

use crate::client::{self, Target, name_width, plain};

/// Arguments of `tmem list`.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    target: Target,
}

pub(crate) fn main(args: Args) -> ExitCode {
    let Target { control, json } = args.target;
    client::finish(json, list(control), |domains| table(domains))
}

fn list(control: PathBuf) -> Result<Vec<Domain>, tmem_control::ClientError> {
    Client::new(control).stats().map(|stats| stats.domains)
}

fn table(domains: &[Domain]) -> String {
    let names: Vec<String> = domains.iter().map(|d| plain(&d.name)).collect();
    let width = name_width(&names);
    let mut text = format!(
        "{:<width$}  {:<9} {:>10} {:>11} {:>11} {:>11} {:>6} COMPRESSION\n",
        "NAME", "STATE", "PAGES", "USED", "RESERVE", "LIMIT", "WEIGHT"
    );
    for (domain, name) in domains.iter().zip(names) {
        let state = match (&domain.device, domain.frozen) {
            (_, true) => "frozen",
            (Some(_), false) => "connected",
            (None, false) => "waiting",
        };
        let limit = domain
            .limit
            .map_or("none".to_owned(), |limit| Bytes(limit).to_string());
        let _ = writeln!(
            text,
            "{name:<width$}  {state:<9} {:>10} {:>11} {:>11} {limit:>11} {:>6} {}",
            domain.counters.pages,
            Bytes(domain.counters.bytes_used).to_string(),
            Bytes(domain.reserve).to_string(),
            domain.weight,
            domain.compression.as_str(),
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stay_aligned_whatever_the_names() {
        let domain = |name: &str| Domain {
            name: name.into(),
            limit: (name.len() > 2).then_some(1 << 40),
            ..Domain::default()
        };
        let text = table(&[domain("a"), domain(&"x".repeat(64)), domain("\x1b[2J")]);
        let lines: Vec<&str> = text.lines().collect();
        let place = |line: &str, word: &str| line.find(word).map(|at| at + word.len());
        let weight = place(lines[0], "WEIGHT");
        assert!(
            lines[1..]
                .iter()
                .all(|line| place(line, " 0 fast") == weight.map(|w| w + 5)),
            "{text}"
        );
        assert!(!text.contains('\x1b'));
    }
}
