//! `tmem freeze`: refuses new pages of a guest.

use std::process::ExitCode;

pub(crate) use super::change::Args;
use super::change::freeze;

pub(crate) fn main(args: Args) -> ExitCode {
    freeze(args, true)
}
