//! SentencePiece-style encoding, `tokenizer.ggml.model = "llama"`: spaces become ▁, each character starts as a symbol,
//! and the neighbours whose union is the best-scored token merge first. What stays without a token is written as
//! bytes, `<0xXX>`.

use std::sync::atomic::{AtomicU8, Ordering};

use super::merge::{Merges, Scratch, Symbol};
use super::special::duplicate;
use super::vocab::{Arena, Index, NO_TOKEN, TokenKind};
use crate::error::{Error, Result};

/// The character that stands for a space, U+2581.
pub(crate) const SPACE: &str = "\u{2581}";

/// A scored vocabulary.
#[derive(Debug)]
pub(crate) struct Spm {
    tokens: Arena,
    /// The tokens that text can become: neither control nor byte tokens.
    index: Index,
    /// `[num_tokens]`: scores turned into numbers that merge first when they are small.
    orders: Vec<u32>,
    /// `[256]`: the token of each byte, [`NO_TOKEN`] if it has none.
    bytes: Vec<u32>,
    /// `[num_tokens]`: the byte that a byte token stands for.
    byte_of: Vec<Option<u8>>,
    unknown: Option<u32>,
    /// `[128]`: the token of each ASCII character.
    ascii: Vec<u32>,
    /// `[256]`: whether some token has ▁ behind a character that ends in this byte. Behind any other character no merge
    /// can cross the start of a word, so that words can be merged one by one.
    before_space: Vec<bool>,
    /// `[num_tokens]`: whether merging builds this token from its characters, as [`WHOLE`] says once it is known.
    whole: Vec<AtomicU8>,
}

const WHOLE: u8 = 1;

impl Merges for Spm {
    #[inline]
    fn merge(&self, piece: &[u8], left: Symbol, right: Symbol) -> Option<(u32, u32)> {
        let both = &piece[left.start as usize..(right.start + right.len) as usize];
        let id = self.index.get(&self.tokens, both)?;
        Some((self.orders[id as usize], id))
    }
}

