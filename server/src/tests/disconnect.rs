//! A client that vanishes frees its place, whatever the server was doing for it.

use std::net::TcpStream;
use std::time::Duration;

use serde_json::json;

use super::client::{open, send};
use super::harness::{Brake, MODEL, TestServer, endless, wait_for};

fn request(stream: bool) -> Vec<u8> {
    json!({"model": MODEL, "stream": stream, "messages": [{"role": "user", "content": "hi"}]}).to_string().into()
}

/// No step is computed for a cancelled generation: at most the one that runs when the client goes.
fn assert_at_rest(server: &TestServer) {
    wait_for("the generation is cancelled", || server.stats().cancelled == 1);
    let stats = server.stats();
    assert_eq!((stats.running, stats.free_blocks), (0, stats.total_blocks));
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(server.stats().steps, stats.steps);
    assert_eq!(server.state.gate.running(), 0);
}

#[test]
fn in_the_middle_of_a_stream() {
    let server = TestServer::start(endless());
    let mut client = open(server.address, "POST", "/v1/chat/completions", &request(true));
    for _ in 0..3 {
        assert!(client.chunk().is_some());
    }
    assert_eq!(server.stats().running, 1);
    drop(client);
    assert_at_rest(&server);
}

#[test]
fn while_it_waits_for_a_whole_answer() {
    let server = TestServer::start(endless());
    let mut client = TcpStream::connect(server.address).unwrap();
    send(&mut client, "POST", "/v1/chat/completions", &request(false));
    wait_for("it runs", || server.state.models.ready(MODEL).is_some() && server.stats().steps > 3);
    drop(client);
    assert_at_rest(&server);
}

#[test]
fn before_its_turn_has_come() {
    let (executor, brake) = Brake::spelling("ok");
    let options = shimmy_runtime::engine::EngineOptions { max_running: 1, ..Default::default() };
    let server = TestServer::start_with(executor, options);
    let address = server.address;
    let first = std::thread::spawn(move || open(address, "POST", "/v1/chat/completions", &request(false)).finish());
    brake.wait_reached();
    let mut client = open(address, "POST", "/v1/chat/completions", &request(true));
    assert!(client.chunk().is_some(), "the role comes at once");
    wait_for("the second request waits", || server.stats().queued == 1);
    drop(client);
    wait_for("the service let go of it", || server.state.gate.running() == 1);
    brake.release();
    assert_eq!(first.join().unwrap().status, 200);
    wait_for("both have ended", || server.stats().completed + server.stats().cancelled == 2);
    assert_eq!(server.stats().completed, 1);
}
