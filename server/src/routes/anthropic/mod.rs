//! Anthropic's protocol: `POST /v1/messages` and `POST /v1/messages/count_tokens`. (`GET /v1/models` answers in its shape to
//! those who send `anthropic-version`.)
//!
//! | module | what lives there |
//! |---|---|
//! | [`message`] | a request, checked and brought to what templates read |
//! | [`stream`] | the events of a streamed answer |

pub mod message;
pub mod stream;

use std::num::NonZeroUsize;

use actix_web::http::Method;
use actix_web::{HttpRequest, HttpResponse, web};
use serde_json::{Value, json};
use shimmy_runtime::engine::{FinishReason, Usage};

use self::message::{CountRequest, MessageRequest};
use self::stream::Events;
use crate::app::AppState;
use crate::error::{ApiError, Protocol};
use crate::ids;
use crate::routes::request::begin::{Begun, add_ignored, begin, client_of, model_for};
use crate::routes::{read_body, resource};
use crate::stream::respond;

/// Registers the resources.
pub fn config(cfg: &mut web::ServiceConfig) {
    cfg.service(resource("/v1/messages", Method::POST, web::route().to(messages))).service(resource(
        "/v1/messages/count_tokens",
        Method::POST,
        web::route().to(count_tokens),
    ));
}

async fn messages(
    state: web::Data<AppState>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    answer(state, request, payload).await.map_err(|error| error.speaking(Protocol::Anthropic))
}

async fn answer(
    state: web::Data<AppState>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    let stall = state.limits.stall;
    let body = read_body(&request, payload, state.limits.max_body_bytes).await?;
    let MessageRequest { model, conversation, max_tokens, stream, generation, ignored } = MessageRequest::parse(&body)?;
    let stops = generation.stop.clone();
    let begun = begin(state, client_of(&request)?, model, NonZeroUsize::MIN, move |model| {
        let prompt = conversation.encode(model)?;
        Ok(generation.into_request(prompt, &model.defaults, Some(max_tokens), None))
    })
    .await?;
    let mut response = HttpResponse::Ok();
    add_ignored(&mut response, ignored);
    let id = ids::unique("msg");
    response.insert_header(("request-id", id.clone()));
    if stream {
        let events = Events::new(id, begun.model.name.clone(), begun.prompt_tokens, stops);
        return Ok(respond(response, begun.group, begun.running, stall, events));
    }
    let Begun { model, group, running: _running, .. } = begun;
    let answers = group.collect().await?;
    let answer = answers.first().ok_or_else(|| ApiError::server("the engine gave no answer"))?;
    let (stop_reason, stop_sequence) = stop_reason(answer.reason, &stops);
    // An empty text is no block: sent back with the next request it would be refused.
    let content = if answer.text.is_empty() { json!([]) } else { json!([{"type": "text", "text": answer.text}]) };
    Ok(response.json(json!({
        "id": id, "type": "message", "role": "assistant", "model": model.name, "content": content,
        "stop_reason": stop_reason, "stop_sequence": stop_sequence, "usage": usage(&answer.usage),
    })))
}

async fn count_tokens(
    state: web::Data<AppState>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    count(state, request, payload).await.map_err(|error| error.speaking(Protocol::Anthropic))
}

async fn count(
    state: web::Data<AppState>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    let body = read_body(&request, payload, state.limits.max_body_bytes).await?;
    let CountRequest { model, conversation, ignored } = CountRequest::parse(&body)?;
    let counted = web::block(move || conversation.encode(&*model_for(&state, model.as_deref())?));
    let tokens = counted.await.map_err(|_| ApiError::server("the tokens could not be counted; the log says why"))??;
    let mut response = HttpResponse::Ok();
    add_ignored(&mut response, ignored);
    Ok(response.json(json!({"input_tokens": tokens.len()})))
}

/// Anthropic's words for the end, and the stop string that made it.
fn stop_reason(reason: FinishReason, stops: &[String]) -> (&'static str, Option<&str>) {
    match reason {
        FinishReason::Stop => ("end_turn", None),
        FinishReason::StopString(index) => ("stop_sequence", stops.get(index).map(String::as_str)),
        FinishReason::Length => ("max_tokens", None),
    }
}

/// Counts: tokens from the cache are no input tokens here, but counted beside them.
fn usage(usage: &Usage) -> Value {
    json!({
        "input_tokens": usage.prompt_tokens - usage.cached_tokens, "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens, "output_tokens": usage.completion_tokens,
    })
}
