//! The document as a page: no scripts, nothing from elsewhere.

use std::fmt::Write;

use serde_json::Value;
use utoipa::openapi::OpenApi;

/// Nothing but the style in the page itself.
pub(super) const POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const STYLE: &str = "
:root { color-scheme: light dark; --line: #8884; --soft: #8882; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem } h2 { margin-top: 2.5rem; font-size: 1.3rem; border-bottom: 1px solid var(--line) }
details { border: 1px solid var(--line); border-radius: .5rem; margin: .5rem 0; padding: .4rem .8rem }
summary { cursor: pointer; overflow-wrap: anywhere }
code { font: .9em ui-monospace, monospace; background: var(--soft); padding: .1em .3em; border-radius: .25rem }
.method { display: inline-block; min-width: 4.2em; font-weight: 600 }
table { border-collapse: collapse; width: 100%; margin: .5rem 0 } td, th { text-align: left; vertical-align: top;
  padding: .25rem .6rem .25rem 0; border-top: 1px solid var(--soft) }
";

/// The whole page.
pub(super) fn render(document: &OpenApi) -> String {
    // What isn't there is left out: the page is made of the document, whatever it holds.
    let document = serde_json::to_value(document).unwrap_or_default();
    let mut page = String::from("<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">");
    page.push_str("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">");
    let title = format!("{} {}", text(&document["info"]["title"]), text(&document["info"]["version"]));
    push(&mut page, format_args!("<title>{} API</title><style>{STYLE}</style></head><body>", escape(&title)));
    push(&mut page, format_args!("<h1>{} API</h1>", escape(&title)));
    push(&mut page, format_args!("<p>{}</p>", marked(text(&document["info"]["description"]))));
    page.push_str("<p>For programs: <a href=\"/openapi.json\">/openapi.json</a> (OpenAPI 3.1).</p>");
    for tag in ["OpenAI", "Anthropic", "Ollama", "Shimmy"] {
        push(&mut page, format_args!("<h2>{tag}</h2>"));
        for (path, item) in document["paths"].as_object().into_iter().flatten() {
            for (method, operation) in item.as_object().into_iter().flatten() {
                if operation["tags"][0] == tag {
                    endpoint(&mut page, &document, path, method, operation);
                }
            }
        }
    }
    page.push_str("</body></html>");
    page
}

fn endpoint(page: &mut String, document: &Value, path: &str, method: &str, operation: &Value) {
    let summary = marked(text(&operation["summary"]));
    let (method, path) = (method.to_uppercase(), escape(path));
    push(
        page,
        format_args!(
            "<details><summary><span class=\"method\">{method}</span> <code>{path}</code> {summary}</summary>"
        ),
    );
    let parameters = operation["parameters"].as_array().map_or(&[][..], Vec::as_slice);
    if !parameters.is_empty() {
        page.push_str("<table><tr><th>Parameter</th><th>Type</th><th>Meaning</th></tr>");
        for parameter in parameters {
            let name = escape(text(&parameter["name"]));
            let place = escape(text(&parameter["in"]));
            let (kind, meaning) =
                (escape(&kind(document, &parameter["schema"])), marked(text(&parameter["description"])));
            push(
                page,
                format_args!("<tr><td><code>{name}</code> ({place})</td><td>{kind}</td><td>{meaning}</td></tr>"),
            );
        }
        page.push_str("</table>");
    }
    table(page, document, "Field", &operation["requestBody"]["content"]["application/json"]["schema"]);
    table(page, document, "Answer", &operation["responses"]["200"]["content"]["application/json"]["schema"]);
    page.push_str("<table><tr><th>Status</th><th>Meaning</th></tr>");
    for (status, response) in operation["responses"].as_object().into_iter().flatten() {
        let meaning = marked(text(&response["description"]));
        push(page, format_args!("<tr><td>{}</td><td>{meaning}</td></tr>", escape(status)));
    }
    page.push_str("</table></details>");
}

/// The fields of a body; of each shape that it may have.
fn table(page: &mut String, document: &Value, title: &str, schema: &Value) {
    if !schema.is_object() {
        return;
    }
    let schema = resolve(document, schema);
    push(page, format_args!("<table><tr><th>{title}</th><th>Type</th><th>Meaning</th></tr>"));
    match schema["oneOf"].as_array() {
        Some(shapes) => shapes.iter().for_each(|shape| fields(page, document, resolve(document, shape), "")),
        None => fields(page, document, schema, ""),
    }
    page.push_str("</table>");
}

/// A row for each field; those of parts (`allOf`) too, and those of objects in it under both names.
fn fields(page: &mut String, document: &Value, schema: &Value, within: &str) {
    for part in schema["allOf"].as_array().into_iter().flatten() {
        fields(page, document, resolve(document, part), within);
    }
    let required: Vec<&str> = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let mark = if required.contains(&name.as_str()) { " (required)" } else { "" };
        let meaning = field["description"].as_str().or_else(|| resolve(document, field)["description"].as_str());
        let path = format!("{within}{name}");
        let (name, kind) = (escape(&path), escape(&kind(document, field)));
        let meaning = marked(meaning.unwrap_or_default());
        push(page, format_args!("<tr><td><code>{name}</code>{mark}</td><td>{kind}</td><td>{meaning}</td></tr>"));
        let inner = object_in(document, field);
        // One level is all that requests have; of answers the rest is in the document.
        if within.is_empty() && inner["properties"].is_object() {
            fields(page, document, inner, &format!("{path}."));
        }
    }
}

/// The object that a field is, or may be if it is there, or holds several of.
fn object_in<'a>(document: &'a Value, field: &'a Value) -> &'a Value {
    let field = if field["type"] == "array" { &field["items"] } else { field };
    let alternatives = field["oneOf"].as_array().into_iter().flatten();
    let found = alternatives.map(|one| resolve(document, one)).find(|one| one["properties"].is_object());
    found.unwrap_or_else(|| resolve(document, field))
}

/// A type in a word or two, and its range.
fn kind(document: &Value, schema: &Value) -> String {
    if schema.get("$ref").is_some() {
        return kind(document, resolve(document, schema));
    }
    let alternatives = schema["oneOf"].as_array().or_else(|| schema["anyOf"].as_array());
    if let Some(alternatives) = alternatives {
        let kinds: Vec<String> =
            alternatives.iter().filter(|kind| kind["type"] != "null").map(|one| kind(document, one)).collect();
        return kinds.join(" or ");
    }
    let name = match &schema["type"] {
        Value::String(name) => name.clone(),
        Value::Array(names) => {
            let names: Vec<&str> = names.iter().filter_map(Value::as_str).filter(|name| *name != "null").collect();
            names.join(" or ")
        }
        _ => "object".into(),
    };
    let bound = |low: &str, exclusive: &str| schema.get(low).or_else(|| schema.get(exclusive)).map(Value::to_string);
    let name = if name == "array" { format!("array of {}", kind(document, &schema["items"])) } else { name };
    match (bound("minimum", "exclusiveMinimum"), bound("maximum", "exclusiveMaximum")) {
        (Some(low), Some(high)) if high.len() < 10 => format!("{name}, {low} to {high}"),
        (Some(low), _) => format!("{name}, from {low}"),
        _ => name,
    }
}

fn resolve<'a>(document: &'a Value, schema: &'a Value) -> &'a Value {
    let name = schema["$ref"].as_str().and_then(|reference| reference.rsplit('/').next());
    name.map_or(schema, |name| &document["components"]["schemas"][name])
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn push(page: &mut String, what: std::fmt::Arguments<'_>) {
    // A string takes everything.
    let _ = page.write_fmt(what);
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Text with `code` in it.
fn marked(text: &str) -> String {
    let parts = text
        .split('`')
        .enumerate()
        .map(|(index, part)| if index % 2 == 1 { format!("<code>{}</code>", escape(part)) } else { escape(part) });
    parts.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_escaped_and_code_is_marked() {
        assert_eq!(marked("a `b<c>` & \"d\""), "a <code>b&lt;c&gt;</code> &amp; &quot;d&quot;");
    }
}
