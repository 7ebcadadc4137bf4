//! `tmem flush`: frees memory that holds ephemeral pages of a guest.

use std::process::ExitCode;

use tmem_base::{Bytes, Size};
use tmem_control::Client;
use tmem_control::api::Flushed;

use crate::client::{self, Target};

/// Arguments of `tmem flush`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Name of the guest
    name: String,
    /// How much to free at least: bytes, or a number with K, M, G or T
    size: String,
    #[command(flatten)]
    target: Target,
}

pub(crate) fn main(args: Args) -> ExitCode {
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
