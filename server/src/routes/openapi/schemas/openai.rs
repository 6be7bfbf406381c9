//! OpenAI's requests.

use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::Drawing;

/// A message of a conversation.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct Message {
    /// `system`, `developer`, `user` or `assistant`.
    #[schema(pattern = "^(system|developer|user|assistant)$")]
    role: String,
    content: Content,
}

/// Text, or parts of text.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(in crate::routes::openapi) enum Content {
    Text(String),
    Parts(Vec<Part>),
}

/// A part of a message.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct Part {
    /// `text`.
    #[schema(pattern = "^text$")]
    r#type: String,
    text: String,
}

/// How a stream ends.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct StreamOptions {
    /// A last chunk has the counts and no choices.
    include_usage: Option<bool>,
}

/// `POST /v1/chat/completions`.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct ChatRequest {
    /// A name of `GET /v1/models`; that of `serve --model` if it isn't given.
    model: Option<String>,
    #[schema(min_items = 1)]
    messages: Vec<Message>,
    /// As server-sent events: chunks, and `[DONE]`.
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    /// Most tokens of the answer; the rest of the context if it isn't given.
    #[schema(minimum = 1, maximum = 9_007_199_254_740_991_i64)]
    max_completion_tokens: Option<i64>,
    /// Its old name.
    #[schema(minimum = 1, maximum = 9_007_199_254_740_991_i64)]
    max_tokens: Option<i64>,
    /// Answers to the prompt.
    #[schema(minimum = 1, maximum = 16)]
    n: Option<i64>,
    /// Whether log-probabilities of the answer's tokens are wanted.
    logprobs: Option<bool>,
    /// And those of so many alternatives, which needs `logprobs`.
    #[schema(minimum = 0, maximum = 20)]
    top_logprobs: Option<i64>,
    /// Variables of the model's chat template.
    chat_template_kwargs: Option<Map<String, Value>>,
    #[serde(flatten)]
    drawing: Drawing,
}

/// Text, or tokens.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(in crate::routes::openapi) enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
}

/// `POST /v1/completions`.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct CompletionRequest {
    /// A name of `GET /v1/models`; that of `serve --model` if it isn't given.
    model: Option<String>,
    prompt: Prompt,
    /// As server-sent events: chunks, and `[DONE]`.
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    /// Most tokens of the answer.
    #[schema(minimum = 1, maximum = 9_007_199_254_740_991_i64, default = 16)]
    max_tokens: Option<i64>,
    /// Answers to the prompt.
    #[schema(minimum = 1, maximum = 16)]
    n: Option<i64>,
    /// Log-probabilities of the answer's tokens and of so many alternatives.
    #[schema(minimum = 0, maximum = 5)]
    logprobs: Option<i64>,
    #[serde(flatten)]
    drawing: Drawing,
}

/// Texts or tokens, one or several.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(in crate::routes::openapi) enum EmbeddingInput {
    Text(String),
    Texts(Vec<String>),
    Tokens(Vec<u32>),
    TokenLists(Vec<Vec<u32>>),
}

/// `POST /v1/embeddings`.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct EmbeddingsRequest {
    /// A name of `GET /v1/models`; that of `serve --model` if it isn't given.
    model: Option<String>,
    input: EmbeddingInput,
    /// `float`, or `base64` of little-endian 32-bit floats.
    #[schema(pattern = "^(float|base64)$")]
    encoding_format: Option<String>,
    /// The first so many, normalised again.
    #[schema(minimum = 1)]
    dimensions: Option<i64>,
    /// `mean` of all tokens' states, or the `last` one's; what the model's file says if it isn't given.
    #[schema(pattern = "^(mean|last)$")]
    pooling: Option<String>,
}

/// `POST /v1/rerank`.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct RerankRequest {
    /// A name of `GET /v1/models`; that of `serve --model` if it isn't given.
    model: Option<String>,
    #[schema(min_length = 1)]
    query: String,
    /// Texts that are put in the order of their nearness to the query.
    #[schema(min_items = 1)]
    documents: Vec<String>,
    /// The best so many.
    #[schema(minimum = 1)]
    top_n: Option<i64>,
    /// Repeats the texts.
    return_documents: Option<bool>,
}

/// Text, or messages.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(in crate::routes::openapi) enum ResponseInput {
    Text(String),
    Items(Vec<Message>),
}

/// `POST /v1/responses`.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct ResponsesRequest {
    /// A name of `GET /v1/models`; that of `serve --model` if it isn't given.
    model: Option<String>,
    input: ResponseInput,
    /// What the model is told before the conversation.
    instructions: Option<String>,
    /// Goes on from a response that was stored.
    previous_response_id: Option<String>,
    /// Keeps it for later requests.
    store: Option<bool>,
    /// As server-sent events.
    stream: Option<bool>,
    /// Answers at once and runs on without its client; needs `store`.
    background: Option<bool>,
    /// Most tokens of the answer.
    #[schema(minimum = 1, maximum = 9_007_199_254_740_991_i64)]
    max_output_tokens: Option<i64>,
    /// 0 always takes the most probable token.
    #[schema(minimum = 0, maximum = 100)]
    temperature: Option<f32>,
    /// Keeps the smallest set of tokens with this probability; 1 keeps all.
    #[schema(minimum = 0, maximum = 1)]
    top_p: Option<f32>,
}
