//! A guest whose stores a thread of the host does (`--store-threads`).

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::backends::{EXITS_PER_STORE, ratio};
use super::entry::Scenario;
use super::host::turns;
use crate::guest::{Guest, Setup};
use crate::stats::Stats;

/// The scenarios of this file, and what each runs on.
pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::on_kvm("store-thread", || stores(1)),
    Scenario::on_kvm("store-thread-two-cpus", || stores(2)),
];

/// Less than a page takes the thread: to be copied and compressed.
const NANOSECONDS_PER_PAGE: u64 = 1000;
/// Until a guest that waits is idle: its driver sends what is left.
const SETTLED: Duration = Duration::from_secs(2);
/// How long an idle guest is watched.
const IDLE: Duration = Duration::from_secs(4);

/// What the host has done up to a moment.
struct Moment {
    stats: Stats,
    /// How often the thread for stores had been given a processor.
    turns: u64,
    /// For how many nanoseconds.
    time: u64,
}

impl Moment {
    fn now(guest: &Guest) -> Result<Self> {
        let turns = turns(guest.process())?;
        let mut threads = turns
            .iter()
            .filter(|(name, _)| name.starts_with("tmem store"));
        let (_, &(turns, time)) = threads.next().context("there is no thread for stores")?;
        ensure!(
            threads.next().is_none(),
            "there are more threads for stores"
        );
        let stats = guest.stats()?;
        Ok(Self { stats, turns, time })
    }
}

/// The vCPUs store by copies, the thread does the rest, and when they are done it sleeps.
fn stores(cpus: u8) -> Result<()> {
    let setup = Setup {
        cpus,
        options: &["--store-threads", "1"],
        ..Setup::default()
    };
    let mut guest = Guest::start(
        &setup,
        &format!(
            "swap_on tmemswap0; pause begun; hog size=22M threads={cpus} kinds=text,pointer,random phases=fill,wait & \
             at_wait; pause filled; go; wait $!; echo guest work $?; splats"
        ),
    )?;
    guest.wait_for("guest pause begun")?;
    let begun = Moment::now(&guest)?;
    guest.go_on()?;
    guest.wait_for("guest pause filled")?;
    thread::sleep(SETTLED);
    let filled = Moment::now(&guest)?;
    thread::sleep(IDLE);
    let idle = Moment::now(&guest)?;
    guest.go_on()?;
    guest.finish()?.verified(1)?;

    let grown = |name: &str| filled.stats.device(name) - begun.stats.device(name);
    let (stored, loaded) = (grown("pages_stored"), grown("pages_loaded"));
    let exits = grown("doorbell_exits");
    // A load is an exit here, and stores are not.
    let per_store = ratio(exits.saturating_sub(loaded), stored).context("no page was stored")?;
    let time = filled.time - begun.time;
    println!(
        "{cpus} vCPUs: {stored} stored, {loaded} loaded, {exits} exits, {per_store:.3} a store; {} ns of the thread a store",
        time / stored
    );
    ensure!(
        stored >= 1000 && filled.stats.get("/pages") >= 1000,
        "too little was swapped to compare"
    );
    ensure!(per_store <= EXITS_PER_STORE, "{per_store:.3} exits a store");
    ensure!(
        time / stored >= NANOSECONDS_PER_PAGE,
        "the thread took {time} ns for {stored} pages: others stored them"
    );
    ensure!(
        (idle.turns, idle.time) == (filled.turns, filled.time),
        "the thread ran {} times in {IDLE:?} of an idle guest, for {} ns",
        idle.turns - filled.turns,
        idle.time - filled.time
    );
    let [before, after] = [&filled, &idle].map(|moment| moment.stats.device("doorbell_exits"));
    ensure!(
        before == after,
        "the doorbell of an idle guest rang: {before} exits, then {after}"
    );
    Ok(())
}
