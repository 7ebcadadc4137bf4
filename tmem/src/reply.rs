//! What the subcommands that ask a running tmem have in common.

use std::path::PathBuf;
use std::process::ExitCode;

use serde::Serialize;
use tmem_control::ClientError;

use crate::stats::{explain, print};

/// Exit code for arguments that cannot be meant.
const USAGE: u8 = 2;

/// Whom to ask, and how to answer.
#[derive(clap::Args)]
pub(crate) struct Target {
    /// Control socket of the running tmem (the path given to its --control)
    #[arg(
        long,
        value_name = "SOCKET",
        env = "TMEM_CONTROL",
        default_value = "/run/tmem.sock"
    )]
    pub(crate) control: PathBuf,
    /// Print the reply as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Prints a reply, as JSON or as `text` puts it, or the error.
pub(crate) fn finish<T: Serialize>(
    json: bool,
    reply: Result<T, ClientError>,
    text: impl FnOnce(&T) -> String,
) -> ExitCode {
    let printed = match &reply {
        Ok(reply) if json => serde_json::to_string_pretty(reply)
            .map(|json| json + "\n")
            .map_err(|error| error.to_string()),
        Ok(reply) => Ok(text(reply)),
        Err(error) => Err(explain(error)),
    };
    match printed.and_then(|text| print(&text)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("tmem: {message}");
            ExitCode::FAILURE
        }
    }
}

/// Text from elsewhere, without what a terminal would act on: control characters, and those that
/// turn the direction of writing.
pub(crate) fn plain(text: &str) -> String {
    let harmful = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
    };
    let clean = |c| if harmful(c) { '?' } else { c };
    text.chars().map(clean).collect()
}

/// Characters of the column of names.
pub(crate) fn name_width(names: &[String]) -> usize {
    let longest = names.iter().map(|name| name.chars().count()).max();
    longest.unwrap_or_default().max(8)
}

/// Says what is wrong with the arguments.
pub(crate) fn usage(message: &str) -> ExitCode {
    eprintln!("tmem: {message}");
    ExitCode::from(USAGE)
}
