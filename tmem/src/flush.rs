//! `tmem flush` and `tmem freeable`: memory that the host can have back.

use std::fmt::Write as _;
use std::process::ExitCode;

use tmem_base::{Bytes, Size};
use tmem_control::Client;
use tmem_control::api::Flushed;

use crate::client::{self, Target, name_width, plain};

/// Arguments of `tmem flush`.
#[derive(clap::Args)]
pub(crate) struct FlushArgs {
    /// Name of the guest
    name: String,
    /// How much to free at least: bytes, or a number with K, M, G or T
    size: String,
    #[command(flatten)]
    target: Target,
}

/// Arguments of `tmem freeable`.
#[derive(clap::Args)]
pub(crate) struct FreeableArgs {
    #[command(flatten)]
    target: Target,
}

pub(crate) fn flush(args: FlushArgs) -> ExitCode {
    let Size(bytes) = match args.size.parse() {
        Ok(size) => size,
        Err(error) => return client::usage(&format!("{error}")),
    };
    let reply = Client::new(args.target.control).flush(&args.name, bytes);
    let reply = reply.map(|flushed| Flushed { flushed });
    client::finish(args.target.json, reply, |reply| {
        format!("{} freed\n", Bytes(reply.flushed))
    })
}

pub(crate) fn freeable(args: FreeableArgs) -> ExitCode {
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
