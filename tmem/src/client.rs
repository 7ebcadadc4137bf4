//! The common parts of the subcommands that query a running tmem: which socket to ask, and how to print a reply or an
//! error.

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use serde::Serialize;
use tmem_base::error::one_line;
use tmem_control::ClientError;

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

/// Reports an error in the arguments.
pub(crate) fn usage(message: &str) -> ExitCode {
    eprintln!("tmem: {message}");
    ExitCode::from(USAGE)
}

fn print(text: &str) -> Result<(), String> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(format!("Cannot write to standard output: {error}"))
        }
        _ => Ok(()),
    }
}

/// The error with its causes and, where there is one, the next thing to try. One line.
pub(crate) fn explain(error: &ClientError) -> String {
    plain(&one_line(error)) + hint(error)
}

fn hint(error: &ClientError) -> &'static str {
    match error {
        ClientError::NoSocket(_) => "; is tmem running, and was it started with --control?",
        ClientError::NobodyListens(_) => "; the tmem that made it is gone, remove the file",
        ClientError::Connect { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
            "; it belongs to the user who started tmem"
        }
        ClientError::TimedOut(_) => "; is the process stopped, or the path not a tmem socket?",
        ClientError::Http { .. } | ClientError::Decode { .. } => {
            "; is it a tmem socket, and of this version?"
        }
        ClientError::Refused { status, .. } if status.as_u16() == 404 => {
            "; tmem list shows the guests"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use tmem_control::Client;

    use super::*;

    #[test]
    fn missing_socket_is_one_line_that_says_what_to_do() {
        let error = Client::new("/nowhere/at/all")
            .stats()
            .expect_err("no socket");
        let message = explain(&error);
        assert_eq!(
            message,
            "There is no control socket /nowhere/at/all; is tmem running, and was it started with --control?"
        );
    }
}
