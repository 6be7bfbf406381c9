//! What the engine says of an answer, in the terms that all protocols share.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use shimmy_runtime::engine::{self, FinishReason, PrefixMiss};
use utoipa::ToSchema;

/// What a generation ended with.
#[derive(Debug, Clone, Copy)]
pub struct Done {
    /// Why it ended.
    pub reason: FinishReason,
    /// Counts.
    pub usage: engine::Usage,
    /// Times.
    pub timings: engine::Timings,
    /// Seed that was used.
    pub seed: u64,
}

/// Wall-clock times in milliseconds, and rates where there is something to divide.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
pub struct Timings {
    queue_ms: f64,
    /// Prompt tokens from the cache, and why they aren't more.
    cache_n: usize,
    #[schema(required = true)]
    cache_miss: Option<&'static str>,
    prompt_n: usize,
    prompt_ms: f64,
    #[schema(required = true)]
    prompt_per_second: Option<f64>,
    predicted_n: usize,
    predicted_ms: f64,
    #[schema(required = true)]
    predicted_per_second: Option<f64>,
    /// Guesses computed, and those of them that stood: where there were any.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    draft_n: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    draft_n_accepted: Option<usize>,
}

impl Timings {
    /// From the engine's clocks. The first token comes with the prompt, so the rate of prediction counts the others.
    pub fn new(timings: &engine::Timings, usage: &engine::Usage) -> Self {
        let rate = |tokens: usize, ms: f64| (tokens > 0 && ms > 0.0).then(|| tokens as f64 * 1e3 / ms);
        let guessed = usage.guessed_tokens > 0;
        let computed = usage.prompt_tokens.saturating_sub(usage.cached_tokens);
        Self {
            queue_ms: timings.queue_ms,
            cache_n: usage.cached_tokens,
            cache_miss: usage.cache_miss.map(cache_miss),
            prompt_n: computed,
            prompt_ms: timings.prompt_ms,
            prompt_per_second: rate(computed, timings.prompt_ms),
            predicted_n: usage.completion_tokens,
            predicted_ms: timings.predicted_ms,
            predicted_per_second: rate(usage.completion_tokens.saturating_sub(1), timings.predicted_ms),
            draft_n: guessed.then_some(usage.guessed_tokens),
            draft_n_accepted: guessed.then_some(usage.accepted_tokens),
        }
    }

    /// Tokens a second after the first one.
    pub fn predicted_per_second(&self) -> Option<f64> {
        self.predicted_per_second
    }

    /// Prompt tokens a second.
    pub fn prompt_per_second(&self) -> Option<f64> {
        self.prompt_per_second
    }
}

/// Why a prompt wasn't found in the cache, or not all of it.
fn cache_miss(miss: PrefixMiss) -> &'static str {
    match miss {
        PrefixMiss::Disabled => "disabled",
        PrefixMiss::TooShort => "too_short",
        PrefixMiss::NoMatch => "no_match",
        PrefixMiss::Evicted => "evicted",
    }
}

/// The engine's report on one token: the chosen one and its alternatives.
pub type TokenReport = (engine::request::TokenLogprob, Vec<engine::request::TokenLogprob>);

/// Seconds since 1970; 0 for a clock before that.
pub fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_count_what_was_computed() {
        let usage =
            engine::Usage { prompt_tokens: 110, cached_tokens: 10, completion_tokens: 11, ..Default::default() };
        let timings = engine::Timings { queue_ms: 1.0, prompt_ms: 50.0, predicted_ms: 100.0 };
        let timings = Timings::new(&timings, &usage);
        assert_eq!((timings.prompt_n, timings.prompt_per_second()), (100, Some(2000.0)));
        assert_eq!((timings.predicted_n, timings.predicted_per_second()), (11, Some(100.0)));
        let one = engine::Usage { completion_tokens: 1, ..usage };
        assert_eq!(Timings::new(&engine::Timings::default(), &one).predicted_per_second(), None);
    }
}
