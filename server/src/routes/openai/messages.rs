//! The conversation of a chat request: checked, and brought to what chat templates read.

use serde_json::{Map, Value, json};

use crate::error::ApiError;
use crate::routes::request::fields::kind_of;

/// Turns the `messages` of a request into those of a template: role and text. `developer` is what OpenAI calls the
/// system role of newer models; templates know it as `system`.
///
/// # Errors
/// 400 that names the message and the field.
pub fn for_template(messages: &Value) -> Result<Value, ApiError> {
    let Value::Array(messages) = messages else {
        let found = kind_of(messages);
        return Err(ApiError::param("messages", format!("`messages` must be an array, not {found}")));
    };
    if messages.is_empty() {
        return Err(ApiError::param("messages", "`messages` is empty; it needs at least one message"));
    }
    messages.iter().enumerate().map(|(index, message)| one(index, message)).collect()
}

fn one(index: usize, message: &Value) -> Result<Value, ApiError> {
    let at = |field: &str| format!("messages[{index}]{field}");
    let Value::Object(message) = message else {
        let found = kind_of(message);
        return Err(ApiError::param(at(""), format!("`{}` must be an object, not {found}", at(""))));
    };
    let role = match message.get("role") {
        Some(Value::String(role)) => role.as_str(),
        _ => return Err(ApiError::param(at(".role"), format!("`{}` must be a string", at(".role")))),
    };
    let role = match role {
        "system" | "user" | "assistant" => role,
        "developer" => "system",
        "tool" | "function" => return Err(ApiError::unsupported(at(".role"), "this server can't call tools yet")),
        other => {
            let message = format!(
                "`{}` must be one of system, developer, user, assistant; got `{}`",
                at(".role"),
                other.chars().take(64).collect::<String>()
            );
            return Err(ApiError::param(at(".role"), message));
        }
    };
    for field in ["tool_calls", "function_call", "audio"] {
        match message.get(field) {
            None | Some(Value::Null) => {}
            Some(Value::Array(calls)) if calls.is_empty() => {}
            Some(_) => return Err(ApiError::unsupported(at(&format!(".{field}")), "this server can't read it yet")),
        }
    }
    let mut out = Map::new();
    out.insert("role".into(), role.into());
    out.insert("content".into(), content(message.get("content"), role, &at(".content"))?.into());
    // Templates that know these use them; the others don't look.
    for field in ["name", "reasoning_content"] {
        match message.get(field) {
            None | Some(Value::Null) => {}
            Some(Value::String(text)) => drop(out.insert(field.into(), json!(text))),
            Some(_) => {
                let field = at(&format!(".{field}"));
                return Err(ApiError::param(field.clone(), format!("`{field}` must be a string")));
            }
        }
    }
    Ok(Value::Object(out))
}

/// A string, or text parts joined as they are.
fn content(content: Option<&Value>, role: &str, at: &str) -> Result<String, ApiError> {
    match content {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(Value::Array(parts)) => {
            let mut text = String::new();
            for (index, part) in parts.iter().enumerate() {
                match (part.get("type").and_then(Value::as_str), part.get("text")) {
                    (Some("text"), Some(Value::String(part))) => text.push_str(part),
                    (Some("text"), _) => {
                        let at = format!("{at}[{index}].text");
                        return Err(ApiError::param(at.clone(), format!("`{at}` must be a string")));
                    }
                    (Some(kind), _) => {
                        let kind: String = kind.chars().take(64).collect();
                        let at = format!("{at}[{index}].type");
                        return Err(ApiError::unsupported(at, &format!("parts are text, not `{kind}`")));
                    }
                    (None, _) => {
                        let at = format!("{at}[{index}].type");
                        return Err(ApiError::param(at.clone(), format!("`{at}` must be a string, such as `text`")));
                    }
                }
            }
            Ok(text)
        }
        // What a client that echoes an answer with tool calls or a refusal sends.
        None | Some(Value::Null) if role == "assistant" => Ok(String::new()),
        None | Some(Value::Null) => Err(ApiError::param(at, format!("`{at}` is missing"))),
        Some(other) => {
            let found = kind_of(other);
            Err(ApiError::param(at, format!("`{at}` must be a string or an array of parts, not {found}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_parts_and_roles() {
        let messages = json!([
            {"role": "developer", "content": "be brief"},
            {"role": "user", "name": "ann", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": null, "refusal": null, "tool_calls": []},
        ]);
        assert_eq!(
            for_template(&messages).unwrap(),
            json!([
                {"role": "system", "content": "be brief"},
                {"role": "user", "content": "ab", "name": "ann"},
                {"role": "assistant", "content": ""},
            ])
        );
    }

    #[test]
    fn what_cant_be_read_is_named() {
        for (messages, param) in [
            (json!("hi"), "messages"),
            (json!([]), "messages"),
            (json!(["hi"]), "messages[0]"),
            (json!([{"content": "x"}]), "messages[0].role"),
            (json!([{"role": "king", "content": "x"}]), "messages[0].role"),
            (json!([{"role": "tool", "content": "x"}]), "messages[0].role"),
            (json!([{"role": "user"}]), "messages[0].content"),
            (json!([{"role": "user", "content": 3}]), "messages[0].content"),
            (json!([{"role": "user", "content": [{"type": "image_url"}]}]), "messages[0].content[0].type"),
            (json!([{"role": "user", "content": [{"type": "text"}]}]), "messages[0].content[0].text"),
            (json!([{"role": "user", "content": ["x"]}]), "messages[0].content[0].type"),
            (json!([{"role": "assistant", "tool_calls": [{}]}]), "messages[0].tool_calls"),
        ] {
            let error = for_template(&messages).expect_err(&messages.to_string());
            assert_eq!((error.status.as_u16(), error.param.as_deref()), (400, Some(param)), "{messages}");
        }
    }
}
