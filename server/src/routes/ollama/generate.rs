//! `POST /api/chat` and `POST /api/generate` (which has another shape, too: see [`native::generate`]). Without messages or a prompt they load a model, or unload it when `keep_alive` is 0.

use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use actix_web::{HttpRequest, HttpResponse, web};
use serde_json::{Map, Value, json};
use shimmy_runtime::models::KeepAlive;

use super::lines::{Lines, Shape, finish};
use super::options::{Options, take_keep_alive};
use crate::app::AppState;
use crate::error::{ApiError, Protocol};
use crate::routes::openai::messages;
use crate::routes::request::begin::{Begun, add_ignored, begin, client_of, model_for};
use crate::routes::request::fields::Fields;
use crate::routes::request::prompt::Prompt;
use crate::routes::request::report::Done;
use crate::routes::{native, read_body};
use crate::stream::respond;

/// A checked request.
#[derive(Debug, PartialEq)]
struct Request {
    model: Option<String>,
    prompt: Prompt,
    stream: bool,
    keep_alive: Option<KeepAlive>,
    options: Options,
    ignored: Option<String>,
}

impl Request {
    fn parse(shape: Shape, mut fields: Fields) -> Result<Self, ApiError> {
        let model = fields.take("model")?;
        let prompt = match shape {
            Shape::Chat => chat_prompt(&mut fields)?,
            Shape::Generate => generate_prompt(&mut fields)?,
        };
        fields.refuse("format", &[json!("")], "answers can't be constrained yet")?;
        fields.refuse("think", &[json!(false)], "what a model thinks is part of its text here")?;
        fields.refuse("logprobs", &[json!(false)], "POST /v1/chat/completions has them")?;
        fields.refuse("top_logprobs", &[json!(0)], "POST /v1/chat/completions has them")?;
        // Fields of other protocols that would change the answer, and that this one has elsewhere.
        for (name, instead) in [
            ("max_tokens", "use options.num_predict"),
            ("temperature", "use options.temperature"),
            ("top_p", "use options.top_p"),
            ("top_k", "use options.top_k"),
            ("stop", "use options.stop"),
            ("seed", "use options.seed"),
        ] {
            fields.refuse(name, &[], instead)?;
        }
        let keep_alive = take_keep_alive(&mut fields)?;
        let options = Options::take(&mut fields)?;
        let stream = fields.take("stream")?.unwrap_or(true);
        let ignored: Vec<String> = fields.ignored().into_iter().chain(options.ignored.iter().cloned()).collect();
        let ignored = (!ignored.is_empty()).then(|| ignored.join(", "));
        Ok(Self { model, prompt, stream, keep_alive, options, ignored })
    }
}

fn chat_prompt(fields: &mut Fields) -> Result<Prompt, ApiError> {
    fields.refuse("tools", &[json!([])], "this server can't call tools yet")?;
    let mut messages = match fields.take::<Value>("messages")? {
        None => return Ok(Prompt::Empty),
        Some(Value::Array(messages)) if messages.is_empty() => return Ok(Prompt::Empty),
        Some(messages) => messages,
    };
    for (index, message) in messages.as_array_mut().into_iter().flatten().enumerate() {
        let Some(message) = message.as_object_mut() else { continue };
        match message.shift_remove("images") {
            None | Some(Value::Null) => {}
            Some(Value::Array(images)) if images.is_empty() => {}
            Some(_) => {
                let at = format!("messages[{index}].images");
                return Err(ApiError::unsupported(at, "this model reads text only"));
            }
        }
        // Its name for what templates call `reasoning_content`.
        if let Some(thinking) = message.shift_remove("thinking") {
            message.insert("reasoning_content".into(), thinking);
        }
    }
    Ok(Prompt::Messages(messages::for_template(&messages)?))
}

fn generate_prompt(fields: &mut Fields) -> Result<Prompt, ApiError> {
    fields.refuse("suffix", &[json!("")], "this server can't fill in the middle")?;
    fields.refuse("images", &[json!([])], "this model reads text only")?;
    fields.refuse("template", &[json!("")], "the model's own template is used; `raw` switches it off")?;
    fields.refuse("context", &[json!([])], "send the conversation to /api/chat instead")?;
    let text = fields.take::<String>("prompt")?.unwrap_or_default();
    let system = fields.take::<String>("system")?.filter(|system| !system.is_empty());
    let is_raw = fields.take::<bool>("raw")?.unwrap_or(false);
    if is_raw && system.is_some() {
        return Err(ApiError::param("system", "`system` has no place in a `raw` prompt; write it there"));
    }
    Ok(match (text.is_empty(), is_raw) {
        (true, _) => Prompt::Empty,
        (false, true) => Prompt::Raw(text),
        (false, false) => Prompt::Text { system, text },
    })
}

/// `POST /api/chat`.
///
/// # Errors
/// In Ollama's shape.
pub async fn chat(
    state: web::Data<AppState>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    let answered = async {
        let start = Instant::now();
        let fields = Fields::parse(&read_body(&request, payload, state.limits.max_body_bytes).await?)?;
        answer(Shape::Chat, state, &request, fields, start).await
    };
    answered.await.map_err(|error: ApiError| error.speaking(Protocol::Ollama))
}

/// `POST /api/generate`: Ollama's, or Shimmy's own if the body has its shape.
///
/// # Errors
/// In Ollama's shape.
pub async fn generate(
    state: web::Data<AppState>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    let answered = async {
        let start = Instant::now();
        let fields = Fields::parse(&read_body(&request, payload, state.limits.max_body_bytes).await?)?;
        if native::generate::is_native(&fields) {
            return native::generate::answer(state, &request, fields).await;
        }
        answer(Shape::Generate, state, &request, fields, start).await
    };
    answered.await.map_err(|error: ApiError| error.speaking(Protocol::Ollama))
}

