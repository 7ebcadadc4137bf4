//! The kernel's statistics of its memory: `/proc/meminfo`, and the limits of the cgroups that this process is in. The
//! files are opened once, because a confined thread cannot open any; after a move to another cgroup the process still
//! reads those of the old one.

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::stalls::{self, Stalls};

/// Cgroups that are looked at, from the innermost on: each has files that stay open.
const MAX_GROUPS: usize = 16;
/// More than such a file has; what comes after it is not read.
const FILE_BYTES: usize = 16 << 10;

/// The floor, memory that is left free, as part of the limit, and its bounds. It is for the tables, stacks and buffers
/// that the kernel allocates for processes there, and for memory that is taken between two measurements.
const FLOOR_PART: u64 = 32;
const FLOOR_LEAST: u64 = 8 << 20;
const FLOOR_MOST: u64 = 512 << 20;
/// Times of the floor that are left alone while processes wait for memory. A trigger alone is no reason to refuse: processes in a
/// cgroup wait for memory when they are at its limit, however much the machine has.
const STALLED_FLOORS: u64 = 2;
/// No floor was chosen.
const BY_SIZE: u64 = u64::MAX;
/// Less than this counts as nothing: it may be used up before the next measurement.
const LEAST: u64 = 256 << 10;

/// Where the state of the memory is read.
#[derive(Debug)]
pub(crate) struct MemoryInfo {
    sources: Vec<Source>,
    /// The floor that the operator chose, or [`BY_SIZE`].
    reserve: AtomicU64,
}

/// The memory of the machine or of one cgroup, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Room {
    /// Most that may be in use there.
    pub(crate) limit: u64,
    /// Can be had without ending or swapping out anything.
    pub(crate) available: u64,
    /// The floor, which is left free.
    pub(crate) floor: u64,
    /// Processes wait for memory there.
    pub(crate) stalled: bool,
}

impl Room {
    /// The default floor for so many bytes.
    fn floor_of(limit: u64) -> u64 {
        (limit / FLOOR_PART).clamp(FLOOR_LEAST, FLOOR_MOST)
    }

    /// Memory that may be used for pages.
    pub(crate) fn spare(self) -> u64 {
        let spare = self.available.saturating_sub(self.floor);
        if spare < LEAST { 0 } else { spare }
    }

    /// Memory that may be used for empty pools.
    pub(crate) fn spare_for_pools(self) -> u64 {
        self.available.saturating_sub(self.floor / 2)
    }

    /// Whether ephemeral pages must be evicted, so that no persistent page is refused: less than half a floor is left
    /// above the floor.
    pub(crate) fn is_short(self) -> bool {
        self.available < self.floor.saturating_add(self.floor / 2).max(LEAST)
    }

    /// Whether that is over: there is a whole floor above it.
    pub(crate) fn is_enough(self) -> bool {
        self.available >= self.floor.saturating_mul(2).max(2 * LEAST)
    }
}

#[derive(Debug)]
struct Source {
    /// Subject of a sentence.
    name: String,
    files: Files,
    stalls: Option<Stalls>,
}

#[derive(Debug)]
enum Files {
    Machine(File),
    Group {
        limits: Vec<File>,
        used: File,
        stat: File,
        /// The values that [`reclaimable`] adds up.
        keys: [&'static str; 2],
    },
}

impl MemoryInfo {
    /// Those of this process.
    pub(crate) fn open() -> Self {
        let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let mut memory_info = Self::open_in(
            Path::new("/proc/meminfo"),
            &groups,
            Path::new("/sys/fs/cgroup"),
        );
        memory_info.watch(Stalls::open(Path::new("/proc/pressure/memory")));
        memory_info
    }

    /// Has the machine's memory count as short when the trigger fires.
    pub(super) fn watch(&mut self, stalls: Option<Stalls>) {
        let is_machine = |source: &&mut Source| matches!(source.files, Files::Machine(_));
        if let Some(machine) = self.sources.iter_mut().find(is_machine) {
            machine.stalls = stalls;
        }
    }

