//! `guest-driver/include/uapi/linux/virtio_tmem.h` and this crate are one ABI: every size, offset
//! and constant of the header, as the C compiler sees it, is that of the crate, and the other way
//! round.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::mem::offset_of;
use std::path::{Path, PathBuf};
use std::process::Command;

use tmem_protocol as abi;
use tmem_protocol::{
    Config, Entry, Event, EventType, Op, Pressure, RequestHeader, Response, Status, feature,
    request,
};

fn include_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../guest-driver/include/uapi")
}

fn header_text() -> String {
    let text = fs::read_to_string(include_dir().join("linux/virtio_tmem.h")).unwrap();
    strip_comments(&text)
}

fn strip_comments(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("/*") {
        out.push_str(before);
        rest = after.split_once("*/").expect("comment ends").1;
    }
    out.push_str(rest);
    out
}

/// Names of all macros with a value.
fn macros(header: &str) -> Vec<String> {
    header
        .lines()
        .filter_map(|line| line.strip_prefix("#define "))
        .filter_map(|line| line.split_once(char::is_whitespace))
        .map(|(name, _)| name.to_owned())
        .collect()
}

/// Names of all structures with those of their fields.
fn structs(header: &str) -> Vec<(String, Vec<String>)> {
    let mut found = Vec::new();
    let mut rest = header;
    while let Some((_, after)) = rest.split_once("struct ") {
        let (name, body) = after.split_once('{').expect("structure has a body");
        let (body, after) = body.split_once("};").expect("structure ends");
        let fields = body
            .split(';')
            .filter_map(|field| field.split_whitespace().last())
            .map(|field| field.split('[').next().unwrap().to_owned())
            .collect();
        found.push((name.trim().to_owned(), fields));
        rest = after;
    }
    found
}

/// The values that the C compiler has for every macro, structure and field of the header.
fn c_values() -> BTreeMap<String, u64> {
    let header = header_text();
    let mut source =
        String::from("#include <linux/virtio_tmem.h>\n#include <stddef.h>\n#include <stdio.h>\n");
    source.push_str("#define P(name, value) printf(\"%s=%llu\\n\", name, (unsigned long long)(value))\nint main(void)\n{\n");
    for name in macros(&header) {
        writeln!(source, "P(\"{name}\", {name});").unwrap();
    }
    for (name, fields) in structs(&header) {
        writeln!(source, "P(\"sizeof {name}\", sizeof(struct {name}));").unwrap();
        for field in fields {
            writeln!(
                source,
                "P(\"{name}.{field}\", offsetof(struct {name}, {field}));\n\
                 P(\"sizeof {name}.{field}\", sizeof(((struct {name} *)0)->{field}));"
            )
            .unwrap();
        }
    }
    source.push_str("return 0;\n}\n");

    let dir = tempfile::tempdir().unwrap();
    let (file, program) = (dir.path().join("abi.c"), dir.path().join("abi"));
    fs::write(&file, source).unwrap();
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let built = Command::new(compiler)
        .args(["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-I"])
        .arg(include_dir())
        .arg("-o")
        .args([&program, &file])
        .status()
        .expect("a C compiler is installed");
    assert!(built.success(), "the header compiles without a warning");
    let output = Command::new(program).output().unwrap();
    String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| {
            let (name, value) = line.split_once('=').unwrap();
            (name.to_owned(), value.parse().unwrap())
        })
        .collect()
}

macro_rules! layout {
    ($values:ident, $c:literal, $rust:ty, { $($c_field:ident => $field:ident),* $(,)? }) => {
        $values.insert(concat!("sizeof ", $c).to_owned(), size_of::<$rust>() as u64);
        $(
            $values.insert(
                concat!($c, ".", stringify!($c_field)).to_owned(),
                offset_of!($rust, $field) as u64,
            );
            $values.insert(
                concat!("sizeof ", $c, ".", stringify!($c_field)).to_owned(),
                size_of_field(|value: &$rust| size_of_val(&value.$field)) as u64,
            );
        )*
    };
}

fn size_of_field<T: Default>(size: impl Fn(&T) -> usize) -> usize {
    size(&T::default())
}

