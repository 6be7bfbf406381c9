//! The fields that chat and plain completions share: how to draw, when to stop, how much to say.

use std::collections::HashMap;
use std::num::NonZeroUsize;

use serde_json::json;
use shimmy_runtime::engine::{Numerics, PromptCache, Speculation};

use crate::error::ApiError;
use crate::routes::request::embed::take_deadline;
use crate::routes::request::fields::Fields;
use crate::routes::request::generation::{
    FREQUENCY_PENALTY, Generation, MIN_P, PRESENCE_PENALTY, REPEAT_PENALTY, TEMPERATURE, TOP_P, take_seed, take_stop,
    take_top_k,
};

/// Most stop strings.
pub const MAX_STOPS: usize = 4;
/// Most answers to a prompt.
pub const MAX_ANSWERS: usize = 16;
/// Most entries of `logit_bias`.
pub const MAX_BIASES: usize = 1024;

/// Parameters of [`Generation`] beside those with a range.
pub const OTHER_PARAMETERS: [&str; 12] = [
    "top_k",
    "repeat_last_n",
    "seed",
    "logit_bias",
    "stop",
    "stop_token_ids",
    "ignore_eos",
    "deterministic",
    "cache_prompt",
    "speculate",
    "priority",
    "deadline_ms",
];

/// Samplers that other servers have and this one doesn't yet, with the values that switch them off.
pub const OTHER_SAMPLERS: [(&str, i64); 7] = [
    ("typical_p", 1),
    ("dry_multiplier", 0),
    ("xtc_probability", 0),
    ("mirostat", 0),
    ("top_n_sigma", -1),
    ("dynatemp_range", 0),
    ("min_tokens", 0),
];

/// What constrains answers elsewhere.
pub const CONSTRAINTS: [&str; 7] =
    ["grammar", "regex", "choice", "json_schema", "guided_json", "guided_regex", "guided_choice"];

fn refuse_other_samplers(fields: &mut Fields) -> Result<(), ApiError> {
    const INSTEAD: &str = "leave it out, or use temperature, top_k, top_p, min_p and the penalties";
    for (name, off) in OTHER_SAMPLERS {
        fields.refuse(name, &[json!(off)], INSTEAD)?;
    }
    // Parameters of switched-off samplers say nothing.
    for name in [
        "dry_base",
        "dry_allowed_length",
        "dry_penalty_last_n",
        "dry_sequence_breakers",
        "xtc_threshold",
        "mirostat_tau",
        "mirostat_eta",
        "dynatemp_exponent",
    ] {
        fields.take::<serde_json::Value>(name)?;
    }
    for name in CONSTRAINTS {
        fields.refuse(name, &[json!("")], "answers can't be constrained yet")?;
    }
    Ok(())
}

/// Takes the fields of a [`Generation`] out of a request.
///
/// # Errors
/// 400 that names the field.
pub fn take_generation(fields: &mut Fields) -> Result<Generation, ApiError> {
    refuse_other_samplers(fields)?;
    let seed = take_seed(fields)?;
    let numerics = match fields.take("deterministic")?.unwrap_or(false) {
        true => Numerics::Invariant,
        false => Numerics::Fast,
    };
    Ok(Generation {
        temperature: fields.take_range(TEMPERATURE)?,
        top_p: fields.take_range(TOP_P)?,
        top_k: take_top_k(fields)?,
        min_p: fields.take_range(MIN_P)?,
        repeat_penalty: fields.take_range(REPEAT_PENALTY)?,
        repeat_last_n: fields.take("repeat_last_n")?,
        presence_penalty: fields.take_range(PRESENCE_PENALTY)?,
        frequency_penalty: fields.take_range(FREQUENCY_PENALTY)?,
        seed,
        logit_bias: logit_bias(fields)?,
        stop: take_stop(fields, "stop", MAX_STOPS)?,
        stop_token_ids: fields.take("stop_token_ids")?.unwrap_or_default(),
        ignore_eos: fields.take("ignore_eos")?.unwrap_or(false),
        // A prompt from the cache is rounded in other places than one that is computed whole, unless it is exact. Who
        // names a seed wants the same answer again.
        numerics,
        prompt_cache: match fields.take("cache_prompt")?.unwrap_or(seed.is_none() || numerics == Numerics::Invariant) {
            true => PromptCache::Use,
            false => PromptCache::Skip,
        },
        speculation: speculation(fields)?,
        priority: fields.take("priority")?.unwrap_or(0),
        deadline: take_deadline(fields)?,
    })
}

