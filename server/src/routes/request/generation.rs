//! What a request of any protocol says about an answer, brought to the engine's terms.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use shimmy_runtime::engine::{Class, GenerateRequest, Numerics, PromptCache, SamplingParams, Speculation};

use super::fields::Fields;
use crate::error::ApiError;

/// Most bytes of a stop string.
const MAX_STOP_BYTES: usize = 1024;

/// A number that a request may set: its name, and its range with both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Range {
    /// Field of the request.
    pub name: &'static str,
    /// Least value.
    pub min: f32,
    /// Most; infinite if there is no bound, which JSON writes as null.
    pub max: f32,
}

impl Range {
    const fn new(name: &'static str, min: f32, max: f32) -> Self {
        Self { name, min, max }
    }
}

/// Of the temperature, in protocols that don't say otherwise.
pub const TEMPERATURE: Range = Range::new("temperature", 0.0, 100.0);
/// Of `top_p`.
pub const TOP_P: Range = Range::new("top_p", 0.0, 1.0);
/// Of `min_p`.
pub const MIN_P: Range = Range::new("min_p", 0.0, 1.0);
/// Of `repeat_penalty`.
pub const REPEAT_PENALTY: Range = Range::new("repeat_penalty", 0.01, 100.0);
/// Of `presence_penalty`.
pub const PRESENCE_PENALTY: Range = Range::new("presence_penalty", -2.0, 2.0);
/// Of `frequency_penalty`.
pub const FREQUENCY_PENALTY: Range = Range::new("frequency_penalty", -2.0, 2.0);
/// All of them.
pub const RANGES: [Range; 6] = [TEMPERATURE, TOP_P, MIN_P, REPEAT_PENALTY, PRESENCE_PENALTY, FREQUENCY_PENALTY];

/// What a request says about drawing; everything else comes from the model.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Generation {
    /// 0 always takes the most probable token.
    pub temperature: Option<f32>,
    /// Keep the smallest set with this probability.
    pub top_p: Option<f32>,
    /// Keep so many; 0 keeps all.
    pub top_k: Option<usize>,
    /// Drop what has less than this share of the best one's probability.
    pub min_p: Option<f32>,
    /// Penalty on repeated tokens; 1 is none.
    pub repeat_penalty: Option<f32>,
    /// How far that looks back.
    pub repeat_last_n: Option<usize>,
    /// Penalty on tokens that occurred.
    pub presence_penalty: Option<f32>,
    /// Penalty on each occurrence.
    pub frequency_penalty: Option<f32>,
    /// The same seed draws the same.
    pub seed: Option<u64>,
    /// Added to the logits of tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// Texts that end the answer.
    pub stop: Vec<String>,
    /// Tokens that end it.
    pub stop_token_ids: Vec<u32>,
    /// The model's own end doesn't end it.
    pub ignore_eos: bool,
    /// Whether computed prompts are used and kept.
    pub prompt_cache: PromptCache,
    /// Whether rounding may depend on what else is computed.
    pub numerics: Numerics,
    /// How tokens are guessed.
    pub speculation: Option<Speculation>,
    /// Lower goes first.
    pub priority: i32,
    /// From the arrival at the engine.
    pub deadline: Option<Duration>,
}

impl Generation {
    /// The engine's request: what the client said over what the model recommends.
    pub fn into_request(
        self,
        prompt: Vec<u32>,
        defaults: &SamplingParams,
        max_tokens: Option<usize>,
        logprobs: Option<usize>,
    ) -> GenerateRequest {
        let sampling = SamplingParams {
            logit_bias: self.logit_bias,
            repeat_penalty: self.repeat_penalty.unwrap_or(defaults.repeat_penalty),
            repeat_last_n: self.repeat_last_n.unwrap_or(defaults.repeat_last_n),
            presence_penalty: self.presence_penalty.unwrap_or(defaults.presence_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(defaults.frequency_penalty),
            top_k: self.top_k.unwrap_or(defaults.top_k),
            top_p: self.top_p.unwrap_or(defaults.top_p),
            min_p: self.min_p.unwrap_or(defaults.min_p),
            temperature: self.temperature.unwrap_or(defaults.temperature),
            seed: self.seed,
        };
        GenerateRequest {
            prompt,
            max_tokens,
            sampling,
            stop: self.stop,
            stop_token_ids: self.stop_token_ids,
            ignore_eos: self.ignore_eos,
            logprobs,
            prompt_cache: self.prompt_cache,
            numerics: self.numerics,
            speculation: self.speculation,
            class: Class { priority: self.priority, client: 0 },
            deadline: self.deadline,
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a string or an array of strings")]
enum Stop {
    One(String),
    Many(Vec<String>),
}

/// Takes `top_k`. `-1` is other servers' way to say off.
///
/// # Errors
/// 400 that names the field.
pub fn take_top_k(fields: &mut Fields) -> Result<Option<usize>, ApiError> {
    match fields.take::<i64>("top_k")? {
        None => Ok(None),
        Some(-1) => Ok(Some(0)),
        Some(k) => usize::try_from(k)
            .map(Some)
            .map_err(|_| ApiError::param("top_k", format!("`top_k` must be at least 1, or 0 or -1 for off, got {k}"))),
    }
}

/// Takes `seed`: any 64-bit integer; a negative one means its bits. (`-1` included: a client that sends a seed wants that seed.)
///
/// # Errors
/// 400 that names the field.
pub fn take_seed(fields: &mut Fields) -> Result<Option<u64>, ApiError> {
    let Some(number) = fields.take::<serde_json::Number>("seed")? else { return Ok(None) };
    let seed = number.as_u64().or_else(|| number.as_i64().map(i64::cast_unsigned));
    let wrong = || ApiError::param("seed", format!("`seed` must be a 64-bit integer, got {number}"));
    seed.map(Some).ok_or_else(wrong)
}

/// Takes a string or an array of up to `most` strings that end an answer.
///
/// # Errors
/// 400 that names the field.
pub fn take_stop(fields: &mut Fields, name: &'static str, most: usize) -> Result<Vec<String>, ApiError> {
    let stop = match fields.take::<Stop>(name)? {
        None => return Ok(Vec::new()),
        Some(Stop::One(stop)) => vec![stop],
        Some(Stop::Many(stop)) => stop,
    };
    if stop.len() > most {
        let message = format!("`{name}` may hold up to {most} strings, got {}", stop.len());
        return Err(ApiError::param(name, message));
    }
    if stop.iter().any(String::is_empty) {
        return Err(ApiError::param(
            name,
            format!("`{name}` holds an empty string, which would end every answer at once"),
        ));
    }
    if stop.iter().any(|stop| stop.len() > MAX_STOP_BYTES) {
        return Err(ApiError::param(name, format!("a string in `{name}` has more than {MAX_STOP_BYTES} bytes")));
    }
    Ok(stop)
}
