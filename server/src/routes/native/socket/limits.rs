//! What sockets may take.

use std::time::Duration;

use serde_json::{Value, json};

/// Requests of a socket that run at once.
pub const MAX_REQUESTS: usize = 8;
/// Largest message, if bodies may be as large.
const MAX_MESSAGE_BYTES: usize = 1 << 20;

/// Times of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketLimits {
    /// A ping goes out that often.
    pub ping_every: Duration,
    /// A peer of which nothing was heard for so long, pongs included, is taken for gone.
    pub silence: Duration,
    /// A socket on which nothing was asked for so long, and nothing runs, is closed.
    pub idle: Duration,
}

impl Default for SocketLimits {
    fn default() -> Self {
        Self { ping_every: Duration::from_secs(15), silence: Duration::from_secs(45), idle: Duration::from_secs(600) }
    }
}

impl SocketLimits {
    /// For reports, beside the largest body of a request.
    pub fn to_json(&self, max_body_bytes: usize) -> Value {
        json!({
            "ping_seconds": self.ping_every.as_secs_f64(),
            "silence_seconds": self.silence.as_secs_f64(),
            "idle_seconds": self.idle.as_secs_f64(),
            "max_requests": MAX_REQUESTS,
            "max_message_bytes": max_message_bytes(max_body_bytes),
        })
    }
}

/// Largest message where bodies may have so many bytes.
pub fn max_message_bytes(max_body_bytes: usize) -> usize {
    MAX_MESSAGE_BYTES.min(max_body_bytes)
}
