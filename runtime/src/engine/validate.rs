//! What a request must be before it may wait.

use super::embed::EmbedRequest;
use super::request::{GenerateRequest, SamplingParams};
use crate::error::{Error, Result};

fn invalid(param: &'static str, message: impl Into<String>) -> Error {
    Error::InvalidRequest { param, message: message.into() }
}

/// Checks a request and returns the most tokens that prompt and answer may have together.
///
/// # Errors
/// [`Error::InvalidRequest`] with the field, or [`Error::ContextLength`]: a request is never cut to fit.
pub(super) fn validate(request: &GenerateRequest, vocab_size: usize, context_tokens: usize) -> Result<usize> {
    let check_id = |param, id: u32| {
        if (id as usize) < vocab_size {
            return Ok(());
        }
        Err(invalid(param, format!("token id {id} is outside the vocabulary of {vocab_size} tokens")))
    };
    if request.prompt.is_empty() {
        return Err(invalid("prompt", "has no tokens"));
    }
    request.prompt.iter().try_for_each(|&id| check_id("prompt", id))?;
    request.stop_token_ids.iter().try_for_each(|&id| check_id("stop_token_ids", id))?;
    if request.stop.iter().any(String::is_empty) {
        return Err(invalid("stop", "an empty string would end every answer at once"));
    }
    if let Some(num_top) = request.logprobs
        && num_top > vocab_size
    {
        return Err(invalid("logprobs", format!("{num_top} alternatives of {vocab_size} tokens")));
    }
    sampling(&request.sampling, check_id)?;

    let prompt_tokens = request.prompt.len();
    if request.max_tokens == Some(0) {
        return Err(invalid("max_tokens", "must be at least 1"));
    }
    let total = prompt_tokens.saturating_add(request.max_tokens.unwrap_or(1));
    if total > context_tokens {
        let max_tokens = total - prompt_tokens;
        return Err(Error::ContextLength { prompt_tokens, max_tokens, context_tokens });
    }
    Ok(if request.max_tokens.is_some() { total } else { context_tokens })
}

/// Checks a text whose embedding is wanted.
///
/// # Errors
/// [`Error::InvalidRequest`] with the field, or [`Error::ContextLength`]: a text is never cut to fit.
pub(super) fn validate_embedding(request: &EmbedRequest, vocab_size: usize, context_tokens: usize) -> Result<()> {
    if request.tokens.is_empty() {
        return Err(invalid("input", "has no tokens"));
    }
    if let Some(id) = request.tokens.iter().find(|&&id| id as usize >= vocab_size) {
        return Err(invalid("input", format!("token id {id} is outside the vocabulary of {vocab_size} tokens")));
    }
    let prompt_tokens = request.tokens.len();
    if prompt_tokens > context_tokens {
        return Err(Error::ContextLength { prompt_tokens, max_tokens: 0, context_tokens });
    }
    Ok(())
}

fn sampling(params: &SamplingParams, check_id: impl Fn(&'static str, u32) -> Result<()>) -> Result<()> {
    for &(id, bias) in &params.logit_bias {
        check_id("logit_bias", id)?;
        if !bias.is_finite() {
            return Err(invalid("logit_bias", format!("the bias of token {id} is {bias}, not a finite number")));
        }
    }
    let ranges = [
        ("repeat_penalty", params.repeat_penalty, 0.01, 100.0, "between 0.01 and 100"),
        ("presence_penalty", params.presence_penalty, f32::MIN, f32::MAX, "a finite number"),
        ("frequency_penalty", params.frequency_penalty, f32::MIN, f32::MAX, "a finite number"),
        ("top_p", params.top_p, 0.0, 1.0, "between 0 and 1"),
        ("min_p", params.min_p, 0.0, 1.0, "between 0 and 1"),
        ("temperature", params.temperature, 0.0, f32::MAX, "0 or above"),
    ];
    for (param, value, low, high, expected) in ranges {
        if !(low..=high).contains(&value) {
            return Err(invalid(param, format!("is {value}, but must be {expected}")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> GenerateRequest {
        GenerateRequest::new(vec![1, 2, 3])
    }

    fn param(request: &GenerateRequest) -> &'static str {
        match validate(request, 10, 20) {
            Err(Error::InvalidRequest { param, .. }) => param,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_total_is_what_was_asked_for_or_the_context() {
        assert_eq!(validate(&request(), 10, 20).unwrap(), 20);
        assert_eq!(validate(&GenerateRequest { max_tokens: Some(17), ..request() }, 10, 20).unwrap(), 20);
        assert_eq!(validate(&GenerateRequest { max_tokens: Some(4), ..request() }, 10, 20).unwrap(), 7);
    }

    #[test]
    fn over_the_context_is_an_error_with_both_counts() {
        for (prompt, max_tokens, asked) in [(20, None, 1), (3, Some(18), 18), (3, Some(usize::MAX), usize::MAX - 3)] {
            let request = GenerateRequest { prompt: vec![1; prompt], max_tokens, ..request() };
            match validate(&request, 10, 20) {
                Err(Error::ContextLength { prompt_tokens, max_tokens, context_tokens: 20 }) => {
                    assert_eq!((prompt_tokens, max_tokens), (prompt, asked));
                }
                other => panic!("{other:?}"),
            }
        }
        assert!(validate(&GenerateRequest { prompt: vec![1; 19], ..request() }, 10, 20).is_ok());
    }

    #[test]
    fn each_bad_field_is_named() {
        assert_eq!(param(&GenerateRequest { prompt: vec![], ..request() }), "prompt");
        assert_eq!(param(&GenerateRequest { prompt: vec![10], ..request() }), "prompt");
        assert_eq!(param(&GenerateRequest { stop_token_ids: vec![10], ..request() }), "stop_token_ids");
        assert_eq!(param(&GenerateRequest { stop: vec!["a".into(), String::new()], ..request() }), "stop");
        assert_eq!(param(&GenerateRequest { logprobs: Some(11), ..request() }), "logprobs");
        assert_eq!(param(&GenerateRequest { max_tokens: Some(0), ..request() }), "max_tokens");
        let sampling = |change: fn(&mut SamplingParams)| {
            let mut request = request();
            change(&mut request.sampling);
            param(&request)
        };
        assert_eq!(sampling(|p| p.logit_bias = vec![(10, 1.0)]), "logit_bias");
        assert_eq!(sampling(|p| p.logit_bias = vec![(1, f32::NEG_INFINITY)]), "logit_bias");
        assert_eq!(sampling(|p| p.repeat_penalty = 0.0), "repeat_penalty");
        assert_eq!(sampling(|p| p.presence_penalty = f32::NAN), "presence_penalty");
        assert_eq!(sampling(|p| p.frequency_penalty = f32::INFINITY), "frequency_penalty");
        assert_eq!(sampling(|p| p.top_p = 1.01), "top_p");
        assert_eq!(sampling(|p| p.min_p = -0.01), "min_p");
        assert_eq!(sampling(|p| p.temperature = -1.0), "temperature");
        assert_eq!(sampling(|p| p.temperature = f32::NAN), "temperature");
    }
}
