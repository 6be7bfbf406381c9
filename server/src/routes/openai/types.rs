//! What the OpenAI routes send: responses, chunks of streams, and their parts.

use std::time::SystemTime;

use serde::Serialize;
use serde_json::{Map, Value, json};
use shimmy_runtime::engine::{self, FinishReason};
use shimmy_runtime::text::Tokenizer;
use utoipa::ToSchema;

use crate::routes::request::report::{Done, Timings, TokenReport, unix_seconds};

/// Token counts.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
pub struct Usage {
    prompt_tokens: usize,
    completion_tokens: usize,
    total_tokens: usize,
    prompt_tokens_details: PromptTokensDetails,
}

/// Of the prompt's tokens.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
struct PromptTokensDetails {
    cached_tokens: usize,
}

impl From<engine::Usage> for Usage {
    fn from(usage: engine::Usage) -> Self {
        let engine::Usage { prompt_tokens, cached_tokens, completion_tokens, .. } = usage;
        let total_tokens = prompt_tokens + completion_tokens;
        let prompt_tokens_details = PromptTokensDetails { cached_tokens };
        Self { prompt_tokens, completion_tokens, total_tokens, prompt_tokens_details }
    }
}

/// OpenAI's word for the end.
pub fn finish_reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop | FinishReason::StopString(_) => "stop",
        FinishReason::Length => "length",
    }
}

/// What every object of one answer repeats.
#[derive(Debug, Clone, Serialize)]
pub struct Head {
    /// Unique.
    pub id: String,
    /// `chat.completion`, `chat.completion.chunk`, `text_completion`.
    pub object: &'static str,
    /// Seconds since 1970.
    pub created: u64,
    /// The model's name.
    pub model: String,
    /// Which build answered.
    pub system_fingerprint: &'static str,
}

impl Head {
    /// A new answer.
    pub fn new(prefix: &str, object: &'static str, model: &str) -> Self {
        Self {
            id: crate::ids::unique(prefix),
            object,
            created: unix_seconds(SystemTime::now()),
            model: model.to_owned(),
            system_fingerprint: concat!("shimmy-", env!("CARGO_PKG_VERSION")),
        }
    }
}

/// Whether a stream counts its tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamUsage {
    /// No chunk has the field.
    None,
    /// One more chunk at the end has it; the others say null.
    Last,
}

/// A whole answer or a chunk of one. `C` is its choice.
#[derive(Debug, Serialize)]
pub struct Answer<'a, C> {
    /// Who answers.
    #[serde(flatten)]
    pub head: &'a Head,
    /// One in a chunk, or none in the one that only has usage.
    pub choices: Vec<C>,
    /// `None`: no field; `Some(None)`: null, as chunks before the last one say it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Option<Usage>>,
    /// At the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timings: Option<Timings>,
    /// The seed that was used, at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
}

impl<'a, C: Serialize> Answer<'a, C> {
    /// All answers to a prompt. `totals` sums them up.
    pub fn whole(head: &'a Head, choices: Vec<C>, totals: &Totals) -> Self {
        Self {
            head,
            choices,
            usage: Some(Some(totals.usage.into())),
            timings: Some(Timings::new(&totals.timings, &totals.usage)),
            seed: Some(totals.seed),
        }
    }

    /// A chunk of a stream; the one with `done` ends its choice.
    pub fn chunk(head: &'a Head, choice: C, usage: StreamUsage, done: Option<&Done>) -> Self {
        Self {
            head,
            choices: vec![choice],
            usage: (usage == StreamUsage::Last).then_some(None),
            timings: done.map(|done| Timings::new(&done.timings, &done.usage)),
            seed: done.map(|done| done.seed),
        }
    }

    /// The chunk after the last choice's.
    pub fn usage_only(head: &'a Head, usage: engine::Usage) -> Self {
        Self { head, choices: vec![], usage: Some(Some(usage.into())), timings: None, seed: None }
    }

    /// JSON for the wire.
    pub fn to_json(&self) -> Vec<u8> {
        // Strings, numbers and string-keyed maps always serialise; a float that isn't finite becomes null.
        serde_json::to_vec(self).unwrap_or_default()
    }
}

/// All answers to one prompt as one: it was computed once, and the answers ran side by side.
#[derive(Debug, Clone, Copy, Default)]
pub struct Totals {
    /// The prompt of one, the answers of all.
    pub usage: engine::Usage,
    /// Of prediction the longest.
    pub timings: engine::Timings,
    /// The first answer's; the others count up from it.
    pub seed: u64,
    num_answers: usize,
}

