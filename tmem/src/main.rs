//! `tmem`: transcendent memory for KVM guests. Each subcommand is a module of its own.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod logger;
mod run;
mod serve;
mod stats;

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
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Run(args) => run::main(args),
        Command::Serve(args) => serve::main(args),
        Command::Stats(args) => stats::main(args),
    }
}
