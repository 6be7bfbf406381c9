//! Traces, as a collector hears of them.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use serde_json::{Value, json};

use super::client::{get, open_with, post};
use super::harness::{MODEL, TestServer, spelling, wait_for};
use crate::otlp::endpoint::Endpoint;
use crate::otlp::exporter::Exporter;

/// A POST that a collector got: head and body.
type Posted = (String, Value);

/// A collector that answers with these statuses, one after the other, and then always with the last.
fn collector(statuses: &'static [u16]) -> (SocketAddr, Receiver<Posted>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for (index, stream) in listener.incoming().enumerate() {
            let mut reader = BufReader::new(stream.unwrap());
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") {
                assert!(reader.read_line(&mut head).unwrap() > 0, "{head}");
            }
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
            let mut body = vec![0; length.parse().unwrap()];
            reader.read_exact(&mut body).unwrap();
            let status = statuses[index.min(statuses.len() - 1)];
            let answer = format!("HTTP/1.1 {status} X\r\ncontent-length: 2\r\n\r\n{{}}");
            reader.into_inner().write_all(answer.as_bytes()).unwrap();
            if sender.send((head, serde_json::from_slice(&body).unwrap())).is_err() {
                return;
            }
        }
    });
    (address, receiver)
}

fn traced(address: SocketAddr) -> TestServer {
    let endpoint = Endpoint::parse(&format!("http://{address}"), "authorization=Bearer%20x").unwrap();
    TestServer::start_as(spelling("hello"), |state, _| state.tracer = Some(Exporter::new(endpoint, "ours").unwrap()))
}

fn next(posts: &Receiver<Posted>) -> Posted {
    posts.recv_timeout(Duration::from_secs(60)).unwrap()
}

