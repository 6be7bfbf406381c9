//! Responses that run in the background: polled, read from any event on, cancelled, deleted, and ended with the server.

use serde_json::{Value, json};
use shimmy_runtime::engine::EngineOptions;

use super::client::{Reply, get, open, open_with, post};
use super::harness::{Brake, MODEL, TestServer, endless, spelling, wait_for};
use crate::app::Phase;

const TEXT: &str = "Grüße, 世界!";

fn request(extra: Value) -> Value {
    let mut request = json!({"model": MODEL, "input": "hi", "background": true});
    request.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    request
}

/// Starts one; its path.
fn start(server: &TestServer, extra: Value) -> String {
    let reply = post(server.address, "/v1/responses", &request(extra));
    let response = reply.json();
    assert_eq!((reply.status, &response["status"]), (200, &json!("queued")), "{}", reply.body);
    assert_eq!((&response["background"], &response["output"]), (&json!(true), &json!([])));
    format!("/v1/responses/{}", response["id"].as_str().unwrap())
}

fn shown(server: &TestServer, path: &str) -> Value {
    let reply = get(server.address, path);
    assert_eq!(reply.status, 200, "{}", reply.body);
    reply.json()
}

fn wait_for_status(server: &TestServer, path: &str, status: &str) -> Value {
    wait_for(status, || shown(server, path)["status"] == status);
    shown(server, path)
}

fn output_text(response: &Value) -> &str {
    response["output"][0]["content"][0]["text"].as_str().unwrap()
}

fn cancel(server: &TestServer, path: &str) -> Reply {
    post(server.address, &format!("{path}/cancel"), &json!({}))
}

/// The events of a stream, which must be numbered from `first` on.
fn events(body: &str, first: usize) -> Vec<Value> {
    let frames = body.split_terminator("\n\n").filter(|frame| !frame.starts_with(':'));
    let data = frames.map(|frame| frame.split_once("\ndata: ").unwrap_or_else(|| panic!("{frame:?}")).1);
    let events: Vec<Value> = data.map(|data| serde_json::from_str(data).unwrap()).collect();
    for (index, event) in events.iter().enumerate() {
        assert_eq!(event["sequence_number"], first + index, "{event}");
    }
    events
}

fn names(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["type"].as_str().unwrap()).collect()
}

#[test]
fn it_is_queued_runs_and_completes_without_its_client() {
    let (executor, brake) = Brake::spelling(TEXT);
    let server = TestServer::start(executor);
    let path = start(&server, json!({"metadata": {"a": "b"}}));
    brake.wait_reached();
    let running = wait_for_status(&server, &path, "in_progress");
    assert_eq!(
        (&running["output"], &running["usage"], &running["completed_at"]),
        (&json!([]), &Value::Null, &Value::Null)
    );
    assert!(running["temperature"].is_number() && server.state.gate.running() == 1);
    // What still runs can't be gone on from.
    let id = running["id"].as_str().unwrap();
    let next = |id: &str| post(server.address, "/v1/responses", &json!({"input": "x", "previous_response_id": id}));
    let early = next(id);
    assert_eq!(
        (early.status, &early.json()["error"]["param"]),
        (400, &json!("previous_response_id")),
        "{}",
        early.body
    );
    assert!(early.body.contains("still runs"), "{}", early.body);
    brake.release();
    let done = wait_for_status(&server, &path, "completed");
    assert_eq!((output_text(&done), &done["metadata"]), (TEXT, &json!({"a": "b"})));
    assert_eq!(done["usage"]["output_tokens"], TEXT.len() + 1);
    assert!(done["completed_at"].is_u64() && done["seed"].is_u64());
    wait_for("nothing runs", || server.state.gate.running() == 0);
    // From now on it is like any other.
    assert_eq!(
        next(id).json()["usage"]["input_tokens"].as_u64().unwrap() - done["usage"]["input_tokens"].as_u64().unwrap(),
        {
            let turns = format!("{TEXT}\nuser\nx\nassistant\n");
            turns.len() as u64 + 1 + 2 + 1
        }
    );
    let items = shown(&server, &format!("{path}/input_items"));
    assert_eq!(items["data"][0]["content"][0]["text"], "hi");
    // What has ended stays as it is.
    for _ in 0..2 {
        assert_eq!(cancel(&server, &path).json(), done);
    }
    let cut = start(&server, json!({"max_output_tokens": 3}));
    assert_eq!(wait_for_status(&server, &cut, "incomplete")["incomplete_details"]["reason"], "max_output_tokens");
}

