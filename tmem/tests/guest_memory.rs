//! The limits on the memory of a guest that is added while the service runs.

mod service;

use std::fs::File;
use std::os::fd::AsRawFd;

use rustix::process::{Pid, Signal, kill_process};
use service::{Serve, eventually};
use tmem_control::Client;
use tmem_control::api::{GuestSpec, MemoryBacking};
use tmem_protocol::Status;
use tmem_testkit::corpus::page;
use tmem_testkit::frontend::{MEMORY, TestGuest, memfd};
use tmem_testkit::raw::{self, Raw};

/// Adds a guest of this name by the command.
fn add(serve: &Serve, name: &str, more: &str) -> (Option<i32>, String) {
    let socket = serve.path(name);
    let guest = format!("name={name},socket={}{more}", socket.display());
    serve.ask(&["guest", "add", &guest])
}

/// Whether the memory of a front end is taken.
fn takes(serve: &Serve, name: &str, file: &File, len: u64) -> bool {
    let raw = Raw::open(&serve.path(name));
    let table = raw::table(&[[0, len, 1 << 28, 0]]);
    raw.ask(raw::SET_MEM_TABLE, &table, &[file.as_raw_fd()]) == Some(0)
}

#[test]
fn a_guest_that_is_added_is_bound_by_the_memory_that_it_was_given() {
    let serve = Serve::start();
    let (code, said) = add(
        &serve,
        "small",
        ",memory=2M,first-touch=1M,memory-backing=kernel",
    );
    assert_eq!(code, Some(0), "{said}");
    let file = memfd(MEMORY);
    assert!(!takes(&serve, "small", &file, MEMORY));
    assert!(takes(&serve, "small", &file, MEMORY / 2));

    // By the interface behind the command as well. Omitted settings have their defaults.
    let client = Client::new(serve.path("control"));
    let guest = |name: &str| GuestSpec {
        name: name.to_owned(),
        socket: serve.path(name).display().to_string(),
        ..GuestSpec::default()
    };
    let any = GuestSpec {
        memory_backing: Some(MemoryBacking::Any),
        ..guest("any")
    };
    client.add_guest(&any).expect("added");
    client.add_guest(&guest("plain")).expect("added");
    // Where programs can be built is a disk.
    let program = std::env::current_exe().expect("own path");
    let disk = tempfile::tempfile_in(program.parent().expect("has one")).expect("a file");
    disk.set_len(MEMORY).expect("sized");
    assert!(takes(&serve, "any", &disk, MEMORY));
    assert!(!takes(&serve, "plain", &disk, MEMORY));
    assert!(!takes(&serve, "small", &disk, MEMORY / 2));
    assert!(takes(&serve, "plain", &file, MEMORY));
}

#[test]
fn a_guest_that_is_added_has_no_more_of_its_memory_touched_than_it_was_given() {
    let serve = Serve::configured("64M", "", |_| {});
    let (code, said) = add(&serve, "vm2", ",queues=1,first-touch=1M");
    assert_eq!(code, Some(0), "{said}");
    // The second time its memory is another file. The first one is deleted, which a confined thread has to notice.
    for _ in 0..2 {
        let mut guest = TestGuest::connect_with(&serve.path("vm2"), 64 << 20);
        guest.start_rings(0);
        let pool = guest.create_pool();
        assert_eq!(guest.store(pool, 0, &page(0)), Status::Ok);
        let made = (0..1024u64).take_while(|at| {
            let place = (8 << 20) + at * 4096;
            match guest.load_to(pool, 0, place) {
                Status::Ok => true,
                status => {
                    assert_eq!(status, Status::NoMemory);
                    false
                }
            }
        });
        // Page tables and the pages of its rings are counted, too.
        let made = made.count();
        if serve.log().contains("fanotify") {
            eprintln!("NOT TESTED: there is no fanotify here, so nothing is given back");
        } else {
            assert!((200..=256).contains(&made), "{made} pages in 1 MiB");
        }
        // Pages that the guest touches itself do not count.
        let place = (8 << 20) + u64::try_from(made).expect("small") * 4096;
        guest.memory_write(place, 7);
        assert_eq!(guest.load_to(pool, 0, place), Status::Ok);
    }
}

#[test]
fn memory_that_a_guest_cannot_have_is_refused_on_one_line() {
    let mut serve = Serve::start();
    for (more, part) in [
        (",memory=much", "memory is \"much\"; it takes a size"),
        (",memory=0", "memory is 0 or more than 1T"),
        (",memory=2T", "memory is 0 or more than 1T"),
        (",first-touch=-1", "first-touch is \"-1\"; it takes a size"),
        (",memory-backing=disk", "\"kernel\" or \"any\""),
    ] {
        let (code, said) = add(&serve, "vm2", more);
        assert_eq!(code, Some(2), "{said}");
        assert!(said.contains(part) && said.lines().count() == 1, "{said}");
    }
    // A client that asks the service without the command gets the same message, or the values of the field.
    for (field, status, part) in [
        ("\"memory\":0", "400", "memory is 0 or more than 1T"),
        ("\"memory\":1099511627777", "400", "more than 1T"),
        ("\"memory\":-1", "400", "-1 is not an integer in range"),
        ("\"memory\":null", "400", "null"),
        ("\"first_touch\":\"1M\"", "400", "string \\\"1M\\\""),
        ("\"memory_backing\":\"disk\"", "400", "`kernel` or `any`"),
    ] {
        let socket = serve.path("vm2");
        let body = format!("{{\"name\":\"vm2\",\"socket\":{socket:?},{field}}}");
        let reply = post(&serve, &body);
        let found = reply.get(9..12) == Some(status) && reply.contains(part);
        assert!(found, "{field}: {reply}");
    }
    assert!(!serve.path("vm2").exists());
    kill_process(Pid::from_child(&serve.child), Signal::TERM).expect("is running");
    eventually("ends", || {
        serve.child.try_wait().is_ok_and(|end| end.is_some())
    });
}

/// The answer of the service to a request to add a guest.
fn post(serve: &Serve, body: &str) -> String {
    use std::io::{Read as _, Write as _};
    let stream = std::os::unix::net::UnixStream::connect(serve.path("control"));
    let mut stream = stream.expect("connects");
    let len = body.len();
    write!(
        stream,
        "POST /v1/guests HTTP/1.1\r\nHost: a\r\nContent-Length: {len}\r\n\r\n{body}"
    )
    .expect("sends");
    let mut reply = String::new();
    stream.read_to_string(&mut reply).expect("answers");
    reply
}
