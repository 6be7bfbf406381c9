//! What Jinja templates expect of Python: how values print, `tojson`, tests and methods that minijinja lacks or does
//! otherwise, and the functions that transformers adds. Everything that makes text counts it against a budget.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use chrono::NaiveDateTime;
use minijinja::value::{Kwargs, Rest, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State};
use minijinja_contrib::pycompat;

/// Bytes of the longest text or list that one operation may make.
const MAX_RESULT: usize = 64 << 20;
/// Bytes that all operations of one rendering may make together.
const MAX_TOTAL: usize = 512 << 20;
/// What an item of a list counts for.
const ITEM_BYTES: usize = size_of::<Value>();

/// The names of the functions that stand for `~`, `+` and `*`. No template can spell them.
pub(crate) const CONCAT: &str = "operator~";
/// See [`CONCAT`].
pub(crate) const ADD: &str = "operator+";
/// See [`CONCAT`].
pub(crate) const MUL: &str = "operator*";

/// The message of `raise_exception`.
#[derive(Debug)]
pub(crate) struct Raised(pub(crate) String);

impl std::fmt::Display for Raised {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

/// How much text a rendering has made.
#[derive(Debug, Clone, Default)]
pub(crate) struct Budget(Arc<AtomicUsize>);

impl Budget {
    /// Counts `len` bytes.
    fn spend(&self, len: usize) -> Result<(), Error> {
        let before = self.0.fetch_add(len.min(MAX_TOTAL), Ordering::Relaxed);
        if len > MAX_RESULT || before.saturating_add(len) > MAX_TOTAL {
            return Err(invalid("the template makes more text than it may; it may never end"));
        }
        Ok(())
    }

    fn text(&self, text: String) -> Result<Value, Error> {
        self.spend(text.len())?;
        Ok(Value::from(text))
    }
}

fn invalid(what: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, what)
}

/// Makes `environment` behave as transformers' for one rendering at the time `now`.
pub(crate) fn install(environment: &mut Environment<'_>, now: NaiveDateTime) {
    let budget = Budget::default();
    environment.set_formatter({
        let budget = budget.clone();
        move |out, _state, value| {
            let text = to_str(value);
            budget.spend(text.len())?;
            out.write_str(&text).map_err(Error::from)
        }
    });
    operators(environment, &budget);
    filters(environment, &budget);
    tests(environment);
    let methods = budget;
    environment.set_unknown_method_callback(move |state, value, method, args| {
        string_method(&methods, state, value, method, args)
    });
    environment.add_function("raise_exception", |message: Value| -> Result<Value, Error> {
        let message = to_str(&message).into_owned();
        Err(invalid("raised by the template").with_source(Raised(message)))
    });
    environment.add_function("strftime_now", move |format: &str| {
        let mut text = String::new();
        match write!(text, "{}", now.format(format)) {
            Ok(()) => Ok(text),
            Err(_) => Err(invalid(format!("`{format}` is not a format for a time"))),
        }
    });
}

/// `~`, `+` and `*` as Python computes them on text and lists.
fn operators(environment: &mut Environment<'_>, budget: &Budget) {
    let spent = budget.clone();
    environment.add_filter(CONCAT, move |a: &Value, b: &Value| {
        let (a, b) = (to_str(a), to_str(b));
        spent.text([&*a, &*b].concat())
    });
    let spent = budget.clone();
    environment.add_filter(ADD, move |a: &Value, b: &Value| {
        if let (Some(x), Some(y)) = (a.as_str(), b.as_str()) {
            if !a.is_safe() && !b.is_safe() {
                return spent.text([x, y].concat());
            }
            // What `|safe` marked is HTML to Python, and text that is added to HTML is escaped, whatever it holds.
            let html = |value: &Value, text: &str| if value.is_safe() { text.to_owned() } else { escape(text) };
            let both = html(a, x) + &html(b, y);
            spent.spend(both.len())?;
            return Ok(Value::from_safe_string(both));
        }
        if is_list(a) && is_list(b) {
            let len = |list: &Value| list.len().unwrap_or(MAX_RESULT);
            spent.spend(len(a).saturating_add(len(b)).saturating_mul(ITEM_BYTES))?;
            return Ok(a.try_iter()?.chain(b.try_iter()?).collect());
        }
        arithmetic("+", a, b, i128::checked_add, |a, b| a + b)
    });
    let spent = budget.clone();
    environment.add_filter(MUL, move |a: &Value, b: &Value| {
        let (repeated, count) = if a.as_str().is_some() || is_list(a) { (a, b) } else { (b, a) };
        let text = repeated.as_str();
        if text.is_none() && !is_list(repeated) {
            return arithmetic("*", a, b, i128::checked_mul, |a, b| a * b);
        }
        let count = integer(count).ok_or_else(|| mismatch("*", a, b))?;
        let count = usize::try_from(count.max(0)).unwrap_or(usize::MAX);
        let len =
            text.map_or_else(|| repeated.len().map_or(MAX_RESULT, |len| len.saturating_mul(ITEM_BYTES)), str::len);
        spent.spend(len.max(1).saturating_mul(count))?;
        match text {
            Some(text) => Ok(Value::from(text.repeat(count))),
            None => {
                let items: Vec<Value> = repeated.try_iter()?.collect();
                Ok((0..count).flat_map(|_| items.iter().cloned()).collect())
            }
        }
    });
}

