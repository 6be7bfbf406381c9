//! The command line and the HTTP service of Shimmy. Knows requests and events, no tensors.
//!
//! | module | what lives there |
//! |---|---|
//! | [`cli`] | one file a command |
//! | [`app`] | the actix-web service: state, resources, start and drain |
//! | [`routes`] | wire types of each protocol and their conversion |
//! | [`access`] | API keys, limits of clients, allowed hosts and origins |
//! | [`access_log`] | request identifiers, and a line for each request |
//! | [`otlp`] | requests as spans of traces |
//! | [`listen`], [`tls`] | sockets, and HTTPS on them |
//! | [`stream`] | bounded channel to wire |
//! | [`drain`] | running generations, for a clean shutdown |
//! | [`connections`] | what runs on each connection, and the end of those that are only held |
//! | [`counters`], [`process`] | what `/metrics` tells about the service |
//! | [`load`] | a load generator for `shimmy bench` |
//! | [`error`] | the service's one error type and its status |
//! | [`unread`] | bodies that are answered before they were read |
//! | [`ids`] | identifiers of answers |

#![forbid(unsafe_code)]

pub mod access;
pub mod access_log;
pub mod app;
pub mod cli;
pub mod connections;
pub mod counters;
pub mod drain;
pub mod error;
pub mod ids;
pub mod listen;
pub mod load;
pub mod otlp;
pub mod process;
pub mod routes;
pub mod stream;
pub mod tls;
pub mod unread;

#[cfg(test)]
mod tests;
