//! One thread a model: admit, schedule, step, sample, emit. What lives here: the request and event types
//! ([`request`]) and the thread ([`Engine`]).

pub mod request;

pub use request::{Event, FinishReason, GenerateRequest, SamplingParams, Timings, Usage};
