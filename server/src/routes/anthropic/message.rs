//! A request for a message, or for the count of its tokens: checked, and brought to what chat templates read.

use serde_json::{Map, Value, json};
use shimmy_runtime::models::LoadedModel;

use crate::error::ApiError;
use crate::routes::request::fields::{Fields, kind_of};
use crate::routes::request::generation::{Generation, take_stop};

/// Most stop strings.
const MAX_STOPS: usize = 16;

/// What is said so far.
#[derive(Debug, PartialEq)]
pub struct Conversation {
    /// As templates read them.
    messages: Value,
    /// The beginning of the answer, if the last message is the assistant's.
    begun: String,
}

impl Conversation {
    /// The prompt's tokens.
    ///
    /// # Errors
    /// What the model's template or tokenizer refuses.
    pub fn encode(&self, model: &LoadedModel) -> Result<Vec<u32>, ApiError> {
        Ok(model.encode_chat_begun(&self.messages, &Map::new(), &self.begun)?)
    }

    fn take(fields: &mut Fields) -> Result<Self, ApiError> {
        let mut messages = Vec::new();
        if let Some(system) = fields.take::<Value>("system")? {
            messages.push(json!({"role": "system", "content": content(&system, "system")?}));
        }
        let given = match fields.take::<Value>("messages")? {
            None => return Err(ApiError::param("messages", "`messages` is missing")),
            Some(Value::Array(given)) if given.is_empty() => {
                return Err(ApiError::param("messages", "`messages` is empty; it needs at least one message"));
            }
            Some(Value::Array(given)) => given,
            Some(other) => {
                let message = format!("`messages` must be an array, not {}", kind_of(&other));
                return Err(ApiError::param("messages", message));
            }
        };
        let mut begun = None;
        for (index, message) in given.iter().enumerate() {
            let at = format!("messages[{index}]");
            let Value::Object(message) = message else {
                let found = kind_of(message);
                return Err(ApiError::param(at.clone(), format!("`{at}` must be an object, not {found}")));
            };
            let role = match message.get("role").and_then(Value::as_str) {
                Some(role @ ("user" | "assistant")) => role,
                _ => {
                    let at = format!("{at}.role");
                    let message = format!("`{at}` must be \"user\" or \"assistant\"; instructions go into `system`");
                    return Err(ApiError::param(at, message));
                }
            };
            let at = format!("{at}.content");
            let Some(said) = message.get("content") else {
                return Err(ApiError::param(at.clone(), format!("`{at}` is missing")));
            };
            let said = content(said, &at)?;
            if role == "assistant" && index + 1 == given.len() {
                begun = Some(said);
            } else {
                messages.push(json!({"role": role, "content": said}));
            }
        }
        if messages.iter().all(|message| message["role"] == "system") {
            return Err(ApiError::param("messages", "`messages` has nothing that the user said"));
        }
        Ok(Self { messages: messages.into(), begun: begun.unwrap_or_default() })
    }
}

/// A string, or blocks of text joined as they are.
fn content(content: &Value, at: &str) -> Result<String, ApiError> {
    let blocks = match content {
        Value::String(text) => return Ok(text.clone()),
        Value::Array(blocks) => blocks,
        other => {
            let message = format!("`{at}` must be a string or an array of blocks, not {}", kind_of(other));
            return Err(ApiError::param(at, message));
        }
    };
    let text = |(index, block): (usize, &Value)| {
        let at = format!("{at}[{index}]");
        match block.get("type").and_then(Value::as_str) {
            Some("text") => match block.get("text") {
                Some(Value::String(text)) => Ok(text.clone()),
                _ => Err(ApiError::param(format!("{at}.text"), format!("`{at}.text` must be a string"))),
            },
            // What another model thought is nothing that this one said.
            Some("thinking" | "redacted_thinking") => Ok(String::new()),
            Some("image" | "document") => {
                Err(ApiError::unsupported(format!("{at}.type"), "this model reads text only; send text blocks"))
            }
            Some("tool_use" | "tool_result") => {
                Err(ApiError::unsupported(format!("{at}.type"), "this server can't call tools yet"))
            }
            Some(_) => Err(ApiError::unsupported(format!("{at}.type"), "send blocks of the type \"text\"")),
            None => Err(ApiError::param(format!("{at}.type"), format!("`{at}.type` must be a string"))),
        }
    };
    blocks.iter().enumerate().map(text).collect()
}

/// What can't be honoured, in both requests.
fn refuse(fields: &mut Fields) -> Result<(), ApiError> {
    let no_tools = "this server can't call tools yet";
    fields.refuse("tools", &[json!([])], no_tools)?;
    fields.refuse("tool_choice", &[json!({"type": "auto"}), json!({"type": "none"})], no_tools)?;
    fields.refuse(
        "thinking",
        &[json!({"type": "disabled"})],
        "leave it out; what a model thinks is part of its text",
    )?;
    fields.refuse("mcp_servers", &[json!([])], no_tools)?;
    fields.refuse("container", &[], "this server runs no code")?;
    fields.refuse("output_format", &[], "answers can't be constrained yet")?;
    fields.refuse("output_config", &[json!({})], "leave it out")
}

