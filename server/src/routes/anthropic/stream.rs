//! The events of a streamed message.

use actix_web::web::Bytes;
use serde_json::{Value, json};

use super::{stop_reason, usage};
use crate::error::{ApiError, Protocol};
use crate::routes::request::report::{Done, TokenReport};
use crate::stream::{Encoder, sse};

/// One answer as `message_start`, a block of text, and `message_stop`.
pub struct Events {
    id: String,
    model: String,
    prompt_tokens: usize,
    stops: Vec<String>,
    /// The block of text has begun.
    is_open: bool,
}

impl Events {
    /// For an answer to a prompt of so many tokens that these strings end.
    pub fn new(id: String, model: String, prompt_tokens: usize, stops: Vec<String>) -> Self {
        Self { id, model, prompt_tokens, stops, is_open: false }
    }

    fn begin_block(&mut self) -> Vec<Bytes> {
        if std::mem::replace(&mut self.is_open, true) {
            return Vec::new();
        }
        let start = json!({"index": 0, "content_block": {"type": "text", "text": ""}});
        vec![event("content_block_start", start), event("ping", json!({}))]
    }
}

/// An event whose data has its own name as `type`.
fn event(name: &str, fields: Value) -> Bytes {
    let mut data = json!({"type": name});
    if let (Value::Object(data), Value::Object(fields)) = (&mut data, fields) {
        data.extend(fields);
    }
    sse::event(name, data.to_string().as_bytes())
}

impl Encoder for Events {
    fn content_type(&self) -> &'static str {
        sse::CONTENT_TYPE
    }

    fn open(&mut self, _: usize) -> Option<Bytes> {
        // How much of the prompt is cached turns out later; the last usage says it.
        let message = json!({
            "id": self.id, "type": "message", "role": "assistant", "model": self.model, "content": [],
            "stop_reason": null, "stop_sequence": null,
            "usage": {"input_tokens": self.prompt_tokens, "cache_creation_input_tokens": 0,
                      "cache_read_input_tokens": 0, "output_tokens": 0},
        });
        Some(event("message_start", json!({"message": message})))
    }

    fn text(&mut self, _: usize, text: &str, _: &[TokenReport]) -> Option<Bytes> {
        let mut events = self.begin_block();
        events.push(event("content_block_delta", json!({"index": 0, "delta": {"type": "text_delta", "text": text}})));
        Some(events.concat().into())
    }

    fn done(&mut self, _: usize, done: &Done) -> Option<Bytes> {
        let (stop_reason, stop_sequence) = stop_reason(done.reason, &self.stops);
        let end = json!({
            "delta": {"stop_reason": stop_reason, "stop_sequence": stop_sequence}, "usage": usage(&done.usage),
        });
        let block_end = self.is_open.then(|| event("content_block_stop", json!({"index": 0})));
        let events: Vec<Bytes> = block_end.into_iter().chain([event("message_delta", end)]).collect();
        Some(events.concat().into())
    }

    fn close(&mut self) -> Option<Bytes> {
        Some(event("message_stop", json!({})))
    }

    fn failed(&mut self, error: ApiError) -> Bytes {
        sse::event("error", &error.speaking(Protocol::Anthropic).to_json())
    }

    fn ping(&self) -> Option<Bytes> {
        Some(event("ping", json!({})))
    }
}