/// Whether a constant of a template's source is larger than any operation may make it (the compiler computes
/// operations on constants itself).
pub(crate) fn is_too_large(constant: &Value) -> bool {
    let len = constant.len().unwrap_or(0);
    let bytes = if constant.as_str().is_some() { len } else { len.saturating_mul(ITEM_BYTES) };
    bytes > MAX_RESULT
}

fn is_list(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable)
}

/// The integer that a value is; Python counts `True` as 1.
fn integer(value: &Value) -> Option<i128> {
    match value.kind() {
        ValueKind::Bool => Some(value.is_true().into()),
        ValueKind::Number if value.is_integer() => i128::try_from(value.clone()).ok(),
        _ => None,
    }
}

fn arithmetic(
    operator: &str,
    a: &Value,
    b: &Value,
    integers: impl Fn(i128, i128) -> Option<i128>,
    floats: impl Fn(f64, f64) -> f64,
) -> Result<Value, Error> {
    if let (Some(x), Some(y)) = (integer(a), integer(b)) {
        let result = integers(x, y).ok_or_else(|| invalid(format!("{x} {operator} {y} is too large")))?;
        return Ok(i64::try_from(result).map_or_else(|_| Value::from(result), Value::from));
    }
    let float = |value: &Value| integer(value).map(|n| n as f64).or_else(|| f64::try_from(value.clone()).ok());
    match (float(a), float(b)) {
        (Some(x), Some(y)) => Ok(Value::from(floats(x, y))),
        _ => Err(mismatch(operator, a, b)),
    }
}

fn mismatch(operator: &str, a: &Value, b: &Value) -> Error {
    invalid(format!("can't compute {} {operator} {}", a.kind(), b.kind()))
}

