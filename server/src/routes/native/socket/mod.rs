//! `GET /ws/generate`: generations over a WebSocket. docs/websocket.md tells clients what to send and what comes back.
//!
//! | module | what lives there |
//! |---|---|
//! | [`connect`] | the handshake |
//! | [`conversation`] | one socket: messages in, heartbeat, its end |
//! | [`answer`] | one request of a socket |
//! | [`outlet`] | frames out, with patience for slow readers |
//! | [`guard`] | bounds what a peer may announce |
//! | [`limits`] | times and sizes |

pub mod answer;
pub mod connect;
pub mod conversation;
pub mod guard;
pub mod limits;
pub mod outlet;

pub use connect::config;
pub use limits::SocketLimits;
