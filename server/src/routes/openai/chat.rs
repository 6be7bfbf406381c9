//! `POST /v1/chat/completions`.

use std::num::NonZeroUsize;
use std::sync::Arc;

use actix_web::http::Method;
use actix_web::{HttpRequest, HttpResponse, web};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use shimmy_runtime::models::LoadedModel;

use super::messages;
use super::sampling::{take_generation, take_max_tokens, take_num_answers};
use super::stream::{DataLines, JsonChunks};
use super::types::{Answer, Head, StreamUsage, Totals, chat_logprobs, finish_reason};
use crate::app::AppState;
use crate::error::ApiError;
use crate::routes::request::begin::{Begun, add_ignored, begin, client_of};
use crate::routes::request::fields::Fields;
use crate::routes::request::generation::Generation;
use crate::routes::request::report::{Done, TokenReport};
use crate::routes::{read_body, resource};
use crate::stream::respond;

/// Most alternatives a token.
pub const MAX_TOP_LOGPROBS: usize = 20;
/// Template variables that a request can't set.
const RESERVED_KWARGS: [&str; 5] = ["messages", "tools", "add_generation_prompt", "bos_token", "eos_token"];

/// A checked request.
#[derive(Debug, PartialEq)]
pub struct ChatRequest {
    model: Option<String>,
    /// As templates read them.
    messages: Value,
    template_kwargs: Map<String, Value>,
    num_answers: NonZeroUsize,
    stream: bool,
    usage: StreamUsage,
    max_tokens: Option<usize>,
    logprobs: Option<usize>,
    generation: Generation,
    ignored: Option<String>,
}

/// `stream_options` of both completions.
#[derive(Debug, Default, Deserialize)]
struct StreamOptions {
    /// Send a last chunk with usage and no choices.
    include_usage: Option<bool>,
}

/// What `stream_options` asks for.
///
/// # Errors
/// 400 that names the field.
pub fn stream_usage(fields: &mut Fields) -> Result<StreamUsage, ApiError> {
    let options = fields.take::<StreamOptions>("stream_options")?.unwrap_or_default();
    Ok(if options.include_usage == Some(true) { StreamUsage::Last } else { StreamUsage::None })
}

/// Refuses what both completions refuse.
///
/// # Errors
/// 400 that names the field.
pub fn refuse_common(fields: &mut Fields) -> Result<(), ApiError> {
    fields.refuse(
        "response_format",
        &[json!({"type": "text"})],
        "answers can't be constrained yet, only {\"type\": \"text\"}",
    )?;
    fields.refuse("echo", &[json!(false)], "the answer never repeats the prompt")
}

/// Takes `chat_template_kwargs`: further variables of the template.
///
/// # Errors
/// 400 that names the field.
pub fn take_template_kwargs(fields: &mut Fields) -> Result<Map<String, Value>, ApiError> {
    let kwargs: Map<String, Value> = fields.take("chat_template_kwargs")?.unwrap_or_default();
    match RESERVED_KWARGS.iter().find(|name| kwargs.contains_key(**name)) {
        None => Ok(kwargs),
        Some(name) => {
            let message = format!("`chat_template_kwargs` can't set `{name}`");
            Err(ApiError::param("chat_template_kwargs", message))
        }
    }
}

impl ChatRequest {
    /// Takes a body apart.
    ///
    /// # Errors
    /// 400 that names the field.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body)?;
        let model = fields.take("model")?;
        let messages = fields.take::<Value>("messages")?;
        let messages = messages.ok_or_else(|| ApiError::param("messages", "`messages` is missing"))?;
        let messages = messages::for_template(&messages)?;
        refuse_common(&mut fields)?;
        // Without tools, leaving the choice to the model chooses nothing.
        let no_tools = "this server can't call tools yet";
        fields.refuse("tools", &[json!([])], no_tools)?;
        fields.refuse("tool_choice", &[json!("none"), json!("auto")], no_tools)?;
        fields.refuse("functions", &[json!([])], no_tools)?;
        fields.refuse("function_call", &[json!("none"), json!("auto")], no_tools)?;
        fields.refuse("modalities", &[json!(["text"])], "answers are text")?;
        fields.refuse("audio", &[], "answers are text")?;
        fields.refuse("web_search_options", &[], "this server doesn't search")?;
        fields.refuse(
            "reasoning_effort",
            &[],
            "leave it out, or use chat_template_kwargs if the template has a switch",
        )?;
        fields.refuse("verbosity", &[], "leave it out")?;
        fields.refuse("add_generation_prompt", &[json!(true)], "an answer always starts a new message")?;
        fields.refuse("continue_final_message", &[json!(false)], "an answer always starts a new message")?;
        let template_kwargs = take_template_kwargs(&mut fields)?;
        Ok(Self {
            model,
            messages,
            template_kwargs,
            num_answers: take_num_answers(&mut fields)?,
            stream: fields.take("stream")?.unwrap_or(false),
            usage: stream_usage(&mut fields)?,
            max_tokens: max_tokens(&mut fields)?,
            logprobs: logprobs(&mut fields)?,
            generation: take_generation(&mut fields)?,
            ignored: fields.ignored(),
        })
    }
}

