//! The OpenAPI document: it lists what there is, and what it describes is taken.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::client::{get, post};
use super::harness::{MODEL, TestServer, endless, spelling};
use crate::routes::endpoints;

fn document(server: &TestServer) -> Value {
    let reply = get(server.address, "/openapi.json");
    assert_eq!((reply.status, reply.header("content-type")), (200, Some("application/json")));
    reply.json()
}

fn resolve<'a>(document: &'a Value, schema: &'a Value) -> &'a Value {
    let name = schema["$ref"].as_str().and_then(|reference| reference.rsplit('/').next());
    name.map_or(schema, |name| {
        let found = &document["components"]["schemas"][name];
        assert!(found.is_object(), "there is no schema {name}");
        found
    })
}

/// `/v1/models/{id:.+}` is `/v1/models/{id}`; of parts of the page only the page is for clients.
pub(super) fn listed(pattern: &str) -> String {
    let mut path = String::new();
    for part in pattern.split_inclusive('}') {
        match part.split_once('{') {
            Some((before, name)) => {
                let name = name.trim_end_matches('}').split(':').next().unwrap();
                path += &format!("{before}{{{name}}}");
            }
            None => path += part,
        }
    }
    path
}

#[test]
fn it_lists_every_endpoint_and_no_other() {
    let server = TestServer::start(spelling("hi"));
    let document = document(&server);
    assert!(document["openapi"].as_str().unwrap().starts_with("3."));
    let described: BTreeMap<String, BTreeSet<String>> = document["paths"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(path, item)| {
            (path.clone(), item.as_object().unwrap().keys().map(|method| method.to_uppercase()).collect())
        })
        .collect();
    let there: BTreeMap<String, BTreeSet<String>> = endpoints()
        .into_iter()
        .filter(|(path, _)| !path.starts_with("/ui/") && path != "/favicon.ico")
        .map(|(path, methods)| (listed(&path), methods))
        .collect();
    assert_eq!(described, there);
}

/// All fields of a schema, parts included: with their own schemas.
fn fields(document: &Value, schema: &Value, into: &mut BTreeMap<String, Value>) {
    for part in schema["allOf"].as_array().into_iter().flatten() {
        fields(document, resolve(document, part), into);
    }
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        into.insert(name.clone(), field.clone());
    }
}

fn required(document: &Value, schema: &Value, into: &mut BTreeSet<String>) {
    for part in schema["allOf"].as_array().into_iter().flatten() {
        required(document, resolve(document, part), into);
    }
    into.extend(schema["required"].as_array().into_iter().flatten().map(|name| name.as_str().unwrap().to_owned()));
}

/// A value that a schema describes.
fn example(document: &Value, name: &str, schema: &Value) -> Value {
    match name {
        "model" => return json!(MODEL),
        "role" => return json!("user"),
        "type" => return json!("text"),
        "encoding_format" => return json!("base64"),
        "pooling" => return json!("last"),
        "speculate" => return json!("off"),
        "keep_alive" => return json!("5m"),
        "deadline_ms" => return json!(60_000),
        "logit_bias" => return json!({"5": 1.5}),
        "stream" => return json!(false),
        // Nothing is loaded without a prompt, and nothing else is answered at once.
        "max_tokens" | "max_completion_tokens" | "max_output_tokens" | "num_predict" => return json!(2),
        "previous_response_id" => return Value::Null,
        _ => {}
    }
    let schema = resolve(document, schema);
    for alternatives in ["oneOf", "anyOf"] {
        if let Some(first) =
            schema[alternatives].as_array().and_then(|all| all.iter().find(|one| one["type"] != "null"))
        {
            return example(document, name, first);
        }
    }
    let kind = match &schema["type"] {
        Value::Array(kinds) => kinds.iter().find(|kind| **kind != "null").unwrap().as_str().unwrap(),
        kind => kind.as_str().unwrap_or("object"),
    };
    match kind {
        "boolean" => json!(true),
        // In all ranges.
        "integer" => json!(1),
        "number" => json!(0.5),
        "string" => json!("one"),
        "array" => json!([example(document, name, &schema["items"])]),
        _ => {
            let (mut all, mut object) = (BTreeMap::new(), Map::new());
            fields(document, schema, &mut all);
            for (name, field) in all {
                object.insert(name.clone(), example(document, &name, &field));
            }
            object.into()
        }
    }
}

