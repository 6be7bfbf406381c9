//! The Responses API: whole and as events, kept and gone on from, refused by name.

use std::fs;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use shimmy_runtime::engine::testing::TestExecutor;
use shimmy_runtime::exec::Limits;

use super::client::{Reply, get, open, open_with, post};
use super::harness::{END, MODEL, TestServer, VOCAB, endless, spelling, tokens, wait_for};
use crate::access::keys::{self, KeyRing};
use crate::access::quota::Rates;

const TEXT: &str = "Grüße, 世界! 🌍";

fn create(server: &TestServer, extra: Value) -> Reply {
    post(server.address, "/v1/responses", &request(extra))
}

fn request(extra: Value) -> Value {
    let mut request = json!({"model": MODEL, "input": "hi"});
    request.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    request
}

fn whole(server: &TestServer, extra: Value) -> Value {
    let reply = create(server, extra);
    assert_eq!(reply.status, 200, "{}", reply.body);
    reply.json()
}

fn output_text(response: &Value) -> &str {
    response["output"][0]["content"][0]["text"].as_str().unwrap()
}

/// Names and data of a stream's events; each names itself, and they are numbered.
fn events(reply: &Reply) -> Vec<(String, Value)> {
    assert_eq!((reply.status, reply.header("content-type")), (200, Some("text/event-stream")), "{}", reply.body);
    let frames = reply.body.strip_suffix("\n\n").unwrap().split("\n\n").enumerate();
    frames
        .map(|(index, frame)| {
            let (name, data) = frame.split_once('\n').unwrap();
            let name = name.strip_prefix("event: ").unwrap().to_owned();
            let data: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
            assert_eq!((data["type"].as_str(), &data["sequence_number"]), (Some(name.as_str()), &json!(index)));
            (name, data)
        })
        .collect()
}

#[test]
fn a_whole_response_says_everything() {
    let server = TestServer::start(spelling(TEXT));
    let extra = json!({
        "instructions": "be brief", "metadata": {"a": "b"}, "max_output_tokens": 100, "temperature": 0.8, "user": "me",
        "service_tier": "auto",
    });
    let reply = create(&server, extra);
    assert_eq!(reply.header("x-shimmy-ignored"), Some("service_tier"));
    let response = reply.json();
    assert_eq!(output_text(&response), TEXT);
    let prompt_tokens = (2 + "system\nbe brief\n".len()) + (2 + "user\nhi\n".len()) + 1 + "assistant\n".len();
    assert_eq!(
        response["usage"],
        json!({
            "input_tokens": prompt_tokens, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": TEXT.len() + 1,
            "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": prompt_tokens + TEXT.len() + 1,
        })
    );
    for (name, expected) in [
        ("object", json!("response")),
        ("status", json!("completed")),
        ("model", json!(MODEL)),
        ("instructions", json!("be brief")),
        ("metadata", json!({"a": "b"})),
        ("max_output_tokens", json!(100)),
        ("temperature", json!(0.8)),
        ("store", json!(true)),
        ("previous_response_id", Value::Null),
        ("incomplete_details", Value::Null),
        ("error", Value::Null),
        ("tools", json!([])),
        ("tool_choice", json!("auto")),
        ("text", json!({"format": {"type": "text"}})),
        ("truncation", json!("disabled")),
        ("user", json!("me")),
    ] {
        assert_eq!(response[name], expected, "{name}");
    }
    let message = &response["output"][0];
    assert_eq!(
        (&message["type"], &message["role"], &message["status"]),
        (&json!("message"), &json!("assistant"), &json!("completed"))
    );
    assert!(response["completed_at"].as_u64().unwrap() >= response["created_at"].as_u64().unwrap());
    assert!(response["id"].as_str().unwrap().starts_with("resp_") && response["seed"].is_u64());

    let cut = whole(&server, json!({"max_output_tokens": 3, "top_logprobs": 2}));
    assert_eq!(
        (&cut["status"], &cut["incomplete_details"]),
        (&json!("incomplete"), &json!({"reason": "max_output_tokens"}))
    );
    assert_eq!((&cut["output"][0]["status"], &cut["completed_at"]), (&json!("incomplete"), &Value::Null));
    let logprobs = cut["output"][0]["content"][0]["logprobs"].as_array().unwrap();
    assert_eq!((logprobs.len(), logprobs[0]["top_logprobs"].as_array().unwrap().len()), (3, 2));
    assert_eq!(logprobs[0]["token"], "G");
}

