//! The screen as a grid of characters: the same for the terminal, for one text frame, and in tests.

use ratatui::buffer::Buffer;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::Widget;
use tmem_base::Bytes;

use super::column::{Column, GAP};
use super::model::{Model, Sort};
use crate::client::plain;
use crate::units::Duration;

/// Longest budget bar.
const BAR: usize = 40;

/// The state that determines the drawn screen.
#[derive(Debug, Default)]
pub(crate) struct View {
    /// The last state that is known.
    pub(crate) model: Option<Model>,
    /// Why there is no newer one.
    pub(crate) trouble: Option<String>,
    /// The key by which guests are sorted.
    pub(crate) sort: Sort,
    /// Least first.
    pub(crate) reverse: bool,
    /// First guest shown.
    pub(crate) first: usize,
    /// Whether a user can press keys.
    pub(crate) live: bool,
}

impl View {
    /// Takes a new state.
    pub(crate) fn show(&mut self, model: Model) {
        self.model = Some(model);
        self.trouble = None;
        self.arrange();
    }

    /// Sorts by another key, or by the same the other way round.
    pub(crate) fn sort_by(&mut self, sort: Sort) {
        self.reverse = sort == self.sort && !self.reverse;
        self.sort = sort;
        self.arrange();
    }

    /// Sorts again.
    pub(crate) fn arrange(&mut self) {
        if let Some(model) = &mut self.model {
            model.sort(self.sort, self.reverse);
        }
    }

    /// Lines that show everything.
    pub(crate) fn full_height(&self) -> u16 {
        let guests = self.model.as_ref().map_or(0, |model| model.guests.len());
        u16::try_from(guests.saturating_add(5)).unwrap_or(u16::MAX)
    }

    /// Moves by some guests, and not beyond the last.
    pub(crate) fn scroll(&mut self, by: isize) {
        let last = self
            .model
            .as_ref()
            .map_or(0, |m| m.guests.len().saturating_sub(1));
        self.first = self.first.saturating_add_signed(by).min(last);
    }

    fn guests(&self, model: &Model, area: Rect, buffer: &mut Buffer) {
        let columns = Column::fitting(area.width);
        let names = Column::name_width(&columns, area.width);
        let mut rows = area.rows();
        let Some(head) = rows.next() else { return };
        let cell =
            |column: &Column, text: &str, row: Rect, x: &mut u16, buffer: &mut Buffer, style| {
                let width = if *column == Column::Name {
                    names
                } else {
                    column.width()
                };
                let place = Rect {
                    x: row.x.saturating_add(*x),
                    width,
                    ..row
                }
                .intersection(row);
                let text = clip(text, width.into());
                let line = Line::styled(text, style);
                let line = if *column == Column::Name {
                    line
                } else {
                    line.right_aligned()
                };
                line.render(place, buffer);
                *x = x.saturating_add(width).saturating_add(GAP);
            };
        let title = Style::new().add_modifier(Modifier::REVERSED);
        buffer.set_style(head, title);
        let mut x = 0;
        for column in &columns {
            let style = if column.sort() == Some(self.sort) {
                title.add_modifier(Modifier::BOLD | Modifier::UNDERLINED)
            } else {
                title
            };
            cell(column, column.title(), head, &mut x, buffer, style);
        }
        if model.guests.is_empty() {
            let text = "no guests";
            if let Some(row) = rows.next() {
                Line::raw(text).render(row, buffer);
            }
            return;
        }
        let shown = usize::from(area.height.saturating_sub(1));
        let first = self.first.min(model.guests.len().saturating_sub(shown));
        for (guest, row) in model.guests.iter().skip(first).zip(rows) {
            let mut x = 0;
            let style = match (guest.frozen, guest.connected) {
                (true, _) => Style::new().fg(Color::Cyan),
                (false, false) => Style::new().add_modifier(Modifier::DIM),
                _ => Style::new(),
            };
            for column in &columns {
                cell(column, &column.text(guest), row, &mut x, buffer, style);
            }
        }
    }

    fn status(&self, shown: u16) -> String {
        let Some(model) = &self.model else {
            return String::new();
        };
        let total = &model.total;
        let rate = |value: Option<f64>| value.map_or("-".into(), |value| format!("{value:.0}"));
        let ratio = total
            .compression
            .map_or(String::new(), |ratio| format!(", {ratio:.1} to 1"));
        let connected = model.guests.iter().filter(|guest| guest.connected).count();
        let more = if usize::from(shown) < model.guests.len() {
            " (more below)"
        } else {
            ""
        };
        let rates = if model.interval_seconds.is_some() {
            format!(
                "; {} stores/s, {} loads/s, {} refused/s",
                rate(total.rates.stores),
                rate(total.rates.loads),
                rate(total.rates.refusals)
            )
        } else {
            "; rates need two samples".into()
        };
        format!(
            "{} guests{more}, {connected} connected{ratio}{rates}",
            model.guests.len()
        )
    }
}

