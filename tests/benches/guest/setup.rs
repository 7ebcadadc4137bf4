//! The guest, its service, and where they run.

use std::fs;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use tmem_tests::console::Console;
use tmem_tests::service::Service;
use tmem_tests::uml::guest::{END, Guest, Setup};

use crate::floors::{self, Codec, Ideal};

/// A disk of the guest.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Disk {
    /// Name of its device.
    pub(crate) device: &'static str,
    /// What it is called here and in the report.
    pub(crate) name: &'static str,
}

const fn disk(device: &'static str, name: &'static str) -> Disk {
    Disk { device, name }
}

/// The floor: the price of a request.
pub(crate) const RAM: Disk = disk("ram1", "ram");
pub(crate) const TMEM: Disk = disk("tmemswap0", "tmem");
pub(crate) const ZRAM: Disk = disk("zram0", "zram");
pub(crate) const ZRAM_ZSTD: Disk = disk("zram1", "zram_zstd");
/// A disk on a host file, which the host's page cache has.
pub(crate) const DISK: Disk = disk("ubda", "disk");
/// The same, and the host writes each request to its own disk (`O_SYNC`) before it is done.
pub(crate) const SYNC: Disk = disk("ubdb", "disk_sync");

/// The floor first.
pub(crate) const DISKS: [Disk; 5] = [RAM, TMEM, ZRAM, ZRAM_ZSTD, DISK];
/// Those of the rounds on one processor.
pub(crate) const ONE_CPU: [Disk; 3] = [RAM, TMEM, ZRAM];
/// What `dio` calls its ways.
pub(crate) const MODES: [&str; 4] = ["random1", "random8", "sequential1", "sequential8"];
/// Those of the rounds on one processor, and of the disk that waits for the host's.
pub(crate) const FEW_MODES: [&str; 2] = ["random1", "random8"];
/// Users of swap, in the order of the table.
pub(crate) const SWAPS: [&str; 6] = ["ram", "tmem", "zram", "zram_zstd", "zswap", "disk"];

/// How much to do.
pub(crate) struct Scale {
    /// Pages of each disk that requests go to.
    pub(crate) pages: u32,
    /// Times that each disk has its turn, after one that does not count.
    pub(crate) rounds: usize,
    /// The same with guest and service on one processor.
    pub(crate) one_cpu_rounds: usize,
    /// Pages of the disk that waits for the host's.
    pub(crate) sync_pages: u32,
    /// Times that each swap disk has its turn.
    pub(crate) swap_rounds: usize,
    /// MiB that the task on swap allocates: more than is free, and less than zram can make room for in the guest.
    pub(crate) work: u32,
    /// MiB of the ram disk, which has them all the time, so that what else is free is the same for every disk.
    pub(crate) ram: u32,
    /// MiB of the guest.
    pub(crate) memory: u32,
    /// Requests of the ideal client.
    pub(crate) requests: u32,
}

impl Scale {
    pub(crate) const QUICK: Self = Self {
        pages: 1024,
        rounds: 3,
        one_cpu_rounds: 2,
        sync_pages: 32,
        swap_rounds: 1,
        work: 24,
        ram: 20,
        memory: 64,
        requests: 1000,
    };
    pub(crate) const FULL: Self = Self {
        pages: 2048,
        rounds: 15,
        one_cpu_rounds: 7,
        sync_pages: 128,
        swap_rounds: 3,
        work: 64,
        ram: 50,
        memory: 122,
        requests: 20_000,
    };
}

/// What one run found.
pub(crate) struct Measured {
    pub(crate) console: Console,
    pub(crate) codec: Codec,
    pub(crate) ideal: Ideal,
}

/// Processors that this process may use.
pub(crate) fn processors() -> Result<Vec<usize>> {
    let allowed = sched_getaffinity(None).context("cannot ask for the processors")?;
    Ok((0..CpuSet::MAX_CPU)
        .filter(|processor| allowed.is_set(*processor))
        .collect())
}

/// Load of the last minute: how much other processes may have changed what was measured.
pub(crate) fn load() -> Result<f64> {
    let text = fs::read_to_string("/proc/loadavg")?;
    let first = text.split(' ').next().context("an empty load average")?;
    first.parse().context("the load average is no number")
}

/// Says what is done now, or has been.
pub(crate) fn say(step: &str) {
    println!("{step}");
    // Lost only when there is no reader any more.
    let _ = std::io::stdout().flush();
}

fn only(processor: usize) -> CpuSet {
    let mut set = CpuSet::new();
    set.set(processor);
    set
}

/// Runs `start` on one processor, where what it starts stays.
pub(crate) fn on<T>(processor: usize, start: impl FnOnce() -> Result<T>) -> Result<T> {
    let before = sched_getaffinity(None)?;
    sched_setaffinity(None, &only(processor)).context("cannot choose a processor")?;
    let started = start();
    sched_setaffinity(None, &before)?;
    started
}

/// Moves all threads of a process to a processor.
fn move_to(processor: usize, process: u32) -> Result<()> {
    for entry in fs::read_dir(format!("/proc/{process}/task"))? {
        let thread: i32 = entry?.file_name().to_string_lossy().parse()?;
        // One that has ended since needs no processor.
        if let Err(error) = sched_setaffinity(Pid::from_raw(thread), &only(processor))
            && error != rustix::io::Errno::SRCH
        {
            return Err(error).context("cannot move a thread of the service");
        }
    }
    Ok(())
}

