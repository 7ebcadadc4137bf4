//! `tmem flush` and `tmem freeable`: memory that the host can have back.

use std::fmt::Write as _;
use std::process::ExitCode;

use tmem_control::Client;
use tmem_control::operate::Flushed;
use tmem_serve::Size;

use crate::reply::{self, Bytes, Target};

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
        Err(error) => return reply::usage(&format!("{error}")),
    };
    let reply = Client::new(args.target.control).flush(&args.name, bytes);
    let reply = reply.map(|flushed| Flushed { flushed });
    reply::finish(args.target.json, reply, |reply| {
        format!("{} freed\n", Bytes(reply.flushed))
    })
}

pub(crate) fn freeable(args: FreeableArgs) -> ExitCode {
    let reply = Client::new(args.target.control).freeable();
    reply::finish(args.target.json, reply, |reply| {
        let mut text = format!("{:<20} {}\n", "all", Bytes(reply.freeable));
        for (name, bytes) in &reply.domains {
            let _ = writeln!(text, "{name:<20} {}", Bytes(*bytes));
        }
        text
    })
}
