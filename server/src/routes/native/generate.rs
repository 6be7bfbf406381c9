//! A generation in Shimmy's own shape: sampling fields at the top level, `prompt` or `messages`, tokens as
//! `{"token": …}` and a last `{"done": true, …}`. Sockets speak it, and `POST /api/generate` where [`is_native`] says so.

use std::num::NonZeroUsize;

use actix_web::{HttpRequest, HttpResponse, web};
use serde_json::{Map, Value, json};
use shimmy_runtime::models::KeepAlive;

use crate::access::client::Client;
use crate::app::AppState;
use crate::error::ApiError;
use crate::routes::ollama::options::take_keep_alive;
use crate::routes::openai::chat::take_template_kwargs;
use crate::routes::openai::messages;
use crate::routes::openai::sampling::{OTHER_PARAMETERS, take_generation, take_max_tokens};
use crate::routes::openai::stream::{DataLines, JsonChunks};
use crate::routes::openai::types::{Usage, finish_reason};
use crate::routes::request::begin::{Begun, add_ignored, begin, client_of};
use crate::routes::request::fields::Fields;
use crate::routes::request::generation::{Generation, RANGES};
use crate::routes::request::prompt::Prompt;
use crate::routes::request::report::{Done, Timings, TokenReport};
use crate::stream::respond;

/// Whether the body of `POST /api/generate` has Shimmy's own shape and not Ollama's: it has no `options`, and at its top
/// level `max_tokens`, `messages` or a sampling parameter. (Ollama's sampling parameters are all inside `options`.)
pub fn is_native(fields: &Fields) -> bool {
    let parameters = RANGES.iter().map(|range| range.name).chain(OTHER_PARAMETERS);
    !fields.has("options") && ["max_tokens", "messages"].into_iter().chain(parameters).any(|name| fields.has(name))
}

/// A checked request.
#[derive(Debug, PartialEq)]
pub struct NativeRequest {
    model: Option<String>,
    prompt: Prompt,
    variables: Map<String, Value>,
    max_tokens: Option<usize>,
    stream: Option<bool>,
    keep_alive: Option<KeepAlive>,
    generation: Generation,
    ignored: Option<String>,
}

impl NativeRequest {
    /// Takes a body apart.
    ///
    /// # Errors
    /// 400 that names the field.
    pub fn parse(mut fields: Fields) -> Result<Self, ApiError> {
        let model = fields.take("model")?;
        let prompt = take_prompt(&mut fields)?;
        for name in ["format", "response_format"] {
            fields.refuse(name, &[json!(""), json!({"type": "text"})], "answers can't be constrained yet")?;
        }
        for name in ["tools", "images", "context"] {
            fields.refuse(name, &[json!([])], "this shape has no such thing")?;
        }
        for name in ["suffix", "template"] {
            fields.refuse(name, &[json!("")], "this shape has no such thing")?;
        }
        fields.refuse("options", &[json!({})], "sampling parameters are at the top level in this shape")?;
        fields.refuse("think", &[json!(false)], "what a model thinks is part of its text here")?;
        fields.refuse("logprobs", &[json!(false)], "POST /v1/completions has them")?;
        fields.refuse("n", &[json!(1)], "one answer a request")?;
        Ok(Self {
            model,
            prompt,
            variables: take_template_kwargs(&mut fields)?,
            max_tokens: take_max_tokens(&mut fields, "max_tokens")?,
            stream: fields.take("stream")?,
            keep_alive: take_keep_alive(&mut fields)?,
            generation: take_generation(&mut fields)?,
            ignored: fields.ignored(),
        })
    }

    /// Starts the generation, and says what of the request has no effect.
    ///
    /// # Errors
    /// Those of [`begin`].
    pub async fn begin(self, state: web::Data<AppState>, client: Client) -> Result<(Begun, Option<String>), ApiError> {
        let Self { model, prompt, variables, max_tokens, keep_alive, generation, ignored, .. } = self;
        let models = state.clone();
        let begun = begin(state, client, model, NonZeroUsize::MIN, move |model| {
            if let Some(keep_alive) = keep_alive {
                models.models.keep(&model.name, keep_alive);
            }
            let prompt = prompt.encode(model, &variables)?;
            Ok(generation.into_request(prompt, &model.defaults, max_tokens, None))
        });
        Ok((begun.await?, ignored))
    }