    /// Leaves so many bytes alone everywhere; `None` for a part of what there is.
    pub(crate) fn leave(&self, reserve: Option<u64>) {
        let reserve = reserve.map_or(BY_SIZE, |reserve| reserve.min(BY_SIZE - 1));
        self.reserve.store(reserve, Relaxed);
    }

    /// See [`stalls::wait`].
    pub(super) fn wait(&self, wake: BorrowedFd<'_>, time: Option<Duration>) {
        let triggers = self
            .sources
            .iter()
            .filter_map(|source| source.stalls.as_ref());
        stalls::wait(wake, triggers, time);
    }

    /// Those of a machine, and of the cgroups in the text of a `/proc/PID/cgroup`. Missing files are ignored.
    pub(crate) fn open_in(meminfo: &Path, groups: &str, mount: &Path) -> Self {
        let machine = match File::open(meminfo) {
            Ok(file) => Some(Source {
                name: "The memory of this machine".to_owned(),
                files: Files::Machine(file),
                stalls: None,
            }),
            Err(error) => {
                log::warn!(
                    "Cannot open {}: {error}; pages are not refused when the machine is short of memory",
                    meminfo.display()
                );
                None
            }
        };
        let groups = folders(groups, mount)
            .into_iter()
            .take(MAX_GROUPS)
            .filter_map(|(folder, version)| Source::group(&folder, version).ok());
        Self {
            sources: machine.into_iter().chain(groups).collect(),
            reserve: AtomicU64::new(BY_SIZE),
        }
    }

    /// Reads all of them, and returns the one with the least of `what`.
    pub(crate) fn least<K: Ord>(&self, what: impl Fn(Room) -> K) -> Option<(&str, Room)> {
        self.rooms().min_by_key(|(_, room)| what(*room))
    }