impl Spm {
    /// From the tokens as GGUF spells them and their scores, one for each token.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] for a token with two ids and a byte token that isn't `<0xXX>`.
    pub(crate) fn new<'a>(
        texts: impl ExactSizeIterator<Item = &'a [u8]>,
        kinds: &[TokenKind],
        scores: &[f32],
        unknown: Option<u32>,
    ) -> Result<Self> {
        let num_tokens = texts.len();
        let mut tokens = Arena::with_capacity(num_tokens, num_tokens * 8);
        for text in texts {
            tokens.push_with(|bytes| bytes.extend_from_slice(text))?;
        }
        let mut index = Index::with_capacity(num_tokens);
        let mut bytes = vec![NO_TOKEN; 256];
        let mut byte_of = vec![None; num_tokens];
        let mut before_space = vec![false; 256];
        for (id, kind) in (0..num_tokens as u32).zip(kinds) {
            let text = tokens.get(id);
            match kind {
                TokenKind::Byte => {
                    let byte = parse_byte(text).ok_or_else(|| {
                        let text = String::from_utf8_lossy(text);
                        Error::Tokenizer(format!("byte token {id} is {text:?}, not one of <0x00> to <0xFF>"))
                    })?;
                    bytes[usize::from(byte)] = id;
                    byte_of[id as usize] = Some(byte);
                }
                TokenKind::Normal | TokenKind::UserDefined | TokenKind::Unused if !text.is_empty() => {
                    for at in inner_spaces(text) {
                        before_space[usize::from(text[at - 1])] = true;
                    }
                    if let Some(other) = index.insert(&tokens, id) {
                        return Err(duplicate(text, other, id));
                    }
                }
                _ => {}
            }
        }
        let orders = scores.iter().map(|&score| order(score)).collect();
        let ascii = (0..128).map(|byte| index.get(&tokens, &[byte]).unwrap_or(NO_TOKEN)).collect();
        let whole = (0..num_tokens).map(|_| AtomicU8::new(0)).collect();
        Ok(Self { tokens, index, orders, bytes, byte_of, unknown, ascii, before_space, whole })
    }

    /// The id of the token with this text, ▁ for a space.
    pub(crate) fn id(&self, text: &str) -> Option<u32> {
        let byte = || parse_byte(text.as_bytes()).map(|byte| self.bytes[usize::from(byte)]);
        self.index.get(&self.tokens, text.as_bytes()).or_else(byte).filter(|&id| id != NO_TOKEN)
    }

    /// The token's text as the file has it, ▁ for a space.
    pub(crate) fn text(&self, id: u32) -> &[u8] {
        self.tokens.get(id)
    }

    /// The byte that a byte token stands for.
    pub(crate) fn byte(&self, id: u32) -> Option<u8> {
        self.byte_of.get(id as usize).copied().flatten()
    }

    /// Appends the tokens of `text`, in which spaces are ▁ already.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] for a byte that has no token in a vocabulary without an unknown token.
    pub(crate) fn encode(&self, text: &str, scratch: &mut Scratch, ids: &mut Vec<u32>) -> Result<()> {
        let bytes = text.as_bytes();
        let mut start = 0;
        for at in inner_spaces(bytes) {
            if !bytes[start..at].ends_with(SPACE.as_bytes()) && !self.before_space[usize::from(bytes[at - 1])] {
                self.encode_piece(&text[start..at], scratch, ids)?;
                start = at;
            }
        }
        if start < text.len() { self.encode_piece(&text[start..], scratch, ids) } else { Ok(()) }
    }

    fn encode_piece(&self, piece: &str, scratch: &mut Scratch, ids: &mut Vec<u32>) -> Result<()> {
        let whole = self.index.get(&self.tokens, piece.as_bytes());
        if let Some(id) = whole
            && self.whole[id as usize].load(Ordering::Relaxed) == WHOLE
        {
            ids.push(id);
            return Ok(());
        }
        scratch.symbols.clear();
        for (start, c) in piece.char_indices() {
            let len = c.len_utf8();
            let id = match self.ascii.get(c as usize) {
                Some(&id) => id,
                None => self.index.get(&self.tokens, &piece.as_bytes()[start..start + len]).unwrap_or(NO_TOKEN),
            };
            scratch.symbols.push(Symbol { start: start as u32, len: len as u32, id });
        }
        scratch.merge(piece.as_bytes(), self);
        if let (Some(id), [only]) = (whole, &scratch.symbols[..])
            && only.id == id
        {
            self.whole[id as usize].store(WHOLE, Ordering::Relaxed);
        }
        for symbol in &scratch.symbols {
            if symbol.id != NO_TOKEN {
                ids.push(symbol.id);
                continue;
            }
            for &byte in &piece.as_bytes()[symbol.start as usize..(symbol.start + symbol.len) as usize] {
                match (self.bytes[usize::from(byte)], self.unknown) {
                    (NO_TOKEN, Some(unknown)) => {
                        ids.push(unknown);
                        break;
                    }
                    (NO_TOKEN, None) => {
                        return Err(Error::Tokenizer(format!("the vocabulary has no token for byte 0x{byte:02X}")));
                    }
                    (id, _) => ids.push(id),
                }
            }
        }
        Ok(())
    }
}

/// A number that is the smaller the larger the score; the largest of all for no number, so that it merges last.
fn order(score: f32) -> u32 {
    if score.is_nan() {
        return u32::MAX - 1;
    }
    // IEEE floats order like integers with a sign bit; -0 equals 0.
    let bits = (score + 0.0).to_bits();
    let ascending = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
    (!ascending).min(u32::MAX - 1)
}

/// The byte of `<0xXX>`.
pub(crate) fn parse_byte(text: &[u8]) -> Option<u8> {
    let hex = text.strip_prefix(b"<0x")?.strip_suffix(b">")?;
    let hex = std::str::from_utf8(hex).ok().filter(|hex| hex.len() == 2 && !hex.starts_with('+'))?;
    u8::from_str_radix(hex, 16).ok()
}

