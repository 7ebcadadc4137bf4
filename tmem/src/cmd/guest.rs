//! `tmem guest add` and `tmem guest remove`: guests are added and removed while others are served.

use std::os::unix::net::UnixListener;
use std::process::ExitCode;

use tmem_control::Client;
use tmem_control::api::GuestSpec;
use tmem_serve::{GuestConfig, activation, parse_guest, parse_guest_on};

use crate::client::{self, Target};
use crate::guest_keys::KEYS;

/// Arguments of `tmem guest`.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Serve one more guest, until it is removed or the service ends
    Add {
        /// The guest, as after --guest of `tmem serve`
        #[arg(
            value_name = KEYS
        )]
        guest: String,
        /// Number of a listening unix socket that this command was started with, in place of socket=PATH; systemd passes 3
        #[arg(long, value_name = "N")]
        socket_fd: Option<i32>,
        #[command(flatten)]
        target: Target,
    },
    /// Cut a guest off and free its pages
    Remove {
        /// Name of the guest
        name: String,
        #[command(flatten)]
        target: Target,
    },
}

pub(crate) fn main(args: Args) -> ExitCode {
    match args.action {
        Action::Add {
            guest,
            socket_fd,
            target,
        } => {
            let socket = socket_fd.map(activation::inherited).transpose();
            let socket = match socket {
                Ok(socket) => socket,
                Err(error) => return client::usage(&error.to_string()),
            };
            let guest = match new_guest(&guest, socket.as_ref()) {
                Ok(guest) => guest,
                Err(message) => return client::usage(&message),
            };
            let path = guest.socket.clone();
            let client = Client::new(target.control);
            let reply = match socket {
                None => client.add_guest(&guest),
                Some(socket) => {
                    // The service takes the path from the passed socket.
                    let guest = GuestSpec {
                        socket: String::new(),
                        ..guest
                    };
                    client.add_guest_on(&guest, socket.into())
                }
            };
            client::finish(target.json, reply, |domain| {
                format!(
                    "{}: {}\n",
                    client::plain(&domain.name),
                    client::plain(&path)
                )
            })
        }
        Action::Remove { name, target } => {
            let reply = Client::new(target.control).remove_guest(&name);
            client::finish(target.json, reply, |()| format!("{name}: removed\n"))
        }
    }
}

fn new_guest(text: &str, socket: Option<&UnixListener>) -> Result<GuestSpec, String> {
    let guest = match socket.map(activation::address) {
        None => parse_guest(text),
        Some(path) => parse_guest_on(text, &path.to_string_lossy()),
    };
    let guest = guest.map_err(|error| error.to_string())?;
    let checked = GuestConfig::try_from(guest.clone()).map_err(|error| error.to_string())?;
    // Relative to where this command runs, not to where the service does.
    let socket = std::path::absolute(&checked.socket)
        .map_err(|error| format!("Cannot find {}: {error}", checked.socket.display()))?;
    let socket = socket
        .into_os_string()
        .into_string()
        .map_err(|_| "The path of the socket is not UTF-8".to_owned())?;
    Ok(GuestSpec { socket, ..guest })
}
