//! From a generation to the wire: a bounded channel a stream, and a failed send cancels the generation.
//!
//! [`sse`]: server-sent events.

pub mod sse;
