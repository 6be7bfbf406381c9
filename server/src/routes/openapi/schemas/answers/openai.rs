//! OpenAI's answers: whole, and as chunks.

use std::collections::HashMap;

use serde::Serialize;
use utoipa::ToSchema;

use super::super::OpenAiError;
use crate::routes::openai::models::{List, Model};
use crate::routes::openai::types::Usage;
use crate::routes::request::report::Timings;

/// Why an answer ended: by itself or at a stop string, or because it may not be longer.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::routes::openapi) enum FinishReason {
    Stop,
    Length,
}

/// A token and how probable it was.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct TokenProbability {
    token: String,
    logprob: f32,
    /// Of the token, which may be a part of a character.
    bytes: Vec<u32>,
}

/// A token of an answer and its alternatives.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct TokenLogprob {
    token: String,
    logprob: f32,
    /// Of the token, which may be a part of a character.
    bytes: Vec<u32>,
    top_logprobs: Vec<TokenProbability>,
}

/// Log-probabilities of an answer's tokens.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct ChatLogprobs {
    content: Vec<TokenLogprob>,
    /// Always null: models here don't refuse in a field of their own.
    #[schema(required = true)]
    refusal: Option<String>,
}

/// What the model said.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct AnswerMessage {
    /// `assistant`.
    role: String,
    content: String,
    /// Always null.
    #[schema(required = true)]
    refusal: Option<String>,
}

/// One answer to a conversation.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct ChatChoice {
    index: u32,
    message: AnswerMessage,
    /// If they were asked for.
    #[schema(required = true)]
    logprobs: Option<ChatLogprobs>,
    finish_reason: FinishReason,
}

/// All answers to a conversation.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct ChatAnswer {
    id: String,
    /// `chat.completion`.
    object: String,
    /// Seconds since 1970.
    created: u64,
    model: String,
    /// Which build answered.
    system_fingerprint: String,
    choices: Vec<ChatChoice>,
    usage: Usage,
    timings: Timings,
    /// The one that was used.
    seed: u64,
}

/// What is new of an answer.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct ChatDelta {
    /// `assistant`, in the first chunk.
    #[schema(nullable = false)]
    role: Option<String>,
    #[schema(nullable = false)]
    content: Option<String>,
}

/// A piece of an answer.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct ChatChunkChoice {
    index: u32,
    delta: ChatDelta,
    /// If they were asked for.
    #[schema(required = true)]
    logprobs: Option<ChatLogprobs>,
    /// In an answer's last chunk.
    #[schema(required = true)]
    finish_reason: Option<FinishReason>,
}

/// A chunk of a stream.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct ChatChunk {
    id: String,
    /// `chat.completion.chunk`.
    object: String,
    /// Seconds since 1970.
    created: u64,
    model: String,
    /// Which build answers.
    system_fingerprint: String,
    /// One; none in the chunk that counts.
    choices: Vec<ChatChunkChoice>,
    /// With `include_usage`: in a last chunk, and null in the others.
    usage: Option<Usage>,
    /// In an answer's last chunk.
    #[schema(nullable = false)]
    timings: Option<Timings>,
    /// In an answer's last chunk.
    #[schema(nullable = false)]
    seed: Option<u64>,
}

/// The data of an event; that of the last one is `[DONE]`.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(in crate::routes::openapi) enum ChatEvent {
    Chunk(ChatChunk),
    Failure(OpenAiError),
}

/// Log-probabilities of a completion's tokens.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct CompletionLogprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<f32>,
    top_logprobs: Vec<HashMap<String, f32>>,
    /// Characters of the answer before each token.
    text_offset: Vec<u32>,
}

/// How a text goes on.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct CompletionChoice {
    index: u32,
    text: String,
    /// If they were asked for.
    #[schema(required = true)]
    logprobs: Option<CompletionLogprobs>,
    finish_reason: FinishReason,
}

/// All answers to a text.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct CompletionAnswer {
    id: String,
    /// `text_completion`.
    object: String,
    /// Seconds since 1970.
    created: u64,
    model: String,
    /// Which build answered.
    system_fingerprint: String,
    choices: Vec<CompletionChoice>,
    usage: Usage,
    timings: Timings,
    /// The one that was used.
    seed: u64,
}

/// What is new of how a text goes on.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct CompletionChunkChoice {
    index: u32,
    text: String,
    /// If they were asked for.
    #[schema(required = true)]
    logprobs: Option<CompletionLogprobs>,
    /// In an answer's last chunk.
    #[schema(required = true)]
    finish_reason: Option<FinishReason>,
}

/// A chunk of a stream.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct CompletionChunk {
    id: String,
    /// `text_completion`.
    object: String,
    /// Seconds since 1970.
    created: u64,
    model: String,
    /// Which build answers.
    system_fingerprint: String,
    /// One; none in the chunk that counts.
    choices: Vec<CompletionChunkChoice>,
    /// With `include_usage`: in a last chunk, and null in the others.
    usage: Option<Usage>,
    /// In an answer's last chunk.
    #[schema(nullable = false)]
    timings: Option<Timings>,
    /// In an answer's last chunk.
    #[schema(nullable = false)]
    seed: Option<u64>,
}

/// The data of an event; that of the last one is `[DONE]`.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(in crate::routes::openapi) enum CompletionEvent {
    Chunk(CompletionChunk),
    Failure(OpenAiError),
}

/// A model in Anthropic's words.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct AnthropicModel {
    /// `model`.
    r#type: String,
    id: String,
    display_name: String,
    /// When the file was last changed.
    created_at: String,
}

/// Models in Anthropic's words.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct AnthropicModelList {
    data: Vec<AnthropicModel>,
    /// `false`: all are there.
    has_more: bool,
    #[schema(required = true)]
    first_id: Option<String>,
    #[schema(required = true)]
    last_id: Option<String>,
}

/// Models, in Anthropic's shape for who sends `anthropic-version`.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(in crate::routes::openapi) enum ModelsAnswer {
    OpenAi(List),
    Anthropic(AnthropicModelList),
}

/// A model, in Anthropic's shape for who sends `anthropic-version`.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(in crate::routes::openapi) enum ModelAnswer {
    OpenAi(Model),
    Anthropic(AnthropicModel),
}
