//! What the system says about this process, where it says anything (Linux), and lets it have.

/// Resident memory in bytes.
pub fn resident_bytes() -> Option<u64> {
    status_bytes("VmRSS:")
}

/// The largest resident memory so far, in bytes.
pub fn peak_resident_bytes() -> Option<u64> {
    status_bytes("VmHWM:")
}

/// Open file descriptors.
pub fn open_files() -> Option<u64> {
    // The listing itself holds one.
    let count = std::fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1);
    u64::try_from(count).ok()
}

/// Raises the limit of open files to what the system lets this process have: each connection is one, and the usual limit
/// of a shell (1024) is there for programs that use `select`.
pub fn raise_open_files() {
    #[cfg(unix)]
    {
        use rustix::process::{Resource, getrlimit, setrlimit};
        let mut limit = getrlimit(Resource::Nofile);
        limit.current = limit.maximum;
        if let Err(error) = setrlimit(Resource::Nofile, limit) {
            tracing::debug!("the limit of open files stays as it is: {error}");
        }
    }
}

/// A field of one of Linux's `name : value` files; `None` elsewhere.
pub fn proc_field(file: &str, name: &str) -> Option<String> {
    let text = std::fs::read_to_string(file).ok()?;
    let value = text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim().to_owned())
    })?;
    (!value.is_empty()).then_some(value)
}

/// A size in `/proc/meminfo`, in bytes.
pub fn meminfo(name: &str) -> Option<u64> {
    let kib: u64 = proc_field("/proc/meminfo", name)?.strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

fn status_bytes(field: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with(field))?;
    line.split_ascii_whitespace().nth(1)?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn linux_tells() {
        let (now, peak) = (resident_bytes().unwrap(), peak_resident_bytes().unwrap());
        assert!(now > 1 << 20 && peak >= now, "{now} {peak}");
        let before = open_files().unwrap();
        let files: Vec<_> = (0..50).map(|_| std::fs::File::open("/dev/null").unwrap()).collect();
        // Other tests open and close theirs meanwhile.
        assert!(open_files().unwrap() >= before.max(files.len() as u64), "{before}");
    }
}