/// `max_completion_tokens` is the new name of `max_tokens`; two different answers to one question are a mistake.
fn max_tokens(fields: &mut Fields) -> Result<Option<usize>, ApiError> {
    let old = take_max_tokens(fields, "max_tokens")?;
    let new = take_max_tokens(fields, "max_completion_tokens")?;
    match (old, new) {
        (Some(old), Some(new)) if old != new => Err(ApiError::param(
            "max_tokens",
            format!("`max_tokens` ({old}) and `max_completion_tokens` ({new}) differ; send one of them"),
        )),
        _ => Ok(new.or(old)),
    }
}

fn logprobs(fields: &mut Fields) -> Result<Option<usize>, ApiError> {
    let wanted = fields.take::<bool>("logprobs")?.unwrap_or(false);
    let top = fields.take::<i64>("top_logprobs")?;
    match top {
        Some(top) if !(0..=MAX_TOP_LOGPROBS as i64).contains(&top) => {
            let message = format!("`top_logprobs` must be between 0 and {MAX_TOP_LOGPROBS}, got {top}");
            Err(ApiError::param("top_logprobs", message))
        }
        Some(top) if top > 0 && !wanted => {
            Err(ApiError::param("top_logprobs", "`top_logprobs` needs `logprobs`: true"))
        }
        top => Ok(wanted.then(|| top.and_then(|top| top.try_into().ok()).unwrap_or(0))),
    }
}

/// Registers the resource.
pub fn config(cfg: &mut web::ServiceConfig) {
    cfg.service(resource("/v1/chat/completions", Method::POST, web::route().to(chat)));
}

async fn chat(
    state: web::Data<AppState>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    let stall = state.limits.stall;
    let body = read_body(&request, payload, state.limits.max_body_bytes).await?;
    let ChatRequest {
        model,
        messages,
        template_kwargs,
        num_answers,
        stream,
        usage,
        max_tokens,
        logprobs,
        generation,
        ignored,
    } = ChatRequest::parse(&body)?;
    let begun = begin(state, client_of(&request)?, model, num_answers, move |model| {
        let prompt = model.encode_chat(&messages, &template_kwargs)?;
        Ok(generation.into_request(prompt, &model.defaults, max_tokens, logprobs))
    })
    .await?;
    let mut response = HttpResponse::Ok();
    add_ignored(&mut response, ignored);
    if stream {
        let head = Head::new("chatcmpl", "chat.completion.chunk", &begun.model.name);
        let totals = Totals::default();
        let encoder = Chunks { head, usage, logprobs: logprobs.is_some(), model: begun.model, totals };
        return Ok(respond(response, begun.group, begun.running, stall, DataLines(encoder)));
    }
    let Begun { model, group, running: _running, .. } = begun;
    let answers = group.collect().await?;
    let head = Head::new("chatcmpl", "chat.completion", &model.name);
    let choices = answers.iter().enumerate().map(|(index, answer)| Choice {
        index,
        message: Message { role: "assistant", content: &answer.text, refusal: None },
        logprobs: logprobs.map(|_| chat_logprobs(&model.tokenizer, &answer.logprobs)),
        finish_reason: finish_reason(answer.reason),
    });
    let answer = Answer::whole(&head, choices.collect(), &Totals::of(&answers));
    Ok(response.content_type("application/json").body(answer.to_json()))
}

#[derive(Serialize)]
struct Choice<'a> {
    index: usize,
    message: Message<'a>,
    logprobs: Option<Value>,
    finish_reason: &'static str,
}

#[derive(Serialize)]
struct Message<'a> {
    role: &'static str,
    content: &'a str,
    refusal: Option<&'a str>,
}

#[derive(Serialize)]
struct ChunkChoice<'a> {
    index: usize,
    delta: Delta<'a>,
    logprobs: Option<Value>,
    finish_reason: Option<&'static str>,
}

