//! Ollama's requests.

use serde::Serialize;
use utoipa::ToSchema;

use super::Stop;

/// How to draw, and how much. Other options have no effect and are listed in `x-shimmy-ignored`.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct Options {
    /// Most tokens of the answer; -1 and -2: no limit.
    #[schema(minimum = 1, maximum = 9_007_199_254_740_991_i64)]
    num_predict: Option<i64>,
    /// 0 always takes the most probable token.
    #[schema(minimum = 0, maximum = 100)]
    temperature: Option<f32>,
    /// Keeps the smallest set of tokens with this probability; 1 keeps all.
    #[schema(minimum = 0, maximum = 1)]
    top_p: Option<f32>,
    /// Keeps so many of the most probable tokens; 0 and -1 keep all.
    #[schema(minimum = -1, maximum = 1_000_000)]
    top_k: Option<i64>,
    /// Drops tokens below this share of the best one's probability.
    #[schema(minimum = 0, maximum = 1)]
    min_p: Option<f32>,
    /// Penalty on repeated tokens; 1 is none.
    #[schema(minimum = 0.01, maximum = 100)]
    repeat_penalty: Option<f32>,
    /// How many tokens that looks back; -1: all.
    #[schema(minimum = -1, maximum = 1_000_000)]
    repeat_last_n: Option<i64>,
    /// Penalty on tokens that occurred.
    #[schema(minimum = -2, maximum = 2)]
    presence_penalty: Option<f32>,
    /// Penalty on each occurrence of a token.
    #[schema(minimum = -2, maximum = 2)]
    frequency_penalty: Option<f32>,
    /// The same seed draws the same.
    #[schema(minimum = 0, maximum = 9_007_199_254_740_991_u64)]
    seed: Option<u64>,
    stop: Option<Stop>,
}

/// Seconds, or a text such as `5m`; negative is for ever, 0 unloads the model.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(in crate::routes::openapi) enum KeepAlive {
    Seconds(i32),
    Text(String),
}

/// A message of a conversation.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct OllamaMessage {
    /// `system`, `user` or `assistant`.
    #[schema(pattern = "^(system|user|assistant)$")]
    role: String,
    content: String,
}

/// `POST /api/chat`.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct OllamaChatRequest {
    /// A name of `GET /api/tags`; that of `serve --model` if it isn't given.
    model: Option<String>,
    /// None: the model is loaded, or unloaded by a `keep_alive` of 0.
    messages: Option<Vec<OllamaMessage>>,
    /// As lines of JSON.
    #[schema(default = true)]
    stream: Option<bool>,
    options: Option<Options>,
    keep_alive: Option<KeepAlive>,
}

/// `POST /api/generate`.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct OllamaGenerateRequest {
    /// A name of `GET /api/tags`; that of `serve --model` if it isn't given.
    model: Option<String>,
    /// Empty: the model is loaded, or unloaded by a `keep_alive` of 0.
    prompt: Option<String>,
    /// What the model is told first.
    system: Option<String>,
    /// As lines of JSON.
    #[schema(default = true)]
    stream: Option<bool>,
    options: Option<Options>,
    keep_alive: Option<KeepAlive>,
}

/// `POST /api/models/{name}/load`, whose body may be missing.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct LoadRequest {
    keep_alive: Option<KeepAlive>,
}

/// `POST /api/show`.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct ShowRequest {
    /// A name of `GET /api/tags`.
    model: String,
}

/// One text, or several.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(in crate::routes::openapi) enum Texts {
    One(String),
    Many(Vec<String>),
}

/// `POST /api/embed`.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct EmbedRequest {
    /// A name of `GET /api/tags`; that of `serve --model` if it isn't given.
    model: Option<String>,
    input: Texts,
    /// Cuts texts that are longer than the context; without it they are an error.
    #[schema(default = true)]
    truncate: Option<bool>,
    /// The first so many, normalised again.
    #[schema(minimum = 1)]
    dimensions: Option<i64>,
    keep_alive: Option<KeepAlive>,
}

/// `POST /api/embeddings`, the old form.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct OldEmbeddingsRequest {
    /// A name of `GET /api/tags`; that of `serve --model` if it isn't given.
    model: Option<String>,
    prompt: String,
    keep_alive: Option<KeepAlive>,
}
