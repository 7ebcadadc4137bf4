//! What keeps a store from having the memory that it was promised, said at the start. When it is met later, a page is
//! refused.

use std::path::{Path, PathBuf};

use rustix::process::{Resource, getrlimit};

use crate::stats::Bytes;

/// Says what makes a budget of so many bytes impossible.
pub(crate) fn warn(budget: u64) {
    for what in of_process(budget, |limit| getrlimit(limit).current)
        .into_iter()
        .chain(of_host(budget))
    {
        log::warn!("{what}");
    }
}

fn of_process(budget: u64, limit: impl Fn(Resource) -> Option<u64>) -> Vec<String> {
    let mut found = Vec::new();
    let mut check = |name, limit: Option<u64>, effect| {
        if let Some(limit) = limit.filter(|limit| *limit < budget) {
            found.push(format!(
                "{name} is {}, less than the memory for pages, {}: {effect}",
                Bytes(limit),
                Bytes(budget)
            ));
        }
    };
    // The pages of each guest are one file in memory.
    check(
        "The limit on the size of files (RLIMIT_FSIZE)",
        limit(Resource::Fsize),
        "pages of a guest beyond it are refused",
    );
    check(
        "The limit of address space (RLIMIT_AS)",
        limit(Resource::As),
        "pages beyond it are refused",
    );
    found
}

/// The machine's memory, and the limits of the cgroups that this process is in.
fn of_host(budget: u64) -> Option<String> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let machine = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let machine = total(&machine).map(|bytes| (bytes, "The memory of this machine".to_owned()));
    let limits = limit_files(&groups, Path::new("/sys/fs/cgroup"));
    let limits = limits.into_iter().filter_map(|file| {
        // `max` is no limit.
        let bytes = std::fs::read_to_string(&file).ok()?.trim().parse().ok()?;
        Some((bytes, format!("The limit in {}", file.display())))
    });
    let (least, name) = limits.chain(machine).min_by_key(|(bytes, _)| *bytes)?;
    (least < budget).then(|| {
        format!(
            "{name} is {}, less than the memory for pages, {}: the kernel ends processes before it is full",
            Bytes(least),
            Bytes(budget)
        )
    })
}

/// `MemTotal` of `/proc/meminfo` in bytes.
fn total(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// Where the memory limits of the cgroups in `/proc/self/cgroup` are, each with those above it: cgroup v2, and the
/// memory controller of v1.
fn limit_files(groups: &str, mount: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else {
            continue;
        };
        let (base, name) = if controllers.is_empty() {
            (mount.to_owned(), "memory.max")
        } else if controllers.split(',').any(|name| name == "memory") {
            (mount.join("memory"), "memory.limit_in_bytes")
        } else {
            continue;
        };
        let group = Path::new(path.trim_start_matches('/'));
        // The root too: in a container it is the group of the container.
        files.extend(group.ancestors().map(|group| base.join(group).join(name)));
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_below_the_budget_is_named_and_one_above_is_not() {
        let limits = |resource| match resource {
            Resource::Fsize => Some(8 << 20),
            Resource::As => Some(1 << 30),
            _ => None,
        };
        let found = of_process(64 << 20, limits);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("RLIMIT_FSIZE) is 8.0 MiB"), "{found:?}");
        assert!(of_process(u64::MAX, |_| None).is_empty());
        assert_eq!(of_process(2 << 30, limits).len(), 2);
    }

    #[test]
    fn the_limits_of_a_group_are_those_up_to_the_root() {
        let files = |groups| limit_files(groups, Path::new("/c"));
        assert_eq!(
            files("0::/a/b\n"),
            ["/c/a/b/memory.max", "/c/a/memory.max", "/c/memory.max"].map(PathBuf::from)
        );
        assert_eq!(files("0::/\n"), [PathBuf::from("/c/memory.max")]);
        assert_eq!(
            files("3:cpu,cpuacct:/x\n2:memory:/a\n"),
            [
                "/c/memory/a/memory.limit_in_bytes",
                "/c/memory/memory.limit_in_bytes"
            ]
            .map(PathBuf::from)
        );
        assert!(files("nonsense\n").is_empty());
    }

    #[test]
    fn the_memory_of_the_machine_is_read() {
        assert_eq!(total("MemTotal:       16 kB\nMemFree: 1 kB\n"), Some(16384));
        let meminfo = std::fs::read_to_string("/proc/meminfo").expect("proc");
        assert!(total(&meminfo).is_some_and(|bytes| bytes > 1 << 20));
    }
}
