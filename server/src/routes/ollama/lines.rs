//! What `/api/chat` and `/api/generate` send: an object a piece of text, or one for all.

use std::time::Instant;

use actix_web::web::Bytes;
use chrono::{SecondsFormat, Utc};
use serde_json::{Value, json};
use shimmy_runtime::engine::FinishReason;

use crate::error::{ApiError, Protocol};
use crate::routes::request::report::{Done, TokenReport};
use crate::stream::{Encoder, ndjson};

/// Where the text of an answer goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// `message.content`.
    Chat,
    /// `response`.
    Generate,
}

impl Shape {
    /// An object without an end.
    pub fn object(self, model: &str, text: &str) -> Value {
        let mut object = json!({"model": model, "created_at": now()});
        match self {
            Self::Chat => object["message"] = json!({"role": "assistant", "content": text}),
            Self::Generate => object["response"] = text.into(),
        }
        object["done"] = false.into();
        object
    }

    /// The whole answer to a request that asks for none: the model was loaded or unloaded.
    pub fn empty(self, model: &str, reason: &str) -> Value {
        let mut object = self.object(model, "");
        object["done"] = true.into();
        object["done_reason"] = reason.into();
        object
    }
}

/// The time in Ollama's form.
fn now() -> String {
    Utc::now().to_rfc3339_opts(SecondsFormat::Nanos, true)
}

/// Marks an object as the last one.
pub fn finish(object: &mut Value, done: &Done, start: Instant) {
    let nanoseconds = |ms: f64| (ms * 1e6) as u64;
    let Done { reason, usage, timings, .. } = done;
    let computing = timings.queue_ms + timings.prompt_ms + timings.predicted_ms;
    let total = start.elapsed();
    let before = (total.as_secs_f64() * 1e3 - computing).max(0.0);
    object["done"] = true.into();
    object["done_reason"] = match reason {
        FinishReason::Stop | FinishReason::StopString(_) => "stop",
        FinishReason::Length => "length",
    }
    .into();
    object["total_duration"] = u64::try_from(total.as_nanos()).unwrap_or(u64::MAX).into();
    // Finding or loading the model, and making tokens of the prompt.
    object["load_duration"] = nanoseconds(before).into();
    object["prompt_eval_count"] = usage.prompt_tokens.into();
    object["prompt_eval_duration"] = nanoseconds(timings.prompt_ms).into();
    object["eval_count"] = usage.completion_tokens.into();
    object["eval_duration"] = nanoseconds(timings.predicted_ms).into();
}

/// The lines of a streamed answer.
pub struct Lines {
    shape: Shape,
    model: String,
    start: Instant,
}

impl Lines {
    /// For a request that came at `start`.
    pub fn new(shape: Shape, model: String, start: Instant) -> Self {
        Self { shape, model, start }
    }
}

impl Encoder for Lines {
    fn content_type(&self) -> &'static str {
        ndjson::CONTENT_TYPE
    }

    fn open(&mut self, _: usize) -> Option<Bytes> {
        None
    }

    fn text(&mut self, _: usize, text: &str, _: &[TokenReport]) -> Option<Bytes> {
        Some(ndjson::line(self.shape.object(&self.model, text).to_string().as_bytes()))
    }

    fn done(&mut self, _: usize, done: &Done) -> Option<Bytes> {
        let mut object = self.shape.object(&self.model, "");
        finish(&mut object, done, self.start);
        Some(ndjson::line(object.to_string().as_bytes()))
    }

    fn close(&mut self) -> Option<Bytes> {
        None
    }

    fn failed(&mut self, error: ApiError) -> Bytes {
        ndjson::line(&error.speaking(Protocol::Ollama).to_json())
    }

    fn ping(&self) -> Option<Bytes> {
        None
    }
}