fn filters(environment: &mut Environment<'_>, budget: &Budget) {
    let spent = budget.clone();
    environment.add_filter("tojson", move |value: &Value, options: Kwargs| {
        let text = to_json(value, &options)?;
        spent.text(text)
    });
    let spent = budget.clone();
    environment.add_filter("string", move |value: &Value| match value.as_str() {
        Some(_) => Ok(value.clone()),
        None => spent.text(to_str(value).into_owned()),
    });
    let spent = budget.clone();
    environment.add_filter("join", move |value: &Value, separator: Option<&str>, options: Kwargs| {
        let attribute: Option<String> = options.get("attribute")?;
        let separator = separator.map(str::to_owned).or(options.get("d")?).unwrap_or_default();
        options.assert_all_used()?;
        let mut items = Vec::new();
        for item in value.try_iter()? {
            items.push(match &attribute {
                Some(name) => item.get_attr(name)?,
                None => item,
            });
        }
        join(&spent, &separator, items.into_iter())
    });
    let spent = budget.clone();
    environment.add_filter("replace", move |value: &Value, from: &Value, to: &Value, count: Option<i64>| {
        replace(&spent, &to_str(value), &to_str(from), &to_str(to), count)
    });
    let spent = budget.clone();
    environment.add_filter("indent", move |value: &Value, rest: Rest<Value>, options: Kwargs| {
        indent(&spent, &to_str(value), &rest, &options)
    });
    let spent = budget.clone();
    environment.add_filter("center", move |value: &Value, width: Option<usize>| {
        let (text, width) = (to_str(value), width.unwrap_or(80));
        spent.spend(width)?;
        let space = width.saturating_sub(text.chars().count());
        // Python's str.center puts the odd space to the left of an odd width.
        let left = space / 2 + (space & width & 1);
        spent.text(format!("{}{text}{}", " ".repeat(left), " ".repeat(space - left)))
    });
    environment.add_filter("format", |format: &str, args: Rest<Value>| {
        check_widths(format)?;
        minijinja::format_filter(minijinja::FormatStyle::Printf, format, &args).map(Value::from)
    });
    environment.add_filter("from_json", |text: &str| {
        let value: serde_json::Value =
            serde_json::from_str(text).map_err(|error| invalid(format!("not JSON: {error}")))?;
        Ok(from_json(&value))
    });
    let length = |value: &Value| match value.kind() {
        ValueKind::Undefined => Ok(0),
        _ => value.len().ok_or_else(|| invalid(format!("a value of type {} has no length", value.kind()))),
    };
    environment.add_filter("length", length);
    environment.add_filter("count", length);
    for name in ["escape", "e"] {
        let spent = budget.clone();
        environment.add_filter(name, move |value: &Value| {
            let text = if value.is_safe() { to_str(value).into_owned() } else { escape(&to_str(value)) };
            spent.spend(text.len())?;
            Ok(Value::from_safe_string(text))
        });
    }
}

/// HTML's special characters as Python's markupsafe writes them.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '\'' => escaped.push_str("&#39;"),
            '"' => escaped.push_str("&#34;"),
            c => escaped.push(c),
        }
    }
    escaped
}

/// Jinja's tests on types, which ask what Python's types can do: a string is a sequence, and undefined is an empty one.
fn tests(environment: &mut Environment<'_>) {
    environment.add_test("sequence", |value: &Value| {
        matches!(value.kind(), ValueKind::String | ValueKind::Seq | ValueKind::Map | ValueKind::Undefined)
            || (value.kind() == ValueKind::Iterable && value.len().is_some())
    });
    environment.add_test("iterable", |value: &Value| {
        matches!(
            value.kind(),
            ValueKind::String | ValueKind::Seq | ValueKind::Map | ValueKind::Iterable | ValueKind::Undefined
        )
    });
    environment.add_test("number", |value: &Value| matches!(value.kind(), ValueKind::Number | ValueKind::Bool));
}

fn join(budget: &Budget, separator: &str, items: impl Iterator<Item = Value>) -> Result<Value, Error> {
    let mut text = String::new();
    for (at, item) in items.enumerate() {
        let item = to_str(&item);
        budget.spend(item.len() + separator.len())?;
        if at > 0 {
            text.push_str(separator);
        }
        text.push_str(&item);
    }
    Ok(Value::from(text))
}

fn replace(budget: &Budget, text: &str, from: &str, to: &str, count: Option<i64>) -> Result<Value, Error> {
    let count = count.and_then(|count| usize::try_from(count).ok()).unwrap_or(usize::MAX);
    let found = text.matches(from).count().min(count);
    budget.spend(text.len().saturating_add(found.saturating_mul(to.len())))?;
    Ok(Value::from(text.replacen(from, to, count)))
}

/// `indent(width=4, first=False, blank=False)`, where the width may be the text to indent with.
fn indent(budget: &Budget, text: &str, args: &[Value], options: &Kwargs) -> Result<Value, Error> {
    let option = |at: usize, name: &str| -> Result<Option<Value>, Error> {
        args.get(at).map_or_else(|| options.get(name), |value| Ok(Some(value.clone())))
    };
    let (width, first, blank) = (option(0, "width")?, option(1, "first")?, option(2, "blank")?);
    options.assert_all_used()?;
    let is_set = |value: Option<Value>| value.is_some_and(|value| value.is_true());
    let (first, blank) = (is_set(first), is_set(blank));
    let prefix = match &width {
        Some(width) if width.as_str().is_some() => to_str(width).into_owned(),
        width => {
            let width = width.as_ref().map_or(Some(4), integer).ok_or_else(|| invalid("indent: width is no number"))?;
            let width = usize::try_from(width.max(0)).unwrap_or(usize::MAX);
            budget.spend(width)?;
            " ".repeat(width)
        }
    };
    let num_lines = text.matches('\n').count() + 1;
    budget.spend(text.len().saturating_add(num_lines.saturating_mul(prefix.len())))?;
    let mut out = String::new();
    for (at, line) in text.split('\n').enumerate() {
        if at > 0 {
            out.push('\n');
        }
        if if at == 0 { first } else { blank || !line.is_empty() } {
            out.push_str(&prefix);
        }
        out.push_str(line);
    }
    Ok(Value::from(out))
}