fn speculation(fields: &mut Fields) -> Result<Option<Speculation>, ApiError> {
    match fields.take::<String>("speculate")?.as_deref() {
        None => Ok(None),
        Some("off") => Ok(Some(Speculation::Off)),
        Some("ngram") => Ok(Some(Speculation::Ngram)),
        Some("draft") => Ok(Some(Speculation::Draft)),
        Some(other) => {
            let message = format!("`speculate` must be \"off\", \"ngram\" or \"draft\", got \"{other}\"");
            Err(ApiError::param("speculate", message))
        }
    }
}

fn logit_bias(fields: &mut Fields) -> Result<Vec<(u32, f32)>, ApiError> {
    let wrong = |message: String| Err(ApiError::param("logit_bias", message));
    let bias: HashMap<String, f32> = fields.take("logit_bias")?.unwrap_or_default();
    if bias.len() > MAX_BIASES {
        return wrong(format!("`logit_bias` may hold up to {MAX_BIASES} tokens, got {}", bias.len()));
    }
    let mut biases = Vec::with_capacity(bias.len());
    for (token, value) in bias {
        let Ok(id) = token.parse() else {
            return wrong(format!("`logit_bias`: keys are token ids as strings, got `{token}`"));
        };
        if !(-100.0..=100.0).contains(&value) {
            return wrong(format!("`logit_bias` of token {id} must be between -100 and 100, got {value}"));
        }
        biases.push((id, value));
    }
    biases.sort_by_key(|(id, _)| *id);
    Ok(biases)
}

/// Takes `n`, how many answers are wanted, and refuses a `best_of` that would choose among more.
///
/// # Errors
/// 400 that names the field.
pub fn take_num_answers(fields: &mut Fields) -> Result<NonZeroUsize, ApiError> {
    let wanted = fields.take::<i64>("n")?.unwrap_or(1);
    let wrong = || ApiError::param("n", format!("`n` must be between 1 and {MAX_ANSWERS}, got {wanted}"));
    let n = usize::try_from(wanted).ok().filter(|&n| n <= MAX_ANSWERS).and_then(NonZeroUsize::new).ok_or_else(wrong)?;
    fields.refuse("best_of", &[json!(n)], "every answer is returned; ask for as many with `n`")?;
    Ok(n)
}

