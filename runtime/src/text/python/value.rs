//! Values between JSON and the engine, and as Python's `str` and `repr` print them.

use minijinja::value::{Value, ValueKind};

use super::budget::MAX_RESULT;

/// The integer that a value is; Python counts `True` as 1.
pub(super) fn integer(value: &Value) -> Option<i128> {
    match value.kind() {
        ValueKind::Bool => Some(value.is_true().into()),
        ValueKind::Number if value.is_integer() => i128::try_from(value.clone()).ok(),
        _ => None,
    }
}

/// A JSON value as the engine's. Not through serde: the `arbitrary_precision` that a dependency turns on makes a map
/// of each number.
pub(crate) fn from_json(value: &serde_json::Value) -> Value {
    match value {
        serde_json::Value::Null => Value::from(()),
        serde_json::Value::Bool(value) => Value::from(*value),
        serde_json::Value::Number(number) => {
            match (number.as_i64(), number.as_u64(), number.to_string().parse::<i128>()) {
                (Some(number), ..) => Value::from(number),
                (None, Some(number), _) => Value::from(number),
                (None, None, Ok(number)) => Value::from(number),
                (None, None, Err(_)) => Value::from(number.as_f64().unwrap_or(f64::NAN)),
            }
        }
        serde_json::Value::String(text) => Value::from(text.as_str()),
        serde_json::Value::Array(items) => items.iter().map(from_json).collect(),
        serde_json::Value::Object(items) => items.iter().map(|(key, value)| (key.as_str(), from_json(value))).collect(),
    }
}

/// `str(value)`.
pub(super) fn to_str(value: &Value) -> std::borrow::Cow<'_, str> {
    if let Some(text) = value.as_str() {
        return text.into();
    }
    match value.kind() {
        ValueKind::Undefined => "".into(),
        ValueKind::Seq | ValueKind::Map | ValueKind::Number => {
            let mut text = String::new();
            repr(value, &mut text, 0);
            text.into()
        }
        _ => value.to_string().into(),
    }
}

/// Nested values deeper than this print as `...`, as Python prints lists that hold themselves.
pub(super) const MAX_DEPTH: usize = 200;

/// `repr(value)`; stops beyond [`MAX_RESULT`], which the budget then refuses.
fn repr(value: &Value, out: &mut String, depth: usize) {
    if depth > MAX_DEPTH {
        out.push_str("...");
        return;
    }
    match value.kind() {
        ValueKind::String => repr_text(value.as_str().unwrap_or_default(), out),
        ValueKind::Undefined => out.push_str("Undefined"),
        ValueKind::Number if !value.is_integer() => {
            out.push_str(&float(f64::try_from(value.clone()).unwrap_or(f64::NAN), "nan", "inf"))
        }
        ValueKind::Seq => {
            out.push('[');
            for (at, item) in value.try_iter().into_iter().flatten().enumerate() {
                if out.len() > MAX_RESULT {
                    return;
                }
                out.push_str(if at > 0 { ", " } else { "" });
                repr(&item, out, depth + 1);
            }
            out.push(']');
        }
        ValueKind::Map => {
            out.push('{');
            for (at, key) in value.try_iter().into_iter().flatten().enumerate() {
                if out.len() > MAX_RESULT {
                    return;
                }
                out.push_str(if at > 0 { ", " } else { "" });
                repr(&key, out, depth + 1);
                out.push_str(": ");
                repr(&value.get_item(&key).unwrap_or_default(), out, depth + 1);
            }
            out.push('}');
        }
        _ => out.push_str(&value.to_string()),
    }
}

/// A string's `repr`: in double quotes only if it holds single ones and no double ones.
fn repr_text(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => out.extend(['\\', c]),
            c if c.is_control() => out.push_str(&format!("\\x{:02x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push(quote);
}

/// A float as Python writes it: the shortest digits that read back the same, with an exponent beyond 16 digits.
pub(super) fn float(value: f64, nan: &str, infinity: &str) -> String {
    if value.is_nan() {
        return nan.into();
    }
    if value.is_infinite() {
        return format!("{}{infinity}", if value < 0.0 { "-" } else { "" });
    }
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    match exponent.parse::<i32>() {
        Ok(exponent) if !(-4..16).contains(&exponent) => {
            format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
        }
        _ => {
            let plain = value.to_string();
            if plain.contains('.') { plain } else { plain + ".0" }
        }
    }
}
