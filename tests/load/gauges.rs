//! What a server holds, as its `/metrics` tell.

use std::time::{Duration, Instant};

/// What must go back to where it was.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Gauges {
    pub(crate) running: u64,
    pub(crate) waiting: u64,
    /// Share of the KV blocks in use.
    pub(crate) kv_usage: f64,
    pub(crate) connections: u64,
    pub(crate) files: u64,
    pub(crate) resident_bytes: u64,
}

impl Gauges {
    pub(crate) fn read(url: &str) -> Self {
        let text = scrape(url);
        let whole = |name: &str| sum(&text, name) as u64;
        Self {
            running: whole("vllm:num_requests_running"),
            waiting: whole("vllm:num_requests_waiting"),
            kv_usage: sum(&text, "vllm:kv_cache_usage_perc"),
            connections: whole("shimmy_open_connections"),
            files: whole("process_open_fds"),
            resident_bytes: whole("process_resident_memory_bytes"),
        }
    }

    /// Nothing runs, waits or is connected but who asks.
    fn is_at_rest(&self) -> bool {
        (self.running, self.waiting, self.kv_usage, self.connections) == (0, 0, 0.0, 1)
    }

    /// Waits until the server is at rest.
    pub(crate) fn at_rest(url: &str) -> Self {
        let start = Instant::now();
        loop {
            let gauges = Self::read(url);
            if gauges.is_at_rest() {
                return gauges;
            }
            assert!(start.elapsed() < Duration::from_secs(60), "not at rest: {gauges:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// A counter, over all its labels.
pub(crate) fn counter(url: &str, name: &str) -> u64 {
    sum(&scrape(url), name) as u64
}

fn scrape(url: &str) -> String {
    ureq::get(format!("{url}/metrics")).call().unwrap().body_mut().read_to_string().unwrap()
}

/// The samples of a name, added up; there must be one.
fn sum(text: &str, name: &str) -> f64 {
    let values: Vec<f64> = text
        .lines()
        .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])))
        .map(|line| line.rsplit_once(' ').unwrap().1.parse().unwrap())
        .collect();
    assert!(!values.is_empty(), "no {name} in\n{text}");
    values.iter().sum()
}
