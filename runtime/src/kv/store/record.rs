//! One block outside the pool as bytes: a head that says what it is, then the keys and values.
//!
//! | bytes | what |
//! |---|---|
//! | 0..32 | digest of all tokens up to the block's end; zeros: empty |
//! | 32..64 | checksum (BLAKE3) of everything else |
//! | 64..72 | when it was written: higher is later |
//! | 72..80 | length of the keys and values |
//! | 80..208 | the block's own tokens |
//! | 208..256 | zeros |
//! | 256.. | keys and values as the executor gave them |

use super::digest::{Digest, token_bytes};
use crate::kv::{BLOCK_TOKENS, Tokens};

/// Bytes before the keys and values.
pub(super) const HEAD: usize = 256;
const TOKENS: std::ops::Range<usize> = 80..80 + 4 * BLOCK_TOKENS;
const _: () = assert!(TOKENS.end <= HEAD);

/// Bytes of a record of a block of `block_bytes`.
pub(super) fn record_bytes(block_bytes: usize) -> usize {
    HEAD + block_bytes.next_multiple_of(HEAD)
}

/// Starts a record; the keys and values are to be appended.
pub(super) fn begin(record: &mut Vec<u8>, digest: &Digest, tokens: &Tokens, written: u64) {
    record.clear();
    record.resize(HEAD, 0);
    record[..32].copy_from_slice(&digest.0);
    record[64..72].copy_from_slice(&written.to_le_bytes());
    record[TOKENS].copy_from_slice(&token_bytes(tokens));
}

/// Completes a record after its keys and values were appended.
pub(super) fn seal(record: &mut [u8]) {
    let len = (record.len() - HEAD) as u64;
    record[72..80].copy_from_slice(&len.to_le_bytes());
    let checksum = checksum(record);
    record[32..64].copy_from_slice(&checksum);
}

fn checksum(record: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&record[..32]);
    hasher.update(&record[64..]);
    *hasher.finalize().as_bytes()
}

/// What the first bytes of a record say of it, unchecked. `None`: it is empty.
pub(super) fn peek(head: &[u8; 80]) -> Option<(Digest, u64)> {
    let (&digest, rest) = head.split_first_chunk::<32>()?;
    let (&written, _) = rest.get(32..)?.split_first_chunk::<8>()?;
    (digest != [0; 32]).then(|| (Digest(digest), u64::from_le_bytes(written)))
}

/// The keys and values of a record if it is whole and holds just this. It may have bytes after its end.
pub(super) fn open<'a>(record: &'a [u8], digest: &Digest, tokens: &Tokens) -> Option<&'a [u8]> {
    let head = record.get(..HEAD)?;
    let (&len, _) = head[72..].split_first_chunk::<8>()?;
    let end = usize::try_from(u64::from_le_bytes(len)).ok()?.checked_add(HEAD)?;
    let record = record.get(..end)?;
    let is_it = head[..32] == digest.0 && head[TOKENS] == token_bytes(tokens) && head[32..64] == checksum(record);
    is_it.then(|| &record[HEAD..])
}
