//! A request for a response, taken apart and checked.

use serde_json::{Map, Value, json};

use super::items::{Said, said};
use crate::error::ApiError;
use crate::routes::openai::chat::MAX_TOP_LOGPROBS;
use crate::routes::openai::sampling::{take_generation, take_max_tokens};
use crate::routes::request::fields::{Fields, kind_of};
use crate::routes::request::generation::Generation;

/// Most entries of `metadata`, and most characters of its keys and values.
const MAX_METADATA: (usize, usize, usize) = (16, 64, 512);
/// The one thing that `include` can ask for here.
const INCLUDE_LOGPROBS: &str = "message.output_text.logprobs";

/// A checked request.
#[derive(Debug, PartialEq)]
pub struct ResponseRequest {
    /// Who answers.
    pub model: Option<String>,
    /// What is said.
    pub said: Said,
    /// Said before everything else, in this request only.
    pub instructions: Option<String>,
    /// What was said before.
    pub previous: Option<String>,
    /// Whether the response is kept.
    pub store: bool,
    /// As events.
    pub stream: bool,
    /// Whether it runs on without its client.
    pub background: bool,
    /// Most tokens of the answer.
    pub max_output_tokens: Option<usize>,
    /// Alternatives a token, if log-probabilities are reported.
    pub logprobs: Option<usize>,
    /// How to draw.
    pub generation: Generation,
    /// Comes back as it is.
    pub metadata: Map<String, Value>,
    /// Comes back; there are no tools to call.
    pub tool_choice: &'static str,
    /// The same.
    pub parallel_tool_calls: bool,
    /// Comes back.
    pub user: Option<String>,
    /// Fields without an effect.
    pub ignored: Option<String>,
}

impl ResponseRequest {
    /// Takes a body apart.
    ///
    /// # Errors
    /// 400 that names the field.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body)?;
        let model = fields.take("model")?;
        let input = fields.take::<Value>("input")?;
        let said = said(&input.ok_or_else(|| ApiError::param("input", "`input` is missing"))?)?;
        refuse(&mut fields)?;
        let tool_choice = match fields.take::<Value>("tool_choice")? {
            Some(choice) if choice == "none" => "none",
            None => "auto",
            Some(choice) if choice == "auto" => "auto",
            Some(_) => return Err(ApiError::unsupported("tool_choice", NO_TOOLS)),
        };
        take_text(&mut fields)?;
        // What a stream would be padded with.
        fields.take::<Value>("stream_options")?;
        let store = fields.take("store")?.unwrap_or(true);
        let background = fields.take("background")?.unwrap_or(false);
        if background && !store {
            let message = "`background` needs `store`: nobody could ask for a response that isn't kept";
            return Err(ApiError::param("background", message));
        }
        Ok(Self {
            model,
            said,
            instructions: fields.take("instructions")?,
            previous: fields.take("previous_response_id")?,
            store,
            background,
            stream: fields.take("stream")?.unwrap_or(false),
            max_output_tokens: take_max_tokens(&mut fields, "max_output_tokens")?,
            logprobs: take_logprobs(&mut fields)?,
            generation: take_generation(&mut fields)?,
            metadata: take_metadata(&mut fields)?,
            tool_choice,
            parallel_tool_calls: fields.take("parallel_tool_calls")?.unwrap_or(true),
            user: fields.take("user")?,
            ignored: fields.ignored(),
        })
    }
}

const NO_TOOLS: &str = "this server can't call tools yet";

/// What can't be honoured.
fn refuse(fields: &mut Fields) -> Result<(), ApiError> {
    fields.refuse("tools", &[json!([])], NO_TOOLS)?;
    let nothing = [json!({}), json!({"effort": null}), json!({"effort": null, "summary": null})];
    fields.refuse("reasoning", &nothing, "leave it out; what a model thinks is part of its text")?;
    fields.refuse("truncation", &[json!("disabled")], "a conversation that is too long is an error and never cut")?;
    fields.refuse("conversation", &[], "name the last response as `previous_response_id`")?;
    fields.refuse("prompt", &[], "send the text as `input`")?;
    fields.refuse("context_management", &[json!([])], "a conversation is never cut")?;
    fields.refuse("moderation", &[], "this server doesn't moderate")?;
    // Names of other APIs for what this one calls otherwise.
    fields.refuse("messages", &[], "this API calls it `input`")?;
    fields.refuse("max_tokens", &[], "this API calls it `max_output_tokens`")?;
    fields.refuse("max_completion_tokens", &[], "this API calls it `max_output_tokens`")?;
    fields.refuse("n", &[json!(1)], "a response is one answer")?;
    fields.refuse("response_format", &[json!({"type": "text"})], "answers can't be constrained yet")
}

fn take_text(fields: &mut Fields) -> Result<(), ApiError> {
    let mut text = match fields.take::<Value>("text")? {
        None => return Ok(()),
        Some(Value::Object(text)) => Fields::of(text),
        Some(other) => {
            return Err(ApiError::param("text", format!("`text` must be an object, not {}", kind_of(&other))));
        }
    };
    let refused = text
        .refuse("format", &[json!({"type": "text"})], "answers can't be constrained yet, only {\"type\": \"text\"}")
        .and_then(|()| text.refuse("verbosity", &[json!("medium")], "leave it out"));
    refused.map_err(|error| {
        let param = error.param.map(|param| format!("text.{param}"));
        ApiError { param, ..error }
    })
}

