//! What requests look like, for the document: one struct a request, whose descriptions are its fields' comments. [`answers`]
//! has what they are answered with.
//!
//! Requests are read field by field (`routes::request::fields`), so that each mistake is named; these structs are never
//! filled. A test sends every field that they have and finds it taken.

#![allow(dead_code, clippy::large_enum_variant, reason = "they describe, and are never filled")]

pub(super) mod answers;
pub(super) mod anthropic;
pub(super) mod native;
pub(super) mod ollama;
pub(super) mod openai;

use serde::Serialize;
use utoipa::ToSchema;

/// Texts that end the answer; they aren't part of it.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(super) enum Stop {
    One(String),
    Many(Vec<String>),
}

/// How the next token is drawn, and when an answer ends. What isn't given is as the model recommends.
#[derive(Serialize, ToSchema)]
pub(super) struct Drawing {
    /// 0 always takes the most probable token.
    #[schema(minimum = 0, maximum = 100)]
    temperature: Option<f32>,
    /// Keeps the smallest set of tokens with this probability; 1 keeps all.
    #[schema(minimum = 0, maximum = 1)]
    top_p: Option<f32>,
    /// Keeps so many of the most probable tokens; 0 and -1 keep all.
    #[schema(minimum = -1, maximum = 1_000_000)]
    top_k: Option<i64>,
    /// Drops tokens below this share of the best one's probability.
    #[schema(minimum = 0, maximum = 1)]
    min_p: Option<f32>,
    /// Penalty on repeated tokens; 1 is none.
    #[schema(minimum = 0.01, maximum = 100)]
    repeat_penalty: Option<f32>,
    /// How many tokens that looks back.
    #[schema(minimum = 0, maximum = 1_000_000)]
    repeat_last_n: Option<u32>,
    /// Penalty on tokens that occurred.
    #[schema(minimum = -2, maximum = 2)]
    presence_penalty: Option<f32>,
    /// Penalty on each occurrence of a token.
    #[schema(minimum = -2, maximum = 2)]
    frequency_penalty: Option<f32>,
    /// The same seed draws the same; drawn at random and reported if it isn't given.
    #[schema(minimum = 0, maximum = 9_007_199_254_740_991_u64)]
    seed: Option<u64>,
    /// Added to the logits of tokens: from ids (as strings) to -100 to 100.
    logit_bias: Option<std::collections::HashMap<String, f32>>,
    stop: Option<Stop>,
    /// Tokens that end the answer.
    stop_token_ids: Option<Vec<u32>>,
    /// The model's own end doesn't end the answer.
    ignore_eos: Option<bool>,
    /// Whether a computed prompt that begins the same is used and this one is kept.
    cache_prompt: Option<bool>,
    /// The same tokens for a seed to the last bit, whatever else is computed.
    deterministic: Option<bool>,
    /// How tokens are guessed: it changes how fast an answer comes.
    #[schema(pattern = "^(off|ngram)$")]
    speculate: Option<String>,
    /// Lower goes first.
    #[schema(minimum = -1000, maximum = 1000)]
    priority: Option<i32>,
    /// Ends the answer with an error if it isn't complete by then.
    #[schema(minimum = 1, maximum = 9_007_199_254_740_991_u64)]
    deadline_ms: Option<u64>,
}

/// OpenAI's error, and that of the native endpoints.
#[derive(Serialize, ToSchema)]
pub(super) struct OpenAiError {
    error: ErrorDetail,
}

/// What went wrong.
#[derive(Serialize, ToSchema)]
pub(super) struct ErrorDetail {
    /// What was found, and what to do.
    message: String,
    /// `invalid_request_error`, `authentication_error`, `permission_error`, `not_found_error`, `rate_limit_error`,
    /// `unavailable` or `server_error`.
    r#type: String,
    /// The request's field.
    param: Option<String>,
    /// For programs.
    code: Option<String>,
}

/// Anthropic's error.
#[derive(Serialize, ToSchema)]
pub(super) struct AnthropicError {
    /// `error`.
    r#type: String,
    error: AnthropicErrorDetail,
}

/// What went wrong.
#[derive(Serialize, ToSchema)]
pub(super) struct AnthropicErrorDetail {
    /// Follows the status.
    r#type: String,
    /// What was found, and what to do.
    message: String,
}

/// Ollama's error.
#[derive(Serialize, ToSchema)]
pub(super) struct OllamaError {
    /// What was found, and what to do.
    error: String,
}
