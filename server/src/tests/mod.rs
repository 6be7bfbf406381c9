//! The service from the wire down: real sockets, the real engine, and an executor that spells a known text.
//!
//! [`harness`] writes a tiny model folder (real tokenizer, real template, weights of zeros), loads it with that
//! executor and serves it on a free port.

mod anthropic;
mod client;
mod disconnect;
mod drain;
mod harness;
mod load;
mod metrics;
mod ollama;
mod page;
mod requests;
mod streams;
