//! Bodies of a hundred megabytes, several at once, announced or in chunks: each is refused as early as can be, and none of
//! them is kept.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::binary::Server;
use crate::gauges::Gauges;

const BODY: usize = 100_000_000;
/// What the server takes, as it is started here.
const MAX_BODY: usize = 1 << 20;
const PIECE: usize = 64 << 10;
/// Of each kind at once, and how often.
const CLIENTS: usize = 8;
const ROUNDS: usize = 3;
/// What may come on top while they are sent: each chunked body up to the limit, in a buffer that doubles and is copied, and
/// what was read of each connection. A single body that is kept would be three times as much.
const MOST_DURING: u64 = (CLIENTS * 3 * MAX_BODY + (8 << 20)) as u64;
/// And what may stay.
const MOST_AFTER: u64 = 8 << 20;

#[derive(Debug, Clone, Copy)]
enum Manner {
    /// With its length.
    Announced,
    /// In chunks.
    Chunked,
}

impl Manner {
    fn head(self) -> String {
        let length = match self {
            Self::Announced => format!("content-length: {BODY}"),
            Self::Chunked => "transfer-encoding: chunked".to_owned(),
        };
        format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n{length}\r\n\r\n"
        )
    }

    /// A piece of a body.
    fn piece(self) -> Vec<u8> {
        let spaces = vec![b' '; PIECE];
        match self {
            Self::Announced => spaces,
            Self::Chunked => [format!("{PIECE:x}\r\n").as_bytes(), &spaces, b"\r\n"].concat(),
        }
    }
}

fn connect(server: &Server) -> TcpStream {
    let stream = TcpStream::connect(server.url.strip_prefix("http://").unwrap()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream
}

/// What the server says, up to where it closes or cuts the connection.
fn answer(stream: &mut TcpStream) -> String {
    let (mut answer, mut piece) = (Vec::new(), [0; 4096]);
    while let Ok(length @ 1..) = stream.read(&mut piece) {
        answer.extend_from_slice(&piece[..length]);
    }
    String::from_utf8(answer).unwrap()
}

fn assert_refused(answer: &str, what: &str) {
    assert!(answer.starts_with("HTTP/1.1 413 ") && answer.contains("request_too_large"), "{what}: {answer:?}");
}

/// Sends all of a body, unless the server has had enough of it.
fn flood(server: &Server, manner: Manner) {
    let mut stream = connect(server);
    stream.write_all(manner.head().as_bytes()).unwrap();
    let piece = manner.piece();
    for _ in 0..BODY / PIECE {
        if stream.write_all(&piece).is_err() {
            break;
        }
    }
    // A connection that is cut may take the answer with it: the server has counted it.
    let answer = answer(&mut stream);
    if !answer.is_empty() {
        assert_refused(&answer, "a flood");
    }
}

#[test]
fn bodies_of_a_hundred_megabytes_are_refused_early_and_leave_memory_flat() {
    let Some(model) = crate::model() else { return };
    let server = Server::start_with(&model, &["--max-body", "1MiB", "--threads", "1", "--kv-tokens", "4096"]);
    // An announced one is refused before any of it has come, a chunked one when it is too large.
    let mut announced = connect(&server);
    announced.write_all(Manner::Announced.head().as_bytes()).unwrap();
    assert_refused(&answer(&mut announced), "nothing was sent");
    let mut chunked = connect(&server);
    chunked.write_all(Manner::Chunked.head().as_bytes()).unwrap();
    for _ in 0..=MAX_BODY / PIECE {
        chunked.write_all(&Manner::Chunked.piece()).unwrap();
    }
    assert_refused(&answer(&mut chunked), "as much as is too much was sent");

    let wave = || {
        let (mut most, left) = (0, AtomicUsize::new(2 * CLIENTS));
        std::thread::scope(|scope| {
            let clients: Vec<_> = (0..2 * CLIENTS)
                .map(|index| {
                    let manner = if index % 2 == 0 { Manner::Announced } else { Manner::Chunked };
                    let (server, left) = (&server, &left);
                    scope.spawn(move || {
                        (0..ROUNDS).for_each(|_| flood(server, manner));
                        left.fetch_sub(1, Ordering::SeqCst);
                    })
                })
                .collect();
            let mut looks = 0;
            // One that has failed doesn't count down.
            while left.load(Ordering::SeqCst) > 0 && !clients.iter().all(|client| client.is_finished()) {
                most = Gauges::read(&server.url).resident_bytes.max(most);
                looks += 1;
            }
            assert!(looks > 3, "{looks} looks at its memory");
        });
        most
    };
    // Threads and buffers that the server keeps come with the first wave.
    wave();
    let before = Gauges::at_rest(&server.url);
    let most = wave();
    let after = Gauges::at_rest(&server.url);
    let growth = |bytes: u64| bytes.saturating_sub(before.resident_bytes);
    println!(
        "resident {}; up to {} more during, {} after",
        before.resident_bytes,
        growth(most),
        growth(after.resident_bytes)
    );
    assert!(growth(most) <= MOST_DURING, "{most} bytes during the wave: {before:?}");
    assert!(growth(after.resident_bytes) <= MOST_AFTER && after.files <= before.files, "{before:?} {after:?}");
    let metrics = ureq::get(format!("{}/metrics", server.url)).call().unwrap().body_mut().read_to_string().unwrap();
    let refusals =
        metrics.lines().find(|line| line.starts_with("shimmy_http_responses_total") && line.contains("\"413\""));
    let count: usize = refusals.unwrap_or(&metrics).rsplit_once(' ').unwrap().1.parse().unwrap();
    assert_eq!(count, 2 + 2 * 2 * CLIENTS * ROUNDS, "{refusals:?}");
    assert_eq!(server.terminate(), Some(0));
}
