//! WebSockets: answers, several requests, cancelling, heartbeat, the end.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::client::{get, post};
use super::harness::{Brake, MODEL, TestServer, endless, spelling, test_limits, wait_for};
use super::websocket_client::{CLOSE, FIN, PING, PONG, Socket, text};
use crate::app::{Limits, Phase};
use crate::routes::native::socket::SocketLimits;

const SAID: &str = "Grüße, 世界! 🌍";

fn request(extra: Value) -> Value {
    let mut request = json!({"model": MODEL, "prompt": "hi"});
    request.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    request
}

/// Limits with other times of sockets.
fn limits(ping_ms: u64, silence_ms: u64, idle_ms: u64) -> Limits {
    let [ping_every, silence, idle] = [ping_ms, silence_ms, idle_ms].map(Duration::from_millis);
    Limits { sockets: SocketLimits { ping_every, silence, idle }, ..test_limits() }
}

fn assert_at_rest(server: &TestServer) {
    wait_for("nothing runs", || server.stats().running == 0 && server.state.gate.running() == 0);
    let stats = server.stats();
    assert_eq!((stats.queued, stats.free_blocks), (0, stats.total_blocks));
}

#[test]
fn tokens_come_one_by_one_and_then_the_end() {
    let server = TestServer::start(spelling(SAID));
    let mut socket = Socket::connect(server.address);
    for id in [json!(7), json!("seven")] {
        socket.send(&request(json!({"id": id, "seed": 5, "zz": 1})));
        let messages = socket.answer();
        let (done, tokens) = messages.split_last().unwrap();
        assert_eq!(text(tokens), SAID);
        assert!(tokens.len() > 5 && messages.iter().all(|message| message["id"] == id), "{messages:?}");
        assert_eq!((&done["done"], &done["finish_reason"]), (&json!(true), &json!("stop")));
        assert_eq!((&done["model"], &done["seed"], &done["ignored"]), (&json!(MODEL), &json!(5), &json!("zz")));
        assert_eq!(done["usage"]["completion_tokens"], SAID.len() + 1);
        assert!(done["timings"]["predicted_ms"].is_number(), "{done}");
    }
    // Without an id, frames have none; a conversation is one.
    let messages = json!([{"role": "user", "content": "hi"}]);
    socket.send(&json!({"messages": messages, "max_tokens": 3}));
    let answer = socket.answer();
    assert!(answer.iter().all(|message| message.get("id").is_none()));
    assert_eq!(answer.last().unwrap()["finish_reason"], "length");
    socket.frame(FIN | CLOSE, &1000_u16.to_be_bytes());
    assert_eq!(socket.close_code(), 1000);
    assert_at_rest(&server);
}

#[test]
fn requests_at_once_are_told_apart_by_their_ids() {
    let server = TestServer::start(endless());
    let mut socket = Socket::connect(server.address);
    for id in 0..8 {
        socket.send(&request(json!({"id": id, "max_tokens": 30 + id})));
    }
    let mut texts = [0; 8];
    let mut ends = 0;
    while ends < 8 {
        let message = socket.message();
        let id = message["id"].as_u64().unwrap() as usize;
        assert!(message.get("error").is_none(), "{message}");
        texts[id] += message["token"].as_str().map_or(0, str::len);
        if message["done"] == true {
            assert_eq!((texts[id], &message["finish_reason"]), (30 + id, &json!("length")), "all of it came before");
            ends += 1;
        }
    }
    assert_at_rest(&server);
}

#[test]
fn more_than_a_few_at_once_are_refused() {
    let server = TestServer::start(endless());
    let mut socket = Socket::connect(server.address);
    let next_error = |socket: &mut Socket| loop {
        let message = socket.message();
        if message.get("error").is_some() {
            return message;
        }
    };
    socket.send(&request(json!({})));
    socket.send(&request(json!({})));
    assert_eq!(next_error(&mut socket)["error"]["code"], "id_in_use");
    for id in 1..8 {
        socket.send(&request(json!({"id": id})));
    }
    socket.send(&request(json!({"id": 7})));
    let error = next_error(&mut socket);
    assert_eq!((&error["id"], &error["error"]["code"]), (&json!(7), &json!("id_in_use")));
    socket.send(&request(json!({"id": 8})));
    let error = next_error(&mut socket);
    assert_eq!((&error["id"], &error["error"]["code"]), (&json!(8), &json!("too_many_requests")));
    // One is ended, then all.
    let cancelled = |socket: &mut Socket| loop {
        let message = socket.message();
        if message["done"] == true {
            assert_eq!(message["finish_reason"], "cancelled");
            return message["id"].clone();
        }
    };
    socket.send(&json!({"cancel": true, "id": 3}));
    assert_eq!(cancelled(&mut socket), 3);
    socket.send(&json!({"cancel": true}));
    let mut ids: Vec<String> = (0..7).map(|_| cancelled(&mut socket).to_string()).collect();
    ids.sort();
    assert_eq!(ids, ["1", "2", "4", "5", "6", "7", "null"]);
    wait_for("they are cancelled", || server.stats().cancelled == 8);
    assert_at_rest(&server);
}

