//! Anthropic's answers: whole, and as events.

use serde::Serialize;
use utoipa::ToSchema;

use super::super::AnthropicErrorDetail;

/// Why an answer ended.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::routes::openapi) enum StopReason {
    EndTurn,
    StopSequence,
    MaxTokens,
}

/// A block of an answer.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct TextBlock {
    /// `text`.
    r#type: String,
    text: String,
}

/// Token counts; those of the prompt that were in the cache are counted apart.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct MessageUsage {
    input_tokens: u64,
    /// Always 0.
    cache_creation_input_tokens: u64,
    cache_read_input_tokens: u64,
    output_tokens: u64,
}

/// An answer to a conversation.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct MessageAnswer {
    id: String,
    /// `message`.
    r#type: String,
    /// `assistant`.
    role: String,
    model: String,
    /// One block, or none if nothing was said.
    content: Vec<TextBlock>,
    /// Null until it has ended.
    #[schema(required = true)]
    stop_reason: Option<StopReason>,
    /// The one of `stop_sequences` that ended it.
    #[schema(required = true)]
    stop_sequence: Option<String>,
    usage: MessageUsage,
}

/// How many tokens there are.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct TokenCount {
    input_tokens: u64,
}

/// New text.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct TextDelta {
    /// `text_delta`.
    r#type: String,
    text: String,
}

/// How an answer ended.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct MessageEnd {
    stop_reason: StopReason,
    #[schema(required = true)]
    stop_sequence: Option<String>,
}

/// The data of an event.
#[derive(Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(in crate::routes::openapi) enum MessageEvent {
    MessageStart { message: MessageAnswer },
    ContentBlockStart { index: u32, content_block: TextBlock },
    Ping {},
    ContentBlockDelta { index: u32, delta: TextDelta },
    ContentBlockStop { index: u32 },
    MessageDelta { delta: MessageEnd, usage: MessageUsage },
    MessageStop {},
    Error { error: AnthropicErrorDetail },
}
