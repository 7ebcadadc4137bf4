//! `tmem run`: boots one guest. Arguments become a [`Config`] that can be compared, which then is started.
//!
//! | module | holds |
//! |---|---|
//! | `args` | the command line |
//! | `config` | what it asks for, checked |
//! | `start` | the guest, its pages and its sockets |
//! | `end` | the last line and the exit code |

mod args;
mod config;
mod end;
mod start;

use std::process::ExitCode;

use tmem_base::error::one_line;
use tmem_vmm::VmError;

pub(crate) use args::Args;
use config::Config;
use end::code;

/// Runs the guest until it ends.
pub(crate) fn main(args: Args) -> ExitCode {
    crate::logger::install();
    let config = match Config::try_from(args) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("tmem: {}", one_line(&error));
            return ExitCode::from(code::USAGE);
        }
    };
    let Err(error) = start::start(&config);
    eprintln!("tmem: {}", one_line(&*error));
    match error.downcast_ref() {
        Some(VmError::Vcpu(_) | VmError::DeviceThread(_)) => ExitCode::from(code::BROKEN),
        _ => ExitCode::FAILURE,
    }
}
