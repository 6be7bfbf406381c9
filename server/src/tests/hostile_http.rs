//! What no good HTTP client sends, on raw sockets. Each is answered or cut off; afterwards the server is as before.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::json;

use super::client::{get, open, post};
use super::harness::{MODEL, TestServer, endless, spelling, test_limits, wait_for};
use crate::app::Limits;

/// Endpoints that read a body.
const READERS: [&str; 9] = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/api/chat",
    "/api/generate",
    "/api/show",
    "/tokenize",
    "/detokenize",
];

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    // Longer than the server waits for anything here: a hang fails.
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

/// Everything up to the end of the connection, which must come.
fn rest(stream: &mut impl Read) -> String {
    let mut all = Vec::new();
    let mut piece = [0; 4096];
    loop {
        match stream.read(&mut piece) {
            Ok(0) => break,
            Ok(length) => all.extend_from_slice(&piece[..length]),
            // TLS tells a cut from an end.
            Err(error) if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof) => break,
            Err(error) => panic!("{error} after {:?}", String::from_utf8_lossy(&all)),
        }
    }
    String::from_utf8_lossy(&all).into_owned()
}

/// Sends bytes and reads to the end.
fn exchange(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = connect(address);
    // The server may have closed before all of it is sent.
    let _ = stream.write_all(bytes);
    rest(&mut stream)
}

/// The statuses of all responses in a text.
fn statuses(text: &str) -> Vec<u16> {
    text.split("HTTP/1.1 ").skip(1).map(|response| response[..3].parse().unwrap()).collect()
}

fn assert_as_before(server: &TestServer) {
    wait_for("no connection is left", || server.state.counters.open_connections() == 0);
    wait_for("no handle of one is left", || server.state.connections.is_empty());
    wait_for("no generation is left", || server.state.gate.running() == 0);
    assert_eq!(get(server.address, "/health").status, 200);
}

