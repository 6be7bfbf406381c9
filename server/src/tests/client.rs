//! An HTTP client that tells everything: status, headers, body; and one that can vanish.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

/// A response with a whole body.
pub(super) struct Reply {
    pub(super) status: u16,
    head: String,
    pub(super) body: String,
}

impl Reply {
    /// A header's value.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    pub(super) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    /// The payloads of an event stream.
    pub(super) fn events(&self) -> Vec<&str> {
        let frames: Vec<&str> = self.body.split_terminator("\n\n").collect();
        assert!(self.body.ends_with("\n\n"), "{:?}", self.body);
        frames
            .into_iter()
            .map(|frame| {
                assert!(!frame.contains('\n'), "{frame:?}");
                frame.strip_prefix("data: ").unwrap_or_else(|| panic!("{frame:?}"))
            })
            .collect()
    }
}

/// An open connection with a response that is still coming.
pub(super) struct Open<R = TcpStream> {
    reader: BufReader<R>,
    status: u16,
    head: String,
}

/// Sends these lines, reads the answer to its end.
pub(super) fn exchange(mut stream: impl Read + Write, head: &[&str], body: &str) -> Reply {
    let head = head.join("\r\n");
    let length = body.len();
    write!(stream, "{head}\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}").unwrap();
    read_reply(BufReader::new(stream))
}

fn read_reply<R: Read>(mut reader: BufReader<R>) -> Reply {
    let head = read_head(&mut reader);
    Open { status: status(&head), reader, head }.finish()
}

fn read_head(reader: &mut impl BufRead) -> String {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert!(reader.read_line(&mut head).unwrap() > 0, "closed after {head:?}");
    }
    head
}

fn status(head: &str) -> u16 {
    head.split(' ').nth(1).unwrap().parse().unwrap()
}

/// Sends a request and reads the response's head.
pub(super) fn open(address: SocketAddr, method: &str, path: &str, body: &[u8]) -> Open {
    open_with(address, method, path, "", body)
}

/// The same with further header lines, each with its line break.
pub(super) fn open_with(address: SocketAddr, method: &str, path: &str, headers: &str, body: &[u8]) -> Open {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    send_with(&mut stream, method, path, headers, body);
    let mut reader = BufReader::new(stream);
    let head = read_head(&mut reader);
    Open { reader, status: status(&head), head }
}

/// Sends a request and reads nothing.
pub(super) fn send(stream: &mut TcpStream, method: &str, path: &str, body: &[u8]) {
    send_with(stream, method, path, "", body);
}

fn send_with(stream: &mut TcpStream, method: &str, path: &str, headers: &str, body: &[u8]) {
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}content-length: {length}\r\n\r\n"
    );
    // The server may refuse a large body before it is sent.
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
}

impl<R: Read> Open<R> {
    /// The next chunk of a chunked body; `None` at its end.
    pub(super) fn chunk(&mut self) -> Option<Vec<u8>> {
        let mut size = String::new();
        self.reader.read_line(&mut size).unwrap();
        let size = usize::from_str_radix(size.trim(), 16).unwrap_or_else(|_| panic!("chunk size {size:?}"));
        let mut chunk = vec![0; size + 2];
        self.reader.read_exact(&mut chunk).unwrap();
        chunk.truncate(size);
        (size > 0).then_some(chunk)
    }

    /// Of the answer to `HEAD`, which has no body: the status, and how long the body would be.
    pub(super) fn finish_head(self) -> (u16, Option<usize>) {
        let Open { mut reader, status, head } = self;
        let mut body = Vec::new();
        reader.read_to_end(&mut body).unwrap();
        assert!(body.is_empty(), "{body:?}");
        let reply = Reply { status, head, body: String::new() };
        (status, reply.header("content-length").map(|length| length.parse().unwrap()))
    }

    /// Reads to the end. Each chunk must be UTF-8 by itself: no character is split.
    pub(super) fn finish(mut self) -> Reply {
        let mut body = String::new();
        if self.head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
            while let Some(chunk) = self.chunk() {
                body.push_str(std::str::from_utf8(&chunk).unwrap());
            }
        } else {
            self.reader.read_to_string(&mut body).unwrap();
        }
        Reply { status: self.status, head: self.head, body }
    }
}

pub(super) fn get(address: SocketAddr, path: &str) -> Reply {
    open(address, "GET", path, b"").finish()
}

pub(super) fn post(address: SocketAddr, path: &str, body: &Value) -> Reply {
    open(address, "POST", path, body.to_string().as_bytes()).finish()
}
