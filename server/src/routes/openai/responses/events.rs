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

/// Whether log-probabilities are reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Logprobs {
    /// Of each token.
    Report,
    /// None.
    Leave,
}

/// One response as events, and what they came to so far.
pub struct Events {
    head: Head,
    logprobs: Logprobs,
    /// Whose tokens to spell.
    model: Option<Arc<LoadedModel>>,
    next_number: u64,
    /// So far.
    pub text: String,
    reports: Vec<Value>,
    /// The message has begun.
    is_open: bool,
}

impl Events {
    /// Of a response whose request is accepted.
    pub fn new(head: Head, logprobs: Logprobs) -> Self {
        let (text, reports) = (String::new(), Vec::new());
        Self { head, logprobs, model: None, next_number: 0, text, reports, is_open: false }
    }

    /// Of the response.
    pub fn id(&self) -> &str {
        &self.head.id
    }

    /// The response waits: `created`, `queued`.
    pub fn queued(&mut self) -> Vec<Bytes> {
        let response = self.head.response(Moment::Queued);
        self.about(["response.created", "response.queued"], &response)
    }

    /// Its model is there and has it: `in_progress`, and the response as it is then.
    pub fn begun(&mut self, model: &Arc<LoadedModel>) -> (Value, Vec<Bytes>) {
        self.model = Some(Arc::clone(model));
        self.head.temperature.get_or_insert(model.defaults.temperature);
        self.head.top_p.get_or_insert(model.defaults.top_p);
        let response = self.head.response(Moment::InProgress);
        let events = self.about(["response.in_progress"], &response);
        (response, events)
    }

    /// New text.
    pub fn more(&mut self, text: &str, reports: &[TokenReport]) -> Vec<Bytes> {
        let mut events = self.begin_message();
        self.text.push_str(text);
        let logprobs = match (&self.model, self.logprobs) {
            (Some(model), Logprobs::Report) => chat_logprobs(&model.tokenizer, reports)["content"].take(),
            _ => json!([]),
        };
        self.reports.extend(logprobs.as_array().into_iter().flatten().cloned());
        events.push(self.text_event("response.output_text.delta", json!({"delta": text, "logprobs": logprobs})));
        events
    }

    /// It has ended by itself: the response, and its last events.
    pub fn ended(&mut self, done: &Done) -> (Value, Vec<Bytes>) {
        let mut events = self.begin_message();
        let part = part(&self.text, &self.reports);
        let item = self.head.message(status(done.reason), vec![part.clone()]);
        let response = self.head.response(Moment::Ended(done, &self.text, &self.reports));
        let end = format!("response.{}", status(done.reason));
        let said = json!({"text": self.text, "logprobs": self.reports});
        events.extend([
            self.text_event("response.output_text.done", said),
            self.text_event("response.content_part.done", json!({"part": part})),
            self.event("response.output_item.done", json!({"output_index": 0, "item": item})),
            self.event(&end, json!({"response": response})),
        ]);
        (response, events)
    }

    /// It broke off.
    pub fn failed(&mut self, error: &ApiError) -> (Value, Vec<Bytes>) {
        let response = self.head.response(Moment::Failed(error));
        let events = self.about(["response.failed"], &response);
        (response, events)
    }

    /// Somebody has ended it. The protocol has no event of its own for that: it is incomplete, and its status says why.
    pub fn cancelled(&mut self) -> (Value, Vec<Bytes>) {
        let response = self.head.response(Moment::Cancelled(&self.text, &self.reports));
        let events = self.about(["response.incomplete"], &response);
        (response, events)
    }

    fn about<const N: usize>(&mut self, names: [&str; N], response: &Value) -> Vec<Bytes> {
        names.into_iter().map(|name| self.event(name, json!({"response": response}))).collect()
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

/// A response that is computed for who reads its events.
pub struct Streamed {
    events: Events,
    model: Arc<LoadedModel>,
    keep: Option<Keep>,
}

impl Streamed {
    /// By this model.
    pub fn new(events: Events, model: Arc<LoadedModel>, keep: Option<Keep>) -> Self {
        Self { events, model, keep }
    }
}

fn joined(events: &[Bytes]) -> Bytes {
    events.concat().into()
}

impl Encoder for Streamed {
    fn content_type(&self) -> &'static str {
        sse::CONTENT_TYPE
    }

    fn open(&mut self, _: usize) -> Option<Bytes> {
        let response = self.events.head.response(Moment::InProgress);
        let created = self.events.about(["response.created"], &response);
        let (_, begun) = self.events.begun(&self.model);
        Some(joined(&[created, begun].concat()))
    }

    fn text(&mut self, _: usize, text: &str, reports: &[TokenReport]) -> Option<Bytes> {
        Some(joined(&self.events.more(text, reports)))
    }

    fn done(&mut self, _: usize, done: &Done) -> Option<Bytes> {
        let (response, events) = self.events.ended(done);
        // Whoever reads the last event may ask for the response at once.
        if let Some(keep) = self.keep.take() {
            keep(&response, &self.events.text);
        }
        Some(joined(&events))
    }

    fn close(&mut self) -> Option<Bytes> {
        None
    }

    fn failed(&mut self, error: ApiError) -> Bytes {
        joined(&self.events.failed(&error).1)
    }

    fn ping(&self) -> Option<Bytes> {
        Some(sse::comment())
    }
}
