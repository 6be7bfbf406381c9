//! A line of JSON for each event.

use actix_web::web::Bytes;

/// MIME type of a stream.
pub const CONTENT_TYPE: &str = "application/x-ndjson";

/// One event. JSON holds no raw line breaks.
pub fn line(json: &[u8]) -> Bytes {
    [json, b"\n"].concat().into()
}