#[test]
fn a_stream_has_the_events_of_the_protocol() {
    let server = TestServer::start(spelling(TEXT));
    let events = events(&create(&server, json!({"stream": true, "stream_options": {"include_obfuscation": false}})));
    let names: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).collect();
    let (first, rest) = names.split_at(4);
    assert_eq!(
        first,
        ["response.created", "response.in_progress", "response.output_item.added", "response.content_part.added"]
    );
    let (deltas, last) = rest.split_at(rest.len() - 4);
    assert_eq!(
        last,
        ["response.output_text.done", "response.content_part.done", "response.output_item.done", "response.completed"]
    );
    assert!(deltas.len() > 3 && deltas.iter().all(|name| *name == "response.output_text.delta"), "{deltas:?}");
    let deltas: String = events.iter().filter_map(|(_, data)| data["delta"].as_str()).collect();
    assert_eq!(deltas, TEXT);
    let data = |name: &str| &events.iter().find(|(known, _)| known == name).unwrap().1;
    assert_eq!(
        (&data("response.created")["response"]["status"], data("response.output_text.done")["text"].as_str()),
        (&json!("in_progress"), Some(TEXT))
    );
    assert_eq!(data("response.content_part.done")["part"]["text"], TEXT);
    let item = &data("response.output_item.done")["item"];
    let response = &data("response.completed")["response"];
    assert_eq!((&response["output"][0], &response["status"]), (item, &json!("completed")));
    assert_eq!(data("response.created")["response"]["id"], response["id"]);
    for name in ["response.content_part.added", "response.output_text.delta", "response.output_text.done"] {
        assert_eq!((&data(name)["item_id"], &data(name)["content_index"]), (&item["id"], &json!(0)), "{name}");
    }
    // Who has read the last event finds it kept, as it was told.
    let kept = get(server.address, &format!("/v1/responses/{}", response["id"].as_str().unwrap()));
    assert_eq!(kept.json(), *response);
}

#[test]
fn a_cut_stream_ends_with_incomplete_and_a_broken_one_with_failed() {
    let server = TestServer::start(spelling(TEXT));
    let cut = events(&create(&server, json!({"stream": true, "max_output_tokens": 2, "top_logprobs": 1})));
    let (name, data) = cut.last().unwrap();
    assert_eq!((name.as_str(), &data["response"]["status"]), ("response.incomplete", &json!("incomplete")));
    let reports = cut.iter().filter(|(name, _)| name == "response.output_text.delta");
    let reports: usize = reports.map(|(_, data)| data["logprobs"].as_array().unwrap().len()).sum();
    assert_eq!(reports, 2);

    let broken = spelling(TEXT).with_hook(|step, _| match step {
        5 => Err(shimmy_runtime::Error::Unsupported("a broken device".into())),
        _ => Ok(()),
    });
    let server = TestServer::start(broken);
    let events = events(&create(&server, json!({"stream": true})));
    let (name, data) = events.last().unwrap();
    let response = &data["response"];
    assert_eq!((name.as_str(), &response["status"]), ("response.failed", &json!("failed")));
    assert!(response["error"]["message"].as_str().unwrap().contains("a broken device"), "{response}");
    assert_eq!(get(server.address, &format!("/v1/responses/{}", response["id"].as_str().unwrap())).status, 404);
}

/// An executor that answers `ok`, and what prompts it has seen.
fn listening() -> (TestExecutor, Arc<Mutex<Vec<String>>>) {
    let prompts = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&prompts);
    // Room for whole prompts in a step.
    let limits = Limits { max_step_tokens: 256, ..TestExecutor::LIMITS };
    let script = [&tokens("ok")[..], &[END]].concat();
    let executor = TestExecutor::spelling_tokens(script, VOCAB, limits).with_hook(move |_, batch| {
        for seq in batch.seqs.iter().filter(|seq| seq.start == 0) {
            let bytes = batch.tokens[seq.tokens.clone()].iter().map(|&id| u8::try_from(id).unwrap_or(b'|'));
            seen.lock().unwrap().push(String::from_utf8(bytes.collect()).unwrap());
        }
        Ok(())
    });
    (executor, prompts)
}

