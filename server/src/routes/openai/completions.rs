//! `POST /v1/completions`.

use std::num::NonZeroUsize;
use std::sync::Arc;

use actix_web::http::Method;
use actix_web::{HttpRequest, HttpResponse, web};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use shimmy_runtime::models::LoadedModel;

use super::chat::{refuse_common, stream_usage};
use super::sampling::{take_generation, take_max_tokens, take_num_answers};
use super::stream::{DataLines, JsonChunks};
use super::types::{Answer, Head, StreamUsage, Totals, completion_logprobs, finish_reason};
use crate::app::AppState;
use crate::error::ApiError;
use crate::routes::request::begin::{Begun, add_ignored, begin, client_of};
use crate::routes::request::fields::Fields;
use crate::routes::request::generation::Generation;
use crate::routes::request::report::{Done, TokenReport};
use crate::routes::{read_body, resource};
use crate::stream::respond;

/// OpenAI's documented default of this resource.
const DEFAULT_MAX_TOKENS: usize = 16;
/// Most alternatives a token.
const MAX_LOGPROBS: usize = 5;

/// A prompt in one of its forms.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged, expecting = "expected a string, an array of token ids, or an array with one of them")]
enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
    Texts(Vec<String>),
    TokenLists(Vec<Vec<u32>>),
}

/// A checked request.
#[derive(Debug, PartialEq)]
pub struct CompletionRequest {
    model: Option<String>,
    prompt: Prompt,
    num_answers: NonZeroUsize,
    stream: bool,
    usage: StreamUsage,
    max_tokens: usize,
    logprobs: Option<usize>,
    generation: Generation,
    ignored: Option<String>,
}

impl CompletionRequest {
    /// Takes a body apart.
    ///
    /// # Errors
    /// 400 that names the field.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body)?;
        refuse_common(&mut fields)?;
        fields.refuse("suffix", &[json!("")], "this server can't fill in the middle")?;
        let logprobs = match fields.take::<i64>("logprobs")? {
            None => None,
            Some(top) => Some(usize::try_from(top).ok().filter(|top| *top <= MAX_LOGPROBS).ok_or_else(|| {
                ApiError::param("logprobs", format!("`logprobs` must be between 0 and {MAX_LOGPROBS}, got {top}"))
            })?),
        };
        Ok(Self {
            model: fields.take("model")?,
            prompt: prompt(&mut fields)?,
            num_answers: take_num_answers(&mut fields)?,
            stream: fields.take("stream")?.unwrap_or(false),
            usage: stream_usage(&mut fields)?,
            max_tokens: take_max_tokens(&mut fields, "max_tokens")?.unwrap_or(DEFAULT_MAX_TOKENS),
            logprobs,
            generation: take_generation(&mut fields)?,
            ignored: fields.ignored(),
        })
    }
}

/// One prompt: a list with one entry is that entry.
fn prompt(fields: &mut Fields) -> Result<Prompt, ApiError> {
    let wrong = |message: String| Err(ApiError::param("prompt", message));
    let one = |count: usize| format!("`prompt` holds {count} prompts; send one a request");
    match fields.take::<Prompt>("prompt")? {
        None => wrong("`prompt` is missing".into()),
        Some(Prompt::Tokens(tokens)) if tokens.is_empty() => wrong("`prompt` is empty".into()),
        Some(Prompt::Texts(mut texts)) => match (texts.pop(), texts.len()) {
            (Some(text), 0) => Ok(Prompt::Text(text)),
            (_, more) => wrong(one(more + 1)),
        },
        Some(Prompt::TokenLists(mut lists)) => match (lists.pop(), lists.len()) {
            (Some(tokens), 0) if !tokens.is_empty() => Ok(Prompt::Tokens(tokens)),
            (Some(_), 0) => wrong("`prompt` is empty".into()),
            (_, more) => wrong(one(more + 1)),
        },
        Some(prompt) => Ok(prompt),
    }
}

/// The prompt's tokens.
fn encode(prompt: &Prompt, model: &LoadedModel) -> Result<Vec<u32>, ApiError> {
    let tokens = match prompt {
        Prompt::Text(text) => model.encode_text(text)?,
        Prompt::Tokens(tokens) => {
            let size = model.tokenizer.vocab_size();
            if let Some(id) = tokens.iter().find(|id| **id as usize >= size) {
                let message = format!("`prompt`: there is no token {id}; the vocabulary has {size}");
                return Err(ApiError::param("prompt", message));
            }
            tokens.clone()
        }
        // `prompt` leaves the two forms above.
        Prompt::Texts(_) | Prompt::TokenLists(_) => Vec::new(),
    };
    if tokens.is_empty() {
        return Err(ApiError::param("prompt", "`prompt` is empty, and this model has no token that starts a text"));
    }
    Ok(tokens)
}

/// Registers the resource.
pub fn config(cfg: &mut web::ServiceConfig) {
    cfg.service(resource("/v1/completions", Method::POST, web::route().to(complete)));
}

