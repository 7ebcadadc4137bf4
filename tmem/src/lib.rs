//! `tmem`: transcendent memory for KVM guests. Each subcommand is a file of `cmd`.
//!
//! A library so that the man pages and completions are made from the same definition of the command
//! line (`examples/documents.rs`); the binary only calls [`main`].

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

mod client;
mod cmd;
mod guest_keys;
mod host_memory;
mod limits;
mod logger;
mod own_process;
mod source;
mod units;

use cmd::{flush, freeable, freeze, guest, list, run, serve, set, stats, thaw, top};

#[derive(Parser)]
#[command(name = "tmem", version, about = "Transcendent memory for KVM guests")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Boot a guest whose swap pages live in this process.
    Run(run::Args),
    /// Serve the pages of many guests over vhost-user.
    Serve(serve::Args),
    /// Show what a running tmem holds and has done.
    Stats(stats::Args),
    /// Watch budget, guests and their rates on a live screen.
    Top(top::Args),
    /// List the guests.
    List(list::Args),
    /// Change what a guest may have.
    Set(set::Args),
    /// Refuse new pages of a guest.
    Freeze(freeze::Args),
    /// Accept new pages of a guest again.
    Thaw(thaw::Args),
    /// Free memory that holds a guest's ephemeral pages.
    Flush(flush::Args),
    /// Show how much memory `flush` can free.
    Freeable(freeable::Args),
    /// Add and remove guests of a running service.
    Guest(guest::Args),
}

/// The command line, for what documents it.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Does what the arguments of this process say.
pub fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Run(args) => run::main(args),
        Command::Serve(args) => serve::main(args),
        Command::Stats(args) => stats::main(args),
        Command::Top(args) => top::main(args),
        Command::List(args) => list::main(args),
        Command::Set(args) => set::main(args),
        Command::Freeze(args) => freeze::main(args),
        Command::Thaw(args) => thaw::main(args),
        Command::Flush(args) => flush::main(args),
        Command::Freeable(args) => freeable::main(args),
        Command::Guest(args) => guest::main(args),
    }
}
