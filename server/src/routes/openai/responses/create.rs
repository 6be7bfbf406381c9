//! `POST /v1/responses`.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::SystemTime;

use actix_web::{HttpRequest, HttpResponse, web};
use serde_json::{Map, Value, json};

use super::background::{Live, Log, Reader, Task};
use super::events::{Events, Keep, Logprobs, Streamed};
use super::items::{Said, item_id};
use super::object::{Head, Moment};
use super::request::ResponseRequest;
use super::store::{Kept, Owner, Stage};
use crate::app::AppState;
use crate::error::ApiError;
use crate::ids::secret;
use crate::routes::openai::types::chat_logprobs;
use crate::routes::read_body;
use crate::routes::request::begin::{Begun, add_ignored, begin_entered, client_of, enter, look_up};
use crate::routes::request::report::{Done, unix_seconds};
use crate::stream::{relay, respond};

/// `POST /v1/responses`.
///
/// # Errors
/// 400 for what can't be honoured and for a previous response that isn't there, 429 for one too many in the background, and
/// what the engine refuses.
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
        background,
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
            check_whole(id, kept.stage)?;
            kept.messages.clone()
        }
    };
    conversation.extend(messages);
    // Instructions are of this request alone: the next one brings its own.
    let first = instructions.iter().map(|text| json!({"role": "system", "content": text}));
    let prompt: Value = first.chain(conversation.iter().cloned()).collect();
    let (temperature, top_p) = (generation.temperature, generation.top_p);
    let client = client_of(&request)?;
    client.check_priority(generation.priority)?;
    let running = enter(&state, &client)?;
    let (all, name) = (state.clone(), model.clone());
    let mut begin = Box::pin(async move {
        let begin = begin_entered(all, client, running, name, NonZeroUsize::MIN, move |model| {
            let prompt = model.encode_chat(&prompt, &Map::new())?;
            Ok(generation.into_request(prompt, &model.defaults, max_output_tokens, logprobs))
        });
        begin.await.map_err(in_own_words)
    });
    // What is wrong with a request is said at once, unless a model must be loaded to find out: nobody who asked for a response
    // in the background waits for that.
    let (name, is_loaded) = if background { find(&state, model).await? } else { (String::new(), true) };
    let begun = if is_loaded { Some(begin.as_mut().await?) } else { None };
    let known = begun.as_ref().map(|begun| &begun.model);
    let head = Head {
        id: secret("resp_")?,
        message_id: item_id(),
        created_at: unix_seconds(SystemTime::now()),
        model: known.map_or(name, |model| model.name.clone()),
        instructions,
        previous,
        store,
        background,
        max_output_tokens,
        top_logprobs: logprobs.unwrap_or(0),
        temperature: temperature.or(known.map(|model| model.defaults.temperature)),
        top_p: top_p.or(known.map(|model| model.defaults.top_p)),
        tool_choice,
        parallel_tool_calls,
        metadata,
        user,
    };
    let mut response = HttpResponse::Ok();
    add_ignored(&mut response, ignored);
    let reported = if logprobs.is_some() { Logprobs::Report } else { Logprobs::Leave };
    let events = Events::new(head.clone(), reported);
    let kept = Kept { object: Value::Null, items, messages: conversation, stage: Stage::Running, live: None };
    if background {
        let log = if stream { Log::Events } else { Log::Nothing };
        let object = head.response(Moment::Queued);
        let live = Live::new(log);
        let kept = Kept { object: object.clone(), live: Some(Arc::clone(&live)), ..kept };
        state.responses.start(head.id, owner, kept)?;
        let task = Task::new(state, Arc::clone(&live), events);
        // It runs on when this request has its answer, and when its client has gone.
        actix_web::rt::spawn(task.run(async move {
            match begun {
                Some(begun) => Ok(begun),
                None => begin.await,
            }
        }));
        return Ok(if stream { relay(response, stall, Reader::new(live, 0)) } else { response.json(object) });
    }
    let begun = match begun {
        Some(begun) => begun,
        None => begin.await?,
    };
    let keep: Option<Keep> = store.then(|| {
        let id = head.id.clone();
        Box::new(move |object: &Value, text: &str| {
            let mut kept = Kept { object: object.clone(), ..kept };
            kept.end(Stage::Whole, text);
            state.responses.insert(id, owner, kept);
        }) as Keep
    });
    if stream {
        let events = Streamed::new(events, begun.model, keep);
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

/// The model that is asked for, and whether it is in memory.
async fn find(state: &web::Data<AppState>, model: Option<String>) -> Result<(String, bool), ApiError> {
    let state = state.clone();
    let found = web::block(move || look_up(&state, model.as_deref())).await;
    found.map_err(|_| ApiError::server("looking for the model failed; the log says why"))?
}

/// Only what has ended by itself can be gone on from.
fn check_whole(id: &str, stage: Stage) -> Result<(), ApiError> {
    let why = match stage {
        Stage::Whole => return Ok(()),
        Stage::Running => "still runs; wait until GET shows that it has ended",
        Stage::Broken => "failed or was cancelled, so there is no answer to go on from",
    };
    let error = ApiError::param("previous_response_id", format!("the response `{id}` {why}"));
    Err(ApiError { code: Some("previous_response_not_completed"), ..error })
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
