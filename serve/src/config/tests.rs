use super::*;
use crate::{parse_guest, parse_guest_on};

fn parse(text: &str) -> Result<Config, ConfigError> {
    let dir = tempfile::tempdir().expect("temporary folder");
    let path = dir.path().join("tmem.toml");
    std::fs::write(&path, text).expect("writes");
    Config::try_from(ConfigFile::read(&path)?)
}

fn refusal(text: &str) -> String {
    let error = parse(text).expect_err(text).to_string();
    assert!(!error.contains('\n'), "one line: {error:?}");
    error
}

#[test]
fn file_and_flags_give_the_same() {
    let file = parse(
        r#"
        memory = "4G"
        control = "/run/tmem.sock"
        statistics = "/run/tmem/stats.sock"
        statistics-mode = 0o666
        statistics-group = 7
        host-reserve = "2G"
        reserve-populate = true
        mlock = true
        [[guest]]
        name = "vm1"
        socket = "/run/tmem/vm1.sock"
        socket-mode = "0640"
        socket-group = "root"
        reserve = "256M"
        limit = 1073741824
        weight = 200
        swap = "1G"
        queues = 2
        keep-seconds = 30
        groups = ["web", "db"]
        compression = "dense"
        dedup = "off"
        frozen = true
        memory = "8G"
        first-touch = "64M"
        memory-backing = "any"
        "#,
    )
    .expect("valid");
    let flags = Config::try_from(ConfigFile {
        memory: Some("4096MiB".parse().expect("a size")),
        control: Some("/run/tmem.sock".into()),
        statistics: Some("/run/tmem/stats.sock".into()),
        statistics_mode: Some(0o666),
        statistics_group: Some(7),
        host_reserve: Some("2G".parse().expect("a size")),
        reserve_populate: Some(true),
        mlock: Some(true),
        guests: vec![
            parse_guest("name=vm1,socket=/run/tmem/vm1.sock,socket-mode=0640,socket-group=0,reserve=256M,limit=1G,weight=200,swap=1G,queues=2,keep-seconds=30,group=web,compression=dense,group=db,dedup=off,frozen=true,memory=8G,first-touch=64M,memory-backing=any")
                .expect("a guest"),
        ],
    })
    .expect("valid");
    assert_eq!(file, flags);
    assert_eq!(file.host_reserve, Some(2 << 30));
    assert!(file.reserve_populate && file.mlock);
    assert_eq!(file.guests[0].limit, Some(1 << 30));
    assert_eq!(file.guests[0].keep, Duration::from_secs(30));
    assert_eq!(file.guests[0].groups, ["web", "db"]);
    assert_eq!(file.guests[0].access, Access::new(Some(0o640), Some(0)));
    assert_eq!(file.guests[0].compression, Compression::Dense);
    assert_eq!(file.guests[0].dedup, Dedup::Off);
    assert!(file.guests[0].frozen);
    assert_eq!(file.guests[0].memory, Some(8 << 30));
    assert_eq!(file.guests[0].first_touch, Some(64 << 20));
    assert_eq!(file.guests[0].memory_backing, MemoryBacking::Any);
}

#[test]
fn the_packaged_configuration_is_valid_with_its_example_too() {
    let packaged = include_str!("../../../packaging/tmem.toml");
    assert!(parse(packaged).expect("valid").guests.is_empty());
    let example = packaged.replace("\n#", "\n").replace("\n ", "\n# ");
    assert_eq!(parse(&example).expect("valid").guests.len(), 1);
}

/// The keys that a refusal of an unknown one lists.
fn known_keys(refusal: &str) -> BTreeSet<String> {
    let (_, expected) = refusal.split_once("expected").expect(refusal);
    let keys = expected.split('`').skip(1).step_by(2);
    keys.map(str::to_owned).collect()
}

#[test]
fn the_manual_has_every_key_and_no_other() {
    let manual = include_str!("../../../packaging/tmem.toml.5");
    let keys_of = |section: &str| -> BTreeSet<String> {
        let (_, text) = manual.split_once(section).expect(section);
        let text = text.split("\n.SH").next().unwrap_or_default();
        let tags = text.split(".TP\n.B ").skip(1);
        let tags = tags.filter_map(|tag| tag.lines().next());
        tags.map(|tag| tag.replace('\\', "")).collect()
    };
    let service = known_keys(&refusal("memory = 1\nnonsense = 1"));
    assert!(service.contains("memory"), "{service:?}");
    assert_eq!(keys_of(".SH KEYS OF THE SERVICE"), service);
    let guest = parse_guest("name=a,socket=/a,nonsense=1");
    let guest = known_keys(&guest.expect_err("no such key").to_string());
    assert!(guest.contains("keep-seconds"), "{guest:?}");
    assert_eq!(keys_of(".SH KEYS OF A GUEST"), guest);
}

