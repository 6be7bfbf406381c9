//! What the service counts about itself: connections and responses. Engines count their own work.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Counts since the start.
#[derive(Debug, Default)]
pub struct Counters {
    open_connections: AtomicU64,
    connections: AtomicU64,
    responses: Mutex<BTreeMap<Outcome, u64>>,
}

/// How a request was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Outcome {
    /// HTTP status.
    pub status: u16,
    /// Why, of an error: its `code`, else its `type`.
    pub reason: Option<&'static str>,
}

/// An open connection; counted until it is dropped.
#[derive(Debug)]
pub struct Connection(Arc<Counters>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.open_connections.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Counters {
    /// A client connected.
    pub fn connect(self: &Arc<Self>) -> Connection {
        self.connections.fetch_add(1, Ordering::Relaxed);
        self.open_connections.fetch_add(1, Ordering::Relaxed);
        Connection(Arc::clone(self))
    }

    /// A request was answered; `reason` is that of the error which the handler returned, if it did.
    pub fn respond(&self, status: u16, reason: Option<&'static str>) {
        let outcome = Outcome { status, reason };
        // Whole entries are added: a panic can't leave half of one.
        *self.responses.lock().unwrap_or_else(PoisonError::into_inner).entry(outcome).or_default() += 1;
    }

    /// Connections that are open.
    pub fn open_connections(&self) -> u64 {
        self.open_connections.load(Ordering::Relaxed)
    }

    /// Connections that were ever opened.
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }

    /// Responses by outcome. A stream counts when it begins.
    pub fn responses(&self) -> Vec<(Outcome, u64)> {
        let responses = self.responses.lock().unwrap_or_else(PoisonError::into_inner);
        responses.iter().map(|(outcome, count)| (*outcome, *count)).collect()
    }
}
