//! `POST /api/generate` in Shimmy's own shape.

use serde_json::{Value, json};

use super::client::{Reply, post};
use super::harness::{MODEL, TestServer, endless, spelling, wait_for};
use super::websocket_client::text;

const SAID: &str = "Grüße, 世界! 🌍";

fn generate(server: &TestServer, body: &Value) -> Reply {
    post(server.address, "/api/generate", body)
}

#[test]
fn an_answer_is_whole_unless_it_is_to_stream() {
    let server = TestServer::start(spelling(SAID));
    let mut body = json!({"model": MODEL, "prompt": "hi", "max_tokens": 100, "seed": 4, "zz": 1});
    let reply = generate(&server, &body);
    assert_eq!((reply.status, reply.header("x-shimmy-ignored")), (200, Some("zz")));
    let answer = reply.json();
    assert_eq!(
        (&answer["response"], &answer["done"], &answer["finish_reason"]),
        (&json!(SAID), &json!(true), &json!("stop"))
    );
    assert_eq!((&answer["usage"]["completion_tokens"], &answer["seed"]), (&json!(SAID.len() + 1), &json!(4)));
    // A prompt goes through the template, as in Ollama's shape.
    assert_eq!(answer["usage"]["prompt_tokens"], 1 + "user\nhi".len() + 1 + 1 + 1 + "assistant\n".len());

    body["stream"] = true.into();
    let reply = generate(&server, &body);
    assert_eq!(reply.header("content-type"), Some("text/event-stream"));
    let mut events = reply.events();
    assert_eq!(events.pop(), Some("[DONE]"));
    let frames: Vec<Value> = events.iter().map(|event| serde_json::from_str(event).unwrap()).collect();
    let (done, tokens) = frames.split_last().unwrap();
    assert_eq!(text(tokens), SAID);
    assert!(tokens.len() > 5);
    assert_eq!((&done["done"], &done["finish_reason"], &done["model"]), (&json!(true), &json!("stop"), &json!(MODEL)));
    assert_eq!(done["usage"], answer["usage"]);
}

#[test]
fn the_shape_follows_from_the_fields() {
    let server = TestServer::start(spelling("x"));
    let native = generate(&server, &json!({"prompt": "hi", "temperature": 0}));
    assert!(native.json()["finish_reason"].is_string(), "{}", native.body);
    let ollamas = generate(&server, &json!({"prompt": "hi"}));
    assert_eq!(ollamas.header("content-type"), Some("application/x-ndjson"));
    let mixed = generate(&server, &json!({"prompt": "hi", "temperature": 0, "options": {"num_predict": 1}}));
    assert_eq!(mixed.status, 400);
    assert!(mixed.json()["error"].as_str().unwrap().contains("`temperature`"), "{}", mixed.body);
    let raw = generate(&server, &json!({"prompt": "hi", "raw": true, "max_tokens": 1}));
    assert_eq!(raw.json()["usage"]["prompt_tokens"], 2);
    let conversation = json!({"messages": [{"role": "user", "content": "hi"}], "system": "be brief"});
    let expected = 4 + "system\nbe brief\nuser\nhi\nassistant\n".len() + 1;
    assert_eq!(generate(&server, &conversation).json()["usage"]["prompt_tokens"], expected);
}

#[test]
fn errors_are_named() {
    let server = TestServer::start(spelling("x"));
    for (body, status, named) in [
        (json!({"max_tokens": 3}), 400, "`prompt`"),
        (json!({"prompt": "x", "max_tokens": 0}), 400, "`max_tokens`"),
        (json!({"prompt": "x", "max_tokens": 3, "format": "json"}), 400, "`format`"),
        (json!({"prompt": "x", "max_tokens": 3, "model": "nobody"}), 404, "nobody"),
    ] {
        let reply = generate(&server, &body);
        assert_eq!(reply.status, status, "{body}");
        assert!(reply.json()["error"].as_str().unwrap().contains(named), "{}", reply.body);
    }
}

#[test]
fn a_client_that_goes_away_ends_its_answer() {
    let server = TestServer::start(endless());
    let body = json!({"prompt": "x", "stream": true, "seed": 1}).to_string();
    let mut stream = super::client::open(server.address, "POST", "/api/generate", body.as_bytes());
    assert!(stream.chunk().is_some());
    drop(stream);
    wait_for("it is cancelled", || server.stats().cancelled == 1);
}