impl Widget for &View {
    fn render(self, area: Rect, buffer: &mut Buffer) {
        let foot = u16::from(self.live && area.height > 6);
        let [title, memory, status, trouble, guests, keys] = Layout::vertical([
            Constraint::Length(1),
            Constraint::Length(1),
            Constraint::Length(1),
            Constraint::Length(1),
            Constraint::Min(0),
            Constraint::Length(foot),
        ])
        .areas(area);
        let bold = Style::new().add_modifier(Modifier::BOLD);
        if let Some(model) = &self.model {
            let text = format!(
                "tmem {}, up {}",
                plain(&model.version),
                Duration(model.uptime_seconds)
            );
            Line::styled(text, bold).render(title, buffer);
            Line::raw(budget(model, memory.width)).render(memory, buffer);
            let text = clip(
                &self.status(guests.height.saturating_sub(1)),
                status.width.into(),
            );
            Line::raw(text).render(status, buffer);
            self.guests(model, guests, buffer);
        } else {
            Line::styled("tmem top", bold).render(title, buffer);
            if self.trouble.is_none() {
                Line::raw("waiting for the first reply").render(memory, buffer);
            }
        }
        if let Some(text) = &self.trouble {
            let text = match self.model {
                Some(_) => format!("OLD FIGURES, no reply: {}", plain(text)),
                None => format!("no reply: {}", plain(text)),
            };
            let style = Style::new().fg(Color::Red).add_modifier(Modifier::BOLD);
            Line::styled(clip(&text, trouble.width.into()), style).render(trouble, buffer);
        }
        if foot > 0 {
            let text =
                "q quit  sort: n)ame u)sed p)ages s)tores l)oads r)efused c)omp t)ime T load time";
            Line::styled(text, Style::new().add_modifier(Modifier::DIM)).render(keys, buffer);
        }
    }
}

/// `memory [####....] 12.0 MiB of 1.0 GiB, 3.0 MiB freeable, 1.0 MiB saved`
fn budget(model: &Model, width: u16) -> String {
    let percent = if model.budget == 0 {
        0.0
    } else {
        model.used as f64 / model.budget as f64
    };
    let mut text = format!(
        "{} of {} ({:.0} %)",
        Bytes(model.used),
        Bytes(model.budget),
        percent * 100.0
    );
    for (bytes, what) in [(model.freeable, "freeable"), (model.saved, "shared")] {
        let more = format!(", {} {what}", Bytes(bytes));
        if bytes > 0 && text.len() + more.len() + 20 < width.into() {
            text += &more;
        }
    }
    let room = usize::from(width).saturating_sub(text.len() + 10).min(BAR);
    if room < 5 {
        return text;
    }
    // A fraction of a budget that was shrunk may be above 1.
    let full = (0..room)
        .filter(|n| (*n as f64 + 0.5) / (room as f64) < percent)
        .count();
    format!(
        "memory [{}{}] {text}",
        "#".repeat(full),
        ".".repeat(room - full)
    )
}

/// At most `width` characters, the last a `~` where some are missing.
fn clip(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(width.saturating_sub(1)).collect();
    if width > 0 {
        short.push('~');
    }
    short
}

