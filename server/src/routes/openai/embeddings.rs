//! `POST /v1/embeddings`.

use actix_web::http::Method;
use actix_web::{HttpRequest, HttpResponse, web};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use crate::app::AppState;
use crate::error::ApiError;
use crate::routes::request::begin::{add_ignored, client_of};
use crate::routes::request::embed::{EmbedOptions, Input, embed, take_dimensions};
use crate::routes::request::fields::{Fields, kind_of};
use crate::routes::{read_body, resource};

/// Most texts of a request: OpenAI's limit.
pub const MAX_INPUTS: usize = 2048;

/// How a vector is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Encoding {
    /// An array of numbers.
    Float,
    /// The bytes of its elements (f32, little-endian) in base64.
    Base64,
}

/// A checked request.
#[derive(Debug, PartialEq)]
struct EmbeddingRequest {
    model: Option<String>,
    inputs: Vec<Input>,
    /// The request has an array of them.
    are_many: bool,
    encoding: Encoding,
    options: EmbedOptions,
    ignored: Option<String>,
}

impl EmbeddingRequest {
    fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body)?;
        let input = fields.take::<Value>("input")?;
        let (inputs, are_many) = inputs(input.ok_or_else(|| ApiError::param("input", "`input` is missing"))?)?;
        let encoding = match fields.take::<String>("encoding_format")?.as_deref() {
            None | Some("float") => Encoding::Float,
            Some("base64") => Encoding::Base64,
            Some(other) => {
                let message = format!("`encoding_format` must be \"float\" or \"base64\", got \"{other}\"");
                return Err(ApiError::param("encoding_format", message));
            }
        };
        fields.refuse("messages", &[json!([])], "send the text as `input`")?;
        let model = fields.take("model")?;
        let dimensions = take_dimensions(&mut fields)?;
        let options = EmbedOptions { dimensions, ..EmbedOptions::take(&mut fields)? };
        Ok(Self { model, inputs, are_many, encoding, options, ignored: fields.ignored() })
    }
}

/// A text, its token ids, or an array of either.
fn inputs(input: Value) -> Result<(Vec<Input>, bool), ApiError> {
    let wrong = |at: String, message: &str| ApiError::param(at.clone(), format!("`{at}` {message}"));
    let elements = match input {
        Value::String(text) if text.is_empty() => return Err(wrong("input".into(), "is empty")),
        Value::String(text) => return Ok((vec![Input::Text(text)], false)),
        Value::Array(elements) if elements.is_empty() => return Err(wrong("input".into(), "is empty")),
        Value::Array(elements) => elements,
        other => {
            let message = format!("must be a string or an array, not {}", kind_of(&other));
            return Err(wrong("input".into(), &message));
        }
    };
    if elements[0].is_number() {
        return Ok((vec![Input::Tokens(token_ids(&elements, "input")?)], false));
    }
    if elements.len() > MAX_INPUTS {
        let message = format!("holds {} texts; at most {MAX_INPUTS} are taken at once", elements.len());
        return Err(wrong("input".into(), &message));
    }
    let are_texts = elements[0].is_string();
    let one = |(index, element): (usize, Value)| {
        let at = format!("input[{index}]");
        match element {
            Value::String(text) if are_texts && text.is_empty() => Err(wrong(at, "is empty")),
            Value::String(text) if are_texts => Ok(Input::Text(text)),
            Value::Array(ids) if !are_texts && ids.is_empty() => Err(wrong(at, "is empty")),
            Value::Array(ids) if !are_texts => token_ids(&ids, &at).map(Input::Tokens),
            other => {
                let expected = if are_texts { "a string, as the first one" } else { "an array of token ids" };
                Err(wrong(at, &format!("must be {expected}, not {}", kind_of(&other))))
            }
        }
    };
    Ok((elements.into_iter().enumerate().map(one).collect::<Result<_, _>>()?, true))
}

fn token_ids(ids: &[Value], at: &str) -> Result<Vec<u32>, ApiError> {
    let id = |(index, id): (usize, &Value)| {
        id.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(|| {
            let at = format!("{at}[{index}]");
            ApiError::param(at.clone(), format!("`{at}` must be a token id, got {}", kind_of(id)))
        })
    };
    ids.iter().enumerate().map(id).collect()
}

/// Registers the resource.
pub fn config(cfg: &mut web::ServiceConfig) {
    cfg.service(resource("/v1/embeddings", Method::POST, web::route().to(embeddings)));
}

/// Vectors of texts.
#[derive(Serialize, ToSchema)]
#[schema(as = EmbeddingList)]
pub(in crate::routes) struct List<'a> {
    /// `list`.
    object: &'static str,
    data: Vec<Entry>,
    model: &'a str,
    usage: Usage,
}

