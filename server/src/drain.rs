//! Counts running generations and, once the service shuts down, lets no new one in.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::sync::Notify;

use crate::error::ApiError;

/// Who may start, and how many have.
#[derive(Debug, Default)]
pub struct Gate {
    draining: AtomicBool,
    running: AtomicUsize,
    idle: Notify,
    closed: Notify,
}

/// A running generation; ends when dropped.
#[derive(Debug)]
pub struct Running {
    gate: Arc<Gate>,
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.gate.running.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.gate.idle.notify_waiters();
        }
    }
}

impl Gate {
    /// Starts a generation.
    ///
    /// # Errors
    /// 503 once [`Gate::close`] was called.
    pub fn enter(self: &Arc<Self>) -> Result<Running, ApiError> {
        // Counted before asked: `wait_idle` after `close` either sees this one or this one sees `draining`.
        self.running.fetch_add(1, Ordering::SeqCst);
        let running = Running { gate: Arc::clone(self) };
        if self.is_closed() {
            return Err(ApiError::unavailable("the server is shutting down", "shutting_down"));
        }
        Ok(running)
    }

    /// Lets nobody in any more.
    pub fn close(&self) {
        self.draining.store(true, Ordering::SeqCst);
        self.closed.notify_waiters();
    }

    /// Returns when it is closed.
    pub async fn wait_closed(&self) {
        let closed = self.closed.notified();
        tokio::pin!(closed);
        // Registered before the flag is read: a close between the two wakes us.
        closed.as_mut().enable();
        if !self.is_closed() {
            closed.await;
        }
    }

    /// Whether it was closed.
    pub fn is_closed(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    /// Generations that run now.
    pub fn running(&self) -> usize {
        self.running.load(Ordering::SeqCst)
    }

    /// Returns when nothing runs.
    pub async fn wait_idle(&self) {
        loop {
            let idle = self.idle.notified();
            tokio::pin!(idle);
            // Registered before the count is read: an end between the two wakes us.
            idle.as_mut().enable();
            if self.running() == 0 {
                return;
            }
            idle.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn closing_refuses_new_ones_and_waits_for_running_ones() {
        let gate = Arc::new(Gate::default());
        let first = gate.enter().unwrap();
        gate.close();
        assert_eq!(gate.enter().unwrap_err().status.as_u16(), 503);
        assert_eq!(gate.running(), 1);
        let waiting = tokio::time::timeout(Duration::from_millis(20), gate.wait_idle()).await;
        assert!(waiting.is_err());
        let waiter = {
            let gate = Arc::clone(&gate);
            tokio::spawn(async move { gate.wait_idle().await })
        };
        tokio::task::yield_now().await;
        drop(first);
        tokio::time::timeout(Duration::from_secs(5), waiter).await.unwrap().unwrap();
    }
}