#[test]
fn a_cancelled_request_ends_and_the_socket_goes_on() {
    let server = TestServer::start(endless());
    let mut socket = Socket::connect(server.address);
    for round in 1..=3 {
        socket.send(&request(json!({"id": round})));
        assert_eq!(socket.message()["token"], "a");
        socket.send(&json!({"cancel": true, "id": round}));
        let end = socket.answer().pop().unwrap();
        assert_eq!((&end["id"], &end["finish_reason"]), (&json!(round), &json!("cancelled")));
        assert!(end["usage"]["prompt_tokens"].as_u64().unwrap() > 2, "{end}");
        wait_for("it is cancelled", || server.stats().cancelled == round);
        assert_at_rest(&server);
    }
    // Nothing runs: nothing to say.
    socket.send(&json!({"cancel": true}));
    socket.send(&json!({"cancel": true, "id": 3}));
    socket.send(&request(json!({"max_tokens": 5})));
    assert_eq!(text(&socket.answer()), "aaaaa");
}

#[test]
fn a_request_that_waits_can_be_cancelled() {
    let (executor, brake) = Brake::spelling("ok");
    let options = shimmy_runtime::engine::EngineOptions { max_running: 1, ..Default::default() };
    let server = TestServer::start_with(executor, options);
    let mut socket = Socket::connect(server.address);
    socket.send(&request(json!({"id": "runs"})));
    brake.wait_reached();
    socket.send(&request(json!({"id": "waits"})));
    wait_for("the second waits", || server.stats().queued == 1);
    socket.send(&json!({"cancel": true, "id": "waits"}));
    let end = socket.message();
    assert_eq!((&end["id"], &end["finish_reason"]), (&json!("waits"), &json!("cancelled")));
    brake.release();
    assert_eq!(text(&socket.answer()), "ok");
    wait_for("it never ran", || server.stats().completed + server.stats().cancelled == 2);
    assert_eq!(server.stats().completed, 1);
}

