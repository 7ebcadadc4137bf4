//! Reports, at the start, limits that keep a store from getting its whole budget. When such a limit is reached later, a
//! page is refused.

use rustix::process::{Resource, getrlimit};
use tmem_base::Bytes;

use crate::host_memory::memory_info::{MemoryInfo, Room};

/// Says what makes a budget of so many bytes impossible.
pub(crate) fn warn(budget: u64, memory_info: &MemoryInfo) {
    for what in of_process(budget, |limit| getrlimit(limit).current)
        .into_iter()
        .chain(of_host(budget, memory_info))
    {
        log::warn!("{what}");
    }
}

/// Says what of the host makes a budget of so many bytes impossible. A confined thread may do it.
pub(crate) fn warn_of_host(budget: u64, memory_info: &MemoryInfo) {
    if let Some(what) = of_host(budget, memory_info) {
        log::warn!("{what}");
    }
}

/// Says what makes it impossible to have what all guests were promised.
pub(crate) fn warn_of_reserves(reserved: u64, memory_info: &MemoryInfo) {
    if let Some(what) = of_reserves(reserved, memory_info) {
        log::warn!("{what}");
    }
}

fn of_reserves(reserved: u64, memory_info: &MemoryInfo) -> Option<String> {
    let (name, room) = memory_info.least(within)?;
    (within(room) < reserved).then(|| {
        format!(
            "{name} is {}, of which {} are left alone, less than what guests have reserved, {}: pages within a reserve can be refused",
            Bytes(room.limit),
            Bytes(room.floor),
            Bytes(reserved)
        )
    })
}

/// The most that pages can use there.
fn within(room: Room) -> u64 {
    room.limit.saturating_sub(room.floor)
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
fn of_host(budget: u64, memory_info: &MemoryInfo) -> Option<String> {
    let (name, room) = memory_info.least(within)?;
    if room.floor >= room.limit {
        return Some(format!(
            "{name} is {}, and {} are to be left alone (host-reserve): no page is taken",
            Bytes(room.limit),
            Bytes(room.floor)
        ));
    }
    (room.limit < budget).then(|| {
        format!(
            "{name} is {}, less than the memory for pages, {}: pages are refused before it is full",
            Bytes(room.limit),
            Bytes(budget)
        )
    })
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
    fn a_budget_beyond_the_machine_is_named_and_one_within_is_not() {
        let memory_info = MemoryInfo::open();
        let found = of_host(u64::MAX, &memory_info).expect("no machine has it");
        assert!(found.starts_with("The memory of "), "{found}");
        assert_eq!(of_host(1, &memory_info), None);
    }

    #[test]
    fn reserves_beyond_the_machine_are_named_and_those_within_are_not() {
        let memory_info = MemoryInfo::open();
        let found = of_reserves(u64::MAX, &memory_info).expect("no machine has it");
        assert!(found.contains("guests have reserved"), "{found}");
        assert_eq!(of_reserves(1, &memory_info), None);
    }

    #[test]
    fn a_host_reserve_that_leaves_nothing_is_named() {
        let memory_info = MemoryInfo::open();
        memory_info.leave(Some(1 << 60));
        let found = of_host(1, &memory_info).expect("no machine has more");
        assert!(found.contains("no page is taken"), "{found}");
    }
}
