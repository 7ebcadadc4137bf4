//! The keys of a guest: as words of a command, and as the fields of a request to add one. Both directions take every key by its
//! name, so a key that is new in the configuration does not compile until a request has it, too.

use tmem_base::Size;
use tmem_control::api::{self, NewGuest};
use tmem_serve::{Compression, Dedup, GuestFile, MemoryBacking};

/// What follows `--guest`, and `tmem guest add`.
pub(crate) const KEYS: &str = "name=NAME,socket=PATH[,socket-mode=OCTAL][,socket-group=GROUP][,reserve=SIZE][,limit=SIZE][,weight=N][,swap=SIZE][,queues=N][,keep-seconds=N][,group=NAME]...[,compression=fast|dense][,dedup=auto|off|on|adaptive][,frozen=true][,memory=SIZE][,first-touch=SIZE][,memory-backing=kernel|any]";

/// The request for a guest, whose socket is at `socket`.
pub(crate) fn request(guest: GuestFile, socket: String) -> NewGuest {
    let GuestFile {
        name,
        socket: _,
        socket_mode,
        socket_group,
        reserve,
        limit,
        weight,
        swap,
        queues,
        keep_seconds,
        groups,
        compression,
        dedup,
        frozen,
        memory,
        first_touch,
        memory_backing,
    } = guest;
    let bytes = |size: Option<Size>| size.map(|size| size.0);
    NewGuest {
        name,
        socket,
        socket_mode,
        socket_group,
        reserve: bytes(reserve),
        limit: bytes(limit),
        weight,
        swap: bytes(swap),
        queues,
        keep_seconds,
        groups,
        compression: compression.map(|compression| match compression {
            Compression::Fast => api::Compression::Fast,
            Compression::Dense => api::Compression::Dense,
        }),
        dedup: dedup.map(|dedup| match dedup {
            Dedup::Auto => api::Dedup::Auto,
            Dedup::Off => api::Dedup::Off,
            Dedup::On => api::Dedup::On,
            Dedup::Adaptive => api::Dedup::Adaptive,
        }),
        frozen,
        memory: bytes(memory),
        first_touch: bytes(first_touch),
        memory_backing: memory_backing.map(|backing| match backing {
            MemoryBacking::Kernel => api::MemoryBacking::Kernel,
            MemoryBacking::Any => api::MemoryBacking::Any,
        }),
    }
}

/// The guest of a request. Nothing is checked yet.
pub(crate) fn requested(guest: NewGuest) -> GuestFile {
    let NewGuest {
        name,
        socket,
        socket_mode,
        socket_group,
        reserve,
        limit,
        weight,
        swap,
        queues,
        keep_seconds,
        groups,
        compression,
        dedup,
        frozen,
        memory,
        first_touch,
        memory_backing,
    } = guest;
    GuestFile {
        name,
        socket: socket.into(),
        socket_mode,
        socket_group,
        reserve: reserve.map(Size),
        limit: limit.map(Size),
        weight,
        swap: swap.map(Size),
        queues,
        keep_seconds,
        groups,
        compression: compression.map(|compression| match compression {
            api::Compression::Fast => Compression::Fast,
            api::Compression::Dense => Compression::Dense,
        }),
        dedup: dedup.map(|dedup| match dedup {
            api::Dedup::Auto => Dedup::Auto,
            api::Dedup::Off => Dedup::Off,
            api::Dedup::On => Dedup::On,
            api::Dedup::Adaptive => Dedup::Adaptive,
        }),
        frozen,
        memory: memory.map(Size),
        first_touch: first_touch.map(Size),
        memory_backing: memory_backing.map(|backing| match backing {
            api::MemoryBacking::Kernel => MemoryBacking::Kernel,
            api::MemoryBacking::Any => MemoryBacking::Any,
        }),
    }
}

#[cfg(test)]
mod tests {
    use tmem_serve::GUEST_KEYS;

    use super::*;

    #[test]
    fn a_request_has_every_key_and_gives_back_what_was_asked_for() {
        let words = "name=vm1,socket=/run/a,socket-mode=0640,socket-group=7,reserve=1M,limit=2M,weight=3,swap=4M,queues=5,keep-seconds=6,group=web,compression=dense,dedup=adaptive,frozen=true,memory=7M,first-touch=8M,memory-backing=any";
        let guest: GuestFile = words.parse().expect("valid");
        let asked = request(guest.clone(), "/run/a".to_owned());
        let sent = serde_json::to_value(&asked).expect("JSON");
        for key in GUEST_KEYS {
            let field = key.replace('-', "_");
            assert!(sent.get(&field).is_some(), "{key}: {sent}");
        }
        let came = serde_json::from_value(sent).expect("a request");
        assert_eq!(requested(came), guest);
    }

    #[test]
    fn the_help_names_every_key() {
        for key in GUEST_KEYS {
            let word = match *key {
                "groups" => "group=".to_owned(),
                key => format!("{key}="),
            };
            assert!(KEYS.contains(&word), "{key}");
        }
    }
}
