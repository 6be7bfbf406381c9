//! `input` and `instructions` of a request: items for the list of what was said, messages for chat templates.

use serde_json::{Value, json};

use crate::error::ApiError;
use crate::ids::unique;
use crate::routes::request::fields::kind_of;

/// What a request adds to a conversation.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Said {
    /// With ids, as they are listed.
    pub items: Vec<Value>,
    /// As templates read them.
    pub messages: Vec<Value>,
}

/// Takes `input` apart: a text that the user says, or items.
///
/// # Errors
/// 400 that names the item and the field.
pub fn said(input: &Value) -> Result<Said, ApiError> {
    let items = match input {
        Value::String(_) => &[json!({"role": "user", "content": input})][..],
        Value::Array(items) => items,
        other => {
            let message = format!("`input` must be a string or an array of items, not {}", kind_of(other));
            return Err(ApiError::param("input", message));
        }
    };
    if items.is_empty() {
        return Err(ApiError::param("input", "`input` is empty; it needs at least one item"));
    }
    let mut said = Said::default();
    for (index, item) in items.iter().enumerate() {
        let (role, text) = message(item, &format!("input[{index}]"))?;
        said.items.push(listed(role, &text));
        // `developer` is what OpenAI calls the system role of newer models; templates know it as `system`.
        let role = if role == "developer" { "system" } else { role };
        said.messages.push(json!({"role": role, "content": text}));
    }
    Ok(said)
}

/// The id of an item. It is no secret: nothing can be asked for by it.
pub fn item_id() -> String {
    unique("msg").replacen('-', "_", 1)
}

/// An item as it is listed.
fn listed(role: &str, text: &str) -> Value {
    let content = match role {
        "assistant" => json!([{"type": "output_text", "text": text, "annotations": []}]),
        _ => json!([{"type": "input_text", "text": text}]),
    };
    json!({"id": item_id(), "type": "message", "status": "completed", "role": role, "content": content})
}

/// Role and text of a message.
fn message<'a>(item: &'a Value, at: &str) -> Result<(&'a str, String), ApiError> {
    let field = |name: &str| format!("{at}.{name}");
    let Value::Object(item) = item else {
        return Err(ApiError::param(at, format!("`{at}` must be an object, not {}", kind_of(item))));
    };
    match item.get("type") {
        None | Some(Value::Null) => {}
        Some(Value::String(kind)) if kind == "message" => {}
        Some(Value::String(kind)) if kind == "item_reference" => {
            let instead = "send the item itself, or the `previous_response_id` of the response that has it";
            return Err(ApiError::unsupported(field("type"), instead));
        }
        Some(Value::String(kind)) => {
            let kind: String = kind.chars().take(64).collect();
            return Err(ApiError::unsupported(field("type"), &format!("items are messages, not `{kind}`")));
        }
        Some(other) => {
            let message = format!("`{}` must be a string, not {}", field("type"), kind_of(other));
            return Err(ApiError::param(field("type"), message));
        }
    }
    let role = match item.get("role").and_then(Value::as_str) {
        Some(role @ ("user" | "assistant" | "system" | "developer")) => role,
        _ => {
            let message = format!("`{}` must be one of user, assistant, system, developer", field("role"));
            return Err(ApiError::param(field("role"), message));
        }
    };
    let content = item.get("content").unwrap_or(&Value::Null);
    Ok((role, text(content, &field("content"))?))
}

/// A string, or parts of text joined as they are.
fn text(content: &Value, at: &str) -> Result<String, ApiError> {
    let parts = match content {
        Value::String(text) => return Ok(text.clone()),
        Value::Array(parts) => parts,
        other => {
            let message = format!("`{at}` must be a string or an array of parts, not {}", kind_of(other));
            return Err(ApiError::param(at, message));
        }
    };
    let part = |(index, part): (usize, &Value)| {
        let at = |name: &str| format!("{at}[{index}].{name}");
        match part.get("type").and_then(Value::as_str) {
            Some("input_text" | "output_text" | "text") => match part.get("text") {
                Some(Value::String(text)) => Ok(text.clone()),
                _ => Err(ApiError::param(at("text"), format!("`{}` must be a string", at("text")))),
            },
            Some(kind) => {
                let kind: String = kind.chars().take(64).collect();
                Err(ApiError::unsupported(at("type"), &format!("parts are text, not `{kind}`")))
            }
            None => {
                let message = format!("`{}` must be a string, such as `input_text`", at("type"));
                Err(ApiError::param(at("type"), message))
            }
        }
    };
    parts.iter().enumerate().map(part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_items_and_roles() {
        let said = said(&json!([
            {"role": "developer", "content": "be brief"},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
            {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant",
             "content": [{"type": "output_text", "text": "c", "annotations": []}]},
        ]))
        .unwrap();
        assert_eq!(
            said.messages,
            [
                json!({"role": "system", "content": "be brief"}),
                json!({"role": "user", "content": "ab"}),
                json!({"role": "assistant", "content": "c"}),
            ]
        );
        assert_eq!(
            (&said.items[0]["role"], &said.items[1]["content"]),
            (&json!("developer"), &json!([{"type": "input_text", "text": "ab"}]))
        );
        assert_eq!(said.items[2]["content"][0]["type"], "output_text");
        assert_eq!(super::said(&json!("hi")).unwrap().messages, [json!({"role": "user", "content": "hi"})]);
    }

    #[test]
    fn what_cant_be_read_is_named() {
        for (input, param) in [
            (json!(3), "input"),
            (json!([]), "input"),
            (json!(["hi"]), "input[0]"),
            (json!([{"content": "x"}]), "input[0].role"),
            (json!([{"role": "tool", "content": "x"}]), "input[0].role"),
            (json!([{"role": "user"}]), "input[0].content"),
            (
                json!([{"role": "user", "content": "x"}, {"type": "function_call_output", "output": "x"}]),
                "input[1].type",
            ),
            (json!([{"type": "item_reference", "id": "msg_1"}]), "input[0].type"),
            (json!([{"type": 3}]), "input[0].type"),
            (json!([{"role": "user", "content": [{"type": "input_image"}]}]), "input[0].content[0].type"),
            (json!([{"role": "user", "content": [{"type": "input_text"}]}]), "input[0].content[0].text"),
            (json!([{"role": "user", "content": ["x"]}]), "input[0].content[0].type"),
        ] {
            let error = said(&input).expect_err(&input.to_string());
            assert_eq!((error.status.as_u16(), error.param.as_deref()), (400, Some(param)), "{input}");
        }
    }
}