/// The next spans, until there are so many.
fn spans(posts: &Receiver<Posted>, count: usize) -> Vec<Value> {
    let mut spans = Vec::new();
    while spans.len() < count {
        let (_, body) = next(posts);
        spans.extend(body["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().unwrap().clone());
    }
    spans
}

fn attributes(span: &Value) -> BTreeMap<&str, &Value> {
    let all = span["attributes"].as_array().unwrap().iter();
    all.map(|one| (one["key"].as_str().unwrap(), one["value"].as_object().unwrap().values().next().unwrap())).collect()
}

fn time(span: &Value, name: &str) -> u64 {
    span[name].as_str().unwrap().parse().unwrap()
}

#[test]
fn a_request_is_a_span_of_its_clients_trace() {
    let (address, posts) = collector(&[200]);
    let server = traced(address);
    let (trace, parent) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
    let headers =
        format!("traceparent: 00-{trace}-{parent}-01\r\ntracestate: a=b\r\nx-request-id: mine\r\nuser-agent: x\r\n");
    let body = json!({"messages": [{"role": "user", "content": "a private prompt"}]}).to_string();
    let reply = open_with(server.address, "POST", "/v1/chat/completions", &headers, body.as_bytes()).finish();
    let usage = reply.json()["usage"].clone();
    let (head, body) = next(&posts);
    assert!(
        head.starts_with("POST /v1/traces HTTP/1.1\r\n") && head.contains("\r\nauthorization: Bearer x\r\n"),
        "{head}"
    );
    assert!(head.contains("content-type: application/json") && !body.to_string().contains("private"), "{head} {body}");
    let resource = &body["resourceSpans"][0];
    assert_eq!(resource["resource"]["attributes"][0], json!({"key": "service.name", "value": {"stringValue": "ours"}}));
    let spans = resource["scopeSpans"][0]["spans"].as_array().unwrap();
    let names: Vec<&str> = spans.iter().map(|span| span["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["POST /v1/chat/completions", "decode", "prefill", "queue"]);
    let span = &spans[0];
    assert_eq!(
        (&span["traceId"], &span["parentSpanId"], &span["traceState"]),
        (&json!(trace), &json!(parent), &json!("a=b"))
    );
    assert_eq!((&span["kind"], span.get("status")), (&json!(2), None));
    let found = attributes(span);
    for (name, value) in [
        ("http.request.method", json!("POST")),
        ("http.route", json!("/v1/chat/completions")),
        ("http.response.status_code", json!("200")),
        ("http.response.body.size", json!(reply.body.len().to_string())),
        ("client.address", json!("127.0.0.1")),
        ("shimmy.request_id", json!("mine")),
        ("shimmy.complete", json!(true)),
        ("gen_ai.request.model", json!(MODEL)),
        ("gen_ai.usage.input_tokens", json!(usage["prompt_tokens"].to_string())),
        ("gen_ai.usage.output_tokens", json!(usage["completion_tokens"].to_string())),
    ] {
        assert_eq!(found.get(name), Some(&&value), "{name}");
    }
    // Its parts lie within it, one after the other, and end with the answer.
    let mut until = time(span, "endTimeUnixNano");
    for part in &spans[1..] {
        assert_eq!((&part["traceId"], &part["parentSpanId"]), (&json!(trace), &span["spanId"]));
        let (from, to) = (time(part, "startTimeUnixNano"), time(part, "endTimeUnixNano"));
        assert!(from <= to && to <= until && from >= time(span, "startTimeUnixNano"), "{spans:?}");
        until = from;
    }
    let ids: std::collections::BTreeSet<&str> = spans.iter().map(|span| span["spanId"].as_str().unwrap()).collect();
    assert!(ids.len() == 4 && ids.iter().all(|id| id.len() == 16), "{ids:?}");
}

#[test]
fn what_nobody_traces_begins_a_trace_unless_it_is_a_probe_or_not_to_be_recorded() {
    let (address, posts) = collector(&[200]);
    let server = traced(address);
    for path in ["/health", "/ready", "/metrics"] {
        get(server.address, path);
    }
    let unsampled = "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00\r\n";
    open_with(server.address, "GET", "/api/version", unsampled, b"").finish();
    // A malformed parent is none.
    let wrong = "traceparent: 00-xyz-b7ad6b7169203331-01\r\n";
    open_with(server.address, "GET", "/v1/models/nobody", wrong, b"").finish();
    get(server.address, "/no/such/path?secret=x");
    let spans = spans(&posts, 2);
    let names: Vec<&str> = spans.iter().map(|span| span["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["GET /v1/models/{id}", "GET"]);
    assert!(
        spans.iter().all(|span| span.get("parentSpanId").is_none() && span["traceId"].as_str().unwrap().len() == 32)
    );
    assert_ne!(spans[0]["traceId"], spans[1]["traceId"]);
    let found = attributes(&spans[0]);
    assert_eq!((found["error.type"], found["http.response.status_code"]), (&json!("model_not_found"), &json!("404")));
    assert_eq!(attributes(&spans[1])["url.path"], &json!("/no/such/path"));
}

#[test]
fn a_collector_that_is_busy_is_asked_again_and_one_that_refuses_isnt() {
    let (address, posts) = collector(&[503, 200, 400]);
    let server = traced(address);
    get(server.address, "/api/version");
    let (_, first) = next(&posts);
    assert_eq!(next(&posts).1, first, "the same again");
    let counts = || server.state.tracer.as_ref().unwrap().counts().read();
    wait_for("it is counted", || counts() == (1, 0));
    get(server.address, "/api/version");
    next(&posts);
    wait_for("it is counted", || counts() == (1, 1));
    let metrics = get(server.address, "/metrics").body;
    for line in ["shimmy_otlp_spans_total{outcome=\"exported\"} 1", "shimmy_otlp_spans_total{outcome=\"dropped\"} 1"] {
        assert!(metrics.contains(line), "{metrics}");
    }
}

#[test]
fn without_a_collector_requests_are_answered_and_the_last_spans_are_sent_at_the_end() {
    // A port where nobody listens.
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let server = traced(gone);
    let body = json!({"prompt": "x", "max_tokens": 2});
    for _ in 0..3 {
        assert_eq!(post(server.address, "/v1/completions", &body).status, 200);
    }
    drop(server);

    let (address, posts) = collector(&[200]);
    let server = traced(address);
    get(server.address, "/api/version");
    drop(server);
    assert_eq!(spans(&posts, 1)[0]["name"], "GET /api/version");
}