/// Runs all that runs on User Mode Linux.
pub(crate) fn run(scale: &Scale, [first, second]: [usize; 2]) -> Result<Measured> {
    let swap = swap_size(scale);
    let service = on(second, || {
        let settings = format!(",swap={swap}M");
        Service::start("512M", &[("vm1", &settings), ("ideal", "")])
    })?;
    let synced = service.folder().join("synced");
    fs::File::create(&synced)
        .and_then(|file| file.set_len(u64::from(scale.sync_pages) * 4096))
        .context("cannot make a disk")?;
    let words = format!(
        "tmem=1 tmem.frontswap=0 zram.num_devices=2 zswap.zpool=zsmalloc zswap.compressor=lz4 \
         zswap.max_pool_percent=50 brd.rd_size={} ubd1s={}",
        u64::from(scale.ram) * 1024,
        synced.display()
    );
    let memory = format!("{}M", scale.memory);
    let commands = script(scale);
    let setup = Setup {
        memory: &memory,
        words: &words,
        disk: Some(u64::from(swap) << 20),
        commands: &commands,
    };
    let socket = service.socket("vm1");
    let mut guest = on(first, || Guest::start(&socket, service.folder(), &setup))?;
    guest.wait_for("guest pause requests")?;
    // While the guest waits for a line, both processors are free for the floors.
    let pages = contents(&service.folder().join("vm1.disk"), scale.pages)?;
    let (codec, ideal) = on(first, || {
        // On one processor each request waits until the scheduler lets the service run.
        let requests = if first == second { 100 } else { scale.requests };
        let ideal = floors::ideal(&service.socket("ideal"), &pages, requests);
        Ok((floors::codec(&pages), ideal))
    })?;
    move_to(first, service.process())?;
    guest.go_on()?;
    guest.wait_for("guest pause one_cpu")?;
    move_to(second, service.process())?;
    guest.go_on()?;
    let console = guest.finish()?;
    ensure!(
        console.lines().iter().any(|line| line == "guest splats 0"),
        "the guest's kernel wrote warnings; the console:\n{}",
        console.lines().join("\n")
    );
    Ok(Measured {
        console,
        codec,
        ideal,
    })
}

/// MiB of each swap disk but the ram disk.
fn swap_size(scale: &Scale) -> u32 {
    scale.work * 2
}

/// What `dio` wrote to the first pages of a disk.
fn contents(path: &Path, pages: u32) -> Result<Vec<[u8; 4096]>> {
    let file = fs::File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut contents = vec![[0; 4096]; pages as usize];
    for (page, at) in contents.iter_mut().zip((0..).step_by(4096)) {
        file.read_exact_at(page, at).context("a short disk")?;
    }
    ensure!(
        contents.iter().all(|page| page != &[0; 4096]),
        "a page that was written is not on the disk"
    );
    Ok(contents)
}

/// The commands of the guest. What they print is in sections, each behind `guest pause` and the name of the one before.
fn script(scale: &Scale) -> String {
    let Scale {
        pages,
        rounds,
        one_cpu_rounds,
        sync_pages,
        swap_rounds,
        work,
        ram,
        ..
    } = *scale;
    let swap = swap_size(scale);
    let names = |disks: &[Disk]| {
        let names: Vec<&str> = disks.iter().map(|disk| disk.device).collect();
        names.join(" ")
    };
    let [disks, one_cpu] = [names(&DISKS), names(&ONE_CPU)];
    let sync = SYNC.device;
    [
        &format!("zram() {{ echo 1 >/sys/block/$1/reset; echo $2 >/sys/block/$1/comp_algorithm; echo {swap}M >/sys/block/$1/disksize; }}"),
        "zrams() { zram zram0 lz4; zram zram1 zstd; }",
        // turns ROUNDS PAGES ORDERS DISKS
        "turns() { for round in $(seq $1); do for order in $3; do for size in single cluster; do for disk in $4; do \
         dio /dev/$disk $2 $order $size heap drain; done; done; done; done; }",
        "look() { counters $1; irqs $1; }",
        // swaps NAME DEVICE
        &format!("swaps() {{ swap_on $2 && for kind in anonymous file; do alloc $1 {work} $kind; done; swapoff /dev/$2; }}"),
        "zswap() { echo $1 >/sys/module/zswap/parameters/enabled; }",
        &format!("dd if=/dev/zero of=/dev/ram1 bs=1M count={ram} oflag=direct 2>/dev/null"),
        "mount -o remount,size=1G /tmp",
        // The host gives the guest its memory page by page, when the guest first writes to it: not while it is timed.
        "dd if=/dev/zero of=/tmp/touched bs=1M count=$(awk '/MemFree/ {print int($2/1024)-8}' /proc/meminfo) 2>/dev/null; \
         rm /tmp/touched",
        "zrams",
        &format!("turns 1 {pages} 'random sequential' '{disks}' >/tmp/first"),
        "look before",
        &format!("turns {rounds} {pages} 'random sequential' '{disks}'"),
        "look after",
        &format!("turns 2 {sync_pages} random {sync}"),
        "pause requests",
        &format!("turns 1 {pages} random '{one_cpu}' >/tmp/first"),
        &format!("turns {one_cpu_rounds} {pages} random '{one_cpu}'"),
        "pause one_cpu",
        &format!(
            "for round in $(seq {swap_rounds}); do zrams; swaps ram ram1; swaps tmem tmemswap0; swaps zram zram0; \
             swaps zram_zstd zram1; zswap 1; swaps zswap ubda; zswap 0; swaps disk ubda; done"
        ),
        "splats",
        END,
    ]
    .join("; ")
}
