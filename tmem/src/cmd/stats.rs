//! `tmem stats`: what a running tmem holds and has done, for people or as JSON.

use std::{
    fmt::{self, Display, Write as _},
    process::ExitCode,
};

use tmem_base::Bytes;
use tmem_control::{
    Client, Stats,
    api::{Counters, Device, Domain, Histogram, Host, PAGE_SIZE, Service},
};

use crate::client::{self, Target, plain};
use crate::units::{Duration, Nanoseconds};

/// Arguments of `tmem stats`.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    target: Target,
}

pub(crate) fn main(args: Args) -> ExitCode {
    let Target { control, json } = args.target;
    client::finish(json, Client::new(control).stats(), |stats| {
        Report(stats).to_string()
    })
}

/// The reply for people.
struct Report<'a>(&'a Stats);

impl Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stats = self.0;
        if let Some(service) = &stats.service {
            return write_service(f, stats, service);
        }
        writeln!(
            f,
            "tmem {}, up {}, {} of {} used",
            plain(&stats.version),
            Duration(stats.uptime_seconds),
            Bytes(stats.used),
            Bytes(stats.budget),
        )?;
        if let Some(host) = &stats.host {
            write_host(f, host)?;
        }
        if stats.domains.is_empty() {
            writeln!(f, "no guests")?;
        }
        stats.domains.iter().try_for_each(|domain| {
            writeln!(f)?;
            write_domain(f, domain)
        })
    }
}

/// Problems of the host; nothing if there are none.
fn write_host(f: &mut fmt::Formatter<'_>, host: &Host) -> fmt::Result {
    if host.short {
        writeln!(
            f,
            "the host is short of memory: {} left of {}, {} are left alone",
            Bytes(host.available),
            Bytes(host.limit),
            Bytes(host.floor)
        )?;
    }
    if host.bad_pages > 0 {
        writeln!(
            f,
            "{} pages of host memory were found bad, with the pages of guests on them",
            host.bad_pages
        )?;
    }
    Ok(())
}

fn write_service(f: &mut fmt::Formatter<'_>, stats: &Stats, service: &Service) -> fmt::Result {
    let up = Duration(stats.uptime_seconds);
    writeln!(f, "tmem {}, up {up}", stats.version)?;
    writeln!(f)?;
    writeln!(f, "pages are at the service of {}", service.socket)?;
    let state = if service.connected {
        "connected"
    } else {
        "not connected"
    };
    row(
        f,
        "state",
        format_args!("{state}, {} connections", service.connections),
    )?;
    row(
        f,
        "driver",
        format_args!("ready {} times", service.activations),
    )?;
    row(f, "faults", format_args!("{}", service.faults))?;
    row(f, "interrupts", format_args!("{}", service.interrupts))?;
    row(
        f,
        "exits",
        format_args!("{} for doorbells", service.doorbell_exits),
    )?;
    writeln!(
        f,
        "its figures: tmem stats --control with the control socket of tmem serve"
    )
}

fn write_domain(f: &mut fmt::Formatter<'_>, domain: &Domain) -> fmt::Result {
    let counters = &domain.counters;
    let frozen = if domain.frozen { " (frozen)" } else { "" };
    writeln!(f, "{}{frozen}", plain(&domain.name))?;
    row(f, "pages", format_args!("{}", holdings(counters)))?;
    row(f, "memory", format_args!("{}", Memory(domain)))?;
    row(
        f,
        "stores",
        format_args!("{}{}", counters.stores, Refusals(counters)),
    )?;
    row(
        f,
        "loads",
        format_args!("{}, {} not found", counters.loads, counters.load_misses),
    )?;
    row(f, "invalidates", format_args!("{}", counters.invalidates))?;
    if let Some(device) = &domain.device {
        write_device(f, device)?;
    }
    for pool in &domain.pools {
        let name = format!("pool {}", pool.id);
        let kind = pool.kind.as_str();
        row(
            f,
            &name,
            format_args!("{kind}, {}", holdings(&pool.counters)),
        )?;
    }
    Ok(())
}

fn write_device(f: &mut fmt::Formatter<'_>, device: &Device) -> fmt::Result {
    let per_exit = device
        .pages_per_exit
        .map_or_else(String::new, |pages| format!(", {pages:.2} pages per exit"));
    row(
        f,
        "exits",
        format_args!("{}{per_exit}", device.doorbell_exits),
    )?;
    for (name, latency) in [
        ("store time", &device.store_latency),
        ("load time", &device.load_latency),
    ] {
        if latency.count() > 0 {
            row(f, name, format_args!("{}", Latency(latency)))?;
        }
    }
    for (rule, &count) in &device.malformed {
        if count > 0 {
            row(
                f,
                "malformed",
                format_args!("{count} requests: {}", plain(rule)),
            )?;
        }
    }
    if device.queue_faults > 0 {
        row(f, "ring faults", format_args!("{}", device.queue_faults))?;
    }
    Ok(())
}

fn row(f: &mut fmt::Formatter<'_>, name: &str, value: fmt::Arguments<'_>) -> fmt::Result {
    writeln!(f, "  {name:<12} {value}")
}