fn with_body(path: &str, body: &[u8]) -> Vec<u8> {
    let head =
        format!("POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

#[test]
fn heads_that_trickle_are_cut_off_while_others_are_served() {
    let server = TestServer::start_within(spelling("x"), Limits { head: Duration::from_secs(2), ..test_limits() });
    let mut slow: Vec<TcpStream> = (0..50).map(|_| connect(server.address)).collect();
    for byte in b"GET /health HTTP/1.1\r\nhost: x\r\nx-slow: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" {
        for stream in &mut slow {
            let _ = stream.write_all(&[*byte]);
        }
        assert_eq!(get(server.address, "/health").status, 200, "others are served");
        std::thread::sleep(Duration::from_millis(10));
    }
    for stream in &mut slow {
        let answer = rest(stream);
        assert!(answer.is_empty() || statuses(&answer) == [408], "{answer}");
    }
    assert_as_before(&server);
}

#[test]
fn bodies_that_stop_or_trickle_are_given_up() {
    let server = TestServer::start_within(spelling("x"), Limits { body: Duration::from_millis(300), ..test_limits() });
    let head = |path: &str| format!("POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 5000\r\n\r\n{{\"prompt\"");
    let mut stopped: Vec<TcpStream> = READERS.iter().map(|_| connect(server.address)).collect();
    for (stream, path) in stopped.iter_mut().zip(READERS) {
        stream.write_all(head(path).as_bytes()).unwrap();
    }
    let mut trickling = connect(server.address);
    trickling.write_all(head("/v1/completions").as_bytes()).unwrap();
    for _ in 0..60 {
        let _ = trickling.write_all(b" ");
        std::thread::sleep(Duration::from_millis(10));
    }
    for (stream, path) in stopped.iter_mut().zip(READERS).chain([(&mut trickling, "/v1/completions")]) {
        let answer = rest(stream);
        assert!(answer.is_empty() || statuses(&answer)[0] == 408, "{path}: {answer}");
        assert!(answer.is_empty() || answer.contains("bytes of the body"), "{path}: {answer}");
    }
    let mut chunked = connect(server.address);
    chunked.write_all(b"POST /tokenize HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n5\r\n{\"con").unwrap();
    assert_eq!(statuses(&rest(&mut chunked))[0], 408);
    // A body that nobody reads isn't read for ever, either.
    let mut unread = connect(server.address);
    unread.write_all(b"POST /nowhere HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n5\r\n{\"con").unwrap();
    assert_eq!(statuses(&rest(&mut unread))[0], 404);
    assert_as_before(&server);
}

#[test]
fn heads_that_are_too_large_or_broken_are_refused() {
    let server = TestServer::start(spelling("x"));
    let many = "x-y: z\r\n".repeat(200);
    let long_value = format!("x-long: {}\r\n", "a".repeat(300_000));
    let long_path = "a".repeat(300_000);
    for (what, bytes, expected) in [
        ("a long header", format!("GET /health HTTP/1.1\r\nhost: x\r\n{long_value}\r\n").into_bytes(), &[431][..]),
        ("many headers", format!("GET /health HTTP/1.1\r\nhost: x\r\n{many}\r\n").into_bytes(), &[400, 431]),
        ("a long path", format!("GET /{long_path} HTTP/1.1\r\nhost: x\r\n\r\n").into_bytes(), &[400, 414, 431]),
        ("no host", b"GET /health HTTP/1.1\r\n\r\n".to_vec(), &[400]),
        ("two hosts", b"GET /health HTTP/1.1\r\nhost: x\r\nhost: y\r\n\r\n".to_vec(), &[400]),
        ("no version", b"GET /health\r\n\r\n".to_vec(), &[400]),
        ("another version", b"GET /health HTTP/9.9\r\nhost: x\r\n\r\n".to_vec(), &[400]),
        ("no HTTP", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n".to_vec(), &[400]),
        ("NUL in the path", b"GET /he\x00alth HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(), &[400]),
        ("NUL in a header", b"GET /health HTTP/1.1\r\nhost: x\r\nx-y: a\x00b\r\n\r\n".to_vec(), &[400]),
        ("a header without a name", b"GET /health HTTP/1.1\r\nhost: x\r\n: y\r\n\r\n".to_vec(), &[400]),
        ("a folded header", b"GET /health HTTP/1.1\r\nhost: x\r\nx-y: a\r\n b\r\n\r\n".to_vec(), &[400]),
        (
            "bytes in the path",
            b"GET /v1/models/\xff\xfe HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".to_vec(),
            &[400, 404],
        ),
        (
            "escapes in the path",
            b"GET /v1/models/%ff%00%zz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".to_vec(),
            &[400, 404],
        ),
        (
            "bytes in a header",
            b"GET /health HTTP/1.1\r\nhost: x\r\nx-y: \xff\xfe\r\nconnection: close\r\n\r\n".to_vec(),
            &[200, 400],
        ),
    ] {
        let answer = exchange(server.address, &bytes);
        // A reset can swallow the answer to what was sent beyond it.
        assert!(answer.is_empty() || expected.contains(&statuses(&answer)[0]), "{what}: {answer:?}");
        assert!(!answer.is_empty() || bytes.len() > 100_000, "{what} has no answer");
    }
    assert_as_before(&server);
}

#[test]
fn framing_that_two_servers_could_read_differently_is_refused() {
    let server = TestServer::start(spelling("x"));
    let body = r#"{"content": "hi"}"#;
    let hidden = "GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n";
    for (what, headers, body) in [
        ("both lengths", "content-length: 5\r\ntransfer-encoding: chunked\r\n", format!("0\r\n\r\n{hidden}")),
        ("two lengths", "content-length: 17\r\ncontent-length: 5\r\n", format!("{body}{hidden}")),
        ("a list of lengths", "content-length: 17, 17\r\n", body.to_owned()),
        ("a negative length", "content-length: -1\r\n", body.to_owned()),
        ("a signed length", "content-length: +17\r\n", body.to_owned()),
        ("a length beyond all", "content-length: 99999999999999999999999\r\n", body.to_owned()),
        ("a length in hex", "content-length: 0x11\r\n", body.to_owned()),
        (
            "two encodings",
            "transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n",
            format!("0\r\n\r\n{hidden}"),
        ),
        ("another encoding", "transfer-encoding: gzip, chunked\r\n", format!("0\r\n\r\n{hidden}")),
        ("a hidden encoding", "transfer-encoding: xchunked\r\n", format!("0\r\n\r\n{hidden}")),
        ("a space before the colon", "content-length : 17\r\n", format!("{body}{hidden}")),
        ("a chunk without a size", "transfer-encoding: chunked\r\n", "zz\r\nabc\r\n0\r\n\r\n".to_owned()),
        ("a negative chunk", "transfer-encoding: chunked\r\n", "-5\r\nabc\r\n0\r\n\r\n".to_owned()),
        ("a chunk beyond all", "transfer-encoding: chunked\r\n", "fffffffffffffffff\r\nabc\r\n0\r\n\r\n".to_owned()),
        (
            "a chunk that is longer than its size",
            "transfer-encoding: chunked\r\n",
            "2\r\nabcdef\r\n0\r\n\r\n".to_owned(),
        ),
    ] {
        let request = format!("POST /tokenize HTTP/1.1\r\nhost: x\r\n{headers}\r\n{body}");
        let mut stream = connect(server.address);
        stream.write_all(request.as_bytes()).unwrap();
        let answer = rest(&mut stream);
        let statuses = statuses(&answer);
        assert!(!statuses.is_empty() && statuses.iter().all(|status| *status == 400), "{what}: {answer}");
        assert!(!answer.contains("\"object\":\"list\""), "{what}: the hidden request was answered");
    }
    assert_as_before(&server);
}

#[test]
fn requests_in_a_row_are_answered_in_their_order() {
    let server = TestServer::start(spelling("x"));
    let mut all = Vec::new();
    for number in 1..=10 {
        let body = json!({"content": "x".repeat(number)}).to_string();
        let close = if number == 10 { "connection: close\r\n" } else { "" };
        let head = format!("POST /tokenize HTTP/1.1\r\nhost: x\r\n{close}content-length: {}\r\n\r\n", body.len());
        all.extend([head.as_bytes(), body.as_bytes()].concat());
    }
    let answer = exchange(server.address, &all);
    assert_eq!(statuses(&answer), [200; 10]);
    let counts: Vec<usize> =
        answer.split("\"count\":").skip(1).map(|rest| rest[..rest.find(',').unwrap()].parse().unwrap()).collect();
    assert_eq!(counts, (1..=10).collect::<Vec<_>>());
    // A chunked body that was read leaves its connection usable.
    let chunked = "POST /tokenize HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n\
                   8\r\n{\"conten\r\n9\r\nt\": \"hi\"}\r\n0\r\n\r\n";
    let answer = exchange(server.address, format!("{chunked}{chunked}GET /health HTTP/1.0\r\n\r\n").as_bytes());
    assert_eq!((answer.matches("\"count\":2").count(), answer.matches(" 200 OK").count()), (2, 3), "{answer}");
    let gets = "GET /health HTTP/1.1\r\nhost: x\r\n\r\n".repeat(99);
    let answer = exchange(server.address, format!("{gets}GET /health HTTP/1.0\r\n\r\n").as_bytes());
    assert_eq!(answer.matches(" 200 OK").count(), 100, "{answer}");
    assert_as_before(&server);
}

#[test]
fn bodies_that_are_too_large_are_refused_at_once() {
    let server = TestServer::start(spelling("x"));
    for path in READERS {
        // Only announced: the answer comes before the body.
        let mut stream = connect(server.address);
        let head = format!("POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 104857600\r\n\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        let answer = rest(&mut stream);
        assert_eq!(statuses(&answer), [413], "{path}: {answer}");
    }
    // In pieces, without an announcement and without an end: the connection is closed, whatever still comes.
    let mut stream = connect(server.address);
    stream.write_all(b"POST /tokenize HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n").unwrap();
    let chunk = format!("1000\r\n{}\r\n", " ".repeat(0x1000));
    let start = Instant::now();
    while stream.write_all(chunk.as_bytes()).is_ok() {
        assert!(start.elapsed() < Duration::from_secs(20), "an endless body is still read");
    }
    let answer = rest(&mut stream);
    assert!(answer.is_empty() || statuses(&answer)[0] == 413, "{answer}");
    assert_as_before(&server);
}

#[test]
fn bodies_that_stop_before_their_end_have_a_bounded_share_of_the_memory() {
    let server = TestServer::start_within(spelling("x"), Limits { all_bodies_bytes: 25_000, ..test_limits() });
    let body = [b"{\"content\": \"", " ".repeat(9_000).as_bytes(), b"\"}"].concat();
    let ask = || exchange(server.address, &with_body("/tokenize", &body));
    assert_eq!(statuses(&ask()), [200]);
    // Two that send nearly all of theirs.
    let mut slow: Vec<TcpStream> = (0..2).map(|_| connect(server.address)).collect();
    for stream in &mut slow {
        let whole = with_body("/tokenize", &body);
        stream.write_all(&whole[..whole.len() - 10]).unwrap();
    }
    let mut refused = String::new();
    let start = Instant::now();
    while statuses(&refused) != [503] {
        assert!(start.elapsed() < Duration::from_secs(20), "{refused}");
        refused = ask();
    }
    assert!(refused.contains("too_many_bodies") && refused.contains("retry-after: 1"), "{refused}");
    // They finish, and there is room again.
    for stream in &mut slow {
        stream.write_all(&body[body.len() - 10..]).unwrap();
        let mut head = [0; 12];
        stream.read_exact(&mut head).unwrap();
        assert_eq!(&head, b"HTTP/1.1 200");
    }
    assert_eq!(statuses(&ask()), [200]);
}

#[test]
fn json_that_is_no_request_is_a_400() {
    let server = TestServer::start_within(spelling("x"), Limits { max_body_bytes: 1 << 20, ..test_limits() });
    let deep = [b"[".repeat(100_000), br#"{"messages":"#.repeat(50_000), br#"{"a":["#.repeat(50_000)];
    let inside = [&b"{\"messages\": "[..], &b"[".repeat(100_000), &b"]".repeat(100_000), b"}"].concat();
    let broken: [&[u8]; 9] = [
        &deep[0],
        &deep[1],
        &deep[2],
        &inside,
        b"",
        b"\xff\xfe\x00",
        b"{\"prompt\": \"\xff\"}",
        br#"{"prompt": "\ud800"}"#,
        b"{\"prompt\": \"a\x00b\"}",
    ];
    for path in READERS {
        for body in broken {
            let answer = exchange(server.address, &with_body(path, body));
            let shown = String::from_utf8_lossy(&body[..body.len().min(40)]);
            assert_eq!(statuses(&answer), [400], "{path} {shown}: {answer}");
            assert!(answer.contains("\"error\""), "{path} {shown}: {answer}");
        }
    }
    assert_as_before(&server);
}

#[test]
fn numbers_and_keys_beyond_reason_are_no_failure_of_the_server() {
    let server = TestServer::start(spelling("x"));
    for body in [
        r#"{"prompt": "x", "max_tokens": 99999999999999999999999}"#,
        r#"{"prompt": "x", "max_tokens": 1e308}"#,
        r#"{"prompt": "x", "max_tokens": -9223372036854775809}"#,
        r#"{"prompt": "x", "temperature": 1e39}"#,
        r#"{"prompt": "x", "temperature": -0.0000001}"#,
        r#"{"prompt": "x", "seed": 1e400}"#,
        r#"{"prompt": "x", "seed": 18446744073709551616}"#,
        r#"{"prompt": "x", "top_k": 1e19}"#,
        r#"{"prompt": "x", "n": 4294967296}"#,
        r#"{"prompt": "x", "logit_bias": {"18446744073709551616": 1}}"#,
        r#"{"prompt": [4294967295]}"#,
        r#"{"prompt": [1e10]}"#,
        r#"{"prompt": "x", "deadline_ms": 1e99}"#,
    ] {
        let answer = exchange(server.address, &with_body("/v1/completions", body.as_bytes()));
        assert_eq!(statuses(&answer), [400], "{body}: {answer}");
    }
    // JSON lets a key come twice; the last one counts, here as in most parsers.
    let twice = r#"{"prompt": "x", "max_tokens": 0, "max_tokens": 1}"#;
    let answer = exchange(server.address, &with_body("/v1/completions", twice.as_bytes()));
    assert_eq!(statuses(&answer), [200], "{answer}");
    let zero = json!({"content": "a\u{0}b"});
    assert_eq!(post(server.address, "/tokenize", &zero).json()["tokens"], json!([97, 0, 98]));
    assert_as_before(&server);
}

#[test]
fn a_client_that_closes_its_side_is_gone() {
    let server = TestServer::start(endless());
    let body = json!({"model": MODEL, "prompt": "x", "stream": true}).to_string();
    let mut stream = connect(server.address);
    stream.write_all(&with_body("/v1/completions", body.as_bytes())).unwrap();
    wait_for("it runs", || server.state.models.ready(MODEL).is_some() && server.stats().running == 1);
    stream.shutdown(Shutdown::Write).unwrap();
    rest(&mut stream);
    wait_for("it is cancelled", || server.stats().cancelled == 1);
    for part in [
        "",
        "GET /hea",
        "GET /health HTTP/1.1\r\nhost: x\r\n",
        "POST /tokenize HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{",
    ] {
        let mut stream = connect(server.address);
        stream.write_all(part.as_bytes()).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let answer = rest(&mut stream);
        assert!(answer.is_empty() || statuses(&answer) == [400] || statuses(&answer) == [408], "{part}: {answer}");
    }
    assert_as_before(&server);
}

#[test]
fn a_crowd_of_idle_connections_keeps_nobody_out() {
    let server = TestServer::start(spelling("fine"));
    let mut idle: Vec<TcpStream> = (0..300).map(|_| connect(server.address)).collect();
    for (number, stream) in idle.iter_mut().enumerate() {
        // Some say nothing, some begin, some have asked and stay.
        let said: &[u8] = match number % 3 {
            0 => b"",
            1 => b"POST /v1/chat/comp",
            _ => b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n",
        };
        stream.write_all(said).unwrap();
    }
    wait_for("all are connected", || server.state.counters.open_connections() >= 300);
    let answer = post(server.address, "/v1/completions", &json!({"prompt": "x"})).json();
    assert_eq!(answer["choices"][0]["text"], "fine");
    drop(idle);
    assert_as_before(&server);
}

#[test]
fn methods_and_paths_that_are_not_there_say_so() {
    let server = TestServer::start(spelling("x"));
    for (method, path, status) in [
        ("PATCH", "/health", 405),
        ("GET", "/v1/chat/completions", 405),
        ("DELETE", "/v1/models", 405),
        ("GET", "/nowhere", 404),
        ("GET", "/v1/../health", 404),
        ("BREW", "/health", 405),
    ] {
        let reply = open(server.address, method, path, b"").finish();
        assert_eq!(reply.status, status, "{method} {path}");
        assert!(reply.json()["error"]["message"].is_string(), "{method} {path}");
    }
    assert_as_before(&server);
}

/// Asks once, begins to ask again with `half`, and waits for the end of the connection; what came after the first answer.
pub(super) fn stop_in_a_second_head(stream: &mut (impl Read + Write), half: &str) -> String {
    stream.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"}") {
        let mut piece = [0; 4096];
        let length = stream.read(&mut piece).unwrap();
        assert!(length > 0, "{half:?}: {:?}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(&piece[..length]);
    }
    stream.write_all(half.as_bytes()).unwrap();
    rest(stream)
}

#[test]
fn a_second_head_that_stops_does_not_hold_its_connection() {
    let second = Duration::from_secs(1);
    let limits = Limits { keep_alive: second, head: second, ..test_limits() };
    let server = TestServer::start_within(spelling("x"), limits);
    for half in ["G", "GET /health HTTP/1.1\r\nhost: x\r\nx-slow: aaa", "POST /tokenize HTTP/1.1\r\n"] {
        let answer = stop_in_a_second_head(&mut connect(server.address), half);
        assert!(answer.is_empty() || statuses(&answer) == [408], "{half:?}: {answer}");
    }
    // Nor does one that trickles, whose bytes keep coming.
    let mut stream = connect(server.address);
    stream.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let start = Instant::now();
    while stream.write_all(b"G").is_ok() {
        assert!(start.elapsed() < Duration::from_secs(20), "a head that trickles is still read");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_as_before(&server);
}