#[derive(Serialize)]
struct Delta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
}

/// The chunks of a streamed chat.
struct Chunks {
    head: Head,
    usage: StreamUsage,
    logprobs: bool,
    model: Arc<LoadedModel>,
    totals: Totals,
}

impl Chunks {
    fn chunk(&self, index: usize, delta: Delta<'_>, logprobs: Option<Value>, done: Option<&Done>) -> Vec<u8> {
        let finish_reason = done.map(|done| finish_reason(done.reason));
        let choice = ChunkChoice { index, delta, logprobs, finish_reason };
        Answer::chunk(&self.head, choice, self.usage, done).to_json()
    }
}

impl JsonChunks for Chunks {
    fn open(&mut self, index: usize) -> Option<Vec<u8>> {
        Some(self.chunk(index, Delta { role: Some("assistant"), content: Some("") }, None, None))
    }

    fn text(&mut self, index: usize, text: &str, reports: &[TokenReport]) -> Vec<u8> {
        let logprobs = self.logprobs.then(|| chat_logprobs(&self.model.tokenizer, reports));
        self.chunk(index, Delta { role: None, content: Some(text) }, logprobs, None)
    }

    fn done(&mut self, index: usize, done: &Done) -> Vec<u8> {
        self.totals.add(index, done);
        self.chunk(index, Delta { role: None, content: None }, None, Some(done))
    }

    fn close(&mut self) -> Option<Vec<u8>> {
        let usage = self.totals.usage;
        (self.usage == StreamUsage::Last).then(|| Answer::<ChunkChoice<'_>>::usage_only(&self.head, usage).to_json())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(mut extra: Value) -> Result<ChatRequest, ApiError> {
        let fields = extra.as_object_mut().unwrap();
        fields.entry("messages").or_insert_with(|| json!([{"role": "user", "content": "hi"}]));
        ChatRequest::parse(&serde_json::to_vec(&extra).unwrap())
    }

    #[test]
    fn defaults() {
        let request = parse(json!({"model": "m"})).unwrap();
        assert_eq!(request.model.as_deref(), Some("m"));
        assert!(!request.stream && request.usage == StreamUsage::None);
        assert_eq!((request.max_tokens, request.logprobs, request.ignored), (None, None, None));
    }

    #[test]
    fn known_fields_do_what_they_say() {
        let request = parse(json!({
            "stream": true, "stream_options": {"include_usage": true}, "max_completion_tokens": 9, "max_tokens": 9,
            "logprobs": true, "top_logprobs": 3, "n": 1, "tools": [], "tool_choice": "none",
            "response_format": {"type": "text"}, "chat_template_kwargs": {"enable_thinking": false},
            "user": "ann", "metadata": {"a": "b"}, "whatever": 1,
        }))
        .unwrap();
        assert!(request.stream && request.usage == StreamUsage::Last);
        assert_eq!((request.max_tokens, request.logprobs), (Some(9), Some(3)));
        assert_eq!(request.template_kwargs["enable_thinking"], json!(false));
        assert_eq!(request.ignored.as_deref(), Some("user, metadata, whatever"));
    }

    #[test]
    fn what_would_change_the_answer_is_refused_by_name() {
        for (extra, param) in [
            (json!({"n": 0}), "n"),
            (json!({"n": 17}), "n"),
            (json!({"n": 2, "best_of": 3}), "best_of"),
            (json!({"tools": [{"type": "function"}]}), "tools"),
            (json!({"tool_choice": "required"}), "tool_choice"),
            (json!({"response_format": {"type": "json_object"}}), "response_format"),
            (json!({"reasoning_effort": "high"}), "reasoning_effort"),
            (json!({"modalities": ["text", "audio"]}), "modalities"),
            (json!({"max_tokens": 1, "max_completion_tokens": 2}), "max_tokens"),
            (json!({"top_logprobs": 2}), "top_logprobs"),
            (json!({"logprobs": true, "top_logprobs": 21}), "top_logprobs"),
            (json!({"logprobs": 5}), "logprobs"),
            (json!({"stream": "yes"}), "stream"),
            (json!({"chat_template_kwargs": {"messages": []}}), "chat_template_kwargs"),
            (json!({"messages": null}), "messages"),
            (json!({"continue_final_message": true}), "continue_final_message"),
        ] {
            let error = parse(extra.clone()).expect_err(&extra.to_string());
            assert_eq!((error.status.as_u16(), error.param.as_deref()), (400, Some(param)), "{extra}");
        }
    }
}
