//! What names a block outside the pool: a hash of every token up to its end. Unlike the hash of the prefix cache it
//! stands alone, years later and in another process, so it is one that nobody can make collide.

use crate::kv::{BLOCK_TOKENS, PrefixSpace, Tokens};

/// The content of a block: its own tokens and all before them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest(pub(super) [u8; 32]);

impl Digest {
    /// Before the first token.
    pub fn root(space: PrefixSpace) -> Self {
        Self(*blake3::hash(&space.0.to_le_bytes()).as_bytes())
    }

    /// After one more block.
    #[must_use]
    pub fn next(&self, tokens: &Tokens) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.0);
        hasher.update(&token_bytes(tokens));
        Self(*hasher.finalize().as_bytes())
    }

    /// After all blocks that `tokens` fill.
    pub fn of(space: PrefixSpace, tokens: &[u32]) -> Self {
        tokens.as_chunks().0.iter().fold(Self::root(space), |digest, tokens| digest.next(tokens))
    }
}

/// Tokens as they lie in a record.
pub(super) fn token_bytes(tokens: &Tokens) -> [u8; 4 * BLOCK_TOKENS] {
    let mut bytes = [0; 4 * BLOCK_TOKENS];
    for (bytes, token) in bytes.as_chunks_mut().0.iter_mut().zip(tokens) {
        *bytes = token.to_le_bytes();
    }
    bytes
}
