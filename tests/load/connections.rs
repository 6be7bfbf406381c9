//! A thousand connections at once, of which most behave badly, leave nothing behind.

use std::net::SocketAddr;

use serde_json::json;
use shimmy_server::load::wire::Response;
use socket2::{Domain, Socket, Type};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{Barrier, watch};
use tokio::task::JoinSet;

use crate::binary::Server;
use crate::gauges::{Gauges, counter};

const CLOSED: usize = 500;
const STALLED: usize = 200;
const READ: usize = 300;
/// Tokens of an answer, of those who read it and of those who don't.
const TOKENS: usize = 40;
const STALLED_TOKENS: usize = 600;
/// Waves before memory is compared: they fill what allocators and pools keep for the next.
const WARM_UP: usize = 5;
/// Memory after a wave, over memory after the warm-up: growth within one of these is none. The process is a small one, and a
/// wave a thousand connections: 8 KiB each.
const MOST_GROWTH: f64 = 0.05;
const MOST_GROWTH_BYTES: u64 = 8 << 20;

/// What a client does once its answer has begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    Closes,
    Stalls,
    Reads,
}

/// A connection on which little is under way: small segments and a small window, so that a client that reads nothing
/// stops its server after some tens of kilobytes instead of megabytes.
async fn connect(address: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_tcp_mss(536).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.set_nonblocking(true).unwrap();
    TcpSocket::from_std_stream(socket.into()).connect(address).await.unwrap()
}

fn request(manner: Manner, number: usize) -> Vec<u8> {
    let (max_tokens, logprobs) = match manner {
        Manner::Stalls => (STALLED_TOKENS, Some(5)),
        Manner::Closes | Manner::Reads => (TOKENS, None),
    };
    let mut body = json!({
        "prompt": [3 + number % 500, 3 + number / 500, 7, 11], "max_tokens": max_tokens, "stream": true,
        "ignore_eos": true, "seed": number,
    });
    if let Some(logprobs) = logprobs {
        body["logprobs"] = logprobs.into();
    }
    let body = body.to_string();
    let head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close";
    format!("{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

/// One client; gives how its answer ended, if it read it.
async fn client(
    address: SocketAddr,
    manner: Manner,
    number: usize,
    all: &Barrier,
    mut over: watch::Receiver<bool>,
) -> Option<String> {
    let mut stream = connect(address).await;
    // All are connected before the first asks.
    all.wait().await;
    stream.write_all(&request(manner, number)).await.unwrap();
    let mut response = Response::read(stream).await.unwrap();
    assert_eq!(response.status, 200, "{manner:?}");
    let mut event = Vec::new();
    assert!(response.next_event(&mut event).await.unwrap(), "the answer begins");
    match manner {
        Manner::Closes => None,
        Manner::Stalls => {
            let _ = over.wait_for(|over| *over).await;
            None
        }
        Manner::Reads => {
            let mut last = String::new();
            while response.next_event(&mut event).await.unwrap() {
                last = String::from_utf8(event.clone()).unwrap();
            }
            Some(last)
        }
    }
}

/// All clients at once; those that stall leave when all that read have their answer.
async fn wave(url: &str) {
    let address: SocketAddr = url.strip_prefix("http://").unwrap().parse().unwrap();
    let all = std::sync::Arc::new(Barrier::new(CLOSED + STALLED + READ));
    let (end, over) = watch::channel(false);
    let mut readers = JoinSet::new();
    let mut others = JoinSet::new();
    for number in 0..CLOSED + STALLED + READ {
        // Mixed: every other one closes.
        let manner = match number % 10 {
            0 | 2 | 4 | 6 | 8 => Manner::Closes,
            1 | 5 => Manner::Stalls,
            _ => Manner::Reads,
        };
        let (all, over) = (std::sync::Arc::clone(&all), over.clone());
        let task = async move { client(address, manner, number, &all, over).await };
        if manner == Manner::Reads {
            readers.spawn(task)
        } else {
            others.spawn(task)
        };
    }
    let mut whole = 0;
    while let Some(ended) = readers.join_next().await {
        assert_eq!(ended.unwrap().as_deref(), Some("[DONE]"));
        whole += 1;
    }
    assert_eq!(whole, READ, "all that read their answer got it whole");
    end.send(true).unwrap();
    while let Some(ended) = others.join_next().await {
        ended.unwrap();
    }
}

#[test]
fn a_thousand_connections_leave_nothing_behind() {
    let Some(model) = crate::model() else { return };
    // A single client may have three quarters of the places. What the system gives when it is first touched is small enough for the
    // first wave to touch all of it: the pool, of which the prefix cache keeps every block, and the logits of a step.
    let limits =
        ["--queue", "1400", "--kv-tokens", "16384", "--step-budget", "64", "--stall-seconds", "1", "--threads", "2"];
    let server = Server::start_with(&model, &limits);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let wave = || {
        runtime.block_on(wave(&server.url));
        Gauges::at_rest(&server.url)
    };
    for _ in 1..WARM_UP {
        wave();
    }
    let before = wave();
    let after = [wave(), wave()];
    for gauges in after {
        assert!(gauges.files <= before.files, "{before:?} {after:?}");
        let growth = gauges.resident_bytes as f64 / before.resident_bytes as f64 - 1.0;
        println!("resident {} bytes, {:+.1}% of those after the warm-up", gauges.resident_bytes, growth * 100.0);
        let most = ((before.resident_bytes as f64 * (1.0 + MOST_GROWTH)) as u64)
            .max(before.resident_bytes + MOST_GROWTH_BYTES);
        assert!(gauges.resident_bytes <= most, "{before:?} {after:?}");
    }
    assert_eq!(counter(&server.url, "shimmy_requests_failed_total"), 0);
    assert_eq!(server.terminate(), Some(0));
}
