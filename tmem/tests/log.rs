//! The log of `tmem serve`: errors are in it, whatever else happens.

mod service;

use std::os::unix::net::UnixStream;

use service::{Serve, eventually};
use tmem_control::Client;
use tmem_testkit::frontend::TestGuest;
use tmem_testkit::raw::{self, Raw};

const GUESTS: &str = "
[[guest]]
name = 'a'
socket = 'DIR/a'
[[guest]]
name = 'b'
socket = 'DIR/b'
";

fn connections(serve: &Serve, name: &str) -> bool {
    let stats = Client::new(serve.path("control")).stats().expect("answers");
    let domain = stats.domains.into_iter().find(|domain| domain.name == name);
    domain.expect("is there").device.is_some()
}

/// Connects and sends a message that no front end sends.
fn misbehaves(serve: &Serve, name: &str) {
    let bad = Raw::open(&serve.path(name));
    bad.send(raw::GET_FEATURES, &[0; 9], &[]);
    drop(bad);
    eventually("cut off", || !connections(serve, name));
}

fn bad_messages(serve: &Serve, name: &str) -> usize {
    let line = format!("Guest {name}: Bad message");
    serve.log().matches(&line).count()
}

#[test]
fn a_bad_message_is_in_the_log_after_any_number_of_clean_connections() {
    let serve = Serve::configured("64M", GUESTS, |_| {});
    for _ in 0..15 {
        drop(TestGuest::boot(&serve.path("a")));
        eventually("disconnected", || !connections(&serve, "a"));
    }
    misbehaves(&serve, "a");
    eventually("in the log", || bad_messages(&serve, "a") == 1);
}

#[test]
fn a_guest_that_fills_its_log_takes_no_line_from_another() {
    let serve = Serve::configured("64M", GUESTS, |_| {});
    for _ in 0..30 {
        misbehaves(&serve, "a");
    }
    misbehaves(&serve, "b");
    eventually("in the log", || bad_messages(&serve, "b") == 1);
    // And that is why it is limited at all.
    let lines = bad_messages(&serve, "a");
    assert!((1..=20).contains(&lines), "{lines} lines");
    UnixStream::connect(serve.path("a")).expect("is still served");
}