    /// Refuses to answer in one piece: for sockets, which always stream.
    ///
    /// # Errors
    /// 400 that names the field.
    pub fn check_streams(&self) -> Result<(), ApiError> {
        match self.stream {
            Some(false) => Err(ApiError::unsupported("stream", "a socket always streams; POST /api/generate doesn't")),
            None | Some(true) => Ok(()),
        }
    }
}

/// `messages`, or `prompt` with `system` before it, which is a conversation if the model has a template for one and
/// `raw` doesn't say otherwise.
fn take_prompt(fields: &mut Fields) -> Result<Prompt, ApiError> {
    let text = fields.take::<String>("prompt")?;
    let messages = fields.take::<Value>("messages")?;
    let system = fields.take::<String>("system")?.filter(|system| !system.is_empty());
    let is_raw = fields.take::<bool>("raw")?.unwrap_or(false);
    match (text, messages, is_raw) {
        (Some(_), Some(_), _) => Err(ApiError::param("messages", "send `prompt` or `messages`, not both")),
        (None, None, _) => Err(ApiError::param("prompt", "`prompt` is missing, or `messages`")),
        (None, Some(_), true) => Err(ApiError::param("raw", "`raw` is for a `prompt`; messages need a template")),
        (None, Some(mut messages), false) => {
            if let (Some(system), Some(messages)) = (system, messages.as_array_mut()) {
                messages.insert(0, json!({"role": "system", "content": system}));
            }
            Ok(Prompt::Messages(messages::for_template(&messages)?))
        }
        (Some(_), None, true) if system.is_some() => {
            Err(ApiError::param("system", "`system` has no place in a `raw` prompt; write it there"))
        }
        (Some(text), None, true) => Ok(Prompt::Raw(text)),
        (Some(text), None, false) => Ok(Prompt::Text { system, text }),
    }
}

/// The frame of new text.
pub fn token_frame(text: &str) -> Value {
    json!({"token": text})
}

/// The last frame of an answer that ended by itself.
pub fn done_frame(model: &str, done: &Done, ignored: Option<&str>) -> Value {
    let mut frame = json!({"done": true});
    add_end(&mut frame, model, done, ignored);
    frame
}

fn add_end(frame: &mut Value, model: &str, done: &Done, ignored: Option<&str>) {
    frame["finish_reason"] = finish_reason(done.reason).into();
    frame["model"] = model.into();
    frame["usage"] = json!(Usage::from(done.usage));
    frame["timings"] = json!(Timings::new(&done.timings, &done.usage));
    frame["seed"] = done.seed.into();
    if let Some(ignored) = ignored {
        frame["ignored"] = ignored.into();
    }
}

/// Answers `POST /api/generate` in this shape: as a whole unless `stream` is true.
///
/// # Errors
/// What is wrong with the request, and what keeps it from being answered.
pub async fn answer(
    state: web::Data<AppState>,
    request: &HttpRequest,
    fields: Fields,
) -> Result<HttpResponse, ApiError> {
    let stall = state.limits.stall;
    let native = NativeRequest::parse(fields)?;
    let streams = native.stream.unwrap_or(false);
    let (Begun { model, group, running, .. }, ignored) = native.begin(state, client_of(request)?).await?;
    let mut response = HttpResponse::Ok();
    add_ignored(&mut response, ignored);
    if streams {
        return Ok(respond(response, group, running, stall, DataLines(Frames(model.name.clone()))));
    }
    let answers = group.collect().await?;
    let answer = answers.first().ok_or_else(|| ApiError::server("the engine gave no answer"))?;
    let (reason, usage, timings, seed) = (answer.reason, answer.usage, answer.timings, answer.seed);
    let mut object = json!({"response": answer.text, "done": true});
    add_end(&mut object, &model.name, &Done { reason, usage, timings, seed }, None);
    drop(running);
    Ok(response.json(object))
}

/// The frames of a stream, for the model of this name.
struct Frames(String);

impl JsonChunks for Frames {
    fn open(&mut self, _: usize) -> Option<Vec<u8>> {
        None
    }

