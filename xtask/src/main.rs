//! `cargo xtask`: builds, checks and shows tmem.
//!
//! | module | holds |
//! |---|---|
//! | [`build`] | `build`: the static release binaries |
//! | [`image`] | `image`: the guest kernels and initramfs archives, reachable at `target/images` |
//! | [`package`] | `package`: the Debian package, and what it must hold |
//! | [`test`] | `test`: every check, in steps |
//! | [`imports`] | `test imports`: no circle of imports, no crate that needs a higher one |
//! | [`demo`] | `demo`: a guest that swaps into host memory |
//! | [`bench`] | `bench`: the benchmarks |
//! | [`paths`] | where things are: checkout, target folder, cache |
//! | [`space`] | free disk space |
//! | [`cache`] | what is in the cache: the lock, names by hash, complete or not there |
//! | [`apt`] | Debian packages: installed ones, and unpacked ones in the cache |
//! | [`command`] | running other programs, and what is said when they fail |
//! | [`progress`] | a progress bar, or plain lines where there is no terminal |

mod apt;
mod bench;
mod build;
mod cache;
mod command;
mod demo;
mod image;
mod imports;
mod package;
mod paths;
mod progress;
mod space;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Builds, checks and shows tmem")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Build the static release binary target/release/tmem
    Build,
    /// Build the Debian package target/debian/tmem_VERSION_amd64.deb
    Package,
    /// Build the guest images into the cache, reachable at target/images
    Image(image::More),
    /// Run every check: format, clippy, unit, property and guest tests, C checks
    Test(test::Selection),
    /// Boot a guest that swaps into host memory and watch it; compare with a disk and with zram
    Demo,
    /// Run a benchmark; the result is printed and written to target/bench/NAME.json
    Bench {
        /// The benchmark, for example: store
        name: String,
        /// Do less: for a first look
        #[arg(long)]
        quick: bool,
        /// Print the JSON only; the table goes to standard error
        #[arg(long)]
        json: bool,
        /// More arguments for the benchmark itself
        #[arg(last = true)]
        arguments: Vec<String>,
    },
}

fn main() -> ExitCode {
    let result = match Arguments::parse().task {
        Task::Build => build::build().map(|()| true),
        Task::Package => package::build().map(|_| true),
        Task::Image(more) => image::build(more).map(|()| true),
        Task::Test(selection) => test::test(&selection),
        Task::Demo => demo::demo(),
        Task::Bench {
            name,
            quick,
            json,
            mut arguments,
        } => {
            if quick {
                arguments.push("--quick".to_owned());
            }
            bench::bench(&name, json, &arguments).map(|()| true)
        }
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
