//! Where the collector is, and a POST to it.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

/// For each of connecting, sending and hearing.
const PATIENCE: Duration = Duration::from_secs(5);
/// Of an answer.
const MAX_ANSWER: u64 = 8 << 10;
/// Where a collector takes traces.
const TRACES: &str = "/v1/traces";

/// A collector that takes OTLP over HTTP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// As `Host` has it.
    authority: String,
    host: String,
    port: u16,
    path: String,
    /// Further ones, with their values.
    headers: Vec<(String, String)>,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}{}", self.authority, self.path)
    }
}

/// What came of a POST.
#[derive(Debug, PartialEq, Eq)]
pub enum Posted {
    /// It was taken.
    Taken,
    /// Not now; it is worth trying again.
    Busy(u16),
    /// It never will be.
    Refused(u16),
}

impl Endpoint {
    /// From the URL of a collector, such as `http://localhost:4318`, and headers as `OTEL_EXPORTER_OTLP_HEADERS` has them:
    /// `name=value,name=value`.
    ///
    /// # Errors
    /// What is wrong with them, and what to write instead.
    pub fn parse(url: &str, headers: &str) -> Result<Self, String> {
        let example = "write something like http://localhost:4318";
        let rest = match url.split_once("://") {
            Some(("http", rest)) => rest,
            Some(("https", _)) => {
                let instead = "run a collector here that forwards the traces, and name its http:// address";
                return Err(format!("{url}: traces are sent by plain HTTP only; {instead}"));
            }
            _ => return Err(format!("{url} is no http:// address; {example}")),
        };
        let (authority, path) = rest.find('/').map_or((rest, ""), |slash| rest.split_at(slash));
        let is_odd = |byte: u8| byte <= b' ' || byte >= 127 || b"?#@\"<>\\".contains(&byte);
        if authority.is_empty() || rest.bytes().any(is_odd) {
            return Err(format!("{url} has no host, or more than host, port and path; {example}"));
        }
        let (host, port) = match authority.rsplit_once(':').filter(|(_, port)| !port.ends_with(']')) {
            None => (authority, 80),
            Some((host, port)) => {
                (host, port.parse().map_err(|_| format!("{url}: the port must be a number up to 65535; {example}"))?)
            }
        };
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let path = path.trim_end_matches('/');
        let path = if path.ends_with(TRACES) { path.to_owned() } else { format!("{path}{TRACES}") };
        let headers = parse_headers(headers)?;
        Ok(Self { authority: authority.to_owned(), host: host.to_owned(), port, path, headers })
    }

    /// Sends JSON and hears what comes of it.
    ///
    /// # Errors
    /// When the collector can't be reached or says nothing that is HTTP.
    pub fn post(&self, body: &[u8]) -> io::Result<Posted> {
        let mut stream = self.connect()?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let Self { authority, path, headers, .. } = self;
        let mut head = format!(
            "POST {path} HTTP/1.1\r\nhost: {authority}\r\nuser-agent: shimmy/{}\r\ncontent-type: application/json\r\n\
             content-length: {}\r\nconnection: close\r\n",
            env!("CARGO_PKG_VERSION"),
            body.len()
        );
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        stream.write_all(head.as_bytes())?;
        stream.write_all(body)?;
        let mut answer = Vec::new();
        let mut reader = stream.take(MAX_ANSWER);
        // The first line is all that matters, and there are collectors that leave the connection open.
        while !answer.contains(&b'\n') {
            let mut piece = [0; 256];
            match reader.read(&mut piece)? {
                0 => break,
                length => answer.extend_from_slice(&piece[..length]),
            }
        }
        match status(&answer) {
            Some(200..300) => Ok(Posted::Taken),
            Some(status @ (429 | 502..=504)) => Ok(Posted::Busy(status)),
            Some(status) => Ok(Posted::Refused(status)),
            None => Err(io::Error::new(io::ErrorKind::InvalidData, "the answer isn't HTTP")),
        }
    }

    fn connect(&self) -> io::Result<TcpStream> {
        let mut last = None;
        for address in (self.host.as_str(), self.port).to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, PATIENCE) {
                Ok(stream) => return Ok(stream),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the host has no address")))
    }
}

