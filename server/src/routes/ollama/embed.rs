//! `POST /api/embed` and its older form, `POST /api/embeddings`. Vectors of both have the length 1.

use std::time::Instant;

use actix_web::{HttpRequest, HttpResponse, web};
use serde::Serialize;
use serde_json::Value;

use super::options::take_keep_alive;
use crate::app::AppState;
use crate::error::{ApiError, Protocol};
use crate::routes::openai::embeddings::MAX_INPUTS;
use crate::routes::read_body;
use crate::routes::request::begin::{add_ignored, client_of};
use crate::routes::request::embed::{EmbedOptions, Input, TooLong, embed, take_dimensions, take_texts};
use crate::routes::request::fields::{Fields, kind_of};

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// `input`, one text or many; `embeddings`.
    New,
    /// `prompt`; `embedding`.
    Old,
}

impl Form {
    fn field(self) -> &'static str {
        match self {
            Self::New => "input",
            Self::Old => "prompt",
        }
    }
}

/// A checked request.
#[derive(Debug, PartialEq)]
struct Request {
    model: Option<String>,
    texts: Vec<String>,
    options: EmbedOptions,
    ignored: Option<String>,
}

impl Request {
    fn parse(form: Form, body: &[u8]) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body)?;
        let model = fields.take("model")?;
        let mut texts = match form {
            Form::New => take_texts(&mut fields, "input")?.unwrap_or_default(),
            Form::Old => fields.take::<String>("prompt")?.into_iter().collect(),
        };
        // Its way to ask for nothing but that the model is there.
        if texts == [""] {
            texts.clear();
        }
        if texts.len() > MAX_INPUTS {
            let message = format!("`input` holds {} texts; at most {MAX_INPUTS} are taken at once", texts.len());
            return Err(ApiError::param("input", message));
        }
        let (num_ctx, of_options) = take_options(&mut fields)?;
        let dimensions = if form == Form::New { take_dimensions(&mut fields)? } else { None };
        let too_long = match fields.take::<bool>("truncate")?.unwrap_or(true) {
            true => TooLong::Cut(num_ctx.unwrap_or(usize::MAX)),
            false => TooLong::Refuse,
        };
        let keep_alive = take_keep_alive(&mut fields)?;
        let options = EmbedOptions { dimensions, too_long, keep_alive, ..EmbedOptions::take(&mut fields)? };
        let ignored: Vec<String> = fields.ignored().into_iter().chain(of_options).collect();
        let ignored = (!ignored.is_empty()).then(|| ignored.join(", "));
        Ok(Self { model, texts, options, ignored })
    }
}

/// `num_ctx`, at which a text is cut, and the names of the other options: they are about answers.
fn take_options(fields: &mut Fields) -> Result<(Option<usize>, Vec<String>), ApiError> {
    let mut options = match fields.take::<Value>("options")? {
        None => return Ok((None, Vec::new())),
        Some(Value::Object(options)) => Fields::of(options),
        Some(other) => {
            let message = format!("`options` must be an object, not {}", kind_of(&other));
            return Err(ApiError::param("options", message));
        }
    };
    let num_ctx = match options.take::<i64>("num_ctx")? {
        None => None,
        Some(wanted) => Some(usize::try_from(wanted).ok().filter(|&wanted| wanted > 0).ok_or_else(|| {
            ApiError::param("options.num_ctx", format!("`options.num_ctx` must be at least 1, got {wanted}"))
        })?),
    };
    Ok((num_ctx, options.rest().map(|name| format!("options.{name}")).collect()))
}

#[derive(Serialize)]
struct Answer<'a> {
    model: &'a str,
    embeddings: Vec<Vec<f32>>,
    total_duration: u64,
    load_duration: u64,
    prompt_eval_count: usize,
}

#[derive(Serialize)]
struct OldAnswer {
    embedding: Vec<f32>,
}

/// `POST /api/embed`.
///
/// # Errors
/// In Ollama's shape.
pub async fn new(
    state: web::Data<AppState>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    answer(Form::New, state, request, payload).await.map_err(|error| error.speaking(Protocol::Ollama))
}

/// `POST /api/embeddings`.
///
/// # Errors
/// In Ollama's shape.
pub async fn old(
    state: web::Data<AppState>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    answer(Form::Old, state, request, payload).await.map_err(|error| error.speaking(Protocol::Ollama))
}

async fn answer(
    form: Form,
    state: web::Data<AppState>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    let start = Instant::now();
    let body = read_body(&request, payload, state.limits.max_body_bytes).await?;
    let Request { model, texts, options, ignored } = Request::parse(form, &body)?;
    let field = form.field();
    let are_many = texts.len() > 1;
    let name = move |index| if are_many { format!("{field}[{index}]") } else { field.into() };
    let inputs = texts.into_iter().map(Input::Text).collect();
    let mut embedded = embed(state, client_of(&request)?, model, inputs, options, name).await?;
    let mut response = HttpResponse::Ok();
    add_ignored(&mut response, ignored);
    Ok(match form {
        Form::Old => response.json(OldAnswer { embedding: embedded.vectors.pop().unwrap_or_default() }),
        Form::New => response.json(Answer {
            model: &embedded.model.name,
            embeddings: embedded.vectors,
            total_duration: nanoseconds(start.elapsed()),
            load_duration: nanoseconds(embedded.load_time),
            prompt_eval_count: embedded.prompt_tokens,
        }),
    })
}

fn nanoseconds(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn both_forms() {
        let parse = |form, value: Value| Request::parse(form, value.to_string().as_bytes());
        let request = parse(
            Form::New,
            json!({"input": ["a", "b"], "dimensions": 3, "options": {"num_ctx": 7, "seed": 1}, "zz": 1}),
        )
        .unwrap();
        assert_eq!((request.texts.len(), request.options.dimensions), (2, Some(3)));
        assert_eq!(request.options.too_long, TooLong::Cut(7));
        assert_eq!(request.ignored.as_deref(), Some("zz, options.seed"));
        let old = parse(Form::Old, json!({"prompt": "a", "truncate": false})).unwrap();
        assert_eq!((old.texts, old.options.too_long), (vec!["a".to_owned()], TooLong::Refuse));
        assert!(parse(Form::New, json!({"input": ""})).unwrap().texts.is_empty());
        for (form, value, param) in [
            (Form::New, json!({"input": 3}), "input"),
            (Form::New, json!({"input": ["a", 3]}), "input[1]"),
            (Form::New, json!({"input": "a", "options": {"num_ctx": 0}}), "options.num_ctx"),
            (Form::New, json!({"input": "a", "dimensions": -1}), "dimensions"),
            (Form::New, json!({"input": "a", "keep_alive": []}), "keep_alive"),
            (Form::Old, json!({"prompt": ["a"]}), "prompt"),
        ] {
            let error = parse(form, value.clone()).expect_err(&value.to_string());
            assert_eq!((error.status.as_u16(), error.param.as_deref()), (400, Some(param)), "{value}");
        }
    }
}
