//! Memory that this process may still take: the system's, within the limits of its control group.

use std::fs;
use std::path::{Path, PathBuf};

/// Bytes; `None` where the system doesn't tell (it isn't Linux).
pub(super) fn available() -> Option<usize> {
    let info = fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find(|line| line.starts_with("MemAvailable:"))?;
    let system = line.split_ascii_whitespace().nth(1)?.parse::<usize>().ok()?.checked_mul(1024)?;
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    Some(group_room(Path::new("/sys/fs/cgroup"), &groups).map_or(system, |room| room.min(system)))
}

/// Whether a process gets huge pages if it asks for them.
pub(super) fn has_huge_pages() -> bool {
    fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").is_ok_and(|modes| !modes.contains("[never]"))
}

/// What the control groups of a process leave it: the least that is left in its own group and those around it. `groups` is the process'
/// `/proc/PID/cgroup`. `None`: there is no limit.
fn group_room(mounted: &Path, groups: &str) -> Option<usize> {
    let rooms = groups.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        // Version 2 has one hierarchy and names no controllers; version 1 has a folder for each.
        let version = match controllers {
            "" => &V2,
            _ if controllers.split(',').any(|name| name == "memory") => &V1,
            _ => return None,
        };
        let root = mounted.join(version.folder);
        // Inside a container the path may be that of the host, and the container's group what is mounted.
        let own = root.join(path.trim_start_matches('/'));
        own.ancestors().take_while(|folder| folder.starts_with(&root)).filter_map(|folder| version.room(folder)).min()
    });
    rooms.min()
}

/// How a version of control groups tells of memory.
struct Version {
    /// Of the hierarchy, in `/sys/fs/cgroup`.
    folder: &'static str,
    limits: &'static [&'static str],
    used: &'static str,
    /// In `memory.stat`: pages of files, which are given back when memory is short.
    reclaimable: [&'static str; 2],
}

const V1: Version = Version {
    folder: "memory",
    limits: &["memory.limit_in_bytes"],
    used: "memory.usage_in_bytes",
    reclaimable: ["total_inactive_file", "total_active_file"],
};
const V2: Version = Version {
    folder: "",
    limits: &["memory.max", "memory.high"],
    used: "memory.current",
    reclaimable: ["inactive_file", "active_file"],
};

impl Version {
    /// What is left in a group; `None`: it has no limit, or isn't there.
    fn room(&self, folder: &Path) -> Option<usize> {
        let number = |file: PathBuf| fs::read_to_string(file).ok()?.trim().parse::<usize>().ok();
        // `max` is no number: there is no limit.
        let limit = self.limits.iter().filter_map(|file| number(folder.join(file))).min()?;
        let used = number(folder.join(self.used))?;
        let stat = fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
        let reclaimable = stat.lines().filter_map(|line| {
            let (name, bytes) = line.split_once(' ')?;
            self.reclaimable.contains(&name).then(|| bytes.trim().parse::<usize>().ok()).flatten()
        });
        Some(limit.saturating_sub(used.saturating_sub(reclaimable.sum())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes the files of a group.
    fn group(folder: &Path, files: &[(&str, &str)]) {
        fs::create_dir_all(folder).unwrap();
        for (name, text) in files {
            fs::write(folder.join(name), text).unwrap();
        }
    }

    #[test]
    fn the_tightest_group_counts() {
        let root = tempfile::tempdir().unwrap();
        let stat = "anon 5\ninactive_file 100\nactive_file 20\nslab 7\n";
        group(&root.path().join("a"), &[("memory.max", "1000\n"), ("memory.current", "400\n"), ("memory.stat", stat)]);
        group(&root.path().join("a/b"), &[("memory.max", "max\n"), ("memory.current", "300\n"), ("memory.stat", "")]);
        let room = |groups| group_room(root.path(), groups);
        assert_eq!(room("0::/a/b\n"), Some(1000 - 400 + 120));
        assert_eq!(room("0::/a\n"), Some(720));
        assert_eq!(room("0::/\n"), None);
        assert_eq!(room("0::/elsewhere\n"), None);
        assert_eq!(room(""), None);
        group(&root.path().join("a/b"), &[("memory.high", "350\n")]);
        assert_eq!(room("0::/a/b\n"), Some(50));
        group(&root.path().join("a/b"), &[("memory.current", "400\n")]);
        assert_eq!(room("0::/a/b\n"), Some(0));
    }

    #[test]
    fn the_first_version_has_a_folder_of_its_own_and_containers_see_theirs_as_the_root() {
        let root = tempfile::tempdir().unwrap();
        let stat = "inactive_file 1\ntotal_inactive_file 64\ntotal_active_file 32\n";
        let files = [("memory.limit_in_bytes", "512\n"), ("memory.usage_in_bytes", "256\n"), ("memory.stat", stat)];
        group(&root.path().join("memory"), &files);
        assert_eq!(group_room(root.path(), "9:cpu:/x\n4:memory:/docker/1234\n0::/\n"), Some(352));
        assert_eq!(group_room(root.path(), "3:cpu,memory:/\n"), Some(352));
        assert_eq!(group_room(root.path(), "3:cpuset:/\n"), None);
    }
}
