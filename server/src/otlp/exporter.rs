//! Sends spans to a collector from a thread of its own: a collector that is slow or away holds nobody up. What the queue has no
//! room for, and what the collector doesn't take, is counted.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::endpoint::{Endpoint, Posted};
use super::span::RequestSpan;

/// Requests whose spans wait. A request takes 2 KiB or so.
const QUEUED_REQUESTS: usize = 2048;
/// Most requests in a POST.
const MAX_BATCH: usize = 256;
/// The first of a batch waits so long for others.
const BATCH_FOR: Duration = Duration::from_secs(1);
/// How often a batch is tried, and how long after the first try the next comes; each later one waits twice as long.
const TRIES: u32 = 4;
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// After the end of the server.
const LAST_BATCH: Duration = Duration::from_secs(3);

/// What became of spans.
#[derive(Debug, Default)]
pub struct Counts {
    exported: AtomicU64,
    dropped: AtomicU64,
}

impl Counts {
    /// Spans that the collector took, and spans that were dropped.
    pub fn read(&self) -> (u64, u64) {
        (self.exported.load(Ordering::Relaxed), self.dropped.load(Ordering::Relaxed))
    }
}

/// Where spans go.
#[derive(Debug)]
pub struct Exporter {
    /// `None` while it is dropped.
    queue: Option<SyncSender<Vec<Value>>>,
    counts: Arc<Counts>,
    is_ending: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Drop for Exporter {
    /// The last spans get some time to be sent.
    fn drop(&mut self) {
        self.is_ending.store(true, Ordering::SeqCst);
        self.queue = None;
        self.thread.thread().unpark();
        let start = Instant::now();
        while !self.thread.is_finished() && start.elapsed() < LAST_BATCH {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Exporter {
    /// To this collector, in the name of this service.
    ///
    /// # Errors
    /// When there can't be another thread.
    pub fn new(endpoint: Endpoint, service: &str) -> io::Result<Self> {
        let (queue, receiver) = mpsc::sync_channel(QUEUED_REQUESTS);
        let (counts, is_ending) = (Arc::<Counts>::default(), Arc::<AtomicBool>::default());
        let sender = Sender {
            endpoint,
            service: service.to_owned(),
            counts: Arc::clone(&counts),
            is_ending: Arc::clone(&is_ending),
            is_failing: false,
        };
        let thread = std::thread::Builder::new().name("otlp".into()).spawn(move || sender.run(&receiver))?;
        Ok(Self { queue: Some(queue), counts, is_ending, thread })
    }

    /// Hands a request's spans over; if there is no room, they are dropped.
    pub fn export(&self, span: &RequestSpan<'_>) {
        let spans = span.to_json();
        let count = spans.len() as u64;
        if self.queue.as_ref().is_none_or(|queue| queue.try_send(spans).is_err()) {
            self.counts.dropped.fetch_add(count, Ordering::Relaxed);
        }
    }

    /// What became of spans so far.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }
}

/// The other end of the queue.
struct Sender {
    endpoint: Endpoint,
    service: String,
    counts: Arc<Counts>,
    is_ending: Arc<AtomicBool>,
    /// The last POST failed, and the log says so.
    is_failing: bool,
}

impl Sender {
    fn run(mut self, queue: &Receiver<Vec<Value>>) {
        while let Ok(first) = queue.recv() {
            let (mut spans, mut requests) = (first, 1);
            let until = Instant::now() + BATCH_FOR;
            while requests < MAX_BATCH {
                // Without a sender there is nothing more to wait for.
                let Ok(more) = queue.recv_timeout(until.saturating_duration_since(Instant::now())) else { break };
                spans.extend(more);
                requests += 1;
            }
            let count = spans.len() as u64;
            let counter = if self.send(spans) { &self.counts.exported } else { &self.counts.dropped };
            counter.fetch_add(count, Ordering::Relaxed);
        }
    }

    /// Whether the collector took them.
    fn send(&mut self, spans: Vec<Value>) -> bool {
        let body = self.body(spans).to_string();
        let mut wait = FIRST_WAIT;
        for attempt in 1..=TRIES {
            let why = match self.endpoint.post(body.as_bytes()) {
                Ok(Posted::Taken) => {
                    self.is_failing = false;
                    return true;
                }
                Ok(Posted::Refused(status)) => {
                    self.complain(&format!("it answers {status}"));
                    return false;
                }
                Ok(Posted::Busy(status)) => format!("it answers {status}"),
                Err(error) => error.to_string(),
            };
            self.complain(&why);
            if attempt == TRIES || self.is_ending.load(Ordering::SeqCst) {
                return false;
            }
            std::thread::park_timeout(wait);
            wait *= 2;
        }
        false
    }

    /// Says what is wrong, once until it works again.
    fn complain(&mut self, why: &str) {
        if !std::mem::replace(&mut self.is_failing, true) {
            let endpoint = &self.endpoint;
            tracing::warn!(
                "{endpoint} doesn't take traces: {why}; shimmy_otlp_spans_total counts those that are dropped"
            );
        }
    }

    fn body(&self, spans: Vec<Value>) -> Value {
        let text = |key: &str, value: &str| json!({"key": key, "value": {"stringValue": value}});
        let version = env!("CARGO_PKG_VERSION");
        json!({"resourceSpans": [{
            "resource": {"attributes": [text("service.name", &self.service), text("service.version", version)]},
            "scopeSpans": [{"scope": {"name": "shimmy", "version": version}, "spans": spans}],
        }]})
    }
}
