//! The tokens of a GGUF vocabulary: their bytes in one arena, what kind each is, and the way from bytes back to an id.

use std::hash::{BuildHasher, Hasher, RandomState};

use crate::error::{Error, Result};

/// What `tokenizer.ggml.token_type` says of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TokenKind {
    /// Text.
    Normal,
    /// Stands for text that the vocabulary can't say.
    Unknown,
    /// Structure, such as the end of a turn; never text.
    Control,
    /// Text that is always one token.
    UserDefined,
    /// Not used by the model.
    Unused,
    /// One byte, written `<0xXX>`.
    Byte,
}

impl TokenKind {
    /// The kind that GGUF writes as `number`. 0 and numbers without a meaning are ordinary text, as a file without
    /// types has it.
    pub(crate) fn from_gguf(number: i64) -> Self {
        match number {
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => Self::Normal,
        }
    }
}

/// Byte strings by id, in one allocation.
#[derive(Debug)]
pub(crate) struct Arena {
    bytes: Vec<u8>,
    /// `[num_tokens + 1]`: token `id` is `bytes[ends[id]..ends[id + 1]]`.
    ends: Vec<u32>,
}

impl Arena {
    /// An empty arena with room for `num_tokens`.
    pub(crate) fn with_capacity(num_tokens: usize, num_bytes: usize) -> Self {
        let mut ends = Vec::with_capacity(num_tokens + 1);
        ends.push(0);
        Self { bytes: Vec::with_capacity(num_bytes), ends }
    }

    /// Number of strings.
    pub(crate) fn len(&self) -> usize {
        self.ends.len() - 1
    }

    /// Appends one string, which `fill` writes at the end of the buffer.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] beyond 4 GiB.
    pub(crate) fn push_with<T>(&mut self, fill: impl FnOnce(&mut Vec<u8>) -> T) -> Result<T> {
        let value = fill(&mut self.bytes);
        let end = u32::try_from(self.bytes.len())
            .map_err(|_| Error::Tokenizer("the vocabulary's tokens are longer than 4 GiB together".into()))?;
        self.ends.push(end);
        Ok(value)
    }

    /// String `id`; empty for an id beyond the end.
    #[inline]
    pub(crate) fn get(&self, id: u32) -> &[u8] {
        match (self.ends.get(id as usize), self.ends.get(id as usize + 1)) {
            (Some(&start), Some(&end)) => &self.bytes[start as usize..end as usize],
            _ => &[],
        }
    }
}

/// A hash table from byte strings to ids, open addressing with linear probing. It holds no strings: it compares with
/// the arena's, which is passed to every call. The hash is seeded, so that no file can make its tokens collide.
#[derive(Debug)]
pub(crate) struct Index {
    seed: u64,
    mask: usize,
    /// (high half of the hash, id); id [`NO_TOKEN`] marks an empty slot.
    slots: Vec<(u32, u32)>,
}

/// No token: an id that no vocabulary reaches, because ids count up to `u32::MAX - 1` at most.
pub(crate) const NO_TOKEN: u32 = u32::MAX;

impl Index {
    /// A table for up to `num_tokens` strings.
    pub(crate) fn with_capacity(num_tokens: usize) -> Self {
        let size = (num_tokens * 2).next_power_of_two().max(16);
        let seed = RandomState::new().build_hasher().finish();
        Self { seed, mask: size - 1, slots: vec![(0, NO_TOKEN); size] }
    }

    /// The id of `key`.
    #[inline]
    pub(crate) fn get(&self, arena: &Arena, key: &[u8]) -> Option<u32> {
        let hash = hash_bytes(self.seed, key);
        let tag = (hash >> 32) as u32;
        let mut slot = hash as usize & self.mask;
        loop {
            let (found, id) = self.slots[slot];
            if id == NO_TOKEN {
                return None;
            }
            if found == tag && arena.get(id) == key {
                return Some(id);
            }
            slot = (slot + 1) & self.mask;
        }
    }

    /// Enters string `id` of the arena; the id that has the same string already, if one has.
    pub(crate) fn insert(&mut self, arena: &Arena, id: u32) -> Option<u32> {
        let key = arena.get(id);
        let hash = hash_bytes(self.seed, key);
        let tag = (hash >> 32) as u32;
        let mut slot = hash as usize & self.mask;
        loop {
            let (found, other) = self.slots[slot];
            if other == NO_TOKEN {
                self.slots[slot] = (tag, id);
                return None;
            }
            if found == tag && arena.get(other) == key {
                return Some(other);
            }
            slot = (slot + 1) & self.mask;
        }
    }
}

/// Multiply-and-fold over eight bytes at a time: tokens are short, so that the start and the end count most.
#[inline]
fn hash_bytes(seed: u64, bytes: &[u8]) -> u64 {
    const K0: u64 = 0x9E37_79B9_7F4A_7C15;
    const K1: u64 = 0xD6E8_FEB8_6659_FD93;
    let mut hash = seed ^ (bytes.len() as u64).wrapping_mul(K0);
    let mut chunks = bytes.chunks_exact(8);
    for chunk in &mut chunks {
        let mut word = [0; 8];
        word.copy_from_slice(chunk);
        hash = fold(hash ^ u64::from_le_bytes(word), K1);
    }
    let rest = chunks.remainder();
    if !rest.is_empty() {
        let word = rest.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte));
        hash = fold(hash ^ word, K1);
    }
    fold(hash, K0 ^ seed.rotate_left(32))
}

#[inline]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

/// Hashes pairs of token ids, which are spread evenly by one multiplication.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct PairHash;

/// The state of [`PairHash`].
#[derive(Debug, Default)]
pub(crate) struct PairHasher(u64);

impl BuildHasher for PairHash {
    type Hasher = PairHasher;

    fn build_hasher(&self) -> PairHasher {
        PairHasher(0)
    }
}

impl Hasher for PairHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0 = hash_bytes(self.0, bytes);
    }

    #[inline]
    fn write_u64(&mut self, pair: u64) {
        self.0 = fold(pair ^ 0x9E37_79B9_7F4A_7C15, 0xD6E8_FEB8_6659_FD93);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn index_finds_what_was_entered_and_nothing_else() {
        let words: Vec<String> = (0..5000).map(|n| "ab".repeat(n % 17) + &n.to_string()).collect();
        let mut arena = Arena::with_capacity(words.len(), 0);
        let mut index = Index::with_capacity(words.len());
        for (id, word) in words.iter().enumerate() {
            arena.push_with(|bytes| bytes.extend_from_slice(word.as_bytes())).unwrap();
            assert_eq!(index.insert(&arena, id as u32), None);
        }
        for (id, word) in words.iter().enumerate() {
            assert_eq!(index.get(&arena, word.as_bytes()), Some(id as u32));
            assert_eq!(index.get(&arena, format!("{word}!").as_bytes()), None);
        }
        assert_eq!(index.insert(&arena, 7), Some(7));
        assert_eq!(arena.get(5000), b"");
        assert_eq!(arena.len(), 5000);
    }
}