/// The view as lines of plain text.
pub(crate) fn text(view: &View, width: u16) -> String {
    let area = Rect::new(0, 0, width, view.full_height());
    let mut buffer = Buffer::empty(area);
    view.render(area, &mut buffer);
    let mut text = String::new();
    for row in area.rows() {
        let line: String = row
            .positions()
            .filter_map(|place| buffer.cell(place))
            .map(ratatui::buffer::Cell::symbol)
            .collect();
        let line = line.trim_end();
        // The line for trouble.
        if !line.is_empty() {
            text += line;
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::super::model::tests::stats;
    use super::*;

    fn view(guests: u64) -> View {
        let mut view = View {
            live: true,
            ..View::default()
        };
        view.show(Model::new(Some(&stats(guests, 10)), &stats(guests, 11)));
        view
    }

    fn screen(view: &View, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal");
        terminal
            .draw(|frame| frame.render_widget(view, frame.area()))
            .expect("draws");
        let buffer = terminal.backend().buffer();
        buffer
            .area
            .rows()
            .map(|row| {
                row.positions()
                    .map(|p| buffer[p].symbol())
                    .collect::<String>()
                    .trim_end()
                    .to_owned()
            })
            .collect()
    }

    #[test]
    fn at_80_by_24_all_that_matters_is_there_and_aligned() {
        let lines = screen(&view(3), 80, 24);
        assert_eq!(
            lines[..8],
            [
                "tmem 0.1.0, up 11 s",
                "memory [################........................] 100.0 MiB of 256.0 MiB (39 %)",
                "3 guests, 2 connected, 4.1 to 1; 30 stores/s, 42 loads/s, 0 refused/s",
                "",
                "NAME          STATE    USED   LIMIT STORE/s  LOAD/s  REF/s RATIO  ST 99%  LD 99%",
                "vm02             on    2.3M   64.0M      20     7.0      0   4.1   8.2us       -",
                "vm01           wait    1.1M       -      10      14      0   4.1       -       -",
                "vm00             on      0B   64.0M       0      21      0     -   8.2us       -",
            ],
            "{lines:#?}"
        );
        assert!(lines[23].starts_with("q quit"), "{lines:#?}");
    }

    #[test]
    fn no_size_panics_and_none_overflows() {
        for guests in [0, 1, 64] {
            let mut view = view(guests);
            for (width, height) in [
                (0, 0),
                (1, 1),
                (3, 2),
                (7, 5),
                (40, 10),
                (80, 24),
                (200, 60),
                (500, 3),
            ] {
                let lines = screen(&view, width, height);
                assert_eq!(lines.len(), usize::from(height));
                view.trouble = Some("gone".into());
                screen(&view, width, height);
                view.trouble = None;
                let frame = text(&view, width);
                assert!(
                    frame
                        .lines()
                        .all(|line| line.chars().count() <= width.into())
                );
            }
        }
    }

    #[test]
    fn a_narrow_screen_drops_columns_and_a_wide_one_has_all() {
        let lines = screen(&view(1), 40, 10);
        assert!(
            lines[4].starts_with("NAME") && lines[4].contains("USED"),
            "{lines:#?}"
        );
        assert!(
            lines[4].contains("LOAD/s") && !lines[4].contains("WEIGHT"),
            "{lines:#?}"
        );
        let lines = screen(&view(1), 200, 60);
        for column in Column::ALL {
            assert!(lines[4].contains(column.title()), "{column:?} {lines:#?}");
        }
        assert_eq!(screen(&view(0), 80, 24)[5], "no guests");
    }

    #[test]
    fn guests_beyond_the_screen_are_reached_and_no_further() {
        let mut view = view(64);
        assert!(screen(&view, 80, 24)[2].contains("more below"));
        view.scroll(1000);
        let lines = screen(&view, 80, 24);
        assert!(lines[22].starts_with("vm00"), "{lines:#?}");
        view.scroll(-1000);
        assert!(screen(&view, 80, 24)[5].starts_with("vm63"));
        // Guests are removed while the view is at the end.
        view.scroll(63);
        view.show(Model::new(None, &stats(2, 12)));
        assert!(screen(&view, 80, 24)[5].starts_with("vm01"));
    }

    #[test]
    fn keys_sort_and_again_reverse() {
        let mut view = view(9);
        view.sort_by(Sort::Loads);
        assert!(screen(&view, 80, 24)[5].starts_with("vm00"));
        view.sort_by(Sort::Loads);
        assert!(screen(&view, 80, 24)[5].starts_with("vm08"));
    }

    #[test]
    fn names_cannot_reach_the_terminal() {
        let mut stats = stats(1, 1);
        stats.domains[0].name = "a\x1b[2J\u{9b}1m\u{202e}b\n".into();
        stats.version = "\x07".into();
        let mut view = View::default();
        view.show(Model::new(None, &stats));
        view.trouble = Some("x\x1b]0;y\x07".into());
        let frame = text(&view, 80);
        assert!(frame.contains("a?[2J?1m?b?"), "{frame}");
        assert!(
            frame.chars().all(|c| c == '\n' || !c.is_control()),
            "{frame:?}"
        );
    }

    #[test]
    fn a_service_that_is_gone_is_said_beside_the_old_figures() {
        let mut view = view(1);
        view.trouble = Some("Nothing listens".into());
        let lines = screen(&view, 80, 24);
        assert_eq!(lines[3], "OLD FIGURES, no reply: Nothing listens");
        assert!(lines[5].starts_with("vm00"), "{lines:#?}");
        let view = View {
            trouble: Some("x".into()),
            ..View::default()
        };
        assert_eq!(screen(&view, 80, 24)[3], "no reply: x");
    }
}
