//! The events of a streamed response. Each has its own name as `type`, and they are numbered.

use std::sync::Arc;

use actix_web::web::Bytes;
use serde_json::{Value, json};
use shimmy_runtime::models::LoadedModel;

use super::object::{Head, Moment, part, status};
use crate::error::ApiError;
use crate::routes::openai::types::chat_logprobs;
use crate::routes::request::report::{Done, TokenReport};
use crate::stream::{Encoder, sse};

/// What is done with a response that has ended: its object and its text.
pub type Keep = Box<dyn FnOnce(&Value, &str)>;

/// One response as events.
pub struct Events {
    head: Head,
    /// Whose tokens to spell, if log-probabilities were asked for.
    model: Option<Arc<LoadedModel>>,
    keep: Option<Keep>,
    next_number: u64,
    text: String,
    logprobs: Vec<Value>,
    /// The message has begun.
    is_open: bool,
}

impl Events {
    /// Of a response whose request is accepted.
    pub fn new(head: Head, model: Option<Arc<LoadedModel>>, keep: Option<Keep>) -> Self {
        Self { head, model, keep, next_number: 0, text: String::new(), logprobs: Vec::new(), is_open: false }
    }

    fn event(&mut self, name: &str, fields: Value) -> Bytes {
        let mut data = json!({"type": name, "sequence_number": self.next_number});
        self.next_number += 1;
        if let (Value::Object(data), Value::Object(fields)) = (&mut data, fields) {
            data.extend(fields);
        }
        sse::event(name, data.to_string().as_bytes())
    }

    /// An event about the text.
    fn text_event(&mut self, name: &str, fields: Value) -> Bytes {
        let mut place = json!({"item_id": self.head.message_id, "output_index": 0, "content_index": 0});
        if let (Value::Object(place), Value::Object(fields)) = (&mut place, fields) {
            place.extend(fields);
        }
        self.event(name, place)
    }

    fn begin_message(&mut self) -> Vec<Bytes> {
        if std::mem::replace(&mut self.is_open, true) {
            return Vec::new();
        }
        let item = self.head.message("in_progress", Vec::new());
        vec![
            self.event("response.output_item.added", json!({"output_index": 0, "item": item})),
            self.text_event("response.content_part.added", json!({"part": part("", &[])})),
        ]
    }
}

impl Encoder for Events {
    fn content_type(&self) -> &'static str {
        sse::CONTENT_TYPE
    }

    fn open(&mut self, _: usize) -> Option<Bytes> {
        let response = self.head.response(Moment::InProgress);
        let events = ["response.created", "response.in_progress"]
            .map(|name| self.event(name, json!({"response": response.clone()})));
        Some(events.concat().into())
    }

    fn text(&mut self, _: usize, text: &str, reports: &[TokenReport]) -> Option<Bytes> {
        let mut events = self.begin_message();
        self.text.push_str(text);
        let logprobs = match &self.model {
            Some(model) => chat_logprobs(&model.tokenizer, reports)["content"].take(),
            None => json!([]),
        };
        self.logprobs.extend(logprobs.as_array().into_iter().flatten().cloned());
        events.push(self.text_event("response.output_text.delta", json!({"delta": text, "logprobs": logprobs})));
        Some(events.concat().into())
    }

    fn done(&mut self, _: usize, done: &Done) -> Option<Bytes> {
        let mut events = self.begin_message();
        let (text, logprobs) = (std::mem::take(&mut self.text), std::mem::take(&mut self.logprobs));
        let part = part(&text, &logprobs);
        let item = self.head.message(status(done.reason), vec![part.clone()]);
        let response = self.head.response(Moment::Ended(done, &text, &logprobs));
        // Whoever reads the last event may ask for the response at once.
        if let Some(keep) = self.keep.take() {
            keep(&response, &text);
        }
        let end = format!("response.{}", status(done.reason));
        events.extend([
            self.text_event("response.output_text.done", json!({"text": text, "logprobs": logprobs})),
            self.text_event("response.content_part.done", json!({"part": part})),
            self.event("response.output_item.done", json!({"output_index": 0, "item": item})),
            self.event(&end, json!({"response": response})),
        ]);
        Some(events.concat().into())
    }

    fn close(&mut self) -> Option<Bytes> {
        None
    }

    fn failed(&mut self, error: ApiError) -> Bytes {
        let response = self.head.response(Moment::Failed(&error));
        self.event("response.failed", json!({"response": response}))
    }

    fn ping(&self) -> Option<Bytes> {
        Some(sse::comment())
    }
}