#[test]
fn a_conversation_goes_on_from_a_kept_response() {
    let (executor, prompts) = listening();
    let server = TestServer::start(executor);
    let first = whole(&server, json!({"input": "one", "instructions": "A"}));
    let second = whole(&server, json!({"input": "two", "previous_response_id": first["id"], "instructions": "B"}));
    assert_eq!(second["previous_response_id"], first["id"]);
    let third = whole(
        &server,
        json!({
            "previous_response_id": second["id"], "store": false,
            "input": [{"role": "developer", "content": "C"},
                      {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "three"}]}],
        }),
    );
    // Instructions aren't carried over.
    let seen = prompts.lock().unwrap().clone();
    let turn = |role: &str, text: &str| format!("|{role}\n{text}|\n");
    let start = "|assistant\n";
    assert_eq!(
        seen,
        [
            turn("system", "A") + &turn("user", "one") + start,
            turn("system", "B") + &turn("user", "one") + &turn("assistant", "ok") + &turn("user", "two") + start,
            turn("user", "one")
                + &turn("assistant", "ok")
                + &turn("user", "two")
                + &turn("assistant", "ok")
                + &turn("system", "C")
                + &turn("user", "three")
                + start,
        ]
    );
    // What wasn't to be kept isn't.
    let gone = create(&server, json!({"previous_response_id": third["id"]}));
    let error = &gone.json()["error"];
    assert_eq!(
        (gone.status, error["param"].as_str(), error["code"].as_str()),
        (400, Some("previous_response_id"), Some("previous_response_not_found"))
    );
}

fn delete(address: SocketAddr, path: &str) -> Reply {
    open(address, "DELETE", path, b"").finish()
}

#[test]
fn kept_responses_are_shown_listed_and_deleted() {
    let server = TestServer::start(spelling("ok"));
    let input = json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]);
    let response = whole(&server, json!({"input": input}));
    let path = format!("/v1/responses/{}", response["id"].as_str().unwrap());
    assert_eq!(get(server.address, &path).json(), response);
    let list = get(server.address, &format!("{path}/input_items?order=asc&limit=2")).json();
    let texts: Vec<&str> =
        list["data"].as_array().unwrap().iter().map(|item| item["content"][0]["text"].as_str().unwrap()).collect();
    assert_eq!((texts, &list["has_more"]), (vec!["a", "b"], &json!(true)));
    assert_eq!(get(server.address, &format!("{path}/input_items?limit=0")).status, 400);
    for (asked, names) in [
        ("/input_items?limit=1&order=asc&b=1&a=%0d%0ax", Some("a, b")),
        ("?zz=1&stream=false", Some("zz")),
        ("/input_items?limit=1", None),
    ] {
        assert_eq!(get(server.address, &(path.clone() + asked)).header("x-shimmy-ignored"), names, "{asked}");
    }
    assert_eq!(get(server.address, &format!("{path}?stream=true")).status, 400);
    let cancel = post(server.address, &format!("{path}/cancel"), &json!({}));
    assert_eq!(cancel.status, 400);
    assert!(cancel.json()["error"]["message"].as_str().unwrap().contains("background"), "{}", cancel.body);
    assert_eq!(post(server.address, "/v1/responses/resp_x/cancel", &json!({})).status, 404);
    assert_eq!(open(server.address, "PUT", &path, b"").finish().header("allow"), Some("GET, DELETE"));
    assert_eq!(
        delete(server.address, &path).json(),
        json!({"id": response["id"], "object": "response", "deleted": true})
    );
    assert_eq!((delete(server.address, &path).status, get(server.address, &path).status), (404, 404));
    assert_eq!(get(server.address, "/v1/responses/..%2f..%2fetc").status, 404);
    let quiet = whole(&server, json!({"store": false}));
    assert_eq!(get(server.address, &format!("/v1/responses/{}", quiet["id"].as_str().unwrap())).status, 404);
}

#[test]
fn one_clients_responses_are_not_anothers() {
    let server = TestServer::start(spelling("ok"));
    let ask = |method: &str, path: &str, body: &Value, key: &str| {
        let headers = if key.is_empty() { String::new() } else { format!("authorization: Bearer {key}\r\n") };
        open_with(server.address, method, path, &headers, body.to_string().as_bytes()).finish()
    };
    let mine = ask("POST", "/v1/responses", &request(json!({})), "mine").json();
    let path = format!("/v1/responses/{}", mine["id"].as_str().unwrap());
    let goes_on = request(json!({"previous_response_id": mine["id"]}));
    for key in ["", "other"] {
        assert_eq!(ask("GET", &path, &Value::Null, key).status, 404);
        assert_eq!(ask("GET", &format!("{path}/input_items"), &Value::Null, key).status, 404);
        assert_eq!(ask("DELETE", &path, &Value::Null, key).status, 404);
        assert_eq!(ask("POST", "/v1/responses", &goes_on, key).status, 400);
    }
    assert_eq!(ask("GET", &path, &Value::Null, "mine").status, 200);
    assert_eq!(ask("POST", "/v1/responses", &goes_on, "mine").status, 200);
}

