//! `tmem run` with bad input: one clear line, the exit code, nothing left behind. None of it needs KVM.

use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output};

/// A file with an ELF kernel of one byte, so that what comes after the kernel can be wrong.
fn kernel(dir: &Path) -> String {
    let mut bytes = vec![0u8; 64 + 56];
    bytes[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    for (at, value) in [
        (16, 2),
        (18, 62),
        (27, 1),
        (32, 64),
        (52, 64),
        (54, 56),
        (56, 1),
    ] {
        bytes[at] = value;
    }
    for (at, value) in [(64, 1), (72, 120), (64 + 27, 1), (96, 1), (105, 16)] {
        bytes[at] = value;
    }
    bytes.push(0xf4);
    let path = dir.join("vmlinux");
    std::fs::write(&path, bytes).unwrap();
    path.display().to_string()
}

fn run(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tmem"))
        .arg("run")
        .args(args)
        .output()
        .unwrap()
}

/// Asserts exit code and one line that holds each word.
fn fails(args: &[&str], code: i32, words: &[&str]) {
    let output = run(args);
    let line = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{args:?}: {line}");
    assert_eq!(line.lines().count(), 1, "{line}");
    for word in words {
        assert!(line.contains(word), "{word:?} is not in {line:?}");
    }
    assert!(output.stdout.is_empty());
}

#[test]
fn values_that_cannot_be_meant_are_usage_errors_that_name_the_option() {
    let base = ["--kernel", "k", "--initrd", "i"];
    for (option, value) in [
        ("--memory", "lots"),
        ("--memory", "1K"),
        ("--tmem", "12Q"),
        ("--cpus", "9"),
        ("--store-threads", "2"),
        ("--store-threads", "some"),
        ("--cpus", "x"),
        ("--disk", "file"),
        ("--console", "tty"),
        ("--console", "file=c,limit=1K"),
        ("--grace", "soon"),
    ] {
        fails(&[&base[..], &[option, value]].concat(), 2, &[option]);
    }
    assert_eq!(run(&["--initrd", "i"]).status.code(), Some(2));
    assert_eq!(
        run(&["--kernel", "k", "--initrd", "i", "--unknown"])
            .status
            .code(),
        Some(2)
    );
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let good = kernel(dir.path());
    let file = |name: &str, len: u64| {
        let path = dir.path().join(name);
        std::fs::File::create(&path).unwrap().set_len(len).unwrap();
        path.display().to_string()
    };
    fails(
        &["--kernel", "/nonexistent/k", "--initrd", "i"],
        1,
        &["/nonexistent/k"],
    );
    let truncated = dir.path().join("truncated");
    std::fs::write(&truncated, &std::fs::read(&good).unwrap()[..100]).unwrap();
    fails(
        &["--kernel", truncated.to_str().unwrap(), "--initrd", "i"],
        1,
        &["truncated", "truncated:"],
    );
    fails(
        &["--kernel", &file("zeros", 9000), "--initrd", "i"],
        1,
        &["zeros", "neither"],
    );
    fails(
        &["--kernel", &good, "--initrd", "/nonexistent/i"],
        1,
        &["/nonexistent/i"],
    );
    let big = file("big", 1 << 30);
    fails(
        &["--kernel", &good, "--initrd", &big, "--memory", "96M"],
        1,
        &["big", "memory"],
    );
    let odd = format!("path={}", file("odd", 700));
    fails(
        &["--kernel", &good, "--initrd", &big, "--disk", &odd],
        1,
        &["odd", "700"],
    );
    fails(
        &[
            "--kernel",
            &good,
            "--initrd",
            &big,
            "--disk",
            "path=/nonexistent/d",
        ],
        1,
        &["/nonexistent/d"],
    );
    let small = file("small", 512);
    for (console, why) in [
        ("/nonexistent/c", "No such file"),
        ("/dev/null", "not a regular file"),
    ] {
        fails(
            &[
                "--kernel",
                &good,
                "--initrd",
                &small,
                "--console",
                &format!("file={console}"),
            ],
            1,
            &["console", console, why],
        );
    }
}

#[test]
fn a_control_socket_is_replaced_when_nobody_listens_and_never_otherwise() {
    let dir = tempfile::tempdir().unwrap();
    let good = kernel(dir.path());
    let there = dir.path().join("there");
    std::fs::write(&there, "mine").unwrap();
    let base = ["--kernel", &good, "--initrd", "/nonexistent/i", "--control"];
    fails(
        &[&base[..], &[there.to_str().unwrap()]].concat(),
        1,
        &["there", "is not a socket"],
    );
    assert_eq!(std::fs::read(&there).unwrap(), b"mine");
    let used = dir.path().join("used");
    let listener = UnixListener::bind(&used).unwrap();
    fails(
        &[&base[..], &[used.to_str().unwrap()]].concat(),
        1,
        &["used", "in use by another process"],
    );
    // As a tmem that is killed leaves it: the guest comes as far as its initrd.
    drop(listener);
    fails(
        &[&base[..], &[used.to_str().unwrap()]].concat(),
        1,
        &["/nonexistent/i"],
    );
    assert!(!used.exists(), "what was replaced goes with its owner");
    let long = dir.path().join("x".repeat(120));
    fails(
        &[&base[..], &[long.to_str().unwrap()]].concat(),
        1,
        &["Control socket path", "107"],
    );
    let socket = dir.path().join("socket");
    fails(
        &[&base[..], &[socket.to_str().unwrap()]].concat(),
        1,
        &["/nonexistent/i"],
    );
    assert!(
        !socket.exists(),
        "the socket of a start that failed is gone"
    );
}

#[test]
fn the_help_lists_the_exit_codes() {
    let output = run(&["--help"]);
    let help = String::from_utf8_lossy(&output.stdout).into_owned();
    for line in ["Exit codes:", "  34 ", "  128+N "] {
        assert!(help.contains(line), "no {line:?} in:\n{help}");
    }
}

#[test]
fn a_machine_without_hardware_virtualization_is_refused_in_one_line() {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    if cpuinfo.contains(" svm") || cpuinfo.contains(" vmx") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let initrd = dir.path().join("initrd");
    std::fs::write(&initrd, "x").unwrap();
    fails(
        &[
            "--kernel",
            &kernel(dir.path()),
            "--initrd",
            initrd.to_str().unwrap(),
        ],
        1,
        &["/dev/kvm"],
    );
}

#[test]
fn a_service_that_is_not_there_is_named_with_what_to_start() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("vm1").display().to_string();
    let base = ["--kernel", &kernel(dir.path()), "--initrd", "i"];
    fails(
        &[&base[..], &["--tmem-socket", &socket]].concat(),
        1,
        &[&socket, "tmem serve --guest"],
    );
    for (option, value, shown) in [
        ("--tmem", "1G", "--tmem <SIZE>"),
        ("--store-threads", "1", "--store-threads <auto|N>"),
    ] {
        let output = run(&[&base[..], &["--tmem-socket", &socket, option, value]].concat());
        assert_eq!(output.status.code(), Some(2));
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            text.contains("--tmem-socket") && text.contains(shown),
            "{text}"
        );
    }
}
