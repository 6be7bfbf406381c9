//! A WebSocket client (RFC 6455) that can also do what no good client does.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

pub(super) const TEXT: u8 = 0x1;
pub(super) const BINARY: u8 = 0x2;
pub(super) const CLOSE: u8 = 0x8;
pub(super) const PING: u8 = 0x9;
pub(super) const PONG: u8 = 0xa;
/// This is the last frame of its message.
pub(super) const FIN: u8 = 0x80;

const MASK: [u8; 4] = [0x12, 0x34, 0x56, 0x78];

/// An open socket.
pub(super) struct Socket {
    reader: BufReader<TcpStream>,
    /// Whether pings are answered.
    pub(super) answers_pings: bool,
}

/// A frame that came.
#[derive(Debug, PartialEq)]
pub(super) struct Frame {
    pub(super) opcode: u8,
    pub(super) payload: Vec<u8>,
}

impl Socket {
    pub(super) fn connect(address: SocketAddr) -> Self {
        Self::over(TcpStream::connect(address).unwrap())
    }

    /// Shakes hands on a connection.
    pub(super) fn over(stream: TcpStream) -> Self {
        Self::over_with(stream, "").0
    }

    /// The same with further header lines, each with its line break; also gives the head of the answer.
    pub(super) fn over_with(mut stream: TcpStream, headers: &str) -> (Self, String) {
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        // Key and answer are those of RFC 6455, 1.3.
        let request = format!(
            "GET /ws/generate HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: Upgrade\r\n\
             sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n{headers}\r\n"
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut reader = BufReader::new(stream);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert!(reader.read_line(&mut head).unwrap() > 0, "closed after {head:?}");
        }
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        assert!(head.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{head}");
        (Self { reader, answers_pings: true }, head)
    }

    /// Sends bytes as they are. The peer may have closed already.
    pub(super) fn raw(&mut self, bytes: &[u8]) {
        let _ = self.reader.get_mut().write_all(bytes);
    }

    /// Sends a masked frame; `first` is its opcode and flags.
    pub(super) fn frame(&mut self, first: u8, payload: &[u8]) {
        let mut frame = header(first, payload.len() as u64);
        frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        self.raw(&frame);
    }

    pub(super) fn send(&mut self, message: &Value) {
        self.frame(FIN | TEXT, message.to_string().as_bytes());
    }

    /// The next frame, pings included; `None` at the end of the connection.
    pub(super) fn next(&mut self) -> Option<Frame> {
        let mut head = [0; 2];
        // A reset is an end, too.
        self.reader.read_exact(&mut head).ok()?;
        assert_eq!(head[0] & 0x70, 0, "no extension was agreed on");
        assert_eq!(head[1] & 0x80, 0, "a server doesn't mask");
        let length = match head[1] {
            126 => {
                let mut length = [0; 2];
                self.reader.read_exact(&mut length).ok()?;
                usize::from(u16::from_be_bytes(length))
            }
            127 => {
                let mut length = [0; 8];
                self.reader.read_exact(&mut length).ok()?;
                usize::try_from(u64::from_be_bytes(length)).unwrap()
            }
            length => usize::from(length),
        };
        let mut payload = vec![0; length];
        self.reader.read_exact(&mut payload).ok()?;
        assert_eq!(head[0] & FIN, FIN, "the server doesn't cut its messages");
        let frame = Frame { opcode: head[0] & 0x0f, payload };
        if frame.opcode == PING && self.answers_pings {
            self.frame(FIN | PONG, &frame.payload.clone());
        }
        Some(frame)
    }

    /// The next message.
    pub(super) fn message(&mut self) -> Value {
        loop {
            let frame = self.next().expect("a message, not the end");
            match frame.opcode {
                TEXT => return serde_json::from_slice(&frame.payload).unwrap(),
                PING | PONG => {}
                _ => panic!("{:?}", String::from_utf8_lossy(&frame.payload)),
            }
        }
    }

    /// Messages up to one that ends a request.
    pub(super) fn answer(&mut self) -> Vec<Value> {
        let mut messages = Vec::new();
        loop {
            messages.push(self.message());
            let last = messages.last().unwrap();
            if last["done"] == true || last.get("error").is_some() {
                return messages;
            }
        }
    }

    /// Reads to the end; gives the code of the close frame.
    pub(super) fn close_code(&mut self) -> u16 {
        loop {
            let frame = self.next().expect("a close frame before the end");
            if frame.opcode == CLOSE {
                self.frame(FIN | CLOSE, &frame.payload.clone());
                assert_eq!(self.next(), None, "nothing comes after a close");
                return frame.payload.first_chunk().map_or(0, |code| u16::from_be_bytes(*code));
            }
        }
    }
}

/// The header of a masked frame.
pub(super) fn header(first: u8, length: u64) -> Vec<u8> {
    let mut header = vec![first];
    match length {
        0..126 => header.push(0x80 | length as u8),
        126..0x10000 => {
            header.push(0x80 | 126);
            header.extend((length as u16).to_be_bytes());
        }
        _ => {
            header.push(0x80 | 127);
            header.extend(length.to_be_bytes());
        }
    }
    header.extend(MASK);
    header
}

/// The text of token frames.
pub(super) fn text(messages: &[Value]) -> String {
    messages.iter().filter_map(|message| message["token"].as_str()).collect()
}