#[test]
fn a_response_is_its_keys_whatever_its_secret_and_header_are() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.toml");
    let no_limits = Rates::default();
    // A key of the file that is called like the first one of the command line is another.
    for (name, key) in [("ann", "first"), ("bob", "other"), ("key-1", "namesake")] {
        keys::add(&file, name, key, no_limits, None).unwrap();
    }
    let server = TestServer::start_as(spelling("ok"), |state, _| {
        state.access.keys = KeyRing::new(&["given".into()], Some(file.clone()), no_limits).unwrap();
    });
    let ask = |method: &str, path: &str, body: &Value, key: &str| {
        open_with(server.address, method, path, &format!("{key}\r\n"), body.to_string().as_bytes()).finish()
    };
    let made = |key: &str| {
        let made = ask("POST", "/v1/responses", &request(json!({})), key).json();
        format!("/v1/responses/{}", made["id"].as_str().unwrap())
    };
    let (anns, givens) = (made("authorization: Bearer first"), made("authorization: Bearer given"));
    let status = |path: &str, key: &str| ask("GET", path, &Value::Null, key).status;
    assert_eq!(status(&anns, "x-api-key: first"), 200);
    assert_eq!(status(&givens, "x-api-key: given"), 200);
    // A second header doesn't make another owner.
    assert_eq!(status(&anns, "authorization: Bearer first\r\nx-api-key: other"), 200);
    keys::remove(&file, "ann").unwrap();
    keys::add(&file, "ann", "second", no_limits, None).unwrap();
    // A file system may count whole seconds only.
    let later = SystemTime::now() + Duration::from_secs(5);
    fs::File::options().write(true).open(&file).unwrap().set_modified(later).unwrap();
    server.state.access.keys.reload();
    assert_eq!(status(&anns, "x-api-key: first"), 401);
    for (path, key) in
        [(&anns, "other"), (&anns, "given"), (&anns, "namesake"), (&givens, "second"), (&givens, "namesake")]
    {
        assert_eq!(status(path, &format!("x-api-key: {key}")), 404, "{key}");
        assert_eq!(ask("DELETE", path, &Value::Null, &format!("x-api-key: {key}")).status, 404, "{key}");
    }
    assert_eq!(status(&anns, "authorization: Bearer second"), 200);
    assert_eq!(ask("DELETE", &anns, &Value::Null, "x-api-key: second").status, 200);
}

#[test]
fn mistakes_are_named() {
    let server = TestServer::start(TestExecutor::hashing(TestExecutor::LIMITS, VOCAB));
    for (extra, param) in [
        (json!({"tools": [{"type": "function", "name": "f"}]}), "tools"),
        (json!({"reasoning": {"effort": "low"}}), "reasoning"),
        (json!({"text": {"format": {"type": "json_schema"}}}), "text.format"),
        (json!({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}), "input[0].content[0].type"),
        (json!({"input": "x".repeat(4000)}), "input"),
        (json!({"max_output_tokens": 1_000_000}), "input"),
    ] {
        let reply = create(&server, extra);
        let error = &reply.json()["error"];
        assert_eq!((reply.status, error["param"].as_str()), (400, Some(param)), "{error}");
    }
    let long = create(&server, json!({"input": "x".repeat(4000)})).json();
    assert_eq!(long["error"]["code"], "context_length_exceeded");
    assert_eq!(create(&server, json!({"model": "nobody"})).status, 404);
}

#[test]
fn a_client_that_goes_away_ends_its_response() {
    let server = TestServer::start(endless());
    let body = request(json!({"stream": true})).to_string();
    let mut stream = open(server.address, "POST", "/v1/responses", body.as_bytes());
    assert!(stream.chunk().is_some());
    drop(stream);
    wait_for("it is cancelled", || server.stats().cancelled == 1);
    let stats = server.stats();
    assert_eq!((stats.running, stats.free_blocks), (0, stats.total_blocks));
}
