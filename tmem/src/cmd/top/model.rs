//! From samples to rows. Pure: no clock, no terminal.

use std::cmp::{Ordering, Reverse};

use serde::Serialize;
use tmem_control::Stats;
use tmem_control::api::{Counters, Domain, Histogram, PAGE_SIZE};

/// The contents of the screen at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Model {
    /// Version of the tmem that answered.
    pub(crate) version: String,
    /// Its age.
    pub(crate) uptime_seconds: f64,
    /// Time between the two samples that the rates are from; `null` with one.
    pub(crate) interval_seconds: Option<f64>,
    /// Bytes that all guests may use.
    pub(crate) budget: u64,
    /// Bytes in use.
    pub(crate) used: u64,
    /// Bytes that sharing saved.
    pub(crate) saved: u64,
    /// Bytes that the host can have back at once.
    pub(crate) freeable: u64,
    /// All guests together.
    pub(crate) total: Row,
    /// The guests.
    pub(crate) guests: Vec<Row>,
}

/// One guest, or all of them.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) connected: bool,
    pub(crate) frozen: bool,
    pub(crate) used: u64,
    pub(crate) reserve: u64,
    pub(crate) limit: Option<u64>,
    pub(crate) weight: u32,
    pub(crate) freeable: u64,
    pub(crate) pages: u64,
    /// Bytes of pages as the guest sees them, for each byte that their contents take here.
    pub(crate) compression: Option<f64>,
    #[serde(flatten)]
    pub(crate) rates: Rates,
    /// Latencies of what happened between the samples.
    pub(crate) store_p50_ns: Option<u64>,
    pub(crate) store_p99_ns: Option<u64>,
    pub(crate) load_p50_ns: Option<u64>,
    pub(crate) load_p99_ns: Option<u64>,
}

/// Pages per second; `None` where two samples do not tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Rates {
    #[serde(rename = "stores_per_second")]
    pub(crate) stores: Option<f64>,
    #[serde(rename = "loads_per_second")]
    pub(crate) loads: Option<f64>,
    #[serde(rename = "refusals_per_second")]
    pub(crate) refusals: Option<f64>,
    #[serde(rename = "evictions_per_second")]
    pub(crate) evictions: Option<f64>,
}

/// What rows are sorted by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Sort {
    Name,
    #[default]
    Used,
    Pages,
    Stores,
    Loads,
    Refused,
    Compression,
    StoreTime,
    LoadTime,
}

impl Model {
    /// The state of `now`, with rates since `before` where there are any.
    pub(crate) fn new(before: Option<&Stats>, now: &Stats) -> Self {
        // The server's clock says when the counters were read. If it went back, this is a new process.
        let before = before.filter(|before| before.uptime_seconds < now.uptime_seconds);
        let seconds = before.map(|before| now.uptime_seconds - before.uptime_seconds);
        let guests: Vec<Row> = now
            .domains
            .iter()
            .map(|domain| {
                let old = before.and_then(|b| b.domains.iter().find(|d| d.name == domain.name));
                Row::new(old.zip(seconds), domain)
            })
            .collect();
        Self {
            version: now.version.clone(),
            uptime_seconds: now.uptime_seconds,
            interval_seconds: seconds,
            budget: now.budget,
            used: now.used,
            saved: now.saved,
            freeable: now.freeable,
            total: total(&guests, now),
            guests,
        }
    }

    /// Sorts the guests; equal ones by name. Unknown values come last in both directions.
    pub(crate) fn sort(&mut self, by: Sort, reverse: bool) {
        self.guests.sort_by(|a, b| {
            let order = match by {
                Sort::Name => a.name.cmp(&b.name),
                Sort::Used => b.used.cmp(&a.used),
                Sort::Pages => b.pages.cmp(&a.pages),
                Sort::Stores => return known(a.rates.stores, b.rates.stores, reverse, a, b),
                Sort::Loads => return known(a.rates.loads, b.rates.loads, reverse, a, b),
                Sort::Refused => return known(a.rates.refusals, b.rates.refusals, reverse, a, b),
                Sort::Compression => return known(a.compression, b.compression, reverse, a, b),
                Sort::StoreTime => {
                    return known(nanos(a.store_p99_ns), nanos(b.store_p99_ns), reverse, a, b);
                }
                Sort::LoadTime => {
                    return known(nanos(a.load_p99_ns), nanos(b.load_p99_ns), reverse, a, b);
                }
            };
            let order = if reverse { order.reverse() } else { order };
            order.then_with(|| a.name.cmp(&b.name))
        });
    }
}

