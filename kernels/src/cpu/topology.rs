//! Which cores this process may use, and how many of them are physical.

/// One logical CPU of each physical core that this process may run on, in the system's order.
pub fn worker_cores() -> Vec<usize> {
    #[cfg(target_os = "linux")]
    {
        let Ok(allowed) = rustix::thread::sched_getaffinity(None) else { return Vec::new() };
        let mut cores = Vec::new();
        let mut taken = std::collections::BTreeSet::new();
        for cpu in (0..rustix::thread::CpuSet::MAX_CPU).filter(|&cpu| allowed.is_set(cpu)) {
            // "0,64" or "0-1": the logical CPUs of this core. Without the file each CPU is its own core.
            let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
            let siblings = std::fs::read_to_string(path).unwrap_or_else(|_| cpu.to_string());
            if taken.insert(siblings.trim().to_owned()) {
                cores.push(cpu);
            }
        }
        cores
    }
    #[cfg(not(target_os = "linux"))]
    Vec::new()
}

/// Worker threads that suit this machine: physical cores, within the CPU limit of the cgroup.
pub fn default_workers() -> usize {
    let limit = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    match worker_cores().len() {
        0 => limit,
        cores => cores.min(limit),
    }
}

/// Keeps the current thread on these logical CPUs. A refusal is harmless: the thread then wanders.
pub(super) fn keep_current_thread_on(cpus: &[usize]) {
    #[cfg(target_os = "linux")]
    {
        let mut set = rustix::thread::CpuSet::new();
        for &cpu in cpus {
            set.set(cpu);
        }
        let _refused = rustix::thread::sched_setaffinity(None, &set).is_err();
    }
    #[cfg(not(target_os = "linux"))]
    let _ = cpus;
}