#[test]
fn mistakes_are_answered_and_the_socket_goes_on() {
    let server = TestServer::start(spelling("fine"));
    let mut socket = Socket::connect(server.address);
    let deep = "[".repeat(9_000);
    for (message, code, param) in [
        ("", json!("invalid_json"), Value::Null),
        ("hello", json!("invalid_json"), Value::Null),
        ("[1]", json!("invalid_json"), Value::Null),
        (&deep, json!("invalid_json"), Value::Null),
        (r#"{"prompt": "\ud800"}"#, json!("invalid_json"), Value::Null),
        ("{}", Value::Null, json!("prompt")),
        (r#"{"prompt": 3}"#, Value::Null, json!("prompt")),
        (r#"{"prompt": "x", "id": {}}"#, Value::Null, json!("id")),
        (r#"{"prompt": "x", "id": 1.5}"#, Value::Null, json!("id")),
        (r#"{"prompt": "x", "temperature": -1}"#, Value::Null, json!("temperature")),
        (r#"{"prompt": "x", "max_tokens": 1e99}"#, Value::Null, json!("max_tokens")),
        (r#"{"prompt": "x", "stream": false}"#, json!("unsupported_parameter"), json!("stream")),
        (r#"{"prompt": "x", "mirostat": 2}"#, json!("unsupported_parameter"), json!("mirostat")),
        (r#"{"prompt": "x", "model": "nobody"}"#, json!("model_not_found"), json!("model")),
        (r#"{"prompt": "x", "max_tokens": 5000}"#, json!("context_length_exceeded"), json!("messages")),
        (r#"{"cancel": false}"#, Value::Null, json!("cancel")),
        (r#"{"cancel": true, "prompt": "x"}"#, Value::Null, json!("prompt")),
    ] {
        socket.frame(FIN | 1, message.as_bytes());
        let answer = socket.message();
        assert_eq!((&answer["error"]["code"], &answer["error"]["param"]), (&code, &param), "{message}: {answer}");
        assert!(answer["error"]["message"].as_str().unwrap().len() > 5, "{answer}");
    }
    socket.send(&json!({"id": "x", "prompt": "x", "top_p": 7}));
    assert_eq!(socket.message()["id"], "x", "an error names the request");
    socket.send(&request(json!({})));
    assert_eq!(text(&socket.answer()), "fine");
}

#[test]
fn a_failing_step_is_an_error_frame() {
    let executor = spelling("a long answer").with_hook(|step, _| match step {
        5 => Err(shimmy_runtime::Error::EngineStopped("the device fell off".into())),
        _ => Ok(()),
    });
    let server = TestServer::start(executor);
    let mut socket = Socket::connect(server.address);
    socket.send(&request(json!({"id": 1})));
    let last = socket.answer().pop().unwrap();
    assert_eq!((&last["id"], &last["error"]["type"]), (&json!(1), &json!("server_error")));
    assert!(last["error"]["message"].as_str().unwrap().contains("the device fell off"), "{last}");
}

#[test]
fn a_server_that_loads_says_so() {
    let server = TestServer::start_loading(spelling("x"), Default::default());
    let mut socket = Socket::connect(server.address);
    socket.send(&request(json!({})));
    let answer = socket.message();
    assert_eq!((&answer["error"]["code"], &answer["retry_after"]), (&json!("model_loading"), &json!(1)));
    server.state.set_ready();
    socket.send(&request(json!({})));
    assert_eq!(text(&socket.answer()), "x");
}

#[test]
fn pings_are_answered_both_ways() {
    let server = TestServer::start_within(spelling("x"), limits(20, 2_000, 60_000));
    let mut socket = Socket::connect(server.address);
    socket.frame(FIN | PING, b"are you there?");
    let pong = loop {
        let frame = socket.next().unwrap();
        if frame.opcode == PONG {
            break frame;
        }
    };
    assert_eq!(pong.payload, b"are you there?");
    // Who answers pings isn't silent: it stays for longer than silence is borne.
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(3_000) {
        assert_eq!(socket.next().unwrap().opcode, PING);
    }
    socket.frame(FIN | CLOSE, &[]);
    assert_eq!(socket.close_code(), 0, "a close without a code is answered with one");
}

#[test]
fn a_silent_peer_is_closed_and_its_generation_cancelled() {
    let server = TestServer::start_within(endless(), limits(20, 200, 60_000));
    let mut socket = Socket::connect(server.address);
    socket.answers_pings = false;
    socket.send(&request(json!({})));
    assert_eq!(socket.close_code(), 1008);
    wait_for("it is cancelled", || server.stats().cancelled == 1);
    assert_at_rest(&server);
    wait_for("its connection is closed", || server.state.counters.open_connections() == 0);
}

#[test]
fn a_socket_that_nobody_uses_is_closed() {
    let server = TestServer::start_within(endless(), limits(20, 60_000, 300));
    let mut socket = Socket::connect(server.address);
    // Busy for longer than that.
    socket.send(&request(json!({"max_tokens": 600})));
    assert_eq!(text(&socket.answer()).len(), 600);
    assert_eq!(socket.close_code(), 1000);
}

#[test]
fn a_peer_that_vanishes_ends_its_generations() {
    let server = TestServer::start(endless());
    let mut socket = Socket::connect(server.address);
    for id in 0..3 {
        socket.send(&request(json!({"id": id})));
    }
    wait_for("all run", || server.state.models.ready(MODEL).is_some() && server.stats().running == 3);
    drop(socket);
    wait_for("they are cancelled", || server.stats().cancelled == 3);
    assert_at_rest(&server);
    wait_for("its connection is closed", || server.state.counters.open_connections() == 0);
}

#[cfg(target_os = "linux")]
#[test]
fn a_peer_that_takes_nothing_is_cut_off_and_counted() {
    let server = TestServer::start(endless());
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_tcp_mss(536).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(&server.address.into()).unwrap();
    let mut socket = Socket::over(socket.into());
    // Long ids make long frames.
    for number in 0..4 {
        socket.send(&request(json!({"id": format!("{number}{}", "x".repeat(120)), "max_tokens": 2000})));
    }
    let slow_readers = || server.model().engine.metrics().slow_readers();
    wait_for("it is cut off", || slow_readers() >= 1);
    wait_for("nothing of it runs", || server.state.gate.running() == 0 && server.stats().running == 0);
    let stats = server.stats();
    assert_eq!((stats.free_blocks, stats.failed, stats.completed), (stats.total_blocks, 0, 0));
}

#[test]
fn a_shutdown_lets_answers_finish_and_then_says_goodbye() {
    let server = TestServer::start(endless());
    let mut idle = Socket::connect(server.address);
    let mut busy = Socket::connect(server.address);
    busy.send(&request(json!({"id": 1, "max_tokens": 1500})));
    assert_eq!(busy.message()["token"], "a");
    server.begin_shutdown();
    wait_for("it drains", || server.state.phase() == Phase::Draining);
    busy.send(&request(json!({"id": 2})));
    assert_eq!(idle.close_code(), 1001);
    let (mut letters, mut refused) = (1, false);
    loop {
        let message = busy.message();
        match message["id"].as_u64().unwrap() {
            2 => {
                assert_eq!(message["error"]["code"], "shutting_down");
                refused = true;
            }
            _ if message["done"] == true => {
                assert_eq!(message["finish_reason"], "length");
                break;
            }
            _ => letters += message["token"].as_str().unwrap().len(),
        }
    }
    assert_eq!((letters, refused), (1500, true));
    assert_eq!(busy.close_code(), 1001);
    server.join();
}

#[test]
fn plain_http_is_told_what_this_is() {
    let server = TestServer::start(spelling("x"));
    let reply = get(server.address, "/ws/generate");
    assert_eq!((reply.status, reply.header("upgrade")), (426, Some("websocket")));
    assert_eq!(reply.json()["error"]["code"], "websocket_expected");
    assert_eq!(post(server.address, "/ws/generate", &json!({})).status, 405);
}