async fn answer(
    shape: Shape,
    state: web::Data<AppState>,
    request: &HttpRequest,
    fields: Fields,
    start: Instant,
) -> Result<HttpResponse, ApiError> {
    let stall = state.limits.stall;
    let Request { model, prompt, stream, keep_alive, options, ignored } = Request::parse(shape, fields)?;
    let mut response = HttpResponse::Ok();
    add_ignored(&mut response, ignored);
    if prompt == Prompt::Empty {
        let object = load_or_unload(shape, state, model, keep_alive).await?;
        return Ok(response.json(object));
    }
    let Options { generation, max_tokens, .. } = options;
    let models = state.clone();
    let begun = begin(state, client_of(request)?, model, NonZeroUsize::MIN, move |model| {
        if let Some(keep_alive) = keep_alive {
            models.models.keep(&model.name, keep_alive);
        }
        let prompt = prompt.encode(model, &Map::new())?;
        Ok(generation.into_request(prompt, &model.defaults, max_tokens, None))
    })
    .await?;
    if stream {
        let lines = Lines::new(shape, begun.model.name.clone(), start);
        return Ok(respond(response, begun.group, begun.running, stall, lines));
    }
    let Begun { model, group, running: _running, .. } = begun;
    let answers = group.collect().await?;
    let answer = answers.first().ok_or_else(|| ApiError::server("the engine gave no answer"))?;
    let mut object = shape.object(&model.name, &answer.text);
    let (reason, usage, timings, seed) = (answer.reason, answer.usage, answer.timings, answer.seed);
    finish(&mut object, &Done { reason, usage, timings, seed }, start);
    Ok(response.json(object))
}

/// What an empty prompt asks for.
async fn load_or_unload(
    shape: Shape,
    state: web::Data<AppState>,
    name: Option<String>,
    keep_alive: Option<KeepAlive>,
) -> Result<Value, ApiError> {
    let done = web::block(move || {
        if keep_alive == Some(KeepAlive::For(Duration::ZERO)) {
            let name = name.ok_or_else(|| ApiError::param("model", "`model` is missing"))?;
            let model = state.models.find(&name)?;
            state.models.unload(&model.name);
            return Ok(shape.empty(&model.name, "unload"));
        }
        let model = model_for(&state, name.as_deref())?;
        if let Some(keep_alive) = keep_alive {
            state.models.keep(&model.name, keep_alive);
        }
        Ok(shape.empty(&model.name, "load"))
    });
    done.await.map_err(|_| ApiError::server("the model could not be loaded; the log says why"))?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(shape: Shape, value: &Value) -> Result<Request, ApiError> {
        Request::parse(shape, Fields::parse(value.to_string().as_bytes()).unwrap())
    }

    #[test]
    fn prompts_of_each_kind() {
        let prompt = |shape, value: Value| parse(shape, &value).unwrap().prompt;
        let text = |system: Option<&str>| Prompt::Text { system: system.map(str::to_owned), text: "hi".into() };
        assert_eq!(prompt(Shape::Generate, json!({"prompt": "hi"})), text(None));
        assert_eq!(prompt(Shape::Generate, json!({"prompt": "hi", "system": "be brief"})), text(Some("be brief")));
        assert_eq!(prompt(Shape::Generate, json!({"prompt": "hi", "raw": true})), Prompt::Raw("hi".into()));
        assert_eq!(prompt(Shape::Generate, json!({"prompt": ""})), Prompt::Empty);
        assert_eq!(prompt(Shape::Chat, json!({"messages": []})), Prompt::Empty);
        assert_eq!(
            prompt(
                Shape::Chat,
                json!({"messages": [{"role": "user", "content": "hi", "images": null, "thinking": "hm"}]})
            ),
            Prompt::Messages(json!([{"role": "user", "content": "hi", "reasoning_content": "hm"}]))
        );
        let request = parse(Shape::Generate, &json!({"prompt": "x", "options": {"num_ctx": 9}, "zz": 1})).unwrap();
        assert!(request.stream);
        assert_eq!(request.ignored.as_deref(), Some("zz, options.num_ctx"));
    }

    #[test]
    fn what_would_change_the_answer_is_refused_by_name() {
        for (shape, extra, param) in [
            (Shape::Chat, json!({"tools": [{"type": "function"}]}), "tools"),
            (
                Shape::Chat,
                json!({"messages": [{"role": "user", "content": "x", "images": ["aaaa"]}]}),
                "messages[0].images",
            ),
            (Shape::Chat, json!({"messages": "hi"}), "messages"),
            (Shape::Chat, json!({"format": "json"}), "format"),
            (Shape::Chat, json!({"think": true}), "think"),
            (Shape::Chat, json!({"temperature": 1}), "temperature"),
            (Shape::Generate, json!({"prompt": "x", "max_tokens": 3, "options": {}}), "max_tokens"),
            (Shape::Generate, json!({"prompt": "x", "suffix": "y"}), "suffix"),
            (Shape::Generate, json!({"prompt": "x", "raw": true, "system": "y"}), "system"),
            (Shape::Generate, json!({"prompt": "x", "context": [1]}), "context"),
            (Shape::Generate, json!({"prompt": 3}), "prompt"),
        ] {
            let error = parse(shape, &extra).expect_err(&extra.to_string());
            assert_eq!((error.status.as_u16(), error.param.as_deref()), (400, Some(param)), "{extra}");
        }
    }
}
