//! WebSocket frames that no good client sends: each ends its socket with the code of RFC 6455, and nothing else.

use serde_json::json;

use super::client::get;
use super::harness::{MAX_BODY, TestServer, endless, spelling, wait_for};
use super::websocket_client::{BINARY, CLOSE, FIN, PING, PONG, Socket, TEXT, header, text};

#[test]
fn each_violation_has_its_code() {
    let server = TestServer::start(spelling("fine"));
    let too_large = vec![b'x'; MAX_BODY + 1];
    let part = vec![b'x'; MAX_BODY / 2 + 1];
    let masked = |first, payload: &[u8]| {
        let mut bytes = header(first, payload.len() as u64);
        let mask = bytes[bytes.len() - 4..].to_vec();
        bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        bytes
    };
    for (what, bytes, code) in [
        ("binary", masked(FIN | BINARY, b"{}"), 1003),
        ("binary in parts", [masked(BINARY, b"{"), masked(FIN, b"}")].concat(), 1003),
        ("no UTF-8", masked(FIN | TEXT, b"\xff\xfe"), 1007),
        ("no UTF-8 in parts", [masked(TEXT, b"\xc3"), masked(FIN, b"x")].concat(), 1007),
        ("too large", masked(FIN | TEXT, &too_large), 1009),
        ("too large in parts", [masked(TEXT, &part), masked(FIN, &part)].concat(), 1009),
        ("announced too large", header(FIN | TEXT, 1 << 40), 1009),
        ("announced beyond all", header(FIN | TEXT, u64::MAX), 1009),
        ("a large ping", masked(FIN | PING, &[0; 126]), 1002),
        ("a ping in parts", masked(PING, b"x"), 1002),
        ("unmasked", vec![FIN | TEXT, 2, b'{', b'}'], 1002),
        ("reserved bits", masked(FIN | TEXT | 0x40, b"{}"), 1002),
        ("an unknown opcode", masked(FIN | 0x3, b"{}"), 1002),
        ("a part of nothing", masked(FIN, b"{}"), 1002),
        ("a message in a message", [masked(TEXT, b"{"), masked(TEXT, b"{")].concat(), 1002),
        ("a close of one byte", masked(FIN | CLOSE, b"x"), 1002),
    ] {
        let mut socket = Socket::connect(server.address);
        socket.raw(&bytes);
        assert_eq!(socket.close_code(), code, "{what}");
    }
    wait_for("all are closed", || server.state.counters.open_connections() == 0);
    assert_eq!(get(server.address, "/health").status, 200);
}

#[test]
fn messages_may_come_in_parts_and_bytes() {
    let server = TestServer::start(spelling("fine"));
    let mut socket = Socket::connect(server.address);
    socket.frame(TEXT, b"{\"pro");
    socket.frame(FIN | PING, b"p");
    socket.frame(0, b"");
    socket.frame(0, b"mpt\": \"gr\xc3");
    socket.frame(FIN, b"\xbc\xc3\x9f\"}");
    assert_eq!(text(&socket.answer()), "fine");
    let message = json!({"prompt": "x"}).to_string();
    let mut bytes = header(FIN | TEXT, message.len() as u64);
    let mask = bytes[bytes.len() - 4..].to_vec();
    bytes.extend(message.bytes().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    for byte in bytes {
        socket.raw(&[byte]);
    }
    assert_eq!(text(&socket.answer()), "fine");
}

#[test]
fn a_flood_of_pings_doesnt_starve_an_answer_or_others() {
    let server = TestServer::start(endless());
    let mut socket = Socket::connect(server.address);
    socket.send(&json!({"prompt": "x", "max_tokens": 50}));
    let ping = header(FIN | PING, 0).repeat(5_000);
    socket.raw(&ping);
    assert_eq!(get(server.address, "/health").status, 200);
    let (mut letters, mut pongs) = (0, 0);
    while letters < 50 || pongs < 5_000 {
        let frame = socket.next().unwrap();
        match frame.opcode {
            PONG => pongs += 1,
            _ => letters += text(&[serde_json::from_slice(&frame.payload).unwrap()]).len(),
        }
    }
    assert_eq!(socket.message()["done"], true);
}
