//! The service from the wire down: real sockets, the real engine, and an executor that spells a known text.
//!
//! [`harness`] writes a tiny model folder (real tokenizer, real template, weights of zeros), loads it with that
//! executor and serves it on a free port.

mod access;
mod answers;
mod anthropic;
mod background;
mod client;
mod compatibility;
mod connections;
mod disconnect;
mod drain;
mod embeddings;
mod harness;
mod hostile_http;
mod load;
mod metrics;
mod native;
mod native_generate;
mod ollama;
mod openapi;
mod page;
mod requests;
mod rerank;
mod responses;
mod schema;
mod streams;
mod traces;
mod websocket;
mod websocket_client;
mod websocket_hostile;
