//! Responses, what is said of them, and their events.

use std::collections::HashMap;

use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::openai::TokenLogprob;
use crate::routes::request::report::Timings;

/// How far a response has come.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::routes::openapi) enum ResponseStatus {
    Queued,
    InProgress,
    Completed,
    Incomplete,
    Failed,
    Cancelled,
}

/// How far a message has come.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::routes::openapi) enum MessageStatus {
    InProgress,
    Completed,
    Incomplete,
}

/// A text of the model.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct OutputText {
    /// `output_text`.
    r#type: String,
    text: String,
    /// Always empty.
    annotations: Vec<Value>,
    /// If they were asked for.
    logprobs: Vec<TokenLogprob>,
}

/// What the model said.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct OutputMessage {
    id: String,
    /// `message`.
    r#type: String,
    /// `assistant`.
    role: String,
    status: MessageStatus,
    content: Vec<OutputText>,
}

/// Why a response failed.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct ResponseError {
    code: String,
    message: String,
}

/// Why a response isn't whole.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct IncompleteDetails {
    /// `max_output_tokens`.
    reason: String,
}

/// Always nulls: what a model thinks is part of its text.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct ReasoningOptions {
    #[schema(required = true)]
    effort: Option<String>,
    #[schema(required = true)]
    summary: Option<String>,
}

/// How the text is formed.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct TextOptions {
    format: TextFormat,
}

/// Free text.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct TextFormat {
    /// `text`.
    r#type: String,
}

/// Of the prompt's tokens.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct InputTokensDetails {
    cached_tokens: u64,
}

/// Of the answer's tokens.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct OutputTokensDetails {
    /// Always 0: they aren't told apart.
    reasoning_tokens: u64,
}

/// Token counts of a response.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct ResponseUsage {
    input_tokens: u64,
    input_tokens_details: InputTokensDetails,
    output_tokens: u64,
    output_tokens_details: OutputTokensDetails,
    total_tokens: u64,
}

/// A response, at some moment of its life.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct Response {
    id: String,
    /// `response`.
    object: String,
    /// Seconds since 1970.
    created_at: u64,
    status: ResponseStatus,
    /// Whether it runs on without its client.
    background: bool,
    /// Seconds since 1970, once it is completed.
    #[schema(required = true)]
    completed_at: Option<u64>,
    #[schema(required = true)]
    error: Option<ResponseError>,
    #[schema(required = true)]
    incomplete_details: Option<IncompleteDetails>,
    #[schema(required = true)]
    instructions: Option<String>,
    #[schema(required = true)]
    max_output_tokens: Option<u64>,
    /// Always null.
    #[schema(required = true)]
    max_tool_calls: Option<u64>,
    model: String,
    output: Vec<OutputMessage>,
    parallel_tool_calls: bool,
    #[schema(required = true)]
    previous_response_id: Option<String>,
    reasoning: ReasoningOptions,
    store: bool,
    /// As it is used; null for as long as the model, whose default it is, isn't loaded.
    #[schema(required = true)]
    temperature: Option<f64>,
    text: TextOptions,
    /// `auto` or `none`.
    tool_choice: String,
    /// Always empty.
    tools: Vec<Value>,
    top_logprobs: u64,
    /// As it is used; null for as long as the model, whose default it is, isn't loaded.
    #[schema(required = true)]
    top_p: Option<f64>,
    /// `disabled`.
    truncation: String,
    /// At the end.
    #[schema(required = true)]
    usage: Option<ResponseUsage>,
    #[schema(required = true)]
    user: Option<String>,
    /// As the request has it.
    metadata: HashMap<String, String>,
    /// The one that was used, at the end.
    #[schema(nullable = false)]
    seed: Option<u64>,
    /// At the end.
    #[schema(nullable = false)]
    timings: Option<Timings>,
}

/// That a response is forgotten.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct DeletedResponse {
    id: String,
    /// `response`.
    object: String,
    /// `true`.
    deleted: bool,
}

/// A text that was said.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct ItemText {
    /// `input_text`, or `output_text` of the assistant.
    r#type: String,
    text: String,
    /// Of the assistant: always empty.
    #[schema(nullable = false)]
    annotations: Option<Vec<Map<String, Value>>>,
}

/// Something that was said.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct InputItem {
    id: String,
    /// `message`.
    r#type: String,
    /// `completed`.
    status: String,
    /// `user`, `assistant`, `system` or `developer`.
    role: String,
    content: Vec<ItemText>,
}

/// What a response's own request said.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct InputItems {
    /// `list`.
    object: String,
    #[schema(required = true)]
    first_id: Option<String>,
    #[schema(required = true)]
    last_id: Option<String>,
    has_more: bool,
    data: Vec<InputItem>,
}

/// The data of an event. `response.incomplete` ends a response that was cut or cancelled.
#[derive(Serialize, ToSchema)]
#[serde(tag = "type")]
pub(in crate::routes::openapi) enum ResponseEvent {
    #[serde(rename = "response.created")]
    Created { sequence_number: u64, response: Response },
    #[serde(rename = "response.queued")]
    Queued { sequence_number: u64, response: Response },
    #[serde(rename = "response.in_progress")]
    InProgress { sequence_number: u64, response: Response },
    #[serde(rename = "response.output_item.added")]
    OutputItemAdded { sequence_number: u64, output_index: u32, item: OutputMessage },
    #[serde(rename = "response.content_part.added")]
    ContentPartAdded { sequence_number: u64, item_id: String, output_index: u32, content_index: u32, part: OutputText },
    #[serde(rename = "response.output_text.delta")]
    OutputTextDelta {
        sequence_number: u64,
        item_id: String,
        output_index: u32,
        content_index: u32,
        delta: String,
        logprobs: Vec<TokenLogprob>,
    },
    #[serde(rename = "response.output_text.done")]
    OutputTextDone {
        sequence_number: u64,
        item_id: String,
        output_index: u32,
        content_index: u32,
        text: String,
        logprobs: Vec<TokenLogprob>,
    },
    #[serde(rename = "response.content_part.done")]
    ContentPartDone { sequence_number: u64, item_id: String, output_index: u32, content_index: u32, part: OutputText },
    #[serde(rename = "response.output_item.done")]
    OutputItemDone { sequence_number: u64, output_index: u32, item: OutputMessage },
    #[serde(rename = "response.completed")]
    Completed { sequence_number: u64, response: Response },
    #[serde(rename = "response.incomplete")]
    Incomplete { sequence_number: u64, response: Response },
    #[serde(rename = "response.failed")]
    Failed { sequence_number: u64, response: Response },
}
