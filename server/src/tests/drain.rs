//! Shutting down: nothing new, nothing cut off.

use serde_json::json;

use super::client::{get, open, post};
use super::harness::{MODEL, TestServer, endless, wait_for};
use crate::app::Phase;

#[test]
fn running_streams_finish_and_new_ones_are_refused() {
    let server = TestServer::start(endless());
    let request = json!({
        "model": MODEL, "stream": true, "max_tokens": 300, "messages": [{"role": "user", "content": "hi"}],
    });
    let mut running = open(server.address, "POST", "/v1/chat/completions", request.to_string().as_bytes());
    assert!(running.chunk().is_some());
    server.begin_shutdown();
    wait_for("it drains", || server.state.phase() == Phase::Draining);
    let refused = post(server.address, "/v1/chat/completions", &request);
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("1")));
    assert_eq!(refused.json()["error"]["code"], "shutting_down");
    let health = get(server.address, "/health");
    assert_eq!((health.status, health.json()["status"].as_str()), (503, Some("shutting down")));
    let reply = running.finish();
    let events = reply.events();
    assert_eq!(events.last(), Some(&"[DONE]"));
    let letters = events.iter().filter_map(|event| serde_json::from_str::<serde_json::Value>(event).ok());
    let text: String =
        letters.filter_map(|chunk| Some(chunk["choices"][0]["delta"]["content"].as_str()?.to_owned())).collect();
    assert_eq!(text, "a".repeat(300));
    server.join();
}

#[test]
fn an_idle_server_ends_at_once() {
    let server = TestServer::start(endless());
    assert_eq!(get(server.address, "/health").status, 200);
    server.begin_shutdown();
    let start = std::time::Instant::now();
    server.join();
    assert!(start.elapsed() < std::time::Duration::from_secs(2), "{:?}", start.elapsed());
}
