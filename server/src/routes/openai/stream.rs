//! OpenAI's streams: `data: {chunk}`, a blank line, and `data: [DONE]` at the end.

use actix_web::web::Bytes;

use crate::error::ApiError;
use crate::routes::request::report::{Done, TokenReport};
use crate::stream::{Encoder, sse};

const DONE: &[u8] = b"data: [DONE]\n\n";

/// JSON for the events of the answers to a prompt, which are numbered from 0.
pub trait JsonChunks: 'static {
    /// Before the first token of an answer.
    fn open(&mut self, index: usize) -> Option<Vec<u8>>;
    /// New text.
    fn text(&mut self, index: usize, text: &str, reports: &[TokenReport]) -> Vec<u8>;
    /// The end of an answer.
    fn done(&mut self, index: usize, done: &Done) -> Vec<u8>;
    /// After the end of all answers.
    fn close(&mut self) -> Option<Vec<u8>>;
}

/// Chunks as a stream.
pub struct DataLines<C>(pub C);

impl<C: JsonChunks> Encoder for DataLines<C> {
    fn content_type(&self) -> &'static str {
        sse::CONTENT_TYPE
    }

    fn open(&mut self, index: usize) -> Option<Bytes> {
        self.0.open(index).map(|json| sse::data(&json))
    }

    fn text(&mut self, index: usize, text: &str, reports: &[TokenReport]) -> Option<Bytes> {
        Some(sse::data(&self.0.text(index, text, reports)))
    }

    fn done(&mut self, index: usize, done: &Done) -> Option<Bytes> {
        Some(sse::data(&self.0.done(index, done)))
    }

    fn close(&mut self) -> Option<Bytes> {
        let last = self.0.close().map(|json| sse::data(&json)).unwrap_or_default();
        Some([&last[..], DONE].concat().into())
    }

    fn failed(&mut self, error: ApiError) -> Bytes {
        [&sse::data(&error.to_json())[..], DONE].concat().into()
    }

    fn ping(&self) -> Option<Bytes> {
        Some(sse::comment())
    }
}
