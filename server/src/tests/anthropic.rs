//! Anthropic's protocol.

use serde_json::{Value, json};

use super::client::{Reply, get, open, post};
use super::harness::{MODEL, TestServer, endless, spelling, wait_for};

const TEXT: &str = "Grüße, 世界! 🌍";

fn message(extra: Value) -> Value {
    let mut request = json!({"model": MODEL, "max_tokens": 100, "messages": [{"role": "user", "content": "hi"}]});
    request.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    request
}

/// Names and data of the events.
fn events(reply: &Reply) -> Vec<(String, Value)> {
    let frame = |frame: &str| {
        let (name, data) = frame.split_once('\n').unwrap();
        let data: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
        let name = name.strip_prefix("event: ").unwrap().to_owned();
        assert_eq!(data["type"], name);
        (name, data)
    };
    reply.body.split_terminator("\n\n").map(frame).collect()
}

#[test]
fn a_message_gets_its_answer_with_counts() {
    let server = TestServer::start(spelling(TEXT));
    let reply = post(server.address, "/v1/messages", &message(json!({"metadata": {"user_id": "me"}})));
    assert_eq!(reply.status, 200, "{}", reply.body);
    assert_eq!(reply.header("x-shimmy-ignored"), Some("metadata"));
    let answer = reply.json();
    assert_eq!(reply.header("request-id"), answer["id"].as_str());
    assert!(answer["id"].as_str().unwrap().starts_with("msg-"));
    let prompt = 1 + "user\nhi".len() + 1 + 1 + 1 + "assistant\n".len();
    let expected = json!({
        "id": answer["id"], "type": "message", "role": "assistant", "model": MODEL,
        "content": [{"type": "text", "text": TEXT}], "stop_reason": "end_turn", "stop_sequence": null,
        "usage": {"input_tokens": prompt, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0,
                  "output_tokens": TEXT.len() + 1},
    });
    assert_eq!(answer, expected);
    let counted = post(server.address, "/v1/messages/count_tokens", &message(json!({})));
    assert_eq!(counted.json(), json!({"input_tokens": prompt}));
}

#[test]
fn the_end_is_told_apart() {
    let server = TestServer::start(spelling(TEXT));
    let answer = |extra: Value| post(server.address, "/v1/messages", &message(extra)).json();
    let stopped = answer(json!({"stop_sequences": ["never", "世"]}));
    assert_eq!((&stopped["stop_reason"], &stopped["stop_sequence"]), (&json!("stop_sequence"), &json!("世")));
    assert_eq!(stopped["content"][0]["text"], "Grüße, ");
    let cut = answer(json!({"max_tokens": 2}));
    assert_eq!((&cut["stop_reason"], &cut["stop_sequence"]), (&json!("max_tokens"), &Value::Null));
    let nothing = answer(json!({"stop_sequences": ["G"]}));
    assert_eq!(nothing["content"], json!([]), "an empty text is no block");
}

#[test]
fn a_begun_answer_is_gone_on_from() {
    let server = TestServer::start(spelling("!"));
    let count = |messages: Value| {
        post(server.address, "/v1/messages/count_tokens", &json!({"messages": messages})).json()["input_tokens"]
            .as_u64()
    };
    let user = json!({"role": "user", "content": "hi"});
    let plain = count(json!([user])).unwrap();
    // Just its bytes: no turn is closed and none opened.
    assert_eq!(count(json!([user, {"role": "assistant", "content": "So"}])), Some(plain + 2));
}

#[test]
fn a_stream_has_anthropics_events() {
    let server = TestServer::start(spelling(TEXT));
    let reply = post(server.address, "/v1/messages", &message(json!({"stream": true})));
    assert_eq!((reply.status, reply.header("content-type")), (200, Some("text/event-stream")));
    let events = events(&reply);
    let names: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).filter(|&name| name != "ping").collect();
    let (texts, ends) = names[2..].split_at(names.len() - 5);
    assert_eq!(names[..2], ["message_start", "content_block_start"]);
    assert!(texts.len() > 5 && texts.iter().all(|&name| name == "content_block_delta"), "{names:?}");
    assert_eq!(ends, ["content_block_stop", "message_delta", "message_stop"]);
    let text: String = events.iter().filter_map(|(_, data)| data["delta"]["text"].as_str()).collect();
    assert_eq!(text, TEXT);
    assert_eq!(events[0].1["message"]["role"], "assistant");
    assert!(events[0].1["message"]["usage"]["input_tokens"].as_u64().unwrap() > 10);
    let (_, end) = events.iter().find(|(name, _)| name == "message_delta").unwrap();
    assert_eq!(end["delta"], json!({"stop_reason": "end_turn", "stop_sequence": null}));
    assert_eq!(end["usage"]["output_tokens"], TEXT.len() + 1);
}

#[test]
fn errors_are_in_its_shape() {
    let server = TestServer::start(spelling("x"));
    for (path, body, status, kind) in [
        ("/v1/messages", message(json!({"tools": [{"name": "x"}]})), 400, "invalid_request_error"),
        ("/v1/messages", message(json!({"model": "nobody"})), 404, "not_found_error"),
        ("/v1/messages", message(json!({"max_tokens": 100_000})), 400, "invalid_request_error"),
        ("/v1/messages", json!({"messages": "x".repeat(20_000)}), 413, "request_too_large"),
        ("/v1/messages/count_tokens", json!({}), 400, "invalid_request_error"),
        ("/v1/messages/batches", json!({}), 404, "not_found_error"),
    ] {
        let reply = post(server.address, path, &body);
        let error = reply.json();
        assert_eq!((reply.status, &error["type"]), (status, &json!("error")), "{path} {error}");
        assert_eq!(error["error"]["type"], kind, "{error}");
        assert!(error["error"]["message"].as_str().unwrap().len() > 10);
    }
    let reply = get(server.address, "/v1/messages");
    assert_eq!((reply.status, reply.header("allow")), (405, Some("POST")));
    assert_eq!(reply.json()["type"], "error");
}

#[test]
fn a_client_that_goes_away_ends_its_answer() {
    let server = TestServer::start(endless());
    let body = message(json!({"stream": true, "max_tokens": 1500})).to_string();
    let mut stream = open(server.address, "POST", "/v1/messages", body.as_bytes());
    assert!(stream.chunk().is_some());
    drop(stream);
    wait_for("it is cancelled", || server.stats().cancelled == 1);
}