#[test]
fn mistakes_are_said_before_it_is_queued() {
    let server = TestServer::start(spelling(TEXT));
    server.model();
    for (extra, status, param) in [
        (json!({"store": false}), 400, "background"),
        (json!({"background": "yes"}), 400, "background"),
        (json!({"input": "x".repeat(4000)}), 400, "input"),
        (json!({"model": "nobody"}), 404, "model"),
    ] {
        let reply = post(server.address, "/v1/responses", &request(extra));
        assert_eq!((reply.status, reply.json()["error"]["param"].as_str()), (status, Some(param)), "{}", reply.body);
    }
    // Nor can what had its client be cancelled.
    let plain = post(server.address, "/v1/responses", &json!({"input": "hi"})).json();
    let reply = cancel(&server, &format!("/v1/responses/{}", plain["id"].as_str().unwrap()));
    assert_eq!((reply.status, &reply.json()["error"]["code"]), (400, &json!("not_in_background")));
    assert_eq!(cancel(&server, "/v1/responses/resp_x").status, 404);
}

#[test]
fn a_model_that_must_be_loaded_holds_nobody_up_and_its_mistakes_are_found_later() {
    let server = TestServer::start(spelling(TEXT));
    assert!(server.state.models.ready(MODEL).is_none());
    let long = start(&server, json!({"input": "x".repeat(4000)}));
    let failed = wait_for_status(&server, &long, "failed");
    assert_eq!(failed["error"]["code"], "context_length_exceeded");
    assert_eq!((&failed["model"], &failed["output"]), (&json!(MODEL), &json!([])));
    let reply = post(server.address, "/v1/responses", &json!({"input": "x", "previous_response_id": failed["id"]}));
    assert_eq!((reply.status, &reply.json()["error"]["code"]), (400, &json!("previous_response_not_completed")));
    let reply = post(server.address, "/v1/responses", &request(json!({"model": "nobody"})));
    assert_eq!(reply.status, 404);
}

#[test]
fn it_is_cancelled_once_and_for_all() {
    let server = TestServer::start(endless());
    // By its events it is known that something was said.
    let body = request(json!({"stream": true})).to_string();
    let mut stream = open(server.address, "POST", "/v1/responses", body.as_bytes());
    let mut heard = String::new();
    while !heard.contains("response.output_text.delta") {
        heard += std::str::from_utf8(&stream.chunk().unwrap()).unwrap();
    }
    let path = format!("/v1/responses/{}", events(&heard, 0)[0]["response"]["id"].as_str().unwrap());
    let cancelled = cancel(&server, &path).json();
    assert_eq!((&cancelled["status"], &cancelled["error"]), (&json!("cancelled"), &Value::Null));
    let text = output_text(&cancelled);
    assert!(!text.is_empty() && text.bytes().all(|byte| byte == b'a'), "what it came to: {text}");
    assert_eq!(cancelled["output"][0]["status"], "incomplete");
    wait_for("its generation has ended", || server.stats().running == 0);
    assert_eq!((server.stats().cancelled, server.state.gate.running()), (1, 0));
    assert_eq!((cancel(&server, &path).json(), shown(&server, &path)), (cancelled.clone(), cancelled));
    // Deleting one ends it too.
    let path = start(&server, json!({}));
    wait_for("it runs", || server.stats().running == 1);
    assert_eq!(open(server.address, "DELETE", &path, b"").finish().status, 200);
    wait_for("its generation has ended", || server.stats().running == 0);
    assert_eq!((get(server.address, &path).status, cancel(&server, &path).status), (404, 404));
}