fn nanos(value: Option<u64>) -> Option<f64> {
    value.map(|value| value as f64)
}

fn known(a: Option<f64>, b: Option<f64>, reverse: bool, left: &Row, right: &Row) -> Ordering {
    let missing = Reverse(a.is_some()).cmp(&Reverse(b.is_some()));
    let (a, b) = (a.unwrap_or_default(), b.unwrap_or_default());
    let order = if reverse {
        a.total_cmp(&b)
    } else {
        b.total_cmp(&a)
    };
    missing.then(order).then_with(|| left.name.cmp(&right.name))
}

impl Row {
    fn new(old: Option<(&Domain, f64)>, now: &Domain) -> Self {
        let before = old.map(|(domain, _)| domain);
        let device = |domain: Option<&Domain>, of: fn(&Domain) -> Option<&Histogram>| {
            domain.and_then(of).cloned()
        };
        let since = |of: fn(&Domain) -> Option<&Histogram>| {
            let (old, new) = (device(before, of)?, of(now)?);
            between(&old, new)
        };
        let store = since(|d| d.device.as_ref().map(|v| &v.store_latency));
        let load = since(|d| d.device.as_ref().map(|v| &v.load_latency));
        Self {
            name: now.name.clone(),
            connected: now.device.is_some(),
            frozen: now.frozen,
            used: now.counters.bytes_used,
            reserve: now.reserve,
            limit: now.limit,
            weight: now.weight,
            freeable: now.freeable,
            pages: now.counters.pages,
            compression: compression(now.counters.pages, now.counters.bytes_stored),
            rates: old.map_or_else(Rates::default, |(before, seconds)| {
                Rates::new(&before.counters, &now.counters, seconds)
            }),
            store_p50_ns: store.as_ref().and_then(|h| h.p50_ns),
            store_p99_ns: store.as_ref().and_then(|h| h.p99_ns),
            load_p50_ns: load.as_ref().and_then(|h| h.p50_ns),
            load_p99_ns: load.as_ref().and_then(|h| h.p99_ns),
        }
    }
}

impl Rates {
    /// A counter that went back belongs to another guest of that name, and so do all the others.
    fn new(old: &Counters, new: &Counters, seconds: f64) -> Self {
        let refusals = |c: &Counters| c.refusals.values().fold(0u64, |a, b| a.saturating_add(*b));
        let pairs = [
            (old.stores, new.stores),
            (old.loads, new.loads),
            (refusals(old), refusals(new)),
            (old.evictions, new.evictions),
            (old.load_misses, new.load_misses),
            (old.invalidates, new.invalidates),
        ];
        if seconds <= 0.0 || pairs.iter().any(|(old, new)| old > new) {
            return Self::default();
        }
        let [stores, loads, refusals, evictions, ..] =
            pairs.map(|(old, new)| Some((new - old) as f64 / seconds));
        Self {
            stores,
            loads,
            refusals,
            evictions,
        }
    }
}

fn compression(pages: u64, bytes: u64) -> Option<f64> {
    (pages > 0 && bytes > 0).then(|| pages.saturating_mul(PAGE_SIZE) as f64 / bytes as f64)
}

/// The events between two readings of one histogram; none where it cannot be the same one.
fn between(old: &Histogram, new: &Histogram) -> Option<Histogram> {
    if old.bounds_ns != new.bounds_ns || old.counts.len() != new.counts.len() {
        return None;
    }
    let counts: Option<Vec<u64>> = old
        .counts
        .iter()
        .zip(&new.counts)
        .map(|(old, new)| new.checked_sub(*old))
        .collect();
    let sum = new.sum_ns.wrapping_sub(old.sum_ns);
    Some(Histogram::new(new.bounds_ns.clone(), counts?, sum))
}

