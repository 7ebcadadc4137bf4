//! The keys of a guest as words of a command.

/// What follows `--guest`, and `tmem guest add`.
pub(crate) const KEYS: &str = "name=NAME,socket=PATH[,socket-mode=OCTAL][,socket-group=GROUP][,reserve=SIZE][,limit=SIZE][,weight=N][,swap=SIZE][,queues=N][,keep-seconds=N][,group=NAME]...[,compression=fast|dense][,dedup=auto|off|on|adaptive][,frozen=true][,memory=SIZE][,first-touch=SIZE][,memory-backing=kernel|any]";

#[cfg(test)]
mod tests {
    use tmem_control::api::GuestSpec;
    use tmem_serve::parse_guest;

    use super::*;

    /// Every key, as a refusal lists them.
    fn keys() -> Vec<String> {
        let error = parse_guest("name=a,socket=/a,nonsense=1").expect_err("no such key");
        let text = error.to_string();
        let (_, keys) = text.split_once("expected").expect("a list");
        keys.split('`')
            .skip(1)
            .step_by(2)
            .map(str::to_owned)
            .collect()
    }

    #[test]
    fn a_request_has_every_key_and_gives_back_what_was_asked_for() {
        let words = "name=vm1,socket=/run/a,socket-mode=0640,socket-group=7,reserve=1M,limit=2M,weight=3,swap=4M,queues=5,keep-seconds=6,group=web,compression=dense,dedup=adaptive,frozen=true,memory=7M,first-touch=8M,memory-backing=any";
        let guest = parse_guest(words).expect("valid");
        let sent = serde_json::to_value(&guest).expect("JSON");
        assert_eq!(keys().len(), 17);
        for key in keys() {
            let field = key.replace('-', "_");
            assert!(sent.get(&field).is_some(), "{key}: {sent}");
        }
        let came: GuestSpec = serde_json::from_value(sent).expect("a request");
        assert_eq!(came, guest);
    }

    #[test]
    fn a_client_cannot_write_numbers_as_an_operator_does() {
        for body in [
            r#"{"name":"a","reserve":"512M"}"#,
            r#"{"name":"a","reserve":"5"}"#,
            r#"{"name":"a","reserve":null}"#,
            r#"{"name":"a","weight":"3"}"#,
            r#"{"name":"a","socket_mode":432}"#,
            r#"{"name":"a","socket_mode":"0o660"}"#,
            r#"{"name":"a","socket_group":"root"}"#,
            r#"{"name":"a","socket-group":0}"#,
        ] {
            assert!(serde_json::from_str::<GuestSpec>(body).is_err(), "{body}");
        }
        let body =
            r#"{"name":"a","reserve":5e3,"weight":3.0,"socket_mode":"660","socket_group":0}"#;
        let guest: GuestSpec = serde_json::from_str(body).expect("a guest");
        assert_eq!((guest.reserve, guest.weight), (Some(5000), Some(3)));
        assert_eq!(
            (guest.socket_mode, guest.socket_group),
            (Some(0o660), Some(0))
        );
    }

    #[test]
    fn the_help_names_every_key() {
        for key in keys() {
            let word = match key.as_str() {
                "groups" => "group=".to_owned(),
                key => format!("{key}="),
            };
            assert!(KEYS.contains(&word), "{key}");
        }
    }
}
