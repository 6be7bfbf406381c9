//! A load generator for any server that streams OpenAI's completions, ours or another's: what `shimmy bench --serve-load`
//! runs. It speaks plain HTTP/1.1 over a socket, so that its own share of the machine stays small.
//!
//! | module | what lives there |
//! |---|---|
//! | [`client`] | one request over one connection, its tokens' times |
//! | [`wire`] | HTTP/1.1 responses and event streams, taken apart as they arrive |
//! | [`workload`] | lengths, arrivals, prompts |
//! | [`drive`] | closed and open loop |
//! | [`report`] | percentiles, JSON, Markdown |
//! | [`plot`] | the same as an SVG picture |

pub mod client;
pub mod drive;
pub mod plot;
pub mod report;
pub mod wire;
pub mod workload;