/// The same names with the values of this crate.
fn rust_values() -> BTreeMap<String, u64> {
    let mut values: BTreeMap<String, u64> = [
        ("VIRTIO_ID_TMEM", u64::from(abi::DEVICE_ID)),
        ("VIRTIO_TMEM_F_EPHEMERAL", u64::from(feature::EPHEMERAL)),
        ("VIRTIO_TMEM_F_SHARED", u64::from(feature::SHARED)),
        ("VIRTIO_TMEM_F_EVENTS", u64::from(feature::EVENTS)),
        ("VIRTIO_TMEM_F_CREDITS", u64::from(feature::CREDITS)),
        (
            "VIRTIO_TMEM_F_STORE_QUEUES",
            u64::from(feature::STORE_QUEUES),
        ),
        ("VIRTIO_TMEM_EVENT_QUEUE", u64::from(abi::EVENT_QUEUE)),
        (
            "VIRTIO_TMEM_FIRST_REQUEST_QUEUE",
            u64::from(abi::FIRST_REQUEST_QUEUE),
        ),
        ("VIRTIO_TMEM_PAGE_SIZE", abi::PAGE_SIZE as u64),
        ("VIRTIO_TMEM_MAX_BATCH", u64::from(abi::MAX_BATCH)),
        ("VIRTIO_TMEM_MAX_DESCRIPTORS", abi::MAX_DESCRIPTORS as u64),
        ("VIRTIO_TMEM_GROUP_LEN", abi::GROUP_LEN as u64),
        ("VIRTIO_TMEM_OP_CREATE_POOL", Op::CreatePool as u64),
        ("VIRTIO_TMEM_OP_DESTROY_POOL", Op::DestroyPool as u64),
        ("VIRTIO_TMEM_OP_STORE", Op::Store as u64),
        ("VIRTIO_TMEM_OP_LOAD", Op::Load as u64),
        ("VIRTIO_TMEM_OP_INVALIDATE_PAGE", Op::InvalidatePage as u64),
        (
            "VIRTIO_TMEM_OP_INVALIDATE_OBJECT",
            Op::InvalidateObject as u64,
        ),
        (
            "VIRTIO_TMEM_POOL_EPHEMERAL",
            u64::from(request::POOL_EPHEMERAL),
        ),
        ("VIRTIO_TMEM_POOL_SHARED", u64::from(request::POOL_SHARED)),
        ("VIRTIO_TMEM_EVENT_PRESSURE", EventType::Pressure as u64),
        ("VIRTIO_TMEM_EVENT_LIMITS", EventType::Limits as u64),
        ("VIRTIO_TMEM_PRESSURE_NONE", Pressure::None as u64),
        ("VIRTIO_TMEM_PRESSURE_SOME", Pressure::Some as u64),
        ("VIRTIO_TMEM_PRESSURE_FULL", Pressure::Full as u64),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect();
    for status in Status::ALL {
        let name = format!("VIRTIO_TMEM_S_{}", status.name().to_uppercase());
        values.insert(name, status as u64);
    }
    layout!(values, "virtio_tmem_req", RequestHeader, {
        op => op, count => count, pool => pool, object => object,
    });
    layout!(values, "virtio_tmem_entry", Entry, { index => index, reserved => reserved });
    layout!(values, "virtio_tmem_resp", Response, {
        status => status, reserved => reserved, count => count, pool => pool,
    });
    layout!(values, "virtio_tmem_event", Event, {
        type => event_type, reserved => reserved, level => level, limit_bytes => limit_bytes,
        used_bytes => used_bytes,
    });
    layout!(values, "virtio_tmem_config", Config, {
        page_size => page_size, num_request_queues => num_request_queues,
        max_batch => max_batch, max_pools => max_pools, pressure => pressure,
        limit_bytes => limit_bytes, swap_bytes => swap_bytes,
        num_store_queues => num_store_queues, store_batch => store_batch, reserved => reserved,
    });
    values
}

#[test]
fn c_header_and_crate_agree_on_every_size_offset_and_constant() {
    let (c, rust) = (c_values(), rust_values());
    let names: std::collections::BTreeSet<_> = c.keys().chain(rust.keys()).collect();
    let different: Vec<String> = names
        .into_iter()
        .filter(|name| c.get(*name) != rust.get(*name))
        .map(|name| format!("{name}: C {:?}, Rust {:?}", c.get(name), rust.get(name)))
        .collect();
    assert!(different.is_empty(), "{}", different.join("\n"));
    assert!(c.len() > 70, "the header was understood: {} names", c.len());
}

#[test]
fn structures_in_the_header_have_no_hidden_padding() {
    let c = c_values();
    for (name, fields) in structs(&header_text()) {
        let sum: u64 = fields
            .iter()
            .map(|f| c[&format!("sizeof {name}.{f}")])
            .sum();
        assert_eq!(sum, c[&format!("sizeof {name}")], "{name}");
    }
}

#[test]
fn status_numbers_are_their_positions_in_the_table() {
    for (number, status) in (0u8..).zip(Status::ALL) {
        assert_eq!(u8::from(status), number);
        assert_eq!(Status::try_from(number), Ok(status));
    }
    assert!(Status::try_from(u8::from(Status::TooManyPools) + 1).is_err());
}

#[test]
fn an_operation_that_is_not_in_the_table_is_unknown() {
    for number in 0..=u16::MAX {
        let known = Op::ALL.iter().any(|op| *op as u16 == number);
        assert_eq!(Op::try_from(number).is_ok(), known, "{number}");
    }
}
