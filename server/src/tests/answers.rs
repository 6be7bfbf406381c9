//! Answers are what the OpenAPI document says: each endpoint is asked in each of its ways, nothing comes that isn't described,
//! and what is described comes.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use shimmy_runtime::engine::{self, EngineOptions, Usage};

use super::client::{Reply, get, open_with};
use super::harness::{MODEL, TestServer, endless, spelling};
use super::schema::Checker;
use crate::routes::request::report::Timings;

/// Asks, checks the answers, and remembers which of those that are described have come.
struct Visitor<'a> {
    document: &'a Value,
    checker: Checker<'a>,
    /// Method, path, status and type of the body.
    visited: BTreeSet<(String, String, String, String)>,
}

/// What is asked: of the path as the document has it, with its parameters filled in.
struct Asked<'a> {
    method: &'a str,
    template: &'a str,
    path: String,
    headers: &'a str,
    body: Option<Value>,
}

fn asked<'a>(method: &'a str, template: &'a str, body: Option<Value>) -> Asked<'a> {
    let path = template.replace("{name}", MODEL).replace("/v1/models/{id}", &format!("/v1/models/{MODEL}"));
    Asked { method, template, path, headers: "", body }
}

fn posted<'a>(template: &'a str, body: Value) -> Asked<'a> {
    asked("POST", template, Some(body))
}

impl<'a> Visitor<'a> {
    fn new(document: &'a Value) -> Self {
        Self { document, checker: Checker::new(document), visited: BTreeSet::new() }
    }

    fn ask(&mut self, server: &TestServer, asked: &Asked<'_>) -> Reply {
        let Asked { method, template, path, headers, body } = asked;
        let body = body.as_ref().map(Value::to_string).unwrap_or_default();
        let reply = open_with(server.address, method, path, headers, body.as_bytes()).finish();
        let what = format!("{method} {path} {body}: {}", reply.status);
        let media = reply.header("content-type").unwrap_or_default().split(';').next().unwrap().to_owned();
        let status = reply.status.to_string();
        let described =
            &self.document["paths"][*template][method.to_lowercase()]["responses"][&status]["content"][&media];
        assert!(described.is_object(), "{what}: the document has no {media}: {}", reply.body);
        match media.as_str() {
            "application/json" => self.checker.check(&described["schema"], &reply.json(), &what),
            "text/event-stream" => {
                let events = reply.body.split("\n\n").filter_map(|event| {
                    event.lines().find_map(|line| line.strip_prefix("data: ")).filter(|data| *data != "[DONE]")
                });
                for event in events {
                    let event: Value = serde_json::from_str(event).unwrap();
                    self.checker.check(&described["x-event-schema"], &event, &what);
                }
            }
            "application/x-ndjson" => {
                for line in reply.body.lines() {
                    let line: Value = serde_json::from_str(line).unwrap();
                    self.checker.check(&described["x-line-schema"], &line, &what);
                }
            }
            _ => assert_eq!(described["schema"]["type"], "string", "{what}"),
        }
        self.visited.insert(((*method).to_owned(), (*template).to_owned(), status, media));
        reply
    }

    /// What is described of good answers and never came.
    fn missing(&self) -> Vec<String> {
        let mut missing = Vec::new();
        let mut described = BTreeSet::new();
        for (path, item) in self.document["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                for (status, response) in operation["responses"].as_object().unwrap() {
                    let own_503 = status == "503" && ["/health", "/ready"].contains(&path.as_str());
                    if status != "200" && !own_503 {
                        continue;
                    }
                    for (media, content) in response["content"].as_object().into_iter().flatten() {
                        let key = (method.to_uppercase(), path.clone(), status.clone(), media.clone());
                        if !self.visited.contains(&key) {
                            missing.push(format!("{key:?}"));
                        }
                        for schema in ["schema", "x-event-schema", "x-line-schema"] {
                            described.extend(self.checker.described(&content[schema]));
                        }
                    }
                }
            }
        }
        missing.extend(described.difference(&self.checker.seen).cloned());
        missing
    }
}

