//! A request as spans, in OTLP's JSON. Names of attributes are those of OpenTelemetry's semantic conventions where there are
//! some, else they begin with `shimmy.`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use shimmy_runtime::engine::Timings;

use super::context::Parent;

/// OTLP's numbers for kinds of spans.
const INTERNAL: u8 = 1;
const SERVER: u8 = 2;
/// OTLP's number for a span that failed.
const ERROR: u8 = 2;

/// What is known of a request when its response has left.
#[derive(Debug)]
pub struct RequestSpan<'a> {
    /// Which trace it is a part of; `None`: it begins one.
    pub parent: Option<&'a Parent>,
    /// When it came.
    pub start: SystemTime,
    /// How long it took.
    pub duration: Duration,
    /// `x-request-id`.
    pub request_id: &'a str,
    /// HTTP method.
    pub method: &'a str,
    /// Without its query.
    pub path: &'a str,
    /// The path's pattern, if there is such a resource.
    pub route: Option<&'a str>,
    /// HTTP status.
    pub status: u16,
    /// The error's code.
    pub error: Option<&'static str>,
    /// Of the response's body.
    pub bytes: u64,
    /// Whether the client took all of it.
    pub complete: bool,
    /// The address that it came from.
    pub address: Option<&'a str>,
    /// The name of its API key.
    pub key: Option<&'a str>,
    /// What it computed, if anything.
    pub work: Option<Work<'a>>,
}

/// What a request computed.
#[derive(Debug)]
pub struct Work<'a> {
    /// The model.
    pub model: &'a str,
    /// Tokens of prompts.
    pub prompt_tokens: usize,
    /// Tokens of answers.
    pub completion_tokens: usize,
    /// Of the first answer that ended: how long before the end of the request that was, and its times.
    pub timings: Option<(Duration, Timings)>,
}

/// Identifiers of spans: as many random hex digits. Without random numbers there are no traces.
fn random_id<const BYTES: usize>() -> Option<String> {
    let mut bytes = [0; BYTES];
    getrandom::fill(&mut bytes).ok()?;
    // All zeros mean that there is none.
    bytes[BYTES - 1] |= 1;
    Some(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn attribute(name: &str, value: Value) -> Value {
    // 64-bit integers are strings in the JSON of protobuf.
    let value = match value {
        Value::String(text) => json!({"stringValue": text}),
        Value::Bool(is_true) => json!({"boolValue": is_true}),
        Value::Number(number) if number.is_f64() => json!({"doubleValue": number}),
        other => json!({"intValue": other.to_string()}),
    };
    json!({"key": name, "value": value})
}

/// Nanoseconds since 1970, as a string.
fn nanoseconds(time: SystemTime) -> Value {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos()).to_string().into()
}

impl RequestSpan<'_> {
    /// The span of the request, and those of what it waited for.
    pub fn to_json(&self) -> Vec<Value> {
        let trace_id = match self.parent {
            Some(parent) => Some(parent.trace_id.clone()),
            None => random_id::<16>(),
        };
        let (Some(trace_id), Some(span_id)) = (trace_id, random_id::<8>()) else { return Vec::new() };
        let name = self.route.map_or(self.method.to_owned(), |route| format!("{} {route}", self.method));
        let end = self.start + self.duration;
        let mut span = json!({
            "traceId": trace_id, "spanId": span_id, "name": name, "kind": SERVER,
            "startTimeUnixNano": nanoseconds(self.start), "endTimeUnixNano": nanoseconds(end),
            "attributes": self.attributes(),
        });
        if let Some(parent) = self.parent {
            span["parentSpanId"] = parent.span_id.as_str().into();
            if let Some(state) = &parent.state {
                span["traceState"] = state.as_str().into();
            }
        }
        if self.status >= 500 {
            span["status"] = json!({"code": ERROR, "message": self.error.unwrap_or_default()});
        }
        let mut spans = vec![span];
        if let Some((before_end, timings)) = self.work.as_ref().and_then(|work| work.timings) {
            let mut until = end.checked_sub(before_end).unwrap_or(end);
            for (name, ms) in
                [("decode", timings.predicted_ms), ("prefill", timings.prompt_ms), ("queue", timings.queue_ms)]
            {
                let length = Duration::try_from_secs_f64(ms / 1e3).unwrap_or_default();
                let from = until.checked_sub(length).unwrap_or(until).max(self.start);
                let Some(id) = random_id::<8>() else { break };
                spans.push(json!({
                    "traceId": trace_id, "spanId": id, "parentSpanId": span_id, "name": name, "kind": INTERNAL,
                    "startTimeUnixNano": nanoseconds(from), "endTimeUnixNano": nanoseconds(until),
                }));
                until = from;
            }
        }
        spans
    }

    fn attributes(&self) -> Vec<Value> {
        let mut all = vec![
            attribute("http.request.method", self.method.into()),
            attribute("url.path", self.path.into()),
            attribute("http.response.status_code", self.status.into()),
            attribute("http.response.body.size", self.bytes.into()),
            attribute("shimmy.request_id", self.request_id.into()),
            attribute("shimmy.complete", self.complete.into()),
        ];
        let texts = [
            ("http.route", self.route),
            ("error.type", self.error),
            ("client.address", self.address),
            ("shimmy.key", self.key),
        ];
        all.extend(texts.into_iter().filter_map(|(name, text)| Some(attribute(name, text?.into()))));
        if let Some(work) = &self.work {
            all.extend([
                attribute("gen_ai.request.model", work.model.into()),
                attribute("gen_ai.usage.input_tokens", work.prompt_tokens.into()),
                attribute("gen_ai.usage.output_tokens", work.completion_tokens.into()),
            ]);
        }
        all
    }
}
