//! `tmem freeable`: how much memory `tmem flush` can free.

use std::fmt::Write as _;
use std::process::ExitCode;

use tmem_base::Bytes;
use tmem_control::Client;

use crate::client::{self, Target, name_width, plain};

/// Arguments of `tmem freeable`.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    target: Target,
}

pub(crate) fn main(args: Args) -> ExitCode {
    let reply = Client::new(args.target.control).freeable();
    client::finish(args.target.json, reply, |reply| {
        let names: Vec<String> = reply.domains.keys().map(|name| plain(name)).collect();
        let width = name_width(&names);
        let mut text = format!("{:<width$}  {:>11}\n", "NAME", "FREEABLE");
        for (name, bytes) in names.iter().zip(reply.domains.values()) {
            let _ = writeln!(text, "{name:<width$}  {:>11}", Bytes(*bytes).to_string());
        }
        let all = Bytes(reply.freeable).to_string();
        let _ = writeln!(text, "{:<width$}  {all:>11}", "(all)");
        text
    })
}
