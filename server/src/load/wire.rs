//! HTTP/1.1 responses and event streams, taken apart as they arrive. Only what a streamed completion needs.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};

/// Largest response head.
const MAX_HEAD_BYTES: usize = 64 << 10;
/// Largest event.
const MAX_EVENT_BYTES: usize = 16 << 20;
/// Read at a time.
const READ_BYTES: usize = 16 << 10;

/// How a body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    /// Bytes of the current chunk that are still to come; 0: a size line is next.
    Chunked(usize),
    /// Bytes that are still to come.
    Length(usize),
    /// With the connection.
    Close,
    /// It has ended.
    Ended,
}

/// A response that is being read.
#[derive(Debug)]
pub struct Response<S> {
    stream: S,
    /// HTTP status.
    pub status: u16,
    framing: Framing,
    /// As received, not yet decoded.
    raw: Vec<u8>,
    /// Decoded, not yet taken.
    body: Vec<u8>,
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

async fn read_more(stream: &mut (impl AsyncRead + Unpin), buffer: &mut Vec<u8>) -> io::Result<usize> {
    buffer.reserve(READ_BYTES);
    stream.read_buf(buffer).await
}

impl<S: AsyncRead + Unpin> Response<S> {
    /// Reads the head.
    ///
    /// # Errors
    /// When the connection breaks, or what comes is no HTTP/1.1.
    pub async fn read(mut stream: S) -> io::Result<Self> {
        let mut raw = Vec::new();
        loop {
            if let Some((status, framing, length)) = head(&raw)? {
                raw.drain(..length);
                let mut response = Self { stream, status, framing, raw, body: Vec::new() };
                response.decode()?;
                return Ok(response);
            }
            if raw.len() > MAX_HEAD_BYTES {
                return Err(invalid("the response's head does not end"));
            }
            if read_more(&mut stream, &mut raw).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// The next event's `data`, into `event`; false at the end of the body. Comments are skipped.
    ///
    /// # Errors
    /// When the connection breaks before the body's end, or the framing is wrong.
    pub async fn next_event(&mut self, event: &mut Vec<u8>) -> io::Result<bool> {
        loop {
            while let Some(end) = self.body.windows(2).position(|pair| pair == b"\n\n") {
                event.clear();
                for line in self.body[..end].split(|&byte| byte == b'\n') {
                    // llama-server has named its error events so.
                    let data = line.strip_prefix(b"data:").or_else(|| line.strip_prefix(b"error:"));
                    event.extend_from_slice(data.unwrap_or_default().trim_ascii());
                }
                self.body.drain(..end + 2);
                if !event.is_empty() {
                    return Ok(true);
                }
            }
            if self.body.len() > MAX_EVENT_BYTES {
                return Err(invalid("an event does not end"));
            }
            if self.framing == Framing::Ended {
                return Ok(false);
            }
            self.fill().await?;
        }
    }

    /// The rest of the body.
    ///
    /// # Errors
    /// When the connection breaks before the body's end, or the framing is wrong.
    pub async fn rest(mut self) -> io::Result<Vec<u8>> {
        while self.framing != Framing::Ended && self.body.len() <= MAX_EVENT_BYTES {
            self.fill().await?;
        }
        Ok(self.body)
    }

    async fn fill(&mut self) -> io::Result<()> {
        if read_more(&mut self.stream, &mut self.raw).await? == 0 {
            if self.framing != Framing::Close {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.framing = Framing::Ended;
        }
        self.decode()
    }

    /// Moves what is complete from `raw` to `body`.
    fn decode(&mut self) -> io::Result<()> {
        let mut at = 0;
        loop {
            let rest = &self.raw[at..];
            match &mut self.framing {
                Framing::Ended => break,
                Framing::Close => {
                    self.body.extend_from_slice(rest);
                    at = self.raw.len();
                    break;
                }
                Framing::Length(left) | Framing::Chunked(left) if *left > 0 => {
                    let taken = rest.len().min(*left);
                    self.body.extend_from_slice(&rest[..taken]);
                    at += taken;
                    *left -= taken;
                    if *left > 0 {
                        break;
                    }
                }
                Framing::Length(_) => self.framing = Framing::Ended,
                // Alone, the first half of a chunk's line end would pass for a size.
                Framing::Chunked(_) if rest == b"\r" => break,
                Framing::Chunked(left) => {
                    // The line end after the chunk before belongs to it.
                    let skipped = rest.len() - rest.strip_prefix(b"\r\n").unwrap_or(rest).len();
                    match httparse::parse_chunk_size(&rest[skipped..]) {
                        Ok(httparse::Status::Complete((_, 0))) => self.framing = Framing::Ended,
                        Ok(httparse::Status::Complete((line, size))) => {
                            at += skipped + line;
                            *left = usize::try_from(size).map_err(|_| invalid("a chunk is too large"))?;
                        }
                        Ok(httparse::Status::Partial) => break,
                        Err(_) => return Err(invalid("a chunk has no size")),
                    }
                }
            }
        }
        self.raw.drain(..at);
        Ok(())
    }
}

/// Status, framing and length of a head that is complete.
fn head(raw: &[u8]) -> io::Result<Option<(u16, Framing, usize)>> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut response = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(length) = response.parse(raw).map_err(|error| invalid(&error.to_string()))? else {
        return Ok(None);
    };
    let value = |name: &str| {
        let header = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(header.value).ok()
    };
    let framing = if value("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked")) {
        Framing::Chunked(0)
    } else if let Some(length) = value("content-length") {
        Framing::Length(length.parse().map_err(|_| invalid("content-length is no number"))?)
    } else {
        Framing::Close
    };
    Ok(Some((response.code.unwrap_or(0), framing, length)))
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use tokio::io::ReadBuf;

    use super::*;

    /// Gives its bytes in pieces of one size, then ends.
    struct Pieces<'a>(std::slice::Chunks<'a, u8>);