fn with(mut body: Value, more: Value) -> Value {
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

/// In all ways whose answers differ.
fn ask_of_openai(visitor: &mut Visitor<'_>, server: &TestServer) {
    let chat = json!({"messages": [{"role": "user", "content": "hi"}]});
    let count = json!({"stream": true, "stream_options": {"include_usage": true}});
    for (template, base, logprobs) in [
        ("/v1/chat/completions", chat, json!({"logprobs": true, "top_logprobs": 2})),
        ("/v1/completions", json!({"prompt": "hi"}), json!({"logprobs": 2})),
    ] {
        for more in [
            json!({}),
            logprobs.clone(),
            json!({"max_tokens": 1, "n": 2}),
            count.clone(),
            with(logprobs, count.clone()),
        ] {
            visitor.ask(server, &posted(template, with(base.clone(), more)));
        }
    }
    let input = json!({"input": "hi"});
    let extra =
        json!({"instructions": "x", "user": "me", "metadata": {"a": "b"}, "max_output_tokens": 1, "top_logprobs": 1});
    for more in [json!({}), extra.clone(), json!({"stream": true}), with(extra, json!({"stream": true}))] {
        visitor.ask(server, &posted("/v1/responses", with(input.clone(), more)));
    }
    let said = json!({"input": [{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}]});
    let more = json!({"background": true, "stream": true});
    visitor.ask(server, &posted("/v1/responses", with(said.clone(), more)));
    let made = visitor.ask(server, &posted("/v1/responses", with(said, json!({"background": true})))).json();
    let id = made["id"].as_str().unwrap();
    let of = |method, template: &'static str, query: &str| {
        let path = template.replace("{id}", id) + query;
        Asked { path, ..asked(method, template, None) }
    };
    visitor.ask(server, &of("POST", "/v1/responses/{id}/cancel", ""));
    visitor.ask(server, &of("GET", "/v1/responses/{id}", ""));
    visitor.ask(server, &of("GET", "/v1/responses/{id}/input_items", "?order=asc"));
    visitor.ask(server, &of("GET", "/v1/responses/{id}/input_items", "?limit=0"));
    visitor.ask(server, &of("DELETE", "/v1/responses/{id}", ""));
    visitor.ask(server, &of("GET", "/v1/responses/{id}", ""));

    for more in [json!({}), json!({"encoding_format": "base64"})] {
        visitor.ask(server, &posted("/v1/embeddings", with(input.clone(), more)));
    }
    for template in ["/v1/rerank", "/rerank"] {
        let body = json!({"query": "a", "documents": ["b", "c"]});
        visitor.ask(server, &posted(template, body.clone()));
        visitor.ask(server, &posted(template, with(body, json!({"return_documents": true}))));
    }
    for template in ["/v1/models", "/v1/models/{id}"] {
        visitor.ask(server, &asked("GET", template, None));
        visitor.ask(server, &Asked { headers: "anthropic-version: 2023-06-01\r\n", ..asked("GET", template, None) });
    }
}

fn ask_of_anthropic(visitor: &mut Visitor<'_>, server: &TestServer) {
    let base = json!({"max_tokens": 20, "messages": [{"role": "user", "content": "hi"}]});
    for more in [json!({}), json!({"stream": true}), json!({"stop_sequences": ["l"]}), json!({"max_tokens": 1})] {
        visitor.ask(server, &posted("/v1/messages", with(base.clone(), more)));
    }
    visitor.ask(server, &posted("/v1/messages/count_tokens", json!({"messages": base["messages"]})));
}

fn ask_of_ollama(visitor: &mut Visitor<'_>, server: &TestServer) {
    for (template, base) in [
        ("/api/chat", json!({"messages": [{"role": "user", "content": "hi"}]})),
        ("/api/generate", json!({"prompt": "hi"})),
    ] {
        for more in [json!({}), json!({"stream": false})] {
            visitor.ask(server, &posted(template, with(base.clone(), more)));
        }
        visitor.ask(server, &posted(template, json!({})));
    }
    for more in [json!({}), json!({"stream": true})] {
        visitor.ask(server, &posted("/api/generate", with(json!({"prompt": "hi", "max_tokens": 3}), more)));
    }
    visitor.ask(server, &posted("/api/embed", json!({"input": "hi"})));
    visitor.ask(server, &posted("/api/embeddings", json!({"prompt": "hi"})));
    visitor.ask(server, &posted("/api/show", json!({"model": MODEL})));
    for template in ["/", "/api/version", "/api/tags", "/api/ps"] {
        visitor.ask(server, &asked("GET", template, None));
    }
    visitor.ask(server, &Asked { headers: "accept: text/html\r\n", ..asked("GET", "/", None) });
}