/// The vector of a text.
#[derive(Serialize, ToSchema)]
#[schema(as = EmbeddingEntry)]
struct Entry {
    /// `embedding`.
    object: &'static str,
    /// Which text.
    index: usize,
    embedding: Vector,
}

/// Numbers, or base64 of little-endian 32-bit floats.
#[derive(Serialize, ToSchema)]
#[schema(as = EmbeddingVector)]
#[serde(untagged)]
enum Vector {
    Numbers(Vec<f32>),
    Text(String),
}

/// Counts: a text that becomes a vector has nothing but a prompt.
#[derive(Serialize, ToSchema)]
#[schema(as = EmbeddingUsage)]
pub struct Usage {
    prompt_tokens: usize,
    total_tokens: usize,
}

impl Usage {
    /// Of so many tokens.
    pub fn new(prompt_tokens: usize) -> Self {
        Self { prompt_tokens, total_tokens: prompt_tokens }
    }
}

async fn embeddings(
    state: web::Data<AppState>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    let body = read_body(&request, payload, state.limits.max_body_bytes).await?;
    let EmbeddingRequest { model, inputs, are_many, encoding, options, ignored } = EmbeddingRequest::parse(&body)?;
    let name = move |index| if are_many { format!("input[{index}]") } else { "input".into() };
    let embedded = embed(state, client_of(&request)?, model, inputs, options, name).await?;
    let vector = |vector: Vec<f32>| match encoding {
        Encoding::Float => Vector::Numbers(vector),
        Encoding::Base64 => {
            let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
            Vector::Text(STANDARD.encode(bytes))
        }
    };
    let entry = |(index, embedding)| Entry { object: "embedding", index, embedding: vector(embedding) };
    let list = List {
        object: "list",
        data: embedded.vectors.into_iter().enumerate().map(entry).collect(),
        model: &embedded.model.name,
        usage: Usage::new(embedded.prompt_tokens),
    };
    let mut response = HttpResponse::Ok();
    add_ignored(&mut response, ignored);
    Ok(response.json(list))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(value: &Value) -> Result<EmbeddingRequest, ApiError> {
        EmbeddingRequest::parse(value.to_string().as_bytes())
    }

    #[test]
    fn inputs_come_in_four_forms() {
        let text = |text: &str| Input::Text(text.into());
        for (input, expected, are_many) in [
            (json!("a"), vec![text("a")], false),
            (json!(["a", "b"]), vec![text("a"), text("b")], true),
            (json!([1, 2]), vec![Input::Tokens(vec![1, 2])], false),
            (json!([[1], [2, 3]]), vec![Input::Tokens(vec![1]), Input::Tokens(vec![2, 3])], true),
        ] {
            let request = parse(&json!({"input": input, "user": "me"})).unwrap();
            assert_eq!((request.inputs, request.are_many), (expected, are_many));
            assert_eq!(request.ignored.as_deref(), Some("user"));
        }
    }

    #[test]
    fn mistakes_are_named() {
        for (value, param) in [
            (json!({}), "input"),
            (json!({"input": ""}), "input"),
            (json!({"input": []}), "input"),
            (json!({"input": {"text": "x"}}), "input"),
            (json!({"input": ["a", ""]}), "input[1]"),
            (json!({"input": ["a", 1]}), "input[1]"),
            (json!({"input": [1, "a"]}), "input[1]"),
            (json!({"input": [1, -1]}), "input[1]"),
            (json!({"input": [1.5]}), "input[0]"),
            (json!({"input": [[1], []]}), "input[1]"),
            (json!({"input": [[1], [2, 5_000_000_000_u64]]}), "input[1][1]"),
            (json!({"input": [null]}), "input[0]"),
            (json!({"input": vec!["x"; MAX_INPUTS + 1]}), "input"),
            (json!({"input": "x", "encoding_format": "int8"}), "encoding_format"),
            (json!({"input": "x", "dimensions": 0}), "dimensions"),
            (json!({"input": "x", "dimensions": "many"}), "dimensions"),
            (json!({"input": "x", "pooling": "max"}), "pooling"),
            (json!({"input": "x", "truncate_prompt_tokens": 9}), "truncate_prompt_tokens"),
        ] {
            let error = parse(&value).expect_err(&value.to_string());
            assert_eq!((error.status.as_u16(), error.param.as_deref()), (400, Some(param)), "{value}");
        }
        // As many token ids as fit the context are one text.
        assert!(parse(&json!({"input": vec![1; MAX_INPUTS + 1]})).is_ok());
    }
}