#[test]
fn every_field_that_it_describes_is_taken() {
    // Answers of two tokens, whatever the model would like to say.
    let server = TestServer::start(endless());
    let document = document(&server);
    let (mut sent, mut names) = (0, BTreeSet::new());
    for (path, item) in document["paths"].as_object().unwrap() {
        let schema = &item["post"]["requestBody"]["content"]["application/json"]["schema"];
        if !schema.is_object() {
            continue;
        }
        let schema = resolve(&document, schema);
        let (mut all, mut needed) = (BTreeMap::new(), BTreeSet::new());
        fields(&document, schema, &mut all);
        required(&document, schema, &mut needed);
        assert!(needed.iter().all(|name| all.contains_key(name)), "{path}: {needed:?}");
        let base: Map<String, Value> = needed
            .iter()
            .map(String::as_str)
            .chain(all.keys().map(String::as_str).filter(|name| {
                // Without an end an answer would go on to the end of the context, and a text is needed to answer any.
                ["max_completion_tokens", "max_output_tokens", "options", "prompt", "stream"].contains(name)
                    && !(path.starts_with("/v1/completions") && *name == "max_completion_tokens")
            }))
            .map(|name| (name.to_owned(), example(&document, name, &all[name])))
            .collect();
        for (name, field) in &all {
            let mut body = base.clone();
            body.insert(name.clone(), example(&document, name, field));
            if name == "top_logprobs" && all.contains_key("logprobs") {
                body.insert("logprobs".into(), json!(true));
            }
            if name == "messages" && path == "/api/chat" {
                body.insert("options".into(), json!({"num_predict": 2}));
            }
            if !all.contains_key("max_completion_tokens") && all.contains_key("max_tokens") {
                body.insert("max_tokens".into(), json!(2));
            }
            let reply = post(server.address, &path.replace("{name}", MODEL), &Value::Object(body.clone()));
            let body = Value::Object(body);
            assert_eq!(reply.status, 200, "{path} {body}: {}", reply.body);
            let ignored = reply.header("x-shimmy-ignored").unwrap_or_default();
            assert!(!ignored.split(", ").any(|ignored| ignored == name), "{path}: `{name}` is described and ignored");
            names.insert(format!("{path} {name}"));
            sent += 1;
        }
    }
    assert!(sent > 100 && names.contains("/v1/chat/completions top_k"), "{sent}");
}

#[test]
fn the_page_for_people_has_it_all_and_runs_nothing() {
    let server = TestServer::start(spelling("hi"));
    let reply = get(server.address, "/docs");
    assert_eq!((reply.status, reply.header("content-type")), (200, Some("text/html; charset=utf-8")));
    assert!(reply.header("content-security-policy").unwrap().starts_with("default-src 'none'"));
    for path in document(&server)["paths"].as_object().unwrap().keys() {
        assert!(reply.body.contains(&format!("<code>{path}</code>")), "{path}");
    }
    for field in ["max_completion_tokens", "top_k", "options.num_predict", "stop_sequences"] {
        assert!(reply.body.contains(&format!("<code>{field}</code>")), "{field}");
    }
    for parameter in ["limit", "starting_after", "anthropic-version"] {
        assert!(reply.body.contains(&format!("<code>{parameter}</code> (")), "{parameter}");
    }
    assert!(reply.body.contains("<code>usage.total_tokens</code>") && reply.body.contains("<code>display_name</code>"));
    assert!(!reply.body.contains("<script"));
}

/// Statuses that an operation lists.
fn statuses(document: &Value, path: &str) -> BTreeSet<String> {
    document["paths"][path]["post"]["responses"].as_object().unwrap().keys().cloned().collect()
}

#[test]
fn it_promises_no_answer_where_there_is_none() {
    let server = TestServer::start(spelling("hi"));
    let document = document(&server);
    for path in ["/api/pull", "/api/push", "/api/create", "/api/copy"] {
        let statuses = statuses(&document, path);
        assert!(!statuses.contains("200") && statuses.contains("400"), "{path}: {statuses:?}");
    }
    // A model that is on its way into memory isn't unloaded.
    assert!(statuses(&document, "/api/models/{name}/unload").contains("409"));
    // Loading reads a body.
    let loading = statuses(&document, "/api/models/{name}/load");
    assert!(["408", "413", "503"].iter().all(|&status| loading.contains(status)), "{loading:?}");
    assert_eq!(document["paths"]["/api/models/{name}/load"]["post"]["requestBody"]["required"], false);
}

#[test]
fn what_it_says_of_ranges_is_so() {
    let server = TestServer::start(spelling("hi"));
    let document = document(&server);
    let messages = json!([{"role": "user", "content": "hi"}]);
    for (path, schema, name) in [
        ("/v1/messages", "MessagesRequest", "temperature"),
        ("/v1/messages", "MessagesRequest", "top_k"),
        ("/v1/chat/completions", "Drawing", "repeat_penalty"),
        ("/v1/chat/completions", "Drawing", "top_k"),
        ("/v1/chat/completions", "Drawing", "presence_penalty"),
    ] {
        let field = &document["components"]["schemas"][schema]["properties"][name];
        for (bound, beyond) in [("minimum", -1.0), ("maximum", 1.0)] {
            let Some(value) = field[bound].as_f64() else { panic!("{schema}.{name} has no {bound}: {field}") };
            let send = |value: f64| {
                post(server.address, path, &json!({"messages": messages, "max_tokens": 1, name: value})).status
            };
            assert_eq!(send(value), 200, "{path} {name} = {value}");
            let is_least = bound == "minimum";
            if is_least || name != "top_k" {
                assert_eq!(send(value + beyond), 400, "{path} {name} = {}", value + beyond);
            }
        }
    }
    // A field of a field may be null, too.
    let body =
        json!({"messages": messages, "max_tokens": 1, "stream": true, "stream_options": {"include_usage": null}});
    assert_eq!(post(server.address, "/v1/chat/completions", &body).status, 200);
}