fn total(guests: &[Row], now: &Stats) -> Row {
    let add = |of: fn(&Row) -> Option<f64>| guests.iter().filter_map(of).reduce(|a, b| a + b);
    let sum = |of: fn(&Counters) -> u64| {
        let each = now.domains.iter().map(|d| of(&d.counters));
        each.fold(0u64, u64::saturating_add)
    };
    let pages = sum(|c| c.pages);
    Row {
        name: "all".into(),
        connected: guests.iter().any(|g| g.connected),
        used: now.used,
        freeable: now.freeable,
        pages,
        compression: compression(pages, sum(|c| c.bytes_stored)),
        rates: Rates {
            stores: add(|g| g.rates.stores),
            loads: add(|g| g.rates.loads),
            refusals: add(|g| g.rates.refusals),
            evictions: add(|g| g.rates.evictions),
        },
        ..Row::default()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use tmem_control::api::Device;

    use super::*;

    /// As `count` guests have it after `steps` seconds, each at a pace of its own.
    pub(crate) fn stats(count: u64, steps: u64) -> Stats {
        let domains = (0..count).map(|n| Domain {
            name: format!("vm{n:02}"),
            limit: (n % 2 == 0).then_some(64 << 20),
            weight: 100,
            counters: Counters {
                pages: 1000 * n,
                bytes_stored: 1_000_000 * n,
                bytes_used: 1_200_000 * n,
                stores: steps * n * 10,
                loads: steps * (count - n) * 7,
                ..Counters::default()
            },
            device: (n % 3 != 1).then(|| Device {
                store_latency: Histogram::new(vec![4095, 8191], vec![90 * steps, steps, 0], 0),
                ..Device::default()
            }),
            ..Domain::default()
        });
        Stats {
            version: "0.1.0".into(),
            uptime_seconds: steps as f64,
            budget: 256 << 20,
            used: 100 << 20,
            domains: domains.collect(),
            ..Stats::default()
        }
    }

    #[test]
    fn rates_are_pages_per_second_of_the_servers_clock() {
        let model = Model::new(Some(&stats(3, 10)), &stats(3, 14));
        assert_eq!(model.interval_seconds, Some(4.0));
        assert_eq!(model.guests[2].rates.stores, Some(20.0));
        assert_eq!(model.guests[2].rates.loads, Some(7.0));
        assert_eq!(model.total.rates.stores, Some(30.0));
        assert_eq!(model.guests[2].store_p50_ns, Some(4095));
        assert_eq!(model.guests[2].load_p50_ns, None);
    }

    #[test]
    fn one_sample_has_no_rates() {
        let model = Model::new(None, &stats(2, 10));
        assert_eq!(model.interval_seconds, None);
        assert!(model.guests.iter().all(|g| g.rates == Rates::default()));
        assert_eq!(model.total.rates.stores, None);
    }

    #[test]
    fn a_guest_that_is_new_or_came_back_has_no_rates_and_no_negative_ones() {
        let before = stats(3, 10);
        let mut now = stats(4, 11);
        now.domains[1].counters.stores = 3;
        now.domains[2]
            .device
            .as_mut()
            .expect("has one")
            .store_latency = Histogram::new(vec![4095, 8191], vec![5, 0, 0], 0);
        let model = Model::new(Some(&before), &now);
        assert_eq!(model.guests[1].rates, Rates::default(), "came back");
        assert_eq!(model.guests[3].rates, Rates::default(), "is new");
        assert_eq!(model.guests[2].store_p50_ns, None, "connected again");
        assert_eq!(model.guests[2].rates.stores, Some(20.0));
        let gone = Model::new(Some(&now), &stats(1, 12));
        assert_eq!(gone.guests.len(), 1);
    }

    #[test]
    fn a_service_that_started_again_has_no_rates() {
        let model = Model::new(Some(&stats(2, 100)), &stats(2, 5));
        assert_eq!(model.interval_seconds, None);
        assert_eq!(model.guests[1].rates, Rates::default());
    }

    #[test]
    fn every_key_sorts_and_what_is_unknown_comes_last() {
        let mut now = stats(4, 14);
        let mut new = now.domains[0].clone();
        new.name = "new".into();
        now.domains.push(new);
        let mut model = Model::new(Some(&stats(4, 10)), &now);
        let mut names = |by, reverse| {
            model.sort(by, reverse);
            let names: Vec<_> = model.guests.iter().map(|g| g.name.clone()).collect();
            names.join(" ")
        };
        assert_eq!(names(Sort::Name, false), "new vm00 vm01 vm02 vm03");
        assert_eq!(names(Sort::Name, true), "vm03 vm02 vm01 vm00 new");
        assert_eq!(names(Sort::Used, false), "vm03 vm02 vm01 new vm00");
        assert_eq!(names(Sort::Stores, false), "vm03 vm02 vm01 vm00 new");
        assert_eq!(names(Sort::Stores, true), "vm00 vm01 vm02 vm03 new");
        assert_eq!(names(Sort::Loads, false), "vm00 vm01 vm02 vm03 new");
        assert_eq!(names(Sort::StoreTime, false), "vm00 vm02 vm03 new vm01");
    }
}
