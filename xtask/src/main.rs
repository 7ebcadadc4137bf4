//! `cargo xtask`: builds, checks and shows tmem.
//!
//! | module | holds |
//! |---|---|
//! | [`place`] | where things are: checkout, target folder, cache; the lock; atomic publishing |
//! | [`command`] | running other programs, and what is said when they fail |
//! | [`packages`] | Debian packages: installed ones, and unpacked ones in the cache |
//! | [`progress`] | a progress bar, or plain lines where there is no terminal |
//! | [`kernel`] | the guest kernel from Debian's source, our patches, driver and configuration |
//! | [`initramfs`] | the guest's and the outer machine's initramfs |
//! | [`image`] | `image`: all of the above, reachable at `target/images` |
//! | [`binaries`] | `build`: the static release binaries |
//! | [`package`] | `package`: the Debian package |
//! | [`contents`] | what the package must hold, checked |
//! | [`check`] | `test`: every check, in steps |
//! | [`show`] | `demo` and `bench` |

mod binaries;
mod check;
mod command;
mod contents;
mod image;
mod initramfs;
mod kernel;
mod licenses;
mod package;
mod packages;
mod place;
mod progress;
mod show;

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
    Image {
        /// Also build target/images/linux-uml, the guest kernel that is a process
        #[arg(long)]
        uml: bool,
    },
    /// Run every check: format, clippy, unit, property and guest tests, C checks
    Test(check::Selection),
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
        Task::Build => binaries::build().map(|()| true),
        Task::Package => package::build().map(|_| true),
        Task::Image { uml } => image::build(uml).map(|()| true),
        Task::Test(selection) => check::test(&selection),
        Task::Demo => show::demo(),
        Task::Bench {
            name,
            quick,
            json,
            mut arguments,
        } => {
            if quick {
                arguments.push("--quick".to_owned());
            }
            show::bench(&name, json, &arguments).map(|()| true)
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
