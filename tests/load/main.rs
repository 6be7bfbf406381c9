//! The real binary under load that is not kind to it: connections by the thousand, clients that vanish or stall, and a
//! mixed load for a minute. The models are tiny; `scripts/soak` does the same with a real one and for longer.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    dead_code,
    unreachable_pub,
    reason = "a test fails by panicking and says SKIP on stdout; the binary's helpers serve another test, too"
)]

#[path = "../cli/binary.rs"]
mod binary;
#[path = "../support/mod.rs"]
mod support;

mod connections;
mod gauges;
mod soak;

/// A tiny model with a long context.
const MODEL: &str = "hunyuan_v1_dense-alpha";
