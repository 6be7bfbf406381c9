//! Connections that are at work, or lie still for no longer than they may, are left alone.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::json;

use super::client::open;
use super::harness::{Brake, MODEL, TestServer, spelling, test_limits, wait_for};
use super::websocket_client::{Socket, text};
use crate::app::Limits;

/// Both together are how long nothing may run on a connection.
const EACH: Duration = Duration::from_millis(150);
/// Several times as long.
const LONG: Duration = Duration::from_millis(1200);

fn limits() -> Limits {
    Limits { keep_alive: EACH, head: EACH, ..test_limits() }
}

fn streamed(address: SocketAddr) -> super::client::Open {
    let body = json!({"model": MODEL, "prompt": "x", "max_tokens": 100, "stream": true}).to_string();
    open(address, "POST", "/v1/completions", body.as_bytes())
}

#[test]
fn a_stream_that_lasts_longer_is_not_cut() {
    let said = "a".repeat(60);
    let slow = spelling(&said).with_hook(|_, _| {
        std::thread::sleep(LONG / 60);
        Ok(())
    });
    let server = TestServer::start_within(slow, limits());
    let reply = streamed(server.address).finish();
    let events = reply.events();
    let (last, events) = events.split_last().unwrap();
    assert_eq!(*last, "[DONE]");
    let events = events.iter().map(|event| serde_json::from_str::<serde_json::Value>(event).unwrap());
    let heard: String = events.filter_map(|event| event["choices"][0]["text"].as_str().map(str::to_owned)).collect();
    assert_eq!(heard, said);
    wait_for("no handle is left", || server.state.connections.is_empty());
}

#[test]
fn an_answer_that_comes_late_comes() {
    let (executor, brake) = Brake::spelling("late");
    let server = TestServer::start_within(executor, limits());
    let asking = std::thread::spawn({
        let address = server.address;
        move || super::client::post(address, "/v1/completions", &json!({"model": MODEL, "prompt": "x"})).json()
    });
    brake.wait_reached();
    std::thread::sleep(LONG);
    brake.release();
    assert_eq!(asking.join().unwrap()["choices"][0]["text"], "late");
}

#[test]
fn a_websocket_on_which_nothing_is_said_is_not_cut() {
    let server = TestServer::start_within(spelling("hi"), limits());
    let mut socket = Socket::connect(server.address);
    for _ in 0..2 {
        std::thread::sleep(LONG);
        socket.send(&json!({"model": MODEL, "prompt": "x"}));
        assert_eq!(text(&socket.answer()), "hi");
    }
    drop(socket);
    wait_for("no handle is left", || server.state.connections.is_empty());
}

#[test]
fn a_connection_may_lie_still_between_whole_requests() {
    let limits = Limits { keep_alive: Duration::from_secs(60), head: EACH, ..test_limits() };
    let server = TestServer::start_within(spelling("hi"), limits);
    let mut stream = TcpStream::connect(server.address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    for _ in 0..3 {
        stream.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"}") {
            let mut piece = [0; 4096];
            let length = stream.read(&mut piece).unwrap();
            assert!(length > 0, "{:?}", String::from_utf8_lossy(&answer));
            answer.extend_from_slice(&piece[..length]);
        }
        assert_eq!(server.state.connections.len(), 1);
        std::thread::sleep(LONG / 2);
    }
}