    impl AsyncRead for Pieces<'_> {
        fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            buffer.put_slice(self.0.next().unwrap_or_default());
            Poll::Ready(Ok(()))
        }
    }

    async fn events(text: &str, piece: usize) -> io::Result<(u16, Vec<String>)> {
        let mut response = Response::read(Pieces(text.as_bytes().chunks(piece))).await?;
        let (mut all, mut event) = (Vec::new(), Vec::new());
        while response.next_event(&mut event).await? {
            all.push(String::from_utf8(event.clone()).unwrap());
        }
        Ok((response.status, all))
    }

    #[tokio::test]
    async fn events_are_the_same_however_they_are_cut() {
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\
                       7\r\ndata: a\r\n10\r\n\n\n: ping\n\ndata: \r\n3\r\nb\n\n\r\n0\r\n\r\n";
        let until_close = "HTTP/1.1 200 OK\r\n\r\ndata: a\n\n: ping\n\ndata: b\n\n";
        let counted = "HTTP/1.1 200 OK\r\ncontent-length: 30\r\n\r\ndata: a\n\n: ping\n\ndata:   b  \n\n";
        for text in [chunked, until_close, counted] {
            for piece in 1..text.len() {
                let (status, all) = events(text, piece).await.unwrap();
                assert_eq!((status, all), (200, vec!["a".to_owned(), "b".to_owned()]), "pieces of {piece}: {text:?}");
            }
        }
    }

    #[tokio::test]
    async fn a_body_that_breaks_off_is_an_error() {
        for text in [
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n9\r\ndata: a\n\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 30\r\n\r\ndata: a\n\n",
            "HTTP/1.1 200 OK\r\n",
            "",
        ] {
            let error = events(text, 5).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{text:?}");
        }
        let wrong = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nx\r\n";
        assert_eq!(events(wrong, 5).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[tokio::test]
    async fn an_error_has_a_body() {
        let text = "HTTP/1.1 429 Too Many Requests\r\ncontent-length: 4\r\n\r\nbusy";
        let response = Response::read(Pieces(text.as_bytes().chunks(3))).await.unwrap();
        assert_eq!((response.status, response.rest().await.unwrap()), (429, b"busy".to_vec()));
    }
}