/// A checked request for an answer.
#[derive(Debug, PartialEq)]
pub struct MessageRequest {
    /// Who answers.
    pub model: Option<String>,
    /// To what.
    pub conversation: Conversation,
    /// Most tokens of the answer.
    pub max_tokens: usize,
    /// As events.
    pub stream: bool,
    /// How to draw.
    pub generation: Generation,
    /// Fields without an effect.
    pub ignored: Option<String>,
}

impl MessageRequest {
    /// Takes a body apart.
    ///
    /// # Errors
    /// 400 that names the field.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body)?;
        let model = fields.take("model")?;
        let conversation = Conversation::take(&mut fields)?;
        refuse(&mut fields)?;
        let max_tokens = match fields.take::<i64>("max_tokens")? {
            None => Err("`max_tokens` is missing; this protocol wants it".to_owned()),
            Some(wanted) => usize::try_from(wanted)
                .ok()
                .filter(|&wanted| wanted > 0)
                .ok_or_else(|| format!("`max_tokens` must be at least 1, got {wanted}")),
        };
        let generation = Generation {
            temperature: fields.take_in("temperature", 0.0, 1.0)?,
            top_p: fields.take_in("top_p", 0.0, 1.0)?,
            top_k: fields.take("top_k")?,
            stop: take_stop(&mut fields, "stop_sequences", MAX_STOPS)?,
            ..Generation::default()
        };
        Ok(Self {
            model,
            conversation,
            max_tokens: max_tokens.map_err(|message| ApiError::param("max_tokens", message))?,
            stream: fields.take("stream")?.unwrap_or(false),
            generation,
            ignored: fields.ignored(),
        })
    }
}

/// A checked request for a count.
#[derive(Debug, PartialEq)]
pub struct CountRequest {
    /// Whose tokens.
    pub model: Option<String>,
    /// Of what.
    pub conversation: Conversation,
    /// Fields without an effect.
    pub ignored: Option<String>,
}

impl CountRequest {
    /// Takes a body apart.
    ///
    /// # Errors
    /// 400 that names the field.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body)?;
        let model = fields.take("model")?;
        let conversation = Conversation::take(&mut fields)?;
        refuse(&mut fields)?;
        Ok(Self { model, conversation, ignored: fields.ignored() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(mut extra: Value) -> Result<MessageRequest, ApiError> {
        let fields = extra.as_object_mut().unwrap();
        fields.entry("messages").or_insert_with(|| json!([{"role": "user", "content": "hi"}]));
        fields.entry("max_tokens").or_insert_with(|| json!(9));
        MessageRequest::parse(&serde_json::to_vec(&extra).unwrap())
    }

    #[test]
    fn system_blocks_and_a_begun_answer() {
        let request = parse(json!({
            "system": [{"type": "text", "text": "be brief", "cache_control": {"type": "ephemeral"}}],
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
                {"role": "assistant", "content": "The answer is"},
            ],
            "temperature": 0.5, "top_k": 3, "stop_sequences": ["x"], "stream": true, "metadata": {"user_id": "me"},
        }))
        .unwrap();
        assert_eq!(
            request.conversation.messages,
            json!([{"role": "system", "content": "be brief"}, {"role": "user", "content": "ab"}])
        );
        assert_eq!(request.conversation.begun, "The answer is");
        assert_eq!((request.max_tokens, request.stream), (9, true));
        assert_eq!((request.generation.top_k, &*request.generation.stop), (Some(3), &["x".to_owned()][..]));
        assert_eq!(request.ignored.as_deref(), Some("metadata"));
    }

    #[test]
    fn what_cant_be_done_is_named() {
        for (extra, param) in [
            (json!({"messages": []}), "messages"),
            (json!({"messages": [{"role": "system", "content": "x"}]}), "messages[0].role"),
            (json!({"messages": [{"role": "assistant", "content": "x"}]}), "messages"),
            (json!({"messages": [{"role": "user"}]}), "messages[0].content"),
            (json!({"messages": [{"role": "user", "content": [{"type": "image"}]}]}), "messages[0].content[0].type"),
            (json!({"messages": [{"role": "user", "content": [{"text": "x"}]}]}), "messages[0].content[0].type"),
            (json!({"system": 3}), "system"),
            (json!({"max_tokens": null}), "max_tokens"),
            (json!({"max_tokens": 0}), "max_tokens"),
            (json!({"temperature": 1.5}), "temperature"),
            (json!({"tools": [{"name": "x"}]}), "tools"),
            (json!({"thinking": {"type": "enabled", "budget_tokens": 1024}}), "thinking"),
            (json!({"stop_sequences": [""]}), "stop_sequences"),
        ] {
            let error = parse(extra.clone()).expect_err(&extra.to_string());
            assert_eq!((error.status.as_u16(), error.param.as_deref()), (400, Some(param)), "{extra}");
        }
    }
}
