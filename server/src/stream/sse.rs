//! Server-sent events.

use actix_web::web::Bytes;

/// MIME type of a stream.
pub const CONTENT_TYPE: &str = "text/event-stream";

/// An event without a name. JSON holds no raw line breaks, so one `data:` line is always enough.
pub fn data(json: &[u8]) -> Bytes {
    [b"data: ", json, b"\n\n"].concat().into()
}

/// An event with a name.
pub fn event(name: &str, json: &[u8]) -> Bytes {
    [b"event: ", name.as_bytes(), b"\ndata: ", json, b"\n\n"].concat().into()
}

/// What no client sees as an event.
pub fn comment() -> Bytes {
    Bytes::from_static(b": ping\n\n")
}
