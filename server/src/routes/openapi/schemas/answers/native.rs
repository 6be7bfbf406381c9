//! Shimmy's own answers.

use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::super::OpenAiError;
use super::openai::FinishReason;
use crate::routes::openai::types::Usage;
use crate::routes::request::report::Timings;

/// An answer to a prompt.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct NativeAnswer {
    response: String,
    /// `true`.
    done: bool,
    finish_reason: FinishReason,
    model: String,
    usage: Usage,
    timings: Timings,
    /// The one that was used.
    seed: u64,
}

/// New text.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct TokenFrame {
    token: String,
}

/// The end of an answer.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct DoneFrame {
    /// `true`.
    done: bool,
    finish_reason: FinishReason,
    model: String,
    usage: Usage,
    timings: Timings,
    /// The one that was used.
    seed: u64,
}

/// The data of an event; that of the last one is `[DONE]`.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(in crate::routes::openapi) enum GenerationFrame {
    Token(TokenFrame),
    Done(DoneFrame),
    Failure(OpenAiError),
}

/// An OpenAPI document.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct Document {
    /// The version of OpenAPI.
    openapi: String,
    info: Map<String, Value>,
    paths: Map<String, Value>,
    components: Map<String, Value>,
    /// None, or either way to send a key.
    security: Vec<Map<String, Value>>,
}

/// A model and what it is doing.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct NativeModel {
    name: String,
    /// Other names that it answers to.
    aliases: Vec<String>,
    size_bytes: u64,
    /// Whose folder it was found in.
    source: String,
    /// Seconds since 1970.
    #[schema(required = true)]
    modified: Option<u64>,
    /// `gguf` or `safetensors`; null, as all that follows but the last, if the file can't be read.
    #[schema(required = true)]
    format: Option<String>,
    #[schema(required = true)]
    model_type: Option<String>,
    /// Such as `134.52M`.
    #[schema(required = true)]
    parameter_count: Option<String>,
    #[schema(required = true)]
    weight_type: Option<String>,
    #[schema(required = true)]
    context_tokens: Option<u64>,
    #[schema(required = true)]
    chat_template: Option<bool>,
    status: ModelStatus,
}

/// What a model is doing.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::routes::openapi) enum ModelStatus {
    Loaded,
    Loading,
    Unloaded,
}

/// Models on the server's machine.
#[derive(Serialize, ToSchema)]
#[schema(as = NativeModels)]
pub(in crate::routes::openapi) struct Models {
    models: Vec<NativeModel>,
}

/// All models after a look at the disk.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct DiscoveredModels {
    /// How many there are.
    discovered: u64,
    models: Vec<NativeModel>,
}

/// What a model is doing; all but the first two of one that is loaded.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct ModelState {
    name: String,
    status: ModelStatus,
    /// Generations that are computed.
    #[schema(nullable = false)]
    running: Option<u64>,
    /// And those in the queue.
    #[schema(nullable = false)]
    waiting: Option<u64>,
    #[schema(nullable = false)]
    context_tokens: Option<u64>,
    #[schema(nullable = false)]
    kv_blocks: Option<u64>,
    #[schema(nullable = false)]
    used_kv_blocks: Option<u64>,
    /// Null: it stays.
    unloads_after_seconds: Option<f64>,
}

/// A model that was loaded.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct LoadedState {
    #[serde(flatten)]
    state: ModelState,
    took_ms: f64,
}

/// A model that was unloaded.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct Unloaded {
    name: String,
    /// `unloaded`.
    status: String,
    /// Whether there was something to do.
    was_loaded: bool,
}

/// A token's text, or its bytes where they are a part of a character.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(in crate::routes::openapi) enum Piece {
    Text(String),
    Bytes(Vec<u32>),
}

/// A token and what it stands for.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct TokenPiece {
    id: u32,
    #[schema(required = true)]
    piece: Piece,
}

/// A token's id, with `with_pieces` beside its text.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(in crate::routes::openapi) enum Token {
    Id(u32),
    Piece(TokenPiece),
}

/// The tokens of a text.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct Tokens {
    model: String,
    count: u64,
    /// Tokens of the model's context.
    max_model_len: u64,
    tokens: Vec<Token>,
    /// With `return_token_strs`: the tokens as the vocabulary writes them.
    #[schema(nullable = false)]
    token_strs: Option<Vec<Option<String>>>,
}

/// The text of tokens.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct Detokenized {
    model: String,
    content: String,
}

/// The prompt that a conversation becomes.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct AppliedTemplate {
    model: String,
    prompt: String,
}
