//! Frames on their way out. A peer that takes nothing for a while is cut off.

use std::time::Duration;

use actix_ws::{Closed, Session};
use serde_json::Value;
use tokio::time::timeout;

use crate::error::ApiError;

/// Why a frame did not reach its peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unsent {
    /// The peer has gone.
    Gone,
    /// The peer takes nothing.
    Slow,
}

/// The way out of a socket. Clones share its bounded queue.
#[derive(Clone)]
pub struct Outlet {
    session: Session,
    stall: Duration,
}

impl Outlet {
    /// Waits up to `stall` for room in the queue.
    pub fn new(session: Session, stall: Duration) -> Self {
        Self { session, stall }
    }

    async fn within(stall: Duration, sent: impl Future<Output = Result<(), Closed>>) -> Result<(), Unsent> {
        match timeout(stall, sent).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(Closed)) => Err(Unsent::Gone),
            Err(_) => Err(Unsent::Slow),
        }
    }

    /// Sends a frame about the request with this id.
    ///
    /// # Errors
    /// When it can't be delivered.
    pub async fn send(&mut self, id: Option<&Value>, frame: Value) -> Result<(), Unsent> {
        Self::within(self.stall, self.session.text(with_id(id, frame).to_string())).await
    }

    /// Sends an error frame about the request with this id.
    ///
    /// # Errors
    /// When it can't be delivered.
    pub async fn fail(&mut self, id: Option<&Value>, error: &ApiError) -> Result<(), Unsent> {
        // What was written as JSON can be read as such.
        let mut frame: Value = serde_json::from_slice(&error.to_json()).unwrap_or_default();
        if let Some(seconds) = error.retry_after {
            frame["retry_after"] = seconds.into();
        }
        self.send(id, frame).await
    }

    /// Sends a ping.
    ///
    /// # Errors
    /// When it can't be delivered.
    pub async fn ping(&mut self) -> Result<(), Unsent> {
        Self::within(self.stall, self.session.ping(b"")).await
    }

    /// Answers a ping.
    ///
    /// # Errors
    /// When it can't be delivered.
    pub async fn pong(&mut self, bytes: &[u8]) -> Result<(), Unsent> {
        Self::within(self.stall, self.session.pong(bytes)).await
    }

    /// Says goodbye.
    pub async fn close(self, reason: Option<actix_ws::CloseReason>) {
        // Whoever doesn't take it is gone already.
        let _ = Self::within(self.stall, self.session.close(reason)).await;
    }
}

/// The frame with the id in front.
fn with_id(id: Option<&Value>, frame: Value) -> Value {
    match (id, frame) {
        (Some(id), Value::Object(fields)) => {
            Value::Object([("id".to_owned(), id.clone())].into_iter().chain(fields).collect())
        }
        (_, frame) => frame,
    }
}
