//! The common part of `tmem set`, `tmem freeze` and `tmem thaw`: a change of a guest.

use std::process::ExitCode;

use tmem_base::Bytes;
use tmem_control::Client;
use tmem_control::api::{Change, Domain};

use crate::client::{self, Target, plain};

/// Arguments of `tmem freeze` and `tmem thaw`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Name of the guest
    name: String,
    #[command(flatten)]
    target: Target,
}

/// Refuses or accepts new pages of a guest.
pub(super) fn freeze(args: Args, frozen: bool) -> ExitCode {
    let change = Change {
        frozen: Some(frozen),
        ..Change::default()
    };
    apply(&args.name, &change, args.target)
}

/// Asks for a change, and prints what the guest has then.
pub(super) fn apply(name: &str, change: &Change, target: Target) -> ExitCode {
    let reply = Client::new(target.control).change(name, change);
    client::finish(target.json, reply, summary)
}

fn summary(domain: &Domain) -> String {
    let limit = domain
        .limit
        .map_or("none".to_owned(), |limit| Bytes(limit).to_string());
    let frozen = if domain.frozen { ", frozen" } else { "" };
    format!(
        "{}: weight {}, reserve {}, limit {limit}, compression {}{frozen}\n",
        plain(&domain.name),
        domain.weight,
        Bytes(domain.reserve),
        domain.compression.as_str()
    )
}
