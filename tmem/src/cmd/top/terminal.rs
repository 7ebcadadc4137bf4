//! The live screen: one thread draws, others wait for keys, for signals and for replies.

use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::Signals;
use tmem_control::{Client, Stats};

use super::model::{Model, Sort};
use super::view::View;
use crate::client::explain;

/// What the drawing thread waits for.
enum Happened {
    Sampled(Box<Stats>),
    Failed(String),
    Input(Event),
    /// The terminal went away.
    InputEnded,
    Signal(i32),
}

/// Gives the terminal back, however the screen ends.
struct Screen(ratatui::DefaultTerminal);

impl Screen {
    fn enter() -> io::Result<Self> {
        // A panic in any thread ends the process: its message comes after the screen.
        let default = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            ratatui::restore();
            default(panic);
            std::process::exit(101);
        }));
        ratatui::try_init()
            .map(Self)
            .inspect_err(|_| ratatui::restore())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

/// Shows the screen until a key or a signal ends it.
pub(super) fn run(client: Client, interval: Duration, view: View) -> ExitCode {
    if !io::stdout().is_terminal() {
        return crate::client::usage("Standard output is not a terminal; use tmem top --once");
    }
    match live(client, interval, view) {
        // As a shell has it.
        Ok(signal) => {
            ExitCode::from(u8::try_from(signal).map_or(1, |n| if n > 0 { 128 + n } else { 0 }))
        }
        Err(error) => {
            eprintln!("tmem: Cannot use the terminal: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Returns the signal that ended it, or 0.
fn live(client: Client, interval: Duration, mut view: View) -> io::Result<i32> {
    // Bounded: who samples waits for who draws.
    let (send, happened) = sync_channel(16);
    // Before there is anything to be given back.
    let mut signals = Signals::new([SIGTERM, SIGHUP, SIGINT, SIGQUIT])?;
    let to = send.clone();
    spawn("signals", move || {
        for signal in &mut signals {
            if to.send(Happened::Signal(signal)).is_err() {
                return;
            }
        }
    })?;
    let mut screen = Screen::enter()?;
    let to = send.clone();
    spawn("input", move || input(&to))?;
    spawn("samples", move || sample(&client, interval, &send))?;
    let mut before = None;
    loop {
        screen.0.draw(|frame| {
            frame.render_widget(&view, frame.area());
        })?;
        match next(&happened) {
            Happened::Sampled(stats) => {
                view.show(Model::new(before.as_deref(), &stats));
                before = Some(stats);
            }
            Happened::Failed(why) => {
                // Values after a gap are not compared with values before it.
                before = None;
                view.trouble = Some(why);
            }
            Happened::Input(event) => {
                let page = isize::try_from(screen.0.size()?.height.saturating_sub(7)).unwrap_or(1);
                if !act(&mut view, &event, page) {
                    return Ok(0);
                }
            }
            Happened::InputEnded => return Err(io::ErrorKind::BrokenPipe.into()),
            Happened::Signal(signal) => return Ok(signal),
        }
    }
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new()
        .name(name.into())
        .spawn(body)
        .map(drop)
}

fn next(happened: &Receiver<Happened>) -> Happened {
    happened.recv().unwrap_or(Happened::InputEnded)
}

fn input(to: &SyncSender<Happened>) {
    loop {
        let happened = event::read().map_or(Happened::InputEnded, Happened::Input);
        let ended = matches!(happened, Happened::InputEnded);
        if to.send(happened).is_err() || ended {
            return;
        }
    }
}

fn sample(client: &Client, interval: Duration, to: &SyncSender<Happened>) {
    loop {
        let happened = match client.stats() {
            Ok(stats) => Happened::Sampled(Box::new(stats)),
            Err(error) => Happened::Failed(explain(&error)),
        };
        if to.send(happened).is_err() {
            return;
        }
        std::thread::sleep(interval);
    }
}

/// Does what a key says; `false` ends the screen.
pub(super) fn act(view: &mut View, event: &Event, page: isize) -> bool {
    let Event::Key(key) = event else {
        // A new size: drawn again.
        return true;
    };
    if key.kind == KeyEventKind::Release {
        return true;
    }
    match key.code {
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return false,
        KeyCode::Char('q') | KeyCode::Esc => return false,
        KeyCode::Char('n') => view.sort_by(Sort::Name),
        KeyCode::Char('u') => view.sort_by(Sort::Used),
        KeyCode::Char('p') => view.sort_by(Sort::Pages),
        KeyCode::Char('s') => view.sort_by(Sort::Stores),
        KeyCode::Char('l') => view.sort_by(Sort::Loads),
        KeyCode::Char('r') => view.sort_by(Sort::Refused),
        KeyCode::Char('c') => view.sort_by(Sort::Compression),
        KeyCode::Char('t') => view.sort_by(Sort::StoreTime),
        KeyCode::Char('T') => view.sort_by(Sort::LoadTime),
        KeyCode::Up => view.scroll(-1),
        KeyCode::Down => view.scroll(1),
        KeyCode::PageUp => view.scroll(-page),
        KeyCode::PageDown => view.scroll(page),
        KeyCode::Home => view.scroll(isize::MIN),
        KeyCode::End => view.scroll(isize::MAX),
        _ => {}
    }
    true
}

#[cfg(test)]
mod tests {
    use ratatui::crossterm::event::KeyEvent;

    use super::*;

    fn press(view: &mut View, code: KeyCode, modifiers: KeyModifiers) -> bool {
        act(view, &Event::Key(KeyEvent::new(code, modifiers)), 5)
    }

    #[test]
    fn q_and_control_c_end_it_and_c_alone_sorts() {
        let mut view = View::default();
        assert!(!press(&mut view, KeyCode::Char('q'), KeyModifiers::NONE));
        assert!(!press(&mut view, KeyCode::Char('c'), KeyModifiers::CONTROL));
        assert!(press(&mut view, KeyCode::Char('c'), KeyModifiers::NONE));
        assert_eq!(view.sort, Sort::Compression);
        assert!(press(&mut view, KeyCode::Char('z'), KeyModifiers::NONE));
        assert!(press(&mut view, KeyCode::PageUp, KeyModifiers::NONE));
        assert!(press(&mut view, KeyCode::Home, KeyModifiers::NONE));
        assert_eq!(view.first, 0);
    }
}
