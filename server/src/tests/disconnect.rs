//! A client that vanishes frees its place, whatever the server was doing for it.

#[cfg(target_os = "linux")]
use std::io::Read;
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

/// Asks for a wordy answer on a connection of small segments and a small window, and reads nothing: tens of kilobytes
/// on, the server can't write any more.
#[cfg(target_os = "linux")]
fn stalled(server: &TestServer) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_tcp_mss(536).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(&server.address.into()).unwrap();
    let mut stream = TcpStream::from(socket);
    let request = json!({"model": MODEL, "prompt": "x", "stream": true, "max_tokens": 2000, "logprobs": 5});
    send(&mut stream, "POST", "/v1/completions", request.to_string().as_bytes());
    stream
}

/// What a response that was cut off holds; it must not look like a whole one. If the system took all that was written before the
/// engine gave up, it ends with that error.
#[cfg(target_os = "linux")]
fn rest(mut stream: TcpStream) -> String {
    let mut text = Vec::new();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    // The end may be a reset.
    let _ = stream.read_to_end(&mut text);
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(text.starts_with("HTTP/1.1 200 OK") && text.contains("data: {"), "{text}");
    let is_cut = !text.contains("[DONE]") && !text.ends_with("0\r\n\r\n");
    assert!(is_cut || text.contains("\"code\":\"slow_reader\""), "{}", &text[text.len() - 200..]);
    text
}

#[cfg(target_os = "linux")]
#[test]
fn a_client_that_takes_nothing_is_cut_off_and_counted() {
    let server = TestServer::start(endless());
    let client = stalled(&server);
    let slow_readers = || server.model().engine.metrics().slow_readers();
    wait_for("it is cut off", || slow_readers() == 1);
    wait_for("its place is free", || server.stats().running == 0 && server.state.gate.running() == 0);
    let stats = server.stats();
    assert_eq!((stats.free_blocks, stats.failed, stats.cancelled), (stats.total_blocks, 0, 1));
    rest(client);
    wait_for("its connection is closed", || server.state.counters.open_connections() == 0);
}

#[cfg(target_os = "linux")]
#[test]
fn the_engine_gives_up_on_a_reader_that_leaves_too_much_unread() {
    let options = shimmy_runtime::engine::EngineOptions { max_unread_events: 20, ..Default::default() };
    let server = TestServer::start_with(endless(), options);
    let client = stalled(&server);
    wait_for("it is cut off", || server.stats().failed == 1);
    wait_for("the service knows", || server.state.gate.running() == 0);
    rest(client);
    assert_eq!(server.model().engine.metrics().slow_readers(), 1, "counted once");
}