    /// Reads all of them.
    pub(super) fn rooms(&self) -> impl Iterator<Item = (&str, Room)> {
        let reserve = self.reserve.load(Relaxed);
        self.sources.iter().filter_map(move |source| {
            let (limit, available) = source.files.read()?;
            let stalled = source.stalls.as_ref().is_some_and(Stalls::is_firing);
            let floor = match reserve {
                BY_SIZE => Room::floor_of(limit),
                chosen => chosen,
            };
            let room = Room {
                limit,
                available,
                floor: floor.saturating_mul(if stalled { STALLED_FLOORS } else { 1 }),
                stalled,
            };
            Some((source.name.as_str(), room))
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// The cgroups with a memory controller in a `/proc/PID/cgroup`, each with those above it.
fn folders(groups: &str, mount: &Path) -> Vec<(PathBuf, Version)> {
    let mut found = Vec::new();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else {
            continue;
        };
        let (base, version) = if controllers.is_empty() {
            (mount.to_owned(), Version::Two)
        } else if controllers.split(',').any(|name| name == "memory") {
            (mount.join("memory"), Version::One)
        } else {
            continue;
        };
        let group = Path::new(path.trim_start_matches('/'));
        // The root too: in a container it is the group of the container.
        found.extend(group.ancestors().map(|group| (base.join(group), version)));
    }
    found
}

impl Source {
    fn group(folder: &Path, version: Version) -> io::Result<Self> {
        // A group above `memory.high` is slowed down until it stands still, which is no better for a guest than its end.
        let (limits, used, keys) = match version {
            Version::One => (
                &["memory.limit_in_bytes"][..],
                "memory.usage_in_bytes",
                ["total_inactive_file", "total_active_file"],
            ),
            Version::Two => (
                &["memory.max", "memory.high"][..],
                "memory.current",
                ["inactive_file", "active_file"],
            ),
        };
        let open = |name: &&str| File::open(folder.join(name));
        Ok(Self {
            name: format!("The memory of the control group {}", folder.display()),
            files: Files::Group {
                limits: limits.iter().map(open).collect::<io::Result<_>>()?,
                used: open(&used)?,
                stat: open(&"memory.stat")?,
                keys,
            },
            stalls: match version {
                Version::One => None,
                Version::Two => Stalls::open(&folder.join("memory.pressure")),
            },
        })
    }
}

impl Files {
    /// Limit and available memory; `None` without a limit, and where the files cannot be read.
    fn read(&self) -> Option<(u64, u64)> {
        match self {
            Self::Machine(meminfo) => machine(&text(meminfo)?),
            Self::Group {
                limits,
                used,
                stat,
                keys,
            } => {
                // Version 2 says `max` where there is no limit, version 1 a number that no machine has.
                let limits = limits
                    .iter()
                    .filter_map(|file| text(file)?.trim().parse().ok());
                let limit = limits.min().filter(|limit| *limit < 1 << 60)?;
                let used: u64 = text(used)?.trim().parse().ok()?;
                let used = used.saturating_sub(reclaimable(&text(stat)?, keys));
                Some((limit, limit.saturating_sub(used)))
            }
        }
    }
}

fn text(file: &File) -> Option<String> {
    let mut bytes = vec![0; FILE_BYTES];
    let len = file.read_at(&mut bytes, 0).ok()?;
    bytes.truncate(len);
    String::from_utf8(bytes).ok()
}

fn machine(meminfo: &str) -> Option<(u64, u64)> {
    let bytes = |key: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(key))?;
        let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        kib.checked_mul(1024)
    };
    Some((bytes("MemTotal:")?, bytes("MemAvailable:")?))
}

/// File pages of a `memory.stat`, which the kernel takes back before it ends a process.
fn reclaimable(stat: &str, keys: &[&str]) -> u64 {
    let fields = stat.lines().filter_map(|line| line.split_once(' '));
    fields
        .filter(|(key, _)| keys.contains(key))
        .filter_map(|(_, bytes)| bytes.trim().parse::<u64>().ok())
        .fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// A machine of 1 GiB with 600 MiB available, and files by path below it.
    fn memory_info(groups: &str, files: &[(&str, &str)]) -> (tempfile::TempDir, MemoryInfo) {
        let dir = tempfile::tempdir().expect("temporary folder");
        let meminfo = dir.path().join("meminfo");
        std::fs::write(
            &meminfo,
            "MemTotal:  1048576 kB\nMemFree: 1 kB\nMemAvailable:   614400 kB\n",
        )
        .expect("writes");
        for (path, text) in files {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().expect("has one")).expect("makes");
            std::fs::write(path, text).expect("writes");
        }
        let memory_info = MemoryInfo::open_in(&meminfo, groups, dir.path());
        (dir, memory_info)
    }

    fn least(memory_info: &MemoryInfo) -> (&str, Room) {
        memory_info.least(Room::spare).expect("there is one")
    }

    #[test]
    fn the_machine_counts_where_there_is_no_limit() {
        let (_dir, memory_info) = memory_info(
            "0::/a\n",
            &[
                ("a/memory.max", "max\n"),
                ("a/memory.high", "max\n"),
                ("a/memory.current", "4096\n"),
                ("a/memory.stat", "anon 4096\n"),
            ],
        );
        let (name, room) = least(&memory_info);
        assert_eq!(name, "The memory of this machine");
        let expected = Room {
            limit: 1024 * MIB,
            available: 600 * MIB,
            floor: 32 * MIB,
            stalled: false,
        };
        assert_eq!(room, expected);
        assert_eq!(room.spare(), (600 - 32) * MIB);
    }

