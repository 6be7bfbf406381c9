//! Traces: a span for each request, and below it those of its queue, prompt and answer, sent to a collector as OTLP over HTTP in
//! JSON.
//!
//! Written here because it is small: one POST a second at most, of what the access log knows anyway. The crates for it
//! would bring a hundred others, most of them for what isn't needed (gRPC, protobuf, a second HTTP client, C for TLS). What
//! that leaves out is HTTPS: a collector on this machine or in its cluster forwards to where that is needed.
//!
//! | module | what lives there |
//! |---|---|
//! | [`context`] | `traceparent`: whose request a request is a part of |
//! | [`span`] | a request as spans |
//! | [`endpoint`] | where the collector is, and a POST to it |
//! | [`exporter`] | the queue, and the thread that empties it |

pub mod context;
pub mod endpoint;
pub mod exporter;
pub mod span;