/// Where ▁ stands behind something else than the start of the text or of its first ▁s. In UTF-8 its three bytes can't
/// appear across characters.
fn inner_spaces(text: &[u8]) -> impl Iterator<Item = usize> {
    let space = SPACE.as_bytes();
    let leading = text.chunks_exact(space.len()).take_while(|chunk| *chunk == space).count() * space.len();
    (leading.max(1)..text.len()).filter(move |&at| text[at] == space[0] && text[at..].starts_with(space))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spm(tokens: &[(&str, f32)], with_bytes: bool) -> Result<Spm> {
        let mut texts: Vec<String> = tokens.iter().map(|(text, _)| (*text).to_owned()).collect();
        let mut kinds = vec![TokenKind::Normal; texts.len()];
        let mut scores: Vec<f32> = tokens.iter().map(|(_, score)| *score).collect();
        if with_bytes {
            texts.extend((0..256).map(|byte| format!("<0x{byte:02X}>")));
            kinds.resize(texts.len(), TokenKind::Byte);
            scores.resize(texts.len(), 0.0);
        }
        Spm::new(texts.iter().map(String::as_bytes), &kinds, &scores, None)
    }

    fn encode(spm: &Spm, text: &str) -> Vec<u32> {
        let mut ids = Vec::new();
        spm.encode(text, &mut Scratch::default(), &mut ids).unwrap();
        ids
    }

    #[test]
    fn the_best_score_merges_first() {
        let tokens = [("a", 0.0), ("b", 0.0), ("c", 0.0), ("ab", -2.0), ("bc", -1.0), ("abc", -3.0)];
        let spm = spm(&tokens, true).unwrap();
        assert_eq!(encode(&spm, "abc"), [5]);
        assert_eq!(encode(&spm, "abab"), [3, 3]);
        assert_eq!(encode(&spm, "bcb"), [4, 1]);
    }

    #[test]
    fn characters_without_a_token_become_bytes() {
        let spm = spm(&[("a", 0.0)], true).unwrap();
        assert_eq!(encode(&spm, "aé"), [0, 1 + 0xC3, 1 + 0xA9]);
        assert_eq!((spm.byte(1 + 0xC3), spm.byte(0), spm.byte(9999)), (Some(0xC3), None, None));
    }

    #[test]
    fn words_apart_or_not_the_result_is_the_same() {
        let tokens =
            [("a", 0.0), ("▁", 0.0), ("▁a", -1.0), ("▁▁", -2.0), ("aa", -3.0), (">", 0.0), (">▁a", -0.5), (">▁", -9.0)];
        let apart = spm(&tokens, true).unwrap();
        let flagged: Vec<usize> = (0..256).filter(|&byte| apart.before_space[byte]).collect();
        assert_eq!(flagged, [usize::from(b'>')]);
        let mut joined = spm(&tokens, true).unwrap();
        joined.before_space.fill(true);
        for text in ["▁a▁a", "▁▁a▁▁▁aaa▁", "", "a▁é▁▁", "a>▁a▁a>▁▁a", "▁", "é▁>▁a"]
        {
            for again in [1, 2] {
                assert_eq!(encode(&apart, text), encode(&joined, text), "{text}, time {again}");
            }
        }
    }

    #[test]
    fn hostile_vocabularies_are_errors() {
        let error = spm(&[("a", 0.0), ("a", 0.0)], false).unwrap_err().to_string();
        assert!(error.contains("0 and 1"), "{error}");
        let byte = Spm::new([b"<0xZZ>".as_slice()].into_iter(), &[TokenKind::Byte], &[0.0], None);
        assert!(byte.unwrap_err().to_string().contains("<0xZZ>"));
        let empty = spm(&[], false).unwrap();
        let error = empty.encode("x", &mut Scratch::default(), &mut Vec::new()).unwrap_err().to_string();
        assert!(error.contains("0x78"), "{error}");
        let nan = spm(&[("a", 0.0), ("aa", f32::NAN), ("aaa", f32::NEG_INFINITY)], false).unwrap();
        assert_eq!(encode(&nan, "aaa"), [2]);
    }

    #[test]
    fn orders_follow_scores() {
        let scores = [f32::INFINITY, 5.0, 0.5, 0.0, -0.5, -7.0, f32::NEG_INFINITY, f32::NAN];
        assert!(scores.windows(2).all(|pair| order(pair[0]) < order(pair[1])), "{:?}", scores.map(order));
        assert_eq!(order(0.0), order(-0.0));
    }
}