/// Takes a number of tokens.
///
/// # Errors
/// 400 when it isn't at least 1.
pub fn take_max_tokens(fields: &mut Fields, name: &'static str) -> Result<Option<usize>, ApiError> {
    match fields.take::<i64>(name)? {
        None => Ok(None),
        Some(n) => match usize::try_from(n) {
            Ok(n) if n > 0 => Ok(Some(n)),
            _ => Err(ApiError::param(
                name,
                format!("`{name}` must be at least 1, got {n}; leave it out to use the whole context"),
            )),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::Value;
    use shimmy_runtime::engine::{GenerateRequest, SamplingParams};

    use super::*;
    use crate::routes::request::generation::RANGES;

    fn take(value: Value) -> Result<GenerateRequest, ApiError> {
        let mut fields = Fields::parse(&serde_json::to_vec(&value).unwrap()).unwrap();
        let generation = take_generation(&mut fields)?;
        assert_eq!(fields.ignored(), None);
        Ok(generation.into_request(vec![1], &SamplingParams::default(), None, None))
    }

    #[test]
    fn fields_arrive_in_the_request() {
        let request = take(json!({
            "temperature": 0.5, "top_p": 0.9, "top_k": 7, "min_p": 0.1, "repeat_penalty": 1.1, "repeat_last_n": 9,
            "presence_penalty": 0.2, "frequency_penalty": -0.3, "seed": 5, "logit_bias": {"11": -100, "3": 2.5},
            "stop": ["a", "b"], "stop_token_ids": [4], "ignore_eos": true, "cache_prompt": false,
            "priority": -2, "deadline_ms": 1500, "deterministic": true, "speculate": "ngram",
        }))
        .unwrap();
        let expected = SamplingParams {
            logit_bias: vec![(3, 2.5), (11, -100.0)],
            repeat_penalty: 1.1,
            repeat_last_n: 9,
            presence_penalty: 0.2,
            frequency_penalty: -0.3,
            top_k: 7,
            top_p: 0.9,
            min_p: 0.1,
            temperature: 0.5,
            seed: Some(5),
        };
        assert_eq!(request.sampling, expected);
        assert_eq!(
            (request.stop, request.stop_token_ids, request.ignore_eos),
            (vec!["a".into(), "b".into()], vec![4], true)
        );
        assert_eq!(request.prompt_cache, PromptCache::Skip);
        assert_eq!((request.numerics, request.speculation), (Numerics::Invariant, Some(Speculation::Ngram)));
        assert_eq!((request.class.priority, request.deadline), (-2, Some(Duration::from_millis(1500))));
    }

    #[test]
    fn silence_means_the_models_defaults() {
        let request = take(json!({"top_k": null})).unwrap();
        assert_eq!(request.sampling, SamplingParams::default());
        assert_eq!(take(json!({"top_k": -1})).unwrap().sampling.top_k, 0);
        assert_eq!(take(json!({"stop": "x"})).unwrap().stop, ["x"]);
        assert_eq!(take(json!({"seed": -1})).unwrap().sampling.seed, Some(u64::MAX));
    }

    #[test]
    fn a_seed_asks_for_a_prompt_that_is_computed_whole() {
        for (value, expected) in [
            (json!({}), PromptCache::Use),
            (json!({"cache_prompt": false}), PromptCache::Skip),
            (json!({"seed": 1}), PromptCache::Skip),
            (json!({"seed": 1, "cache_prompt": true}), PromptCache::Use),
            (json!({"seed": 1, "deterministic": true}), PromptCache::Use),
        ] {
            assert_eq!(take(value.clone()).unwrap().prompt_cache, expected, "{value}");
        }
    }

    #[test]
    fn senseless_values_are_named() {
        for (value, param) in [
            (json!({"temperature": -1}), "temperature"),
            (json!({"top_p": 2}), "top_p"),
            (json!({"top_k": -2}), "top_k"),
            (json!({"top_k": 1.5}), "top_k"),
            (json!({"repeat_penalty": 0}), "repeat_penalty"),
            (json!({"presence_penalty": 3}), "presence_penalty"),
            (json!({"seed": 1.5}), "seed"),
            (json!({"stop": [1]}), "stop"),
            (json!({"stop": ""}), "stop"),
            (json!({"stop": ["1", "2", "3", "4", "5"]}), "stop"),
            (json!({"logit_bias": {"x": 1}}), "logit_bias"),
            (json!({"logit_bias": {"1": 101}}), "logit_bias"),
            (json!({"logit_bias": [1]}), "logit_bias"),
            (json!({"mirostat": 2}), "mirostat"),
            (json!({"dry_multiplier": 0.8}), "dry_multiplier"),
            (json!({"grammar": "root ::= x"}), "grammar"),
            (json!({"deadline_ms": 0}), "deadline_ms"),
            (json!({"deadline_ms": -5}), "deadline_ms"),
            (json!({"priority": 1.5}), "priority"),
            (json!({"speculate": "drafts"}), "speculate"),
        ] {
            let error = take(value.clone()).expect_err(&value.to_string());
            assert_eq!((error.status.as_u16(), error.param.as_deref()), (400, Some(param)), "{value}");
        }
        assert!(take(json!({"mirostat": 0, "mirostat_tau": 5.0, "typical_p": 1.0, "grammar": ""})).is_ok());
    }

    #[test]
    fn every_listed_parameter_is_read_and_every_other_sampler_is_refused() {
        let wrong = |name: &str| take(json!({name: {"no": "such"}})).expect_err(name);
        for name in OTHER_PARAMETERS.into_iter().chain(RANGES.map(|range| range.name)) {
            let error = wrong(name);
            assert_eq!((error.param.as_deref(), error.code), (Some(name), None), "{name} is read");
        }
        for name in CONSTRAINTS.into_iter().chain(OTHER_SAMPLERS.map(|(name, _)| name)) {
            let error = wrong(name);
            assert_eq!((error.param.as_deref(), error.code), (Some(name), Some("unsupported_parameter")), "{name}");
        }
        for range in RANGES {
            let error = take(json!({range.name: range.min - 1.0})).expect_err(range.name);
            assert_eq!(error.param.as_deref(), Some(range.name));
            assert!(take(json!({range.name: range.max.min(1.0)})).is_ok(), "{}", range.name);
        }
    }

    #[test]
    fn a_budget_is_at_least_one_token() {
        for (value, expected) in [(json!(5), Some(5)), (json!(0), None), (json!(-1), None), (json!("5"), None)] {
            let mut fields = Fields::parse(json!({"max_tokens": value}).to_string().as_bytes()).unwrap();
            assert_eq!(take_max_tokens(&mut fields, "max_tokens").ok().flatten(), expected, "{value}");
        }
    }
}