/// Refuses formats that would pad to a width nobody needs.
fn check_widths(format: &str) -> Result<(), Error> {
    let digits = format.split(|c: char| !c.is_ascii_digit()).map(str::len).max();
    if digits.is_some_and(|digits| digits > 4) || format.contains('*') {
        return Err(invalid("a format with a width that is computed or has more than four digits"));
    }
    Ok(())
}

/// Methods of Python's strings that minijinja's list lacks, and bounded versions of those that it has.
fn string_method(budget: &Budget, state: &State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let Some(text) = value.as_str() else { return pycompat::unknown_method_callback(state, value, method, args) };
    let arg = |at: usize| args.get(at).and_then(Value::as_str);
    let pieces = |parts: [&str; 3]| Value::from(parts.map(Value::from).to_vec());
    match (method, args.len()) {
        ("join", 1) => join(budget, text, args[0].try_iter()?),
        ("replace", 2 | 3) => {
            let (Some(from), Some(to)) = (arg(0), arg(1)) else {
                return Err(invalid("replace: arguments are no text"));
            };
            let count = args.get(2).and_then(integer).and_then(|count| i64::try_from(count).ok());
            replace(budget, text, from, to, count)
        }
        ("format", _) => {
            check_widths(text)?;
            pycompat::unknown_method_callback(state, value, method, args)
        }
        ("removeprefix", 1) => Ok(Value::from(arg(0).and_then(|prefix| text.strip_prefix(prefix)).unwrap_or(text))),
        ("removesuffix", 1) => Ok(Value::from(arg(0).and_then(|suffix| text.strip_suffix(suffix)).unwrap_or(text))),
        ("partition", 1) => Ok(match arg(0).and_then(|by| text.split_once(by).map(|found| (by, found))) {
            Some((by, (before, after))) => pieces([before, by, after]),
            None => pieces([text, "", ""]),
        }),
        ("rpartition", 1) => Ok(match arg(0).and_then(|by| text.rsplit_once(by).map(|found| (by, found))) {
            Some((by, (before, after))) => pieces([before, by, after]),
            None => pieces(["", "", text]),
        }),
        ("rsplit", 1 | 2) => {
            let Some(by) = arg(0).filter(|by| !by.is_empty()) else { return Err(invalid("rsplit: needs a separator")) };
            let limit = args.get(1).and_then(integer).and_then(|limit| usize::try_from(limit).ok());
            let mut parts: Vec<&str> =
                text.rsplitn(limit.map_or(usize::MAX, |limit| limit.saturating_add(1)), by).collect();
            parts.reverse();
            Ok(parts.into_iter().map(Value::from).collect())
        }
        ("casefold", 0) => Ok(Value::from(text.to_lowercase())),
        ("zfill", 1) => {
            let width = integer(&args[0]).and_then(|width| usize::try_from(width).ok()).unwrap_or(0);
            budget.spend(width)?;
            let zeros = "0".repeat(width.saturating_sub(text.chars().count()));
            let (sign, digits) = text.split_at(usize::from(text.starts_with(['+', '-'])));
            Ok(Value::from(format!("{sign}{zeros}{digits}")))
        }
        _ => pycompat::unknown_method_callback(state, value, method, args),
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
pub(crate) fn to_str(value: &Value) -> std::borrow::Cow<'_, str> {
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
const MAX_DEPTH: usize = 200;

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
fn float(value: f64, nan: &str, infinity: &str) -> String {
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

/// The options of `json.dumps` that transformers' `tojson` passes on.
struct JsonStyle {
    ensure_ascii: bool,
    indent: Option<String>,
    item_separator: String,
    key_separator: String,
    sort_keys: bool,
}

fn to_json(value: &Value, options: &Kwargs) -> Result<String, Error> {
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
