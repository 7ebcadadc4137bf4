//! `tmem guest add` and `tmem guest remove`: guests come and go while others are served.

use std::process::ExitCode;

use tmem_control::Client;
use tmem_control::operate::{self, NewGuest};
use tmem_serve::{Compression, Dedup, GuestConfig, GuestFile};

use crate::reply::{self, Target};

/// Arguments of `tmem guest`.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Serve one more guest
    Add {
        /// The guest, as after --guest of `tmem serve`
        #[arg(
            value_name = "name=NAME,socket=PATH[,reserve=SIZE][,limit=SIZE][,weight=N][,swap=SIZE][,queues=N][,keep-seconds=N][,group=NAME]...[,compression=fast|dense][,dedup=auto|off|on|adaptive][,frozen=true]"
        )]
        guest: String,
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
        Action::Add { guest, target } => {
            let guest = match new_guest(&guest) {
                Ok(guest) => guest,
                Err(message) => return reply::usage(&message),
            };
            let reply = Client::new(target.control).add_guest(&guest);
            reply::finish(target.json, reply, |domain| {
                format!("{}: {}\n", reply::plain(&domain.name), guest.socket)
            })
        }
        Action::Remove { name, target } => {
            let reply = Client::new(target.control).remove_guest(&name);
            reply::finish(target.json, reply, |()| format!("{name}: removed\n"))
        }
    }
}

fn new_guest(text: &str) -> Result<NewGuest, String> {
    let file: GuestFile = text.parse().map_err(|error| format!("{error}"))?;
    let checked = GuestConfig::try_from(file.clone()).map_err(|error| format!("{error}"))?;
    // Relative to where this command runs, not to where the service does.
    let socket = std::path::absolute(&checked.socket)
        .map_err(|error| format!("Cannot find {}: {error}", checked.socket.display()))?;
    Ok(NewGuest {
        name: checked.name,
        socket: socket
            .into_os_string()
            .into_string()
            .map_err(|_| "The path of the socket is not UTF-8".to_owned())?,
        reserve: file.reserve.map(|size| size.0),
        limit: file.limit.map(|size| size.0),
        weight: file.weight,
        swap: file.swap.map(|size| size.0),
        queues: file.queues,
        keep_seconds: file.keep_seconds,
        groups: file.groups,
        compression: file.compression.map(|compression| match compression {
            Compression::Fast => operate::Compression::Fast,
            Compression::Dense => operate::Compression::Dense,
        }),
        dedup: file.dedup.map(|dedup| match dedup {
            Dedup::Auto => operate::Dedup::Auto,
            Dedup::Off => operate::Dedup::Off,
            Dedup::On => operate::Dedup::On,
            Dedup::Adaptive => operate::Dedup::Adaptive,
        }),
        frozen: file.frozen,
    })
}
