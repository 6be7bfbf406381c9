//! `tojson`: JSON as Python's `json.dumps` writes it.

use minijinja::Error;
use minijinja::value::{Kwargs, Value, ValueKind};

use super::budget::{MAX_RESULT, invalid};
use super::value::{MAX_DEPTH, float, integer, to_str};

/// The options of `json.dumps` that transformers' `tojson` passes on.
struct JsonStyle {
    ensure_ascii: bool,
    indent: Option<String>,
    item_separator: String,
    key_separator: String,
    sort_keys: bool,
}

/// `value` with the options of the filter.
pub(super) fn to_json(value: &Value, options: &Kwargs) -> Result<String, Error> {
    let is_set =
        |name| -> Result<bool, Error> { Ok(options.get::<Option<Value>>(name)?.is_some_and(|set| set.is_true())) };
    let indent = match options.get::<Option<Value>>("indent")?.filter(|indent| !indent.is_none()) {
        None => None,
        Some(indent) if indent.as_str().is_some() => indent.as_str().map(str::to_owned),
        Some(indent) => {
            let width = integer(&indent).ok_or_else(|| invalid("tojson: indent is no number"))?;
            let width = usize::try_from(width.max(0)).unwrap_or(usize::MAX);
            if width > 1000 {
                return Err(invalid("tojson: indent is more than 1000"));
            }
            Some(" ".repeat(width))
        }
    };
    let separators: Option<Vec<String>> =
        match options.get::<Option<Value>>("separators")?.filter(|pair| !pair.is_none()) {
            None => None,
            Some(pair) => Some(pair.try_iter()?.map(|part| to_str(&part).into_owned()).collect()),
        };
    let (item_separator, key_separator) = match separators.as_deref() {
        None => (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => return Err(invalid("tojson: separators are two texts")),
    };
    let style = JsonStyle {
        ensure_ascii: is_set("ensure_ascii")?,
        indent,
        item_separator,
        key_separator,
        sort_keys: is_set("sort_keys")?,
    };
    options.assert_all_used()?;
    let mut out = String::new();
    style.write(value, &mut out, 0)?;
    Ok(out)
}

impl JsonStyle {
    fn write(&self, value: &Value, out: &mut String, depth: usize) -> Result<(), Error> {
        if depth > MAX_DEPTH || out.len() > MAX_RESULT {
            return Err(invalid("tojson: the value is too deep or too large"));
        }
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number if value.is_integer() => out.push_str(&value.to_string()),
            ValueKind::Number => out.push_str(&float(f64::try_from(value.clone())?, "NaN", "Infinity")),
            ValueKind::String => self.text(value.as_str().unwrap_or_default(), out),
            ValueKind::Seq | ValueKind::Iterable => {
                let mut items = value.try_iter()?.peekable();
                let empty = items.peek().is_none();
                out.push('[');
                for (at, item) in items.enumerate() {
                    self.next(at, depth + 1, out);
                    self.write(&item, out, depth + 1)?;
                }
                self.close(empty, depth, ']', out);
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort_keys {
                    keys.sort();
                }
                out.push('{');
                for (at, key) in keys.iter().enumerate() {
                    self.next(at, depth + 1, out);
                    let mut name = String::new();
                    match key.as_str() {
                        Some(text) => name.push_str(text),
                        None => self.write(key, &mut name, depth + 1)?,
                    }
                    self.text(&name, out);
                    out.push_str(&self.key_separator);
                    self.write(&value.get_item(key)?, out, depth + 1)?;
                }
                self.close(keys.is_empty(), depth, '}', out);
            }
            kind => return Err(invalid(format!("a value of type {kind} is not JSON serializable"))),
        }
        Ok(())
    }

    fn next(&self, at: usize, depth: usize, out: &mut String) {
        out.push_str(if at > 0 { &self.item_separator } else { "" });
        self.line(depth, out);
    }

    fn close(&self, empty: bool, depth: usize, bracket: char, out: &mut String) {
        if !empty {
            self.line(depth, out);
        }
        out.push(bracket);
    }

    fn line(&self, depth: usize, out: &mut String) {
        if let Some(indent) = &self.indent {
            out.push('\n');
            (0..depth).for_each(|_| out.push_str(indent));
        }
    }

    fn text(&self, text: &str, out: &mut String) {
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                c if c < ' ' || (self.ensure_ascii && c > '~') => {
                    let mut units = [0; 2];
                    for unit in c.encode_utf16(&mut units) {
                        out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}