fn ask_our_own(visitor: &mut Visitor<'_>, server: &TestServer) {
    for template in
        ["/health", "/ready", "/metrics", "/diag", "/v1/capabilities", "/openapi.json", "/docs", "/api/models"]
    {
        visitor.ask(server, &asked("GET", template, None));
    }
    for more in [json!({}), json!({"with_pieces": true, "return_token_strs": true})] {
        visitor.ask(server, &posted("/tokenize", with(json!({"content": "aé"}), more)));
    }
    visitor.ask(server, &posted("/detokenize", json!({"tokens": [97]})));
    visitor.ask(server, &posted("/apply-template", json!({"messages": [{"role": "user", "content": "hi"}]})));
    visitor.ask(server, &posted("/api/models/discover", json!({})));
    visitor.ask(server, &posted("/api/models/{name}/load", json!({"keep_alive": "5m"})));
    visitor.ask(server, &asked("GET", "/api/models/{name}/status", None));
    visitor.ask(server, &asked("POST", "/api/models/{name}/unload", None));
}

/// Streams that break off.
fn ask_of_a_broken_one(visitor: &mut Visitor<'_>) {
    let broken = || {
        spelling("hello").with_hook(|step, _| match step {
            3 => Err(shimmy_runtime::Error::Unsupported("a broken device".into())),
            _ => Ok(()),
        })
    };
    let chat = json!({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 20, "stream": true});
    for asked in [
        posted("/v1/chat/completions", chat.clone()),
        posted("/v1/completions", json!({"prompt": "hi", "stream": true})),
        posted("/v1/responses", json!({"input": "hi", "stream": true})),
        posted("/v1/messages", chat.clone()),
        posted("/api/chat", json!({"messages": chat["messages"]})),
        posted("/api/generate", json!({"prompt": "hi"})),
        posted("/api/generate", json!({"prompt": "hi", "max_tokens": 9, "stream": true})),
    ] {
        visitor.ask(&TestServer::start(broken()), &asked);
    }
}

#[test]
fn answers_are_as_the_document_says() {
    let server = TestServer::start(spelling("hello"));
    let document = get(server.address, "/openapi.json").json();
    let mut visitor = Visitor::new(&document);
    ask_of_openai(&mut visitor, &server);
    ask_of_anthropic(&mut visitor, &server);
    ask_of_ollama(&mut visitor, &server);
    ask_our_own(&mut visitor, &server);
    ask_of_a_broken_one(&mut visitor);

    // Whether tokens are guessed depends on how long steps take, so what is said of guesses is made here.
    let usage = Usage { guessed_tokens: 3, accepted_tokens: 2, ..Usage::default() };
    let guessed = json!(Timings::new(&engine::Timings::default(), &usage));
    visitor.checker.check(&json!({"$ref": "#/components/schemas/Timings"}), &guessed, "timings");

    // One that runs, and its events.
    let endless = TestServer::start(endless());
    let body = json!({"input": "hi", "background": true, "stream": true, "max_output_tokens": 5});
    let first = visitor.ask(&endless, &posted("/v1/responses", body));
    let first = first.body.lines().find_map(|line| line.strip_prefix("data: ")).unwrap();
    let id = serde_json::from_str::<Value>(first).unwrap()["response"]["id"].as_str().unwrap().to_owned();
    let path = format!("/v1/responses/{id}?stream=true&starting_after=2");
    visitor.ask(&endless, &Asked { path, ..asked("GET", "/v1/responses/{id}", None) });

    // A model that nobody has loaded, and the end of the server.
    let loading = TestServer::start_loading(spelling("x"), EngineOptions::default());
    for template in ["/health", "/ready"] {
        visitor.ask(&loading, &asked("GET", template, None));
    }
    assert_eq!(visitor.missing(), Vec::<String>::new());
}
