//! `tmem top` in a real terminal, against a real service.

use std::fs::File;
use std::io::{Read, Write};
use std::num::NonZero;
use std::os::fd::OwnedFd;
use std::process::Child;
use std::sync::{Arc, Mutex};

use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

mod service;

use service::{Serve, bound, command, eventually};

const LINES: NonZero<u16> = NonZero::new(24).expect("not zero");
const COLUMNS: NonZero<u16> = NonZero::new(80).expect("not zero");

/// A process in a pseudo terminal of 80 by 24.
struct Top {
    child: Child,
    master: File,
    /// Held, so that the settings can be looked at after the process.
    slave: OwnedFd,
    screen: Arc<Mutex<vt100::Parser>>,
    raw: Arc<Mutex<Vec<u8>>>,
}

impl Top {
    fn start(serve: &Serve, interval: &str) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
        grantpt(&master).expect("granted");
        unlockpt(&master).expect("unlocked");
        let name = ptsname(&master, Vec::new()).expect("has a name");
        let name = name.into_string().expect("utf-8");
        let open = || {
            File::options()
                .read(true)
                .write(true)
                .open(&name)
                .expect("opens")
        };

        let slave = open();
        let size = Winsize {
            ws_row: LINES.get(),
            ws_col: COLUMNS.get(),
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&slave, size).expect("has a size");
        // A session of its own, or it would use the terminal of who runs the test.
        let child = bound("setsid")
            .arg("--ctty")
            .args([env!("CARGO_BIN_EXE_tmem"), "top", "--interval", interval])
            .arg("--control")
            .arg(serve.path("control"))
            .env("TERM", "xterm-256color")
            .stdin(open())
            .stdout(open())
            .stderr(open())
            .spawn()
            .expect("starts");
        let screen = Arc::new(Mutex::new(vt100::Parser::new(LINES, COLUMNS, 0)));
        let raw = Arc::new(Mutex::new(Vec::new()));
        let master = File::from(master);
        let mut output = master.try_clone().expect("clones");
        let (to_screen, to_raw) = (Arc::clone(&screen), Arc::clone(&raw));
        std::thread::spawn(move || {
            let mut bytes = [0u8; 4096];
            while let Ok(len @ 1..) = output.read(&mut bytes) {
                to_screen.lock().expect("whole").process(&bytes[..len]);
                to_raw.lock().expect("whole").extend(&bytes[..len]);
            }
        });
        Self {
            child,
            master,
            slave: slave.into(),
            screen,
            raw,
        }
    }

    fn contents(&self) -> String {
        self.screen.lock().expect("whole").screen().contents()
    }

    fn shows(&self, part: &str) {
        eventually(part, || self.contents().contains(part));
    }

    /// Waits for its end; the terminal is as it was.
    fn ends(mut self, code: i32) {
        let mut status = None;
        eventually("the end", || {
            status = self.child.try_wait().expect("is a child");
            status.is_some()
        });
        assert_eq!(status.and_then(|status| status.code()), Some(code));
        eventually("the terminal is given back", || {
            let parser = self.screen.lock().expect("whole");
            !parser.screen().alternate_screen() && !parser.screen().hide_cursor()
        });
        let modes = tcgetattr(&self.slave).expect("settings").local_modes;
        assert!(modes.contains(LocalModes::ICANON | LocalModes::ECHO), "raw");
    }
}

impl Drop for Top {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_screen_survives_the_service_and_gives_the_terminal_back() {
    let mut serve = Serve::start();
    let mut top = Top::start(&serve, "0.1");
    top.shows("vm1");
    top.shows("0 stores/s");
    assert!(
        top.screen
            .lock()
            .expect("whole")
            .screen()
            .alternate_screen()
    );
    serve.kill();
    top.shows("OLD FIGURES, no reply: Nothing listens");
    assert!(top.contents().contains("vm1"), "{}", top.contents());
    serve.start_again();
    eventually("new figures", || !top.contents().contains("OLD FIGURES"));
    top.shows("0 stores/s");
    // Only what changes is drawn: nothing is cleared after the first frame.
    let cleared = top
        .raw
        .lock()
        .expect("whole")
        .windows(4)
        .filter(|w| w == b"\x1b[2J")
        .count();
    assert!(cleared <= 1, "{cleared}");
    top.master.write_all(b"q").expect("takes keys");
    top.ends(0);
}

#[test]
fn every_way_out_gives_the_terminal_back() {
    let serve = Serve::start();
    for (signal, code) in [(Signal::TERM, 143), (Signal::HUP, 129), (Signal::INT, 130)] {
        let top = Top::start(&serve, "60");
        top.shows("vm1");
        kill_process(Pid::from_child(&top.child), signal).expect("is running");
        top.ends(code);
    }
    let mut top = Top::start(&serve, "60");
    top.shows("vm1");
    top.master.write_all(b"\x03").expect("takes keys");
    top.ends(0);
}

#[test]
fn one_frame_is_plain_text_with_rates_and_json_has_the_same() {
    let serve = Serve::start();
    let (code, text) = serve.ask(&["top", "--once", "--interval", "0.1"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(
        text.contains("0 stores/s") && text.contains("vm1"),
        "{text}"
    );
    assert!(
        text.chars().all(|c| c == '\n' || !c.is_control()),
        "{text:?}"
    );
    assert!(text.lines().all(|line| line.len() <= 80), "{text}");
    let (code, text) = serve.ask(&["top", "--once", "--json", "--interval", "0.1"]);
    let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((code, &json["guests"][0]["name"]), (Some(0), &"vm1".into()));
    assert_eq!(json["guests"][0]["stores_per_second"], 0.0);
}

#[test]
fn what_cannot_work_says_so_in_one_line() {
    let serve = Serve::start();
    for (arguments, part) in [
        (&["top"][..], "use tmem top --once"),
        (&["top", "--json"], "--json is for --once"),
    ] {
        let (code, text) = serve.ask(arguments);
        assert!(code == Some(2) && text.contains(part), "{text}");
    }
    let output = command(&["top", "--once", "--control", "/nowhere/x"])
        .output()
        .expect("runs");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1));
    assert!(text.starts_with("tmem: There is no control socket") && text.lines().count() == 1);
}
