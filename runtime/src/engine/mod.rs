//! One thread a model: admit, schedule, step, sample, emit.
//!
//! | part | what it is |
//! |---|---|
//! | [`request`] | what goes in and what comes out |
//! | [`group`] | several answers to one prompt |
//! | [`embed`] | a text as one vector |
//! | [`handle`] | [`Engine`] and [`Generation`]: what clients hold, from async and from blocking code |
//! | `validate` | what a request must be |
//! | `worker` | the thread: the step loop; `worker::guessing`: the guesses before a step, `worker::tasks`: what is asked of its rows |
//! | `sequence` | one generation on that thread: tokens, sampler, limits, events |
//! | `rows` | rows of logits, whole or kept on a device, and the tokens drawn from them |
//! | `speculate` | guesses of the next tokens |
//! | [`draft`] | guesses of a draft model: the sequences that it follows, its blocks |
//! | `payoff` | how many guesses pay: measured times of steps, records of guesses |
//! | `places` | the bounded queue, shared fairly |
//! | [`keep`] | what of the cache outlives the engine |
//! | `output` | from token bytes to the text and log-probabilities of events |
//! | [`metrics`] | distributions of times and sizes, recorded on that thread |
//! | [`testing`] | executors with exact expectations and no model, for tests of what is built on the engine |
#![forbid(unsafe_code)]

pub mod draft;
pub mod embed;
pub mod group;
pub mod handle;
pub mod keep;
pub mod metrics;
mod output;
mod payoff;
mod places;
pub mod request;
mod rows;
mod sequence;
mod speculate;
#[doc(hidden)]
pub mod testing;
#[cfg(test)]
mod tests;
mod validate;
mod vocabulary;
mod worker;

pub use draft::DraftExecutor;
pub use embed::{EmbedRequest, Embedding, PendingEmbedding, Pooling};
pub use group::GenerationGroup;
pub use handle::{
    Answer, Companions, Engine, EngineOptions, EngineStats, Generation, GuessPolicy, Guesses, PrefixCache,
};
pub use keep::{SharedStore, kept_bytes};
pub use metrics::{Distribution, Histogram, Metrics};
pub use request::{
    Class, Event, FinishReason, GenerateRequest, Numerics, PrefixMiss, PromptCache, SamplingParams, Speculation,
    Timings, TokenLogprob, Usage,
};
pub use vocabulary::Vocabulary;
