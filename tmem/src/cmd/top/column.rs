//! The columns of the table of guests: which there are, and which fit.

use super::model::{Row, Sort};
use crate::client::plain;

/// Spaces between columns.
pub(crate) const GAP: u16 = 1;
/// Narrowest column of names.
const NAME: u16 = 8;
/// Widest column of names; a name has at most 64 bytes.
const NAME_MAX: u16 = 64;

/// A column, in the order they stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Column {
    Name,
    State,
    Used,
    Limit,
    Reserve,
    Weight,
    Freeable,
    Pages,
    Stores,
    Loads,
    Refused,
    Evicted,
    Ratio,
    StoreHalf,
    StoreMost,
    LoadHalf,
    LoadMost,
}

use Column::*;

impl Column {
    pub(crate) const ALL: [Self; 17] = [
        Name, State, Used, Limit, Reserve, Weight, Freeable, Pages, Stores, Loads, Refused,
        Evicted, Ratio, StoreHalf, StoreMost, LoadHalf, LoadMost,
    ];

    /// The ones worth most first: a narrow screen has only these.
    const BY_WORTH: [Self; 17] = [
        Name, Used, Stores, Loads, Ratio, State, LoadMost, StoreMost, Limit, Refused, Pages,
        Reserve, Weight, Freeable, Evicted, LoadHalf, StoreHalf,
    ];

    /// The columns that fit into `width` characters, in the order of [`Self::ALL`].
    pub(crate) fn fitting(width: u16) -> Vec<Self> {
        let mut left = width;
        let fits: Vec<Self> = Self::BY_WORTH
            .into_iter()
            .take_while(|column| {
                let need = if *column == Name {
                    NAME
                } else {
                    column.width() + GAP
                };
                let fits = *column == Name || need <= left;
                left = left.saturating_sub(need);
                fits
            })
            .collect();
        Self::ALL
            .into_iter()
            .filter(|column| fits.contains(column))
            .collect()
    }

    /// Names get what the others leave.
    pub(crate) fn name_width(columns: &[Self], width: u16) -> u16 {
        let others = columns.iter().filter(|column| **column != Name);
        let others: u16 = others.map(|column| column.width() + GAP).sum();
        width.saturating_sub(others).min(NAME_MAX)
    }

    pub(crate) fn width(self) -> u16 {
        match self {
            Name => NAME,
            State | Ratio => 5,
            Weight | Refused | Evicted => 6,
            _ => 7,
        }
    }

    pub(crate) fn title(self) -> &'static str {
        match self {
            Name => "NAME",
            State => "STATE",
            Used => "USED",
            Limit => "LIMIT",
            Reserve => "RESERVE",
            Weight => "WEIGHT",
            Freeable => "FREEABL",
            Pages => "PAGES",
            Stores => "STORE/s",
            Loads => "LOAD/s",
            Refused => "REF/s",
            Evicted => "EVIC/s",
            Ratio => "RATIO",
            StoreHalf => "ST 50%",
            StoreMost => "ST 99%",
            LoadHalf => "LD 50%",
            LoadMost => "LD 99%",
        }
    }

    pub(crate) fn sort(self) -> Option<Sort> {
        Some(match self {
            Name => Sort::Name,
            Used => Sort::Used,
            Pages => Sort::Pages,
            Stores => Sort::Stores,
            Loads => Sort::Loads,
            Refused => Sort::Refused,
            Ratio => Sort::Compression,
            StoreMost => Sort::StoreTime,
            LoadMost => Sort::LoadTime,
            _ => return None,
        })
    }

    pub(crate) fn text(self, row: &Row) -> String {
        match self {
            Name => plain(&row.name),
            State => match (row.frozen, row.connected) {
                (true, _) => "froze",
                (false, true) => "on",
                (false, false) => "wait",
            }
            .into(),
            Used => size(row.used),
            Limit => row.limit.map_or("-".into(), size),
            Reserve => size(row.reserve),
            Weight => count(f64::from(row.weight)),
            Freeable => size(row.freeable),
            Pages => count(row.pages as f64),
            Stores => rate(row.rates.stores),
            Loads => rate(row.rates.loads),
            Refused => rate(row.rates.refusals),
            Evicted => rate(row.rates.evictions),
            Ratio => row.compression.map_or("-".into(), ratio),
            StoreHalf => time(row.store_p50_ns),
            StoreMost => time(row.store_p99_ns),
            LoadHalf => time(row.load_p50_ns),
            LoadMost => time(row.load_p99_ns),
        }
    }
}

/// At most six characters, `1023.9G` aside.
fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    let mut units = ["B", "K", "M", "G", "T", "P", "E"].into_iter();
    let mut unit = units.next().unwrap_or_default();
    for next in units {
        if value < 1023.95 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    if unit == "B" {
        format!("{bytes}B")
    } else {
        format!("{value:.1}{unit}")
    }
}

fn count(value: f64) -> String {
    match value {
        v if v < 99_999.5 => format!("{v:.0}"),
        v if v < 9_999_500.0 => format!("{:.0}k", v / 1e3),
        v if v < 9_999_500_000.0 => format!("{:.0}M", v / 1e6),
        v => format!("{:.0e}", v),
    }
}

fn rate(value: Option<f64>) -> String {
    value.map_or("-".into(), |v| match v {
        v if v > 0.0 && v < 9.95 => format!("{v:.1}"),
        v => count(v),
    })
}

fn ratio(value: f64) -> String {
    if value < 99.95 {
        format!("{value:.1}")
    } else {
        count(value.min(99_999.0))
    }
}

fn time(nanoseconds: Option<u64>) -> String {
    nanoseconds.map_or("-".into(), |ns| match ns as f64 {
        ns if ns < 999.5 => format!("{ns:.0}ns"),
        ns if ns < 999_950.0 => format!("{:.1}us", ns / 1e3),
        ns if ns < 999_950_000.0 => format!("{:.1}ms", ns / 1e6),
        ns if ns < 999_950_000_000.0 => format!("{:.1}s", ns / 1e9),
        ns => format!("{}s", count(ns / 1e9)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_value_is_wider_than_its_column() {
        for n in 0..64 {
            for value in [1u64 << n, (1 << n) - 1, u64::MAX] {
                let row = Row {
                    used: value,
                    weight: u32::try_from(value).unwrap_or(u32::MAX),
                    pages: value,
                    compression: Some(value as f64),
                    store_p50_ns: Some(value),
                    rates: super::super::model::Rates {
                        stores: Some(value as f64),
                        refusals: Some(value as f64 / 3.0),
                        ..Default::default()
                    },
                    ..Row::default()
                };
                for column in [Used, Weight, Pages, Ratio, StoreHalf, Stores, Refused] {
                    let text = column.text(&row);
                    assert!(
                        text.len() <= column.width().into(),
                        "{column:?} {value} {text}"
                    );
                }
            }
        }
    }

    #[test]
    fn columns_never_take_more_than_there_is() {
        for width in 0..300 {
            let columns = Column::fitting(width);
            let others = columns.iter().filter(|column| **column != Name);
            let others: u16 = others.map(|column| column.width() + GAP).sum();
            assert!(others + Column::name_width(&columns, width) <= width.max(others));
            assert!(width < NAME || others + NAME <= width, "{width}");
        }
    }
}