#[test]
fn the_example_of_the_manual_is_valid() {
    let manual = include_str!("../../../packaging/tmem.toml.5");
    let (_, example) = manual.split_once(".EX\n").expect("has one");
    let (example, _) = example.split_once(".EE").expect("has an end");
    let example = example.replace("\\(dq", "\"").replace("\\-", "-");
    assert_eq!(parse(&example).expect("valid").guests.len(), 1);
}

#[test]
fn what_is_left_out_has_a_default() {
    let config = parse("memory = 4096\n[[guest]]\nname='a'\nsocket='/a'").expect("valid");
    assert_eq!(config.control, None);
    assert_eq!(config.statistics, None);
    assert_eq!(config.host_reserve, None);
    assert!(!config.reserve_populate && !config.mlock);
    let guest = &config.guests[0];
    assert_eq!(guest.access, Access::default());
    assert_eq!((guest.reserve, guest.limit, guest.weight), (0, None, 100));
    assert_eq!(
        (guest.swap, guest.queues, guest.keep),
        (0, 4, Duration::ZERO)
    );
    assert!(guest.groups.is_empty() && !guest.frozen);
    assert_eq!(
        (guest.memory, guest.first_touch, guest.memory_backing),
        (None, None, MemoryBacking::Kernel)
    );
    assert_eq!(
        (guest.compression, guest.dedup),
        (Compression::Fast, Dedup::Auto)
    );
}

#[test]
fn a_refusal_says_on_one_line_what_is_wrong() {
    assert!(refusal("memory = 0").contains("Memory"));
    assert!(refusal("memory = '4X'").contains("4X"));
    assert!(
        refusal("memory = 1\ncontroll = '/x'").contains("line 2"),
        "typo in a key"
    );
    let guest = |rest: &str| format!("memory='1G'\n[[guest]]\nname='a'\nsocket='/a'\n{rest}");
    assert!(refusal(&guest("weight=0")).contains("weight"));
    assert!(refusal(&guest("queues=65")).contains("queues"));
    assert!(refusal(&guest("limit=0")).contains("limit"));
    assert!(refusal(&guest("reserve='2M'\nlimit='1M'")).contains("reserve"));
    assert!(refusal(&guest("reserve='2G'")).contains("reserve"));
    assert!(refusal(&guest("groups=['web','']")).contains("share group"));
    assert!(refusal(&guest("groups=['a/b']")).contains("share group"));
    assert!(refusal(&guest("groups=['abcdefghijklmnopqrstuvwxy']")).contains("24"));
    assert!(refusal(&guest("compression='more'")).contains("dense"));
    assert!(refusal(&guest("memory=0")).contains("memory"));
    assert!(refusal(&guest("memory='2T'")).contains("1T"));
    assert!(refusal(&guest("memory-backing='disk'")).contains("kernel"));
    assert!(refusal(&guest("dedup=1")).contains("line 5"));
    assert!(refusal(&guest("[[guest]]\nname='a'\nsocket='/b'")).contains("two guests"));
    assert!(refusal(&guest("[[guest]]\nname='b'\nsocket='/a'")).contains("twice"));
    assert!(refusal("memory = 1\ncontrol = '/a'\nstatistics = '/a'").contains("twice"));
    assert!(refusal(&format!("statistics = '/a'\n{}", guest(""))).contains("twice"));
    assert!(refusal(&guest("[[guest]]\nname='a/b'\nsocket='/b'")).contains("a/b"));
    assert!(refusal(&guest("[[guest]]\nname='b'\nsocket=''")).contains("Socket path"));
}

