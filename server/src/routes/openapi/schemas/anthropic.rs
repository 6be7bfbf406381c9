//! Anthropic's requests.

use serde::Serialize;
use utoipa::ToSchema;

use super::openai::Content;

/// A message of a conversation.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct AnthropicMessage {
    /// `user` or `assistant`; a last one of the assistant begins the answer.
    #[schema(pattern = "^(user|assistant)$")]
    role: String,
    content: Content,
}

/// `POST /v1/messages`.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct MessagesRequest {
    /// A name of `GET /v1/models`; that of `serve --model` if it isn't given.
    model: Option<String>,
    /// Most tokens of the answer.
    #[schema(minimum = 1, maximum = 9_007_199_254_740_991_i64)]
    max_tokens: i64,
    #[schema(min_items = 1)]
    messages: Vec<AnthropicMessage>,
    /// What the model is told before the conversation.
    system: Option<Content>,
    /// As server-sent events with names.
    stream: Option<bool>,
    /// 0 always takes the most probable token.
    #[schema(minimum = 0, maximum = 1)]
    temperature: Option<f32>,
    /// Keeps the smallest set of tokens with this probability; 1 keeps all.
    #[schema(minimum = 0, maximum = 1)]
    top_p: Option<f32>,
    /// Keeps so many of the most probable tokens.
    #[schema(minimum = 0, maximum = 1_000_000)]
    top_k: Option<i64>,
    /// Texts that end the answer.
    #[schema(max_items = 16)]
    stop_sequences: Option<Vec<String>>,
}

/// `POST /v1/messages/count_tokens`.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct CountTokensRequest {
    /// A name of `GET /v1/models`; that of `serve --model` if it isn't given.
    model: Option<String>,
    #[schema(min_items = 1)]
    messages: Vec<AnthropicMessage>,
    /// What the model is told before the conversation.
    system: Option<Content>,
}