/// `2000 (7.8 MiB as 2.1 MiB, 3.7 to 1), 100 same-filled, 5 raw`
fn holdings(counters: &Counters) -> String {
    let mut text = counters.pages.to_string();
    if counters.pages == 0 {
        return text;
    }
    let plain = counters.pages.saturating_mul(PAGE_SIZE);
    let _ = write!(
        text,
        " ({} as {}",
        Bytes(plain),
        Bytes(counters.bytes_stored)
    );
    if counters.bytes_stored > 0 {
        let ratio = plain as f64 / counters.bytes_stored as f64;
        let _ = write!(text, ", {ratio:.1} to 1");
    }
    text.push(')');
    for (count, what) in [(counters.same_filled, "same-filled"), (counters.raw, "raw")] {
        if count > 0 {
            let _ = write!(text, ", {count} {what}");
        }
    }
    text
}

struct Memory<'a>(&'a Domain);

impl Display for Memory<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let domain = self.0;
        write!(f, "{} used", Bytes(domain.counters.bytes_used))?;
        if let Some(limit) = domain.limit {
            write!(f, ", limit {}", Bytes(limit))?;
        }
        if domain.reserve > 0 {
            write!(f, ", reserve {}", Bytes(domain.reserve))?;
        }
        if domain.freeable > 0 {
            write!(f, ", {} freeable", Bytes(domain.freeable))?;
        }
        Ok(())
    }
}

struct Refusals<'a>(&'a Counters);

impl Display for Refusals<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (reason, &count) in &self.0.refusals {
            if count > 0 {
                write!(f, ", {count} refused: {}", plain(reason))?;
            }
        }
        Ok(())
    }
}

struct Latency<'a>(&'a Histogram);

impl Display for Latency<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let latency = self.0;
        let mean = latency.sum_ns as f64 / latency.count() as f64;
        write!(f, "{} on average", Nanoseconds(mean))?;
        for (name, bound) in [("half", latency.p50_ns), ("99 %", latency.p99_ns)] {
            if let Some(bound) = bound {
                write!(f, ", {name} within {}", Nanoseconds(bound as f64))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tmem_control::api::{Pool, PoolKind};

    use super::*;

    #[test]
    fn report_of_a_guest_at_a_service_says_where_the_figures_are() {
        let stats = Stats {
            version: "0.1.0".into(),
            uptime_seconds: 61.2,
            service: Some(Service {
                socket: "/run/tmem/vm1.sock".into(),
                connected: true,
                connections: 1,
                activations: 1,
                interrupts: 12,
                ..Service::default()
            }),
            ..Stats::default()
        };
        let expected = "\
tmem 0.1.0, up 61 s

pages are at the service of /run/tmem/vm1.sock
  state        connected, 1 connections
  driver       ready 1 times
  faults       0
  interrupts   12
  exits        0 for doorbells
its figures: tmem stats --control with the control socket of tmem serve
";
        assert_eq!(Report(&stats).to_string(), expected);
    }

    #[test]
    fn report_is_aligned_and_has_units() {
        let counters = Counters {
            pages: 2000,
            bytes_stored: 2_200_000,
            bytes_used: 2_400_000,
            same_filled: 100,
            raw: 5,
            stores: 2500,
            loads: 700,
            load_misses: 1,
            invalidates: 500,
            refusals: BTreeMap::from([("no_space".to_owned(), 3), ("frozen".to_owned(), 0)]),
            ..Counters::default()
        };
        let stats = Stats {
            version: "0.1.0".into(),
            uptime_seconds: 61.2,
            budget: 256 << 20,
            used: 2_400_000,
            saved: 0,
            freeable: 0,
            host: None,
            service: None,
            domains: vec![Domain {
                name: "guest".into(),
                limit: Some(64 << 20),
                counters: counters.clone(),
                device: Some(Device {
                    doorbell_exits: 3200,
                    pages_per_exit: Some(1.0),
                    store_latency: Histogram::new(vec![4095, 8191], vec![90, 10, 0], 300_000),
                    ..Device::default()
                }),
                pools: vec![Pool {
                    id: 0,
                    kind: PoolKind::Persistent,
                    counters,
                }],
                ..Domain::default()
            }],
            ..Stats::default()
        };
        let expected = "\
tmem 0.1.0, up 61 s, 2.3 MiB of 256.0 MiB used

guest
  pages        2000 (7.8 MiB as 2.1 MiB, 3.7 to 1), 100 same-filled, 5 raw
  memory       2.3 MiB used, limit 64.0 MiB
  stores       2500, 3 refused: no_space
  loads        700, 1 not found
  invalidates  500
  exits        3200, 1.00 pages per exit
  store time   3.0 us on average, half within 4.1 us, 99 % within 8.2 us
  pool 0       persistent, 2000 (7.8 MiB as 2.1 MiB, 3.7 to 1), 100 same-filled, 5 raw
";
        assert_eq!(Report(&stats).to_string(), expected);
    }

    #[test]
    fn a_host_that_is_short_or_bad_is_in_the_report() {
        let mut stats = Stats {
            host: Some(Host {
                limit: 300 << 20,
                available: 70 << 20,
                floor: 64 << 20,
                ..Host::default()
            }),
            ..Stats::default()
        };
        assert_eq!(Report(&stats).to_string().lines().count(), 2);
        if let Some(host) = &mut stats.host {
            (host.short, host.bad_pages) = (true, 3);
        }
        let report = Report(&stats).to_string();
        assert!(
            report.contains("short of memory: 70.0 MiB left of 300.0 MiB, 64.0 MiB are"),
            "{report}"
        );
        assert!(report.contains("3 pages of host memory were"), "{report}");
    }
}