    #[test]
    fn the_tightest_group_up_to_the_root_counts_and_file_pages_are_not_in_use() {
        let (dir, memory_info) = memory_info(
            "4:cpu:/x\n0::/a/b\n",
            &[
                ("a/b/memory.max", "1073741824\n"),
                ("a/b/memory.high", "max\n"),
                ("a/b/memory.current", "104857600\n"),
                ("a/b/memory.stat", "anon 1\nfile 99\n"),
                ("a/memory.max", "max\n"),
                ("a/memory.high", "209715200\n"),
                ("a/memory.current", "157286400\n"),
                (
                    "a/memory.stat",
                    "file 1\ninactive_file 10485760\nactive_file 5242880\n",
                ),
            ],
        );
        let (name, room) = least(&memory_info);
        let folder = dir.path().join("a");
        assert_eq!(
            name,
            format!("The memory of the control group {}", folder.display())
        );
        let expected = Room {
            limit: 200 * MIB,
            available: (50 + 15) * MIB,
            floor: 8 * MIB,
            stalled: false,
        };
        assert_eq!(room, expected);
        assert_eq!(room.spare(), (65 - 8) * MIB);

        // The limit as it is now, and more in use than it allows.
        std::fs::write(folder.join("memory.high"), "10485760\n").expect("writes");
        let (_, room) = least(&memory_info);
        assert_eq!((room.available, room.spare()), (0, 0));
        let little = Room {
            available: 8 * MIB + LEAST - 1,
            ..expected
        };
        assert_eq!(little.spare(), 0);
    }

    #[test]
    fn the_first_version_of_cgroups_is_read_too() {
        let (_dir, memory_info) = memory_info(
            "3:cpu,cpuacct:/x\n2:memory:/a\n0::/\n",
            &[
                ("memory/a/memory.limit_in_bytes", "104857600\n"),
                ("memory/a/memory.usage_in_bytes", "83886080\n"),
                (
                    "memory/a/memory.stat",
                    "inactive_file 7\nactive_file 7\ntotal_inactive_file 4096\ntotal_active_file 0\n",
                ),
                ("memory/memory.limit_in_bytes", "9223372036854771712\n"),
                ("memory/memory.usage_in_bytes", "83886080\n"),
                ("memory/memory.stat", "total_inactive_file 4096\n"),
            ],
        );
        let (name, room) = least(&memory_info);
        assert!(name.ends_with("memory/a"), "{name}");
        let expected = Room {
            limit: 100 * MIB,
            available: 20 * MIB + 4096,
            floor: 8 * MIB,
            stalled: false,
        };
        assert_eq!(room, expected);
    }

    #[test]
    fn the_operator_chooses_what_is_left_alone_and_can_go_back() {
        let (_dir, memory_info) = memory_info("", &[]);
        memory_info.leave(Some(500 * MIB));
        let (_, room) = least(&memory_info);
        assert_eq!((room.spare(), room.is_short()), (100 * MIB, true));
        memory_info.leave(Some(100 * MIB));
        let (_, room) = least(&memory_info);
        assert_eq!((room.spare(), room.is_short()), (500 * MIB, false));
        assert!(room.is_enough());
        memory_info.leave(Some(u64::MAX));
        assert_eq!(least(&memory_info).1.spare_for_pools(), 0);
        memory_info.leave(None);
        assert_eq!(least(&memory_info).1.floor, 32 * MIB);
        // No floor: all available memory can be used.
        memory_info.leave(Some(0));
        assert_eq!(least(&memory_info).1.spare(), 600 * MIB);
    }

    #[test]
    fn nonsense_has_no_say() {
        let (dir, memory_info) = memory_info(
            "nonsense\n0::/a\n",
            &[
                ("a/memory.max", "many\n"),
                ("a/memory.high", "-1\n"),
                ("a/memory.current", "1\n"),
                ("a/memory.stat", "\n"),
            ],
        );
        assert_eq!(least(&memory_info).0, "The memory of this machine");
        std::fs::write(dir.path().join("meminfo"), "MemTotal: 1 MB\n").expect("writes");
        assert_eq!(memory_info.least(Room::spare), None);
    }

    #[test]
    fn the_figures_of_this_machine_are_read() {
        let memory_info = MemoryInfo::open();
        let (_, room) = least(&memory_info);
        assert!(room.limit > MIB && room.available <= room.limit, "{room:?}");
    }
}