/// Of an answer: `HTTP/1.1 200 OK`.
fn status(answer: &[u8]) -> Option<u16> {
    let line = std::str::from_utf8(answer.split(|&byte| byte == b'\n').next()?).ok()?;
    let rest = line.strip_prefix("HTTP/1.")?;
    rest.split(' ').nth(1)?.trim().parse().ok()
}

fn parse_headers(text: &str) -> Result<Vec<(String, String)>, String> {
    // The text holds secrets: no message repeats a value.
    let wrong = |what: &str| format!("OTEL_EXPORTER_OTLP_HEADERS: {what}; write name=value,name=value");
    let mut headers = Vec::new();
    for pair in text.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').ok_or_else(|| wrong("there is an entry without `=`"))?;
        let (name, value) = (name.trim(), decode(value.trim()));
        let is_name =
            !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
        let value = value.filter(|value| value.bytes().all(|byte| (b' '..127).contains(&byte)));
        match (is_name, value) {
            (true, Some(value)) => headers.push((name.to_owned(), value)),
            _ => return Err(wrong(&format!("the header `{}` isn't visible ASCII", name.escape_debug()))),
        }
    }
    Ok(headers)
}

/// `%20` and the like as what they stand for.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
        bytes.push(u8::try_from(digit(rest.next())? * 16 + digit(rest.next())?).ok()?);
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_collectors() {
        for (url, shown, host, port) in [
            ("http://localhost:4318", "http://localhost:4318/v1/traces", "localhost", 4318),
            ("http://localhost:4318/", "http://localhost:4318/v1/traces", "localhost", 4318),
            ("http://otel.lan/api/otlp", "http://otel.lan/api/otlp/v1/traces", "otel.lan", 80),
            ("http://[::1]:4318/v1/traces", "http://[::1]:4318/v1/traces", "::1", 4318),
            ("http://[::1]", "http://[::1]/v1/traces", "::1", 80),
        ] {
            let endpoint = Endpoint::parse(url, "").unwrap();
            assert_eq!((endpoint.to_string().as_str(), endpoint.host.as_str(), endpoint.port), (shown, host, port));
        }
        for (url, why) in [
            ("https://otel.lan:4318", "plain HTTP only"),
            ("localhost:4318", "no http:// address"),
            ("grpc://localhost:4317", "no http:// address"),
            ("http://", "no host"),
            ("http:///v1/traces", "no host"),
            ("http://ann:secret@otel.lan", "no host, or more"),
            ("http://otel.lan?key=1", "no host, or more"),
            ("http://otel.lan/a b", "no host, or more"),
            ("http://otel.lan/\r\nx: y", "no host, or more"),
            ("http://otel.lan:99999", "the port"),
            ("http://otel.lan:x", "the port"),
        ] {
            let error = Endpoint::parse(url, "").unwrap_err();
            assert!(error.contains(why), "{url}: {error}");
        }
    }

    #[test]
    fn headers_of_the_environment() {
        let parse = |text: &str| Endpoint::parse("http://x", text).map(|endpoint| endpoint.headers);
        let header = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let expected = vec![header("authorization", "Bearer abc="), header("x-team", "a b")];
        assert_eq!(parse("authorization=Bearer%20abc=, x-team=a b,").unwrap(), expected);
        assert_eq!(parse("").unwrap(), vec![]);
        for wrong in ["secret", "=secret", "a=%0d%0ax: secret", "a=%zz", "a=%2", "a b=secret"] {
            let error = parse(wrong).unwrap_err();
            assert!(error.contains("name=value") && !error.contains("secret"), "{wrong}: {error}");
        }
    }

    #[test]
    fn answers_are_judged_by_their_first_line() {
        assert_eq!(status(b"HTTP/1.1 200 OK\r\n"), Some(200));
        assert_eq!(status(b"HTTP/1.0 503\r\n"), Some(503));
        for nothing in [&b""[..], b"HTTP/2 200\r\n", b"SSH-2.0-x\r\n", b"HTTP/1.1 abc\r\n", b"\xff\n"] {
            assert_eq!(status(nothing), None);
        }
    }
}
