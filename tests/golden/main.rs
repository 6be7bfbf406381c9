//! Tests against the goldens folder: tiny models with exact outputs, real vocabularies, real chat templates.
//! They walk the folders that are there, never a list of names.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test says what it expects by panicking"
)]

mod deterministic;
mod drafting;
mod embedding;
mod kv;
mod models;
mod prefix;
mod rows;
mod split;
#[path = "../support/mod.rs"]
mod support;
mod templates;
mod vocab;
mod window;