    fn text(&mut self, _: usize, text: &str, _: &[TokenReport]) -> Vec<u8> {
        token_frame(text).to_string().into_bytes()
    }

    fn done(&mut self, _: usize, done: &Done) -> Vec<u8> {
        done_frame(&self.0, done, None).to_string().into_bytes()
    }

    fn close(&mut self) -> Option<Vec<u8>> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(value: &Value) -> Fields {
        Fields::parse(value.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn the_two_shapes_are_told_apart_by_their_fields() {
        for (body, expected) in [
            (json!({"prompt": "x", "max_tokens": 3}), true),
            (json!({"prompt": "x", "temperature": 0.5}), true),
            (json!({"prompt": "x", "min_p": 0.5}), true),
            (json!({"prompt": "x", "seed": 1, "stream": true}), true),
            (json!({"messages": [{"role": "user", "content": "x"}]}), true),
            (json!({"prompt": "x"}), false),
            (json!({"prompt": "x", "stream": false, "keep_alive": "5m", "raw": true}), false),
            (json!({"prompt": "x", "max_tokens": null}), false),
            (json!({"prompt": "x", "options": {}}), false),
            (json!({"prompt": "x", "options": {}, "max_tokens": 3}), false),
            (json!({"prompt": "x", "options": null, "max_tokens": 3}), true),
            (json!({}), false),
        ] {
            assert_eq!(is_native(&fields(&body)), expected, "{body}");
        }
    }

    #[test]
    fn prompts_are_texts_or_conversations() {
        let prompt = |value: Value| NativeRequest::parse(fields(&value)).unwrap().prompt;
        let text = |system: Option<&str>| Prompt::Text { system: system.map(str::to_owned), text: "hi".into() };
        assert_eq!(prompt(json!({"prompt": "hi"})), text(None));
        assert_eq!(prompt(json!({"prompt": "hi", "system": "be brief"})), text(Some("be brief")));
        assert_eq!(prompt(json!({"prompt": "hi", "raw": true})), Prompt::Raw("hi".into()));
        let messages = json!([{"role": "user", "content": "hi"}]);
        assert_eq!(prompt(json!({"messages": messages})), Prompt::Messages(messages.clone()));
        let with_system = json!([{"role": "system", "content": "s"}, {"role": "user", "content": "hi"}]);
        assert_eq!(prompt(json!({"messages": messages, "system": "s"})), Prompt::Messages(with_system));
    }

    #[test]
    fn mistakes_are_named() {
        for (value, param) in [
            (json!({"max_tokens": 3}), "prompt"),
            (json!({"prompt": "x", "messages": []}), "messages"),
            (json!({"prompt": 3}), "prompt"),
            (json!({"messages": [], "max_tokens": 3}), "messages"),
            (json!({"messages": [{"role": "user", "content": "x"}], "raw": true}), "raw"),
            (json!({"prompt": "x", "raw": true, "system": "y"}), "system"),
            (json!({"prompt": "x", "max_tokens": 0}), "max_tokens"),
            (json!({"prompt": "x", "temperature": -1}), "temperature"),
            (json!({"prompt": "x", "options": {"num_predict": 3}}), "options"),
            (json!({"prompt": "x", "format": "json"}), "format"),
            (json!({"prompt": "x", "tools": [{}]}), "tools"),
            (json!({"prompt": "x", "n": 2}), "n"),
            (json!({"prompt": "x", "logprobs": 3}), "logprobs"),
            (json!({"prompt": "x", "suffix": "y"}), "suffix"),
            (json!({"prompt": "x", "chat_template_kwargs": {"messages": 1}}), "chat_template_kwargs"),
        ] {
            let error = NativeRequest::parse(fields(&value)).expect_err(&value.to_string());
            assert_eq!((error.status.as_u16(), error.param.as_deref()), (400, Some(param)), "{value}");
        }
        let request = NativeRequest::parse(fields(&json!({"prompt": "x", "zz": 1, "stream": false}))).unwrap();
        assert_eq!(request.ignored.as_deref(), Some("zz"));
        assert_eq!(request.check_streams().unwrap_err().param.as_deref(), Some("stream"));
    }
}