#[test]
fn its_events_are_read_from_any_on_by_anyone_who_may() {
    let (executor, brake) = Brake::spelling(TEXT);
    let server = TestServer::start(executor);
    let body = request(json!({"stream": true})).to_string();
    let mut stream = open(server.address, "POST", "/v1/responses", body.as_bytes());
    let mut first = String::new();
    while names(&events(&first, 0)) != ["response.created", "response.queued", "response.in_progress"] {
        first += std::str::from_utf8(&stream.chunk().unwrap()).unwrap();
    }
    let created = events(&first, 0);
    let statuses: Vec<&Value> = created.iter().map(|event| &event["response"]["status"]).collect();
    assert_eq!(statuses, ["queued", "queued", "in_progress"]);
    let path = format!("/v1/responses/{}", created[0]["response"]["id"].as_str().unwrap());
    // Its client goes away and comes back while it runs; others wait for its end.
    drop(stream);
    brake.wait_reached();
    assert_eq!(shown(&server, &path)["status"], "in_progress");
    let resumed = open(server.address, "GET", &format!("{path}?stream=true&starting_after=1"), b"");
    brake.release();
    let resumed = resumed.finish();
    assert_eq!(resumed.header("content-type"), Some("text/event-stream"));
    let resumed = events(&resumed.body, 2);
    let done = wait_for_status(&server, &path, "completed");
    assert_eq!((output_text(&done), &resumed.last().unwrap()["response"]), (TEXT, &done));
    assert_eq!((names(&resumed)[0], *names(&resumed).last().unwrap()), ("response.in_progress", "response.completed"));
    let text: String = resumed.iter().filter_map(|event| event["delta"].as_str()).collect();
    assert_eq!(text, TEXT);
    // And afterwards.
    let all = events(&get(server.address, &format!("{path}?stream=true")).body, 0);
    assert_eq!((&all[..2], &all[2..]), (&created[..2], &resumed[..]));
    let after = |number: usize| get(server.address, &format!("{path}?stream=true&starting_after={number}"));
    assert_eq!(events(&after(all.len() - 2).body, all.len() - 1).len(), 1);
    assert_eq!((after(all.len() - 1).body, after(5000).body), (String::new(), String::new()));
    for (query, param) in [
        ("?starting_after=1", "starting_after"),
        ("?stream=true&starting_after=x", "starting_after"),
        ("?stream=maybe", "stream"),
        ("?include[]=x", "include"),
    ] {
        let reply = get(server.address, &(path.clone() + query));
        assert_eq!((reply.status, reply.json()["error"]["param"].as_str()), (400, Some(param)), "{query}");
    }
    let other = open_with(server.address, "GET", &format!("{path}?stream=true"), "x-api-key: other\r\n", b"").finish();
    assert_eq!(other.status, 404);
    // One that was made without events has none.
    let silent = start(&server, json!({}));
    let reply = get(server.address, &format!("{silent}?stream=true"));
    assert_eq!((reply.status, reply.json()["error"]["param"].as_str()), (400, Some("stream")));
}

#[test]
fn readers_hear_of_a_failure_and_of_a_cancellation() {
    let broken = spelling(TEXT).with_hook(|step, _| match step {
        5 => Err(shimmy_runtime::Error::Unsupported("a broken device".into())),
        _ => Ok(()),
    });
    let server = TestServer::start(broken);
    let reply = post(server.address, "/v1/responses", &request(json!({"stream": true})));
    let all = events(&reply.body, 0);
    let last = all.last().unwrap();
    assert_eq!((&last["type"], &last["response"]["status"]), (&json!("response.failed"), &json!("failed")));
    let path = format!("/v1/responses/{}", last["response"]["id"].as_str().unwrap());
    assert_eq!(shown(&server, &path), last["response"]);
    assert!(shown(&server, &path)["error"]["message"].as_str().unwrap().contains("a broken device"));

    let server = TestServer::start(endless());
    let body = request(json!({"stream": true})).to_string();
    let mut stream = open(server.address, "POST", "/v1/responses", body.as_bytes());
    let mut text = String::from_utf8(stream.chunk().unwrap()).unwrap();
    let path = format!("/v1/responses/{}", events(&text, 0)[0]["response"]["id"].as_str().unwrap());
    wait_for("it runs", || server.stats().generated_tokens > 5);
    let cancelled = cancel(&server, &path).json();
    text += &stream.finish().body;
    let all = events(&text, 0);
    let last = all.last().unwrap();
    assert_eq!((&last["type"], &last["response"]), (&json!("response.incomplete"), &cancelled));
}

#[test]
fn a_server_that_ends_cancels_it() {
    let server = TestServer::start(endless());
    let path = start(&server, json!({}));
    let body = request(json!({"stream": true})).to_string();
    let mut stream = open(server.address, "POST", "/v1/responses", body.as_bytes());
    let mut text = String::from_utf8(stream.chunk().unwrap()).unwrap();
    wait_for("both run", || server.stats().running == 2);
    wait_for_status(&server, &path, "in_progress");
    server.begin_shutdown();
    wait_for("it drains", || server.state.phase() == Phase::Draining);
    text += &stream.finish().body;
    assert_eq!(events(&text, 0).last().unwrap()["response"]["status"], "cancelled");
    server.join();
}

#[test]
fn those_that_run_count_for_the_engines_queue() {
    let (executor, brake) = Brake::spelling("ok");
    let options = EngineOptions { queue: 1, max_running: 1, ..EngineOptions::default() };
    let server = TestServer::start_with(executor, options);
    server.model();
    let first = start(&server, json!({}));
    brake.wait_reached();
    let second = start(&server, json!({}));
    wait_for("one waits", || server.stats().queued == 1);
    let full = post(server.address, "/v1/responses", &request(json!({})));
    assert_eq!((full.status, &full.json()["error"]["code"]), (429, &json!("queue_full")));
    brake.release();
    for path in [first, second] {
        assert_eq!(output_text(&wait_for_status(&server, &path, "completed")), "ok");
    }
}
