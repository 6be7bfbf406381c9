//! A response as JSON, at each moment of its life.

use std::time::SystemTime;

use serde_json::{Map, Value, json};
use shimmy_runtime::engine::{FinishReason, Usage};

use crate::error::ApiError;
use crate::routes::request::report::{Done, Timings, unix_seconds};

/// What all objects of one response repeat.
#[derive(Debug, Clone)]
pub struct Head {
    /// Of the response. Whoever knows it can ask for it.
    pub id: String,
    /// Of its one message.
    pub message_id: String,
    /// Seconds since 1970.
    pub created_at: u64,
    /// Who answers.
    pub model: String,
    /// What the request said.
    pub instructions: Option<String>,
    /// The same.
    pub previous: Option<String>,
    /// The same.
    pub store: bool,
    /// The same.
    pub background: bool,
    /// The same.
    pub max_output_tokens: Option<usize>,
    /// Alternatives a token.
    pub top_logprobs: usize,
    /// As it is used; `None` while nobody knows what the model recommends.
    pub temperature: Option<f32>,
    /// The same.
    pub top_p: Option<f32>,
    /// As the request has it.
    pub tool_choice: &'static str,
    /// As the request has it.
    pub parallel_tool_calls: bool,
    /// As the request has it.
    pub metadata: Map<String, Value>,
    /// As the request has it.
    pub user: Option<String>,
}

/// How far a response has come.
#[derive(Debug, Clone, Copy)]
pub enum Moment<'a> {
    /// Nobody computes it yet.
    Queued,
    /// It is being computed.
    InProgress,
    /// It has ended, with this text and, if they were asked for, log-probabilities.
    Ended(&'a Done, &'a str, &'a [Value]),
    /// Somebody has ended it when it had come so far.
    Cancelled(&'a str, &'a [Value]),
    /// It broke off.
    Failed(&'a ApiError),
}

/// The nearest f64 of a number's shortest decimal form, so that 0.8 stays 0.8.
fn number(x: f32) -> Value {
    x.to_string().parse::<f64>().map_or(Value::Null, Value::from)
}

/// `completed` or `incomplete`.
pub fn status(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop | FinishReason::StopString(_) => "completed",
        FinishReason::Length => "incomplete",
    }
}

/// The text of the message, as a part of it.
pub fn part(text: &str, logprobs: &[Value]) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs})
}

impl Head {
    /// The message that is the output.
    pub fn message(&self, status: &str, content: Vec<Value>) -> Value {
        json!({
            "id": self.message_id, "type": "message", "role": "assistant", "status": status, "content": content,
        })
    }

    /// The response at a moment.
    pub fn response(&self, moment: Moment<'_>) -> Value {
        let mut object = json!({
            "id": self.id, "object": "response", "created_at": self.created_at, "status": "in_progress",
            "background": self.background, "completed_at": null, "error": null, "incomplete_details": null,
            "instructions": self.instructions, "max_output_tokens": self.max_output_tokens, "max_tool_calls": null,
            "model": self.model, "output": [], "parallel_tool_calls": self.parallel_tool_calls,
            "previous_response_id": self.previous, "reasoning": {"effort": null, "summary": null},
            "store": self.store, "temperature": self.temperature.map(number), "text": {"format": {"type": "text"}},
            "tool_choice": self.tool_choice, "tools": [], "top_logprobs": self.top_logprobs, "top_p": self.top_p.map(number),
            "truncation": "disabled", "usage": null, "user": self.user, "metadata": self.metadata,
        });
        match moment {
            Moment::Queued => object["status"] = "queued".into(),
            Moment::InProgress => {}
            Moment::Ended(done, text, logprobs) => {
                let status = status(done.reason);
                object["status"] = status.into();
                if status == "completed" {
                    object["completed_at"] = unix_seconds(SystemTime::now()).into();
                } else {
                    object["incomplete_details"] = json!({"reason": "max_output_tokens"});
                }
                object["output"] = json!([self.message(status, vec![part(text, logprobs)])]);
                object["usage"] = usage(&done.usage);
                object["seed"] = done.seed.into();
                object["timings"] = json!(Timings::new(&done.timings, &done.usage));
            }
            Moment::Cancelled(text, logprobs) => {
                object["status"] = "cancelled".into();
                if !text.is_empty() {
                    object["output"] = json!([self.message("incomplete", vec![part(text, logprobs)])]);
                }
            }
            Moment::Failed(error) => {
                object["status"] = "failed".into();
                object["error"] = json!({"code": error.code.unwrap_or("server_error"), "message": error.message});
            }
        }
        object
    }
}

fn usage(usage: &Usage) -> Value {
    let Usage { prompt_tokens, cached_tokens, completion_tokens, .. } = *usage;
    json!({
        "input_tokens": prompt_tokens, "input_tokens_details": {"cached_tokens": cached_tokens},
        "output_tokens": completion_tokens, "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": prompt_tokens + completion_tokens,
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn numbers_look_as_they_were_written() {
        assert_eq!(super::number(0.8).to_string(), "0.8");
        assert_eq!(super::number(1.0).to_string(), "1.0");
    }
}