fn take_logprobs(fields: &mut Fields) -> Result<Option<usize>, ApiError> {
    let include: Vec<String> = fields.take("include")?.unwrap_or_default();
    if let Some(other) = include.iter().find(|name| *name != INCLUDE_LOGPROBS) {
        let other: String = other.chars().take(64).collect();
        let instead = format!("there is no `{other}` to include, only \"{INCLUDE_LOGPROBS}\"");
        return Err(ApiError::unsupported("include", &instead));
    }
    let wanted = !include.is_empty();
    match fields.take::<i64>("top_logprobs")? {
        None | Some(0) => Ok(wanted.then_some(0)),
        Some(top) => match usize::try_from(top) {
            Ok(top) if top <= MAX_TOP_LOGPROBS => Ok(Some(top)),
            _ => {
                let message = format!("`top_logprobs` must be between 0 and {MAX_TOP_LOGPROBS}, got {top}");
                Err(ApiError::param("top_logprobs", message))
            }
        },
    }
}

fn take_metadata(fields: &mut Fields) -> Result<Map<String, Value>, ApiError> {
    let (most, key_chars, value_chars) = MAX_METADATA;
    let metadata: Map<String, Value> = fields.take("metadata")?.unwrap_or_default();
    let wrong = |message: String| Err(ApiError::param("metadata", message));
    if metadata.len() > most {
        return wrong(format!("`metadata` may have up to {most} entries, got {}", metadata.len()));
    }
    for (key, value) in &metadata {
        let Value::String(value) = value else {
            return wrong(format!("`metadata`: values are strings, not {}", kind_of(value)));
        };
        if key.chars().count() > key_chars || value.chars().count() > value_chars {
            return wrong(format!("`metadata`: keys have up to {key_chars} characters, values up to {value_chars}"));
        }
    }
    Ok(metadata)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(mut extra: Value) -> Result<ResponseRequest, ApiError> {
        let fields = extra.as_object_mut().unwrap();
        fields.entry("input").or_insert_with(|| json!("hi"));
        ResponseRequest::parse(extra.to_string().as_bytes())
    }

    #[test]
    fn defaults() {
        let request = parse(json!({"model": "m"})).unwrap();
        assert!(request.store && !request.stream && request.parallel_tool_calls && request.metadata.is_empty());
        assert_eq!((request.max_output_tokens, request.logprobs, request.tool_choice), (None, None, "auto"));
    }

    #[test]
    fn known_fields_do_what_they_say() {
        let request = parse(json!({
            "instructions": "be brief", "previous_response_id": "resp_1", "stream": true,
            "max_output_tokens": 9, "top_logprobs": 2, "metadata": {"a": "b"}, "truncation": "disabled",
            "text": {"format": {"type": "text"}}, "tools": [], "tool_choice": "none", "reasoning": {"effort": null},
            "background": true, "store": true, "include": [INCLUDE_LOGPROBS], "user": "me", "service_tier": "auto", "temperature": 0.5,
        }))
        .unwrap();
        assert_eq!((request.instructions.as_deref(), request.previous.as_deref()), (Some("be brief"), Some("resp_1")));
        assert_eq!((request.max_output_tokens, request.logprobs, request.tool_choice), (Some(9), Some(2), "none"));
        assert!(request.store && request.stream && request.background);
        assert!(!parse(json!({"store": false})).unwrap().store);
        assert_eq!((&request.metadata["a"], request.generation.temperature), (&json!("b"), Some(0.5)));
        assert_eq!(request.ignored.as_deref(), Some("service_tier"));
        assert_eq!(parse(json!({"include": [INCLUDE_LOGPROBS]})).unwrap().logprobs, Some(0));
    }

    #[test]
    fn what_would_change_the_answer_is_refused_by_name() {
        let entries = |count: usize| (0..count).map(|i| (i.to_string(), json!("x"))).collect::<Map<_, _>>();
        for (extra, param) in [
            (json!({"input": null}), "input"),
            (json!({"tools": [{"type": "web_search"}]}), "tools"),
            (json!({"tool_choice": "required"}), "tool_choice"),
            (json!({"tool_choice": {"type": "function", "name": "f"}}), "tool_choice"),
            (json!({"background": true, "store": false}), "background"),
            (json!({"background": 1}), "background"),
            (json!({"reasoning": {"effort": "high"}}), "reasoning"),
            (json!({"truncation": "auto"}), "truncation"),
            (json!({"conversation": "conv_1"}), "conversation"),
            (json!({"prompt": {"id": "pmpt_1"}}), "prompt"),
            (json!({"text": {"format": {"type": "json_object"}}}), "text.format"),
            (json!({"text": {"verbosity": "low"}}), "text.verbosity"),
            (json!({"text": "x"}), "text"),
            (json!({"include": ["reasoning.encrypted_content"]}), "include"),
            (json!({"top_logprobs": 21}), "top_logprobs"),
            (json!({"max_output_tokens": 0}), "max_output_tokens"),
            (json!({"max_tokens": 5}), "max_tokens"),
            (json!({"instructions": ["x"]}), "instructions"),
            (json!({"metadata": {"a": 1}}), "metadata"),
            (json!({"metadata": entries(17)}), "metadata"),
            (json!({"metadata": {"a": "x".repeat(513)}}), "metadata"),
            (json!({"store": "yes"}), "store"),
        ] {
            let error = parse(extra.clone()).expect_err(&extra.to_string());
            assert_eq!((error.status.as_u16(), error.param.as_deref()), (400, Some(param)), "{extra}");
        }
    }
}
