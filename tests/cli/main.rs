//! The real binary, from the outside: command line, server, clients that people use, the chat page in a browser, and every
//! command of the README.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    unreachable_pub,
    reason = "a test fails by panicking and says SKIP on stdout"
)]

#[path = "../support/mod.rs"]
mod support;

mod binary;
mod clients;
mod commands;
mod cuda;
mod drafting;
mod ecosystem;
mod fuzz_api;
mod models;
mod page;
mod readme;
mod serve;
mod settings;
mod tools;
