//! What the engine must know of a tokenizer.

use std::borrow::Cow;

/// Token ids to bytes, and which of them end an answer.
pub trait Vocabulary: Send + Sync {
    /// Bytes that the token stands for in an answer: none for a control token or an id outside the vocabulary. They need
    /// not be whole UTF-8.
    fn token_bytes(&self, id: u32) -> Cow<'_, [u8]>;

    /// Tokens that end an answer.
    fn end_of_generation(&self) -> &[u32];

    /// Ids are `0..vocab_size`. A model may compute more logits than that; the rest is padding and never chosen.
    fn vocab_size(&self) -> usize;
}
