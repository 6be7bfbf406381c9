//! The real binary under load that is not kind to it: connections by the thousand, clients that vanish or stall, and a
//! mixed load for a minute. The models are tiny, unless `SHIMMY_LOAD_MODEL` names one; `scripts/soak` goes on for longer.

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

mod bodies;
mod connections;
mod cycles;
mod gauges;
mod responsive;
mod soak;

/// A tiny golden model with a long context, or the one that `SHIMMY_LOAD_MODEL` names; `None` after a SKIP.
fn model() -> Option<std::path::PathBuf> {
    if let Some(path) = std::env::var_os("SHIMMY_LOAD_MODEL") {
        return Some(path.into());
    }
    Some(support::goldens()?.join("models/hunyuan_v1_dense-alpha"))
}
