//! `POST /v1/responses`.

use std::num::NonZeroUsize;
use std::time::SystemTime;

use actix_web::{HttpRequest, HttpResponse, web};
use serde_json::{Map, Value, json};

use super::events::{Events, Keep};
use super::items::{Said, item_id};
use super::object::{Head, Moment};
use super::request::ResponseRequest;
use super::store::{Kept, Owner};
use crate::app::AppState;
use crate::error::ApiError;
use crate::ids::secret;
use crate::routes::openai::types::chat_logprobs;
use crate::routes::read_body;
use crate::routes::request::begin::{Begun, add_ignored, begin, client_of};
use crate::routes::request::report::{Done, unix_seconds};
use crate::stream::respond;

/// `POST /v1/responses`.
///
/// # Errors
/// 400 for what can't be honoured and for a previous response that isn't there, and what the engine refuses.
pub async fn create(
    state: web::Data<AppState>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    let stall = state.limits.stall;
    let body = read_body(&request, payload, state.limits.max_body_bytes).await?;
    let ResponseRequest {
        model,
        said,
        instructions,
        previous,
        store,
        stream,
        max_output_tokens,
        logprobs,
        generation,
        metadata,
        tool_choice,
        parallel_tool_calls,
        user,
        ignored,
    } = ResponseRequest::parse(&body)?;
    let owner = Owner::of(&request);
    let Said { items, messages } = said;
    let mut conversation = match &previous {
        None => Vec::new(),
        Some(id) => {
            let kept = state.responses.get(id, &owner).ok_or_else(|| no_previous(id))?;
            kept.messages.clone()
        }
    };
    conversation.extend(messages);
    // Instructions are of this request alone: the next one brings its own.
    let first = instructions.iter().map(|text| json!({"role": "system", "content": text}));
    let prompt: Value = first.chain(conversation.iter().cloned()).collect();
    let (temperature, top_p) = (generation.temperature, generation.top_p);
    let begun = begin(state.clone(), client_of(&request)?, model, NonZeroUsize::MIN, move |model| {
        let prompt = model.encode_chat(&prompt, &Map::new())?;
        Ok(generation.into_request(prompt, &model.defaults, max_output_tokens, logprobs))
    })
    .await
    .map_err(in_own_words)?;
    let head = Head {
        id: secret("resp_")?,
        message_id: item_id(),
        created_at: unix_seconds(SystemTime::now()),
        model: begun.model.name.clone(),
        instructions,
        previous,
        store,
        max_output_tokens,
        top_logprobs: logprobs.unwrap_or(0),
        temperature: temperature.unwrap_or(begun.model.defaults.temperature),
        top_p: top_p.unwrap_or(begun.model.defaults.top_p),
        tool_choice,
        parallel_tool_calls,
        metadata,
        user,
    };
    let keep: Option<Keep> = store.then(|| {
        let id = head.id.clone();
        Box::new(move |object: &Value, text: &str| {
            conversation.push(json!({"role": "assistant", "content": text}));
            state.responses.insert(id, owner, Kept { object: object.clone(), items, messages: conversation });
        }) as Keep
    });
    let mut response = HttpResponse::Ok();
    add_ignored(&mut response, ignored);
    if stream {
        let events = Events::new(head, logprobs.map(|_| begun.model), keep);
        return Ok(respond(response, begun.group, begun.running, stall, events));
    }
    let Begun { model, group, running: _running, .. } = begun;
    let answers = group.collect().await?;
    let answer = answers.first().ok_or_else(|| ApiError::server("the engine gave no answer"))?;
    let reports = match logprobs {
        Some(_) => chat_logprobs(&model.tokenizer, &answer.logprobs)["content"].take(),
        None => json!([]),
    };
    let reports = reports.as_array().map_or(&[][..], Vec::as_slice);
    let (reason, usage, timings, seed) = (answer.reason, answer.usage, answer.timings, answer.seed);
    let done = Done { reason, usage, timings, seed };
    let object = head.response(Moment::Ended(&done, &answer.text, reports));
    if let Some(keep) = keep {
        keep(&object, &answer.text);
    }
    Ok(response.json(object))
}

fn no_previous(id: &str) -> ApiError {
    let id: String = id.chars().take(80).collect();
    let message = format!(
        "there is no response `{id}` to go on from: it was never kept, was deleted, or is too old; \
         send the conversation as `input` instead"
    );
    ApiError { code: Some("previous_response_not_found"), ..ApiError::param("previous_response_id", message) }
}

/// What other APIs call `messages` is `input` here.
fn in_own_words(error: ApiError) -> ApiError {
    let param = error.param.map(|param| match param.as_str() {
        "messages" => "input".to_owned(),
        "max_tokens" => "max_output_tokens".to_owned(),
        _ => param,
    });
    ApiError { param, ..error }
}
