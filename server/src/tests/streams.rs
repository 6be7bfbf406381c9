//! Streams: frames, order, characters, errors in the middle.

use serde_json::{Value, json};
use shimmy_runtime::Error;

use super::client::{Reply, open, post};
use super::harness::{MODEL, TestServer, spelling};

/// Characters of one to four bytes, a flag of two code points and a family of seven.
const TEXT: &str = "a é 世 🌍 🇩🇪 👨‍👩‍👧‍👦 e\u{301} end";

fn stream(server: &TestServer, path: &str, mut request: Value) -> Reply {
    request["stream"] = true.into();
    request["model"] = MODEL.into();
    let reply = post(server.address, path, &request);
    assert_eq!(reply.status, 200, "{}", reply.body);
    assert_eq!(reply.header("content-type"), Some("text/event-stream"));
    assert_eq!(reply.header("cache-control"), Some("no-cache"));
    reply
}

fn chunks(reply: &Reply) -> Vec<Value> {
    let mut events = reply.events();
    assert_eq!(events.pop(), Some("[DONE]"));
    events.into_iter().map(|event| serde_json::from_str(event).unwrap()).collect()
}

#[test]
fn a_chat_streams_role_text_end_and_usage() {
    let server = TestServer::start(spelling(TEXT));
    let request = json!({"messages": [{"role": "user", "content": "hi"}], "stream_options": {"include_usage": true}});
    let chunks = chunks(&stream(&server, "/v1/chat/completions", request));
    assert_eq!(chunks[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    let (usage, rest) = chunks.split_last().unwrap();
    assert_eq!(usage["choices"], json!([]));
    assert_eq!(usage["usage"]["completion_tokens"], TEXT.len() + 1);
    let (last, texts) = rest.split_last().unwrap();
    assert_eq!((&last["choices"][0]["finish_reason"], &last["choices"][0]["delta"]), (&json!("stop"), &json!({})));
    assert!(last["timings"]["predicted_ms"].is_number() && last["seed"].is_u64());
    let mut whole = String::new();
    for chunk in texts {
        assert_eq!((&chunk["object"], &chunk["usage"]), (&json!("chat.completion.chunk"), &Value::Null));
        assert_eq!((&chunk["id"], &chunk["choices"][0]["finish_reason"]), (&chunks[0]["id"], &Value::Null));
        let piece = chunk["choices"][0]["delta"]["content"].as_str().unwrap();
        assert!(!piece.contains('\u{fffd}'), "{piece:?}");
        whole.push_str(piece);
    }
    assert_eq!(whole, TEXT);
    // A character a chunk: it really streams.
    assert!(texts.len() > 10, "{}", texts.len());
}

#[test]
fn usage_comes_only_when_asked_for() {
    let server = TestServer::start(spelling("ok"));
    let chunks =
        chunks(&stream(&server, "/v1/chat/completions", json!({"messages": [{"role": "user", "content": "hi"}]})));
    assert!(chunks.iter().all(|chunk| chunk.get("usage").is_none() && chunk["choices"].as_array().unwrap().len() == 1));
}

#[test]
fn a_completion_streams_text_and_logprobs() {
    let server = TestServer::start(spelling("aé b"));
    let chunks = chunks(&stream(&server, "/v1/completions", json!({"prompt": "x", "logprobs": 0})));
    let text: String = chunks.iter().map(|chunk| chunk["choices"][0]["text"].as_str().unwrap()).collect();
    assert_eq!(text, "aé b");
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "stop");
    let offsets: Vec<u64> = chunks
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["logprobs"]["text_offset"].as_array())
        .flatten()
        .map(|offset| offset.as_u64().unwrap())
        .collect();
    assert!(offsets.is_sorted() && offsets.len() >= "aé b".len(), "{offsets:?}");
}

#[test]
fn the_stop_string_is_never_sent() {
    let server = TestServer::start(spelling("one STOP two"));
    let request = json!({"messages": [{"role": "user", "content": "hi"}], "stop": "STOP"});
    let reply = stream(&server, "/v1/chat/completions", request);
    let text: String =
        chunks(&reply).iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(text, "one ");
}

#[test]
fn a_failure_in_the_middle_is_an_event() {
    let executor = spelling("a long answer").with_hook(|step, _| match step {
        5 => Err(Error::EngineStopped("the device fell off".into())),
        _ => Ok(()),
    });
    let server = TestServer::start(executor);
    let reply = stream(&server, "/v1/chat/completions", json!({"messages": [{"role": "user", "content": "hi"}]}));
    let chunks = chunks(&reply);
    let error = &chunks.last().unwrap()["error"];
    assert_eq!(error["type"], "server_error");
    assert!(error["message"].as_str().unwrap().contains("the device fell off"), "{error}");
    assert!(chunks.iter().all(|chunk| chunk["choices"][0]["finish_reason"].is_null()));
}

#[test]
fn a_stream_that_is_refused_is_a_plain_error() {
    let server = TestServer::start(spelling("x"));
    let body = json!({"model": "nobody", "stream": true, "messages": [{"role": "user", "content": "hi"}]}).to_string();
    let reply = open(server.address, "POST", "/v1/chat/completions", body.as_bytes()).finish();
    assert_eq!((reply.status, reply.header("content-type")), (404, Some("application/json")));
}
