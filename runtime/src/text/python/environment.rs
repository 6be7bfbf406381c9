//! The operators, filters, tests, methods and functions that a template's environment gets.

use std::fmt::Write;

use chrono::NaiveDateTime;
use minijinja::value::{Kwargs, Rest, Value, ValueKind};
use minijinja::{Environment, Error, State};
use minijinja_contrib::pycompat;

use super::budget::{Budget, ITEM_BYTES, MAX_RESULT, invalid};
use super::json::to_json;
use super::value::{from_json, integer, to_str};

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

fn is_list(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable)
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