async fn complete(
    state: web::Data<AppState>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    let stall = state.limits.stall;
    let body = read_body(&request, payload, state.limits.max_body_bytes).await?;
    let CompletionRequest { model, prompt, num_answers, stream, usage, max_tokens, logprobs, generation, ignored } =
        CompletionRequest::parse(&body)?;
    let begun = begin(state, client_of(&request)?, model, num_answers, move |model| {
        let prompt = encode(&prompt, model)?;
        Ok(generation.into_request(prompt, &model.defaults, Some(max_tokens), logprobs))
    })
    .await?;
    let mut response = HttpResponse::Ok();
    add_ignored(&mut response, ignored);
    let head = Head::new("cmpl", "text_completion", &begun.model.name);
    if stream {
        let model = logprobs.map(|_| begun.model);
        let encoder = Chunks { head, usage, model, offsets: vec![0; num_answers.get()], totals: Totals::default() };
        return Ok(respond(response, begun.group, begun.running, stall, DataLines(encoder)));
    }
    let Begun { model, group, running: _running, .. } = begun;
    let answers = group.collect().await?;
    let choices = answers.iter().enumerate().map(|(index, answer)| Choice {
        index,
        text: &answer.text,
        logprobs: logprobs.map(|_| completion_logprobs(&model.tokenizer, &answer.logprobs, &mut 0)),
        finish_reason: Some(finish_reason(answer.reason)),
    });
    let answer = Answer::whole(&head, choices.collect(), &Totals::of(&answers));
    Ok(response.content_type("application/json").body(answer.to_json()))
}

#[derive(Serialize)]
struct Choice<'a> {
    index: usize,
    text: &'a str,
    logprobs: Option<Value>,
    finish_reason: Option<&'static str>,
}

/// The chunks of a streamed completion.
struct Chunks {
    head: Head,
    usage: StreamUsage,
    /// Whose tokens to spell, if log-probabilities were asked for.
    model: Option<Arc<LoadedModel>>,
    /// Characters of each answer sent so far.
    offsets: Vec<usize>,
    totals: Totals,
}

impl Chunks {
    fn chunk(&self, index: usize, text: &str, logprobs: Option<Value>, done: Option<&Done>) -> Vec<u8> {
        let finish_reason = done.map(|done| finish_reason(done.reason));
        let choice = Choice { index, text, logprobs, finish_reason };
        Answer::chunk(&self.head, choice, self.usage, done).to_json()
    }
}

impl JsonChunks for Chunks {
    fn open(&mut self, _: usize) -> Option<Vec<u8>> {
        None
    }

    fn text(&mut self, index: usize, text: &str, reports: &[TokenReport]) -> Vec<u8> {
        let model = self.model.clone();
        let logprobs = model.map(|model| completion_logprobs(&model.tokenizer, reports, &mut self.offsets[index]));
        self.chunk(index, text, logprobs, None)
    }

    fn done(&mut self, index: usize, done: &Done) -> Vec<u8> {
        self.totals.add(index, done);
        self.chunk(index, "", None, Some(done))
    }

    fn close(&mut self) -> Option<Vec<u8>> {
        let usage = self.totals.usage;
        (self.usage == StreamUsage::Last).then(|| Answer::<Choice<'_>>::usage_only(&self.head, usage).to_json())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(value: Value) -> Result<CompletionRequest, ApiError> {
        CompletionRequest::parse(&serde_json::to_vec(&value).unwrap())
    }

    #[test]
    fn prompts_come_in_four_forms() {
        for value in [json!("x"), json!(["x"])] {
            assert_eq!(parse(json!({"prompt": value})).unwrap().prompt, Prompt::Text("x".into()));
        }
        for value in [json!([1, 2]), json!([[1, 2]])] {
            assert_eq!(parse(json!({"prompt": value})).unwrap().prompt, Prompt::Tokens(vec![1, 2]));
        }
        let request = parse(json!({"prompt": "x"})).unwrap();
        assert_eq!((request.max_tokens, request.logprobs), (16, None));
    }

    #[test]
    fn what_cant_be_done_is_refused_by_name() {
        for (value, param) in [
            (json!({}), "prompt"),
            (json!({"prompt": []}), "prompt"),
            (json!({"prompt": [[]]}), "prompt"),
            (json!({"prompt": ["a", "b"]}), "prompt"),
            (json!({"prompt": [[1], [2]]}), "prompt"),
            (json!({"prompt": {"a": 1}}), "prompt"),
            (json!({"prompt": [-1]}), "prompt"),
            (json!({"prompt": "x", "suffix": "y"}), "suffix"),
            (json!({"prompt": "x", "echo": true}), "echo"),
            (json!({"prompt": "x", "best_of": 3}), "best_of"),
            (json!({"prompt": "x", "logprobs": 6}), "logprobs"),
            (json!({"prompt": "x", "max_tokens": 0}), "max_tokens"),
        ] {
            let error = parse(value.clone()).expect_err(&value.to_string());
            assert_eq!((error.status.as_u16(), error.param.as_deref()), (400, Some(param)), "{value}");
        }
    }
}
