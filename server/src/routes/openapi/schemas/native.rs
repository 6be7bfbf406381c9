//! Shimmy's own requests.

use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::openai::Message;

/// `POST /tokenize`.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct TokenizeRequest {
    /// A name of `GET /v1/models`; that of `serve --model` if it isn't given.
    model: Option<String>,
    content: String,
    /// Adds the tokens that the model's texts begin (and end) with.
    add_special: Option<bool>,
    /// Reads texts such as `<|im_end|>` as the tokens that they are.
    parse_special: Option<bool>,
    /// Answers with each token's text beside its id.
    with_pieces: Option<bool>,
}

/// `POST /detokenize`.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct DetokenizeRequest {
    /// A name of `GET /v1/models`; that of `serve --model` if it isn't given.
    model: Option<String>,
    tokens: Vec<u32>,
    /// Leaves out tokens that stand for no text.
    skip_special_tokens: Option<bool>,
}

/// `POST /apply-template`.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct ApplyTemplateRequest {
    /// A name of `GET /v1/models`; that of `serve --model` if it isn't given.
    model: Option<String>,
    #[schema(min_items = 1)]
    messages: Vec<Message>,
    /// Variables of the model's chat template.
    chat_template_kwargs: Option<Map<String, Value>>,
    /// Ends where the answer begins.
    add_generation_prompt: Option<bool>,
}