#[test]
fn a_value_of_the_wrong_kind_is_refused_by_its_key_with_what_it_takes() {
    let guest = |key: &str, value: &str| {
        let mut keys = vec![("name", "'a'"), ("socket", "'/a'")];
        keys.retain(|(known, _)| *known != key);
        let keys = keys.iter().map(|(key, value)| format!("{key} = {value}\n"));
        format!(
            "memory = 1\n[[guest]]\n{key} = {value}\n{}",
            keys.collect::<String>()
        )
    };
    let wrong = ["1.5", "true", "[[1]]", "{}", "1979-05-27", "-1", "''"];
    for (key, takes, fine) in [
        ("name", "the name of the guest", &["''"][..]),
        ("socket", "the path of a socket", &["''"]),
        ("socket-mode", "a mode in octal", &[]),
        ("socket-group", "the name of a group", &[]),
        ("reserve", "a size", &[]),
        ("limit", "a size", &[]),
        ("swap", "a size", &[]),
        ("weight", "a number from 1 to 4294967295", &[]),
        ("queues", "a number from 1 to 64", &[]),
        ("keep-seconds", "a number from 0 to 4294967295", &[]),
        ("groups", "names of share groups", &[]),
        ("compression", "\"fast\" or \"dense\"", &[]),
        ("dedup", "\"auto\", \"off\", \"on\" or \"adaptive\"", &[]),
        ("frozen", "true or false", &["true"]),
        ("memory", "a size", &[]),
        ("first-touch", "a size", &[]),
        ("memory-backing", "\"kernel\" or \"any\"", &[]),
    ] {
        for value in wrong.iter().filter(|value| !fine.contains(value)) {
            let error = refusal(&guest(key, value));
            assert!(error.contains(&format!("line 3: {key} is ")), "{error}");
            assert!(error.contains(&format!("; it takes {takes}")), "{error}");
        }
    }
    let error = refusal("memory = 1.5");
    assert!(
        error.contains("line 1: memory is 1.5; it takes a size: bytes, or"),
        "{error}"
    );
    for (key, takes) in [
        ("host-reserve", "a size"),
        ("reserve-populate", "true or false"),
        ("mlock", "true or false"),
    ] {
        let error = refusal(&format!("memory = 1\n{key} = 'much'"));
        assert!(
            error.contains(&format!("line 2: {key} is \"much\"; it takes {takes}")),
            "{error}"
        );
    }
    assert!(refusal("memory = 1\ncontrol = 2").contains("line 2: control is 2; it takes the path"));
    assert!(refusal("memory = 1\nguest = 2").contains("guest is 2; it takes tables"));
    for (key, text) in [("socket", "name = 'a'"), ("name", "socket = '/a'")] {
        let error = refusal(&format!("memory = 1\n[[guest]]\n{text}"));
        assert!(
            error.contains(&format!("line 2: {key} is missing; it takes the")),
            "{error}"
        );
    }
    let long = refusal(&format!("memory = '{}'", "9".repeat(5000)));
    assert!(long.len() < 300, "{long}");
}

#[test]
fn bad_guest_flags_are_named() {
    for (flag, part) in [
        ("name=a", "socket"),
        ("name=a,socket=/a,weight=many", "many"),
        ("name=a,socket=/a,colour=red", "colour"),
        ("name=a,socket=/a,socket-mode=u+w", "u+w"),
        ("name=a,socket=/a,socket-mode=02660", "02660"),
        (
            "name=a,socket=/a,socket-group=no-such-group",
            "no-such-group",
        ),
        ("name=a,name=b,socket=/a", "twice"),
        ("name=a,socket=/a,frozen=maybe", "maybe"),
        ("name=a,socket=/a,groups=web", "group"),
        ("name=a,socket=/a,compression=most", "most"),
        ("name", "key=value"),
    ] {
        let error = parse_guest(flag).expect_err(flag).to_string();
        assert!(error.contains(part) && !error.contains('\n'), "{error}");
    }
}

#[test]
fn a_mode_that_is_not_written_in_octal_is_refused() {
    let guest =
        |mode: &str| format!("memory=1\n[[guest]]\nname='a'\nsocket='/a'\nsocket-mode={mode}");
    for mode in ["660", "0x1b0", "0o60", "'rw-rw----'"] {
        assert!(refusal(&guest(mode)).contains("in octal"), "{mode}");
    }
}

#[test]
fn a_guest_on_a_socket_that_is_there_names_no_other() {
    let guest = parse_guest_on("name=a,weight=7", "/run/a,b").expect("valid");
    assert_eq!((guest.socket, guest.weight), ("/run/a,b".into(), Some(7)));
    let error = parse_guest_on("name=a,socket=/b", "/a").expect_err("two");
    assert!(error.to_string().contains("twice"), "{error}");
}
