//! `tmem run --mlock`, as far as that goes without KVM.

use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::process::{Resource, Rlimit, geteuid, setrlimit};

/// Of a run of `tmem run` with 64 KiB of memory that may be locked, as a user without privileges.
fn said(more: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tmem"));
    command.args(["run", "--kernel=/no/kernel", "--initrd=/no/initrd"]);
    command.args(more);
    if geteuid().is_root() {
        command.uid(65_534).gid(65_534);
    }
    let limit = Rlimit {
        current: Some(64 << 10),
        maximum: Some(64 << 10),
    };
    // SAFETY: one system call between fork and exec.
    unsafe { command.pre_exec(move || Ok(setrlimit(Resource::Memlock, limit)?)) };
    let output = command.output().expect("runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), said)
}

#[test]
fn a_guest_whose_pages_cannot_be_locked_in_memory_does_not_start_and_says_what_to_do() {
    let what = "has to be unlimited";
    let (code, error) = said(&["--tmem=64M", "--mlock"]);
    assert_eq!(code, Some(1), "{error}");
    assert!(error.contains(what), "{error}");
    let (code, error) = said(&["--tmem=64M"]);
    assert_eq!(code, Some(1), "there is no such kernel: {error}");
    assert!(!error.contains(what), "{error}");
    let (code, error) = said(&["--mlock"]);
    assert_eq!(code, Some(2), "{error}");
    assert!(error.contains("--mlock: "), "{error}");
}