impl Totals {
    /// Adds an answer.
    pub fn add(&mut self, index: usize, done: &Done) {
        let sum = |count: fn(&engine::Usage) -> usize| count(&self.usage) + count(&done.usage);
        let completion_tokens = sum(|usage| usage.completion_tokens);
        let (guessed_tokens, accepted_tokens) = (sum(|usage| usage.guessed_tokens), sum(|usage| usage.accepted_tokens));
        let predicted_ms = self.timings.predicted_ms.max(done.timings.predicted_ms);
        if self.num_answers == 0 {
            (self.usage, self.timings) = (done.usage, done.timings);
        }
        if index == 0 {
            self.seed = done.seed;
        }
        self.usage = engine::Usage { completion_tokens, guessed_tokens, accepted_tokens, ..self.usage };
        self.timings.predicted_ms = predicted_ms;
        self.num_answers += 1;
    }

    /// The sum of whole answers.
    pub fn of(answers: &[engine::Answer]) -> Self {
        let mut totals = Self::default();
        for (index, answer) in answers.iter().enumerate() {
            let engine::Answer { reason, usage, timings, seed, .. } = *answer;
            totals.add(index, &Done { reason, usage, timings, seed });
        }
        totals
    }
}

fn token_text(tokenizer: &Tokenizer, token: &engine::request::TokenLogprob) -> String {
    if token.bytes.is_empty()
        && let Some(text) = tokenizer.token_text(token.id)
    {
        return text.to_string();
    }
    String::from_utf8_lossy(&token.bytes).into_owned()
}

/// JSON has no infinities: a banned token has the smallest number instead.
fn finite(logprob: f32) -> f32 {
    logprob.max(-9999.0)
}

/// `logprobs.content` of the chat API.
pub fn chat_logprobs(tokenizer: &Tokenizer, reports: &[TokenReport]) -> Value {
    let token = |token: &engine::request::TokenLogprob| json!({"token": token_text(tokenizer, token), "logprob": finite(token.logprob), "bytes": token.bytes});
    let content = reports.iter().map(|(chosen, top)| {
        let mut entry = token(chosen);
        entry["top_logprobs"] = top.iter().map(token).collect();
        entry
    });
    json!({"content": content.collect::<Vec<_>>(), "refusal": null})
}

/// `logprobs` of the completion API. `offset` is the number of characters before the first of these tokens; moves on.
pub fn completion_logprobs(tokenizer: &Tokenizer, reports: &[TokenReport], offset: &mut usize) -> Value {
    let (mut tokens, mut logprobs, mut tops, mut offsets) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (chosen, top) in reports {
        let text = token_text(tokenizer, chosen);
        offsets.push(*offset);
        *offset += text.chars().count();
        tokens.push(text);
        logprobs.push(finite(chosen.logprob));
        let top: Map<String, Value> =
            top.iter().map(|top| (token_text(tokenizer, top), finite(top.logprob).into())).collect();
        tops.push(top);
    }
    json!({"tokens": tokens, "token_logprobs": logprobs, "top_logprobs": tops, "text_offset": offsets})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_answers_count_their_prompt_once() {
        let done = |completion_tokens, predicted_ms, seed| Done {
            reason: FinishReason::Stop,
            usage: engine::Usage { prompt_tokens: 50, cached_tokens: 32, completion_tokens, ..Default::default() },
            timings: engine::Timings { queue_ms: 1.0, prompt_ms: 2.0, predicted_ms },
            seed,
        };
        let mut totals = Totals::default();
        totals.add(1, &done(5, 30.0, 8));
        totals.add(0, &done(7, 20.0, 7));
        assert_eq!((totals.usage.prompt_tokens, totals.usage.cached_tokens), (50, 32));
        assert_eq!((totals.usage.completion_tokens, totals.timings.predicted_ms, totals.seed), (12, 30.0, 7));
    }

    #[test]
    fn a_chunk_has_exactly_openais_fields() {
        let head = Head {
            id: "x".into(),
            object: "chat.completion.chunk",
            created: 7,
            model: "m".into(),
            system_fingerprint: "f",
        };
        let chunk = Answer { head: &head, choices: vec![1], usage: None, timings: None, seed: None };
        assert_eq!(
            String::from_utf8(chunk.to_json()).unwrap(),
            r#"{"id":"x","object":"chat.completion.chunk","created":7,"model":"m","system_fingerprint":"f","choices":[1]}"#
        );
        let chunk = Answer { usage: Some(None), ..chunk };
        assert!(String::from_utf8(chunk.to_json()).unwrap().ends_with(r#""choices":[1],"usage":null}"#));
    }
}
