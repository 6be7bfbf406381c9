//! Byte-level byte-pair encoding, `tokenizer.ggml.model = "gpt2"`: text is cut by a pre-tokenizer, each piece starts as
//! single bytes, and neighbours merge in the order of the merge list.
//!
//! GGUF writes tokens and merges in GPT-2's printable alphabet, where each byte is one character. They are turned back
//! into bytes when the file is opened, so that encoding works on the text as it is.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, Ordering};

use super::merge::{Merges, Scratch, Symbol};
use super::pretokenizer::PreTokenizer;
use super::special::duplicate;
use super::vocab::{Arena, Index, NO_TOKEN, PairHash, TokenKind};
use crate::error::{Error, Result};

/// A byte-level BPE vocabulary.
#[derive(Debug)]
pub(crate) struct Bpe {
    pre: PreTokenizer,
    /// The bytes that each token stands for.
    tokens: Arena,
    kinds: Vec<TokenKind>,
    /// Whether the token's text was in the byte alphabet; other texts stand for themselves.
    spelled: Vec<bool>,
    index: Index,
    /// `[256]`: the token of each byte, [`NO_TOKEN`] if it has none.
    bytes: Vec<u32>,
    /// `left << 32 | right` to rank and merged token.
    merges: HashMap<u64, (u32, u32), PairHash>,
    unknown: Option<u32>,
    /// `[num_tokens]`: whether the merges build this token from its bytes ([`WHOLE`], [`BROKEN`], else not known yet).
    /// Words that are a token are found with one look-up once that is known.
    whole: Vec<AtomicU8>,
}

const WHOLE: u8 = 1;
const BROKEN: u8 = 2;

impl Merges for Bpe {
    #[inline]
    fn merge(&self, _piece: &[u8], left: Symbol, right: Symbol) -> Option<(u32, u32)> {
        self.merges.get(&pair(left.id, right.id)).copied()
    }
}

fn pair(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

impl Bpe {
    /// From the tokens and merges as GGUF spells them.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] for a token with two ids, a merge without a space, or one that names a token that isn't
    /// there.
    pub(crate) fn new<'a>(
        pre: PreTokenizer,
        texts: impl ExactSizeIterator<Item = &'a [u8]>,
        kinds: Vec<TokenKind>,
        merges: impl ExactSizeIterator<Item = &'a [u8]>,
        unknown: Option<u32>,
    ) -> Result<Self> {
        let num_tokens = texts.len();
        let alphabet = Alphabet::new();
        let mut tokens = Arena::with_capacity(num_tokens, num_tokens * 8);
        let mut spelled = Vec::with_capacity(num_tokens);
        for (text, kind) in texts.zip(&kinds) {
            let is_text = matches!(kind, TokenKind::Normal | TokenKind::Unused | TokenKind::Byte);
            spelled.push(tokens.push_with(|bytes| {
                let decoded = is_text && alphabet.decode(text, bytes);
                if !decoded {
                    bytes.extend_from_slice(text);
                }
                decoded
            })?);
        }
        let mut index = Index::with_capacity(num_tokens);
        // Text first: an added token that spells the same bytes in plain text must not hide it.
        for id in (0..num_tokens as u32).filter(|&id| spelled[id as usize] && !tokens.get(id).is_empty()) {
            if let Some(other) = index.insert(&tokens, id) {
                return Err(duplicate(tokens.get(id), other, id));
            }
        }
        for id in (0..num_tokens as u32).filter(|&id| !spelled[id as usize] && !tokens.get(id).is_empty()) {
            index.insert(&tokens, id);
        }
        let bytes = (0..=255).map(|byte| index.get(&tokens, &[byte]).unwrap_or(NO_TOKEN)).collect();
        let whole = (0..num_tokens).map(|_| AtomicU8::new(0)).collect();
        let mut bpe = Self { pre, tokens, kinds, spelled, index, bytes, merges: HashMap::default(), unknown, whole };
        bpe.read_merges(merges, &alphabet)?;
        Ok(bpe)
    }

    fn read_merges<'a>(&mut self, merges: impl ExactSizeIterator<Item = &'a [u8]>, alphabet: &Alphabet) -> Result<()> {
        let mut ranks = HashMap::with_capacity_and_hasher(merges.len(), PairHash);
        let mut both = Vec::new();
        for (rank, merge) in merges.enumerate() {
            let fault =
                |what: &str| Error::Tokenizer(format!("merge {rank}, {:?}, {what}", String::from_utf8_lossy(merge)));
            // A token may be a space itself where the vocabulary isn't byte-level: the separator is never first.
            let space = merge.iter().skip(1).position(|&byte| byte == b' ').map(|at| at + 1);
            let Some(space) = space else { return Err(fault("is not two tokens with a space between them")) };
            both.clear();
            let mut read = |text: &[u8]| {
                let start = both.len();
                if !alphabet.decode(text, &mut both) {
                    both.extend_from_slice(text);
                }
                start
            };
            read(&merge[..space]);
            let middle = read(&merge[space + 1..]);
            let id = |bytes: &[u8]| self.index.get(&self.tokens, bytes);
            match (id(&both[..middle]), id(&both[middle..]), id(&both)) {
                (Some(left), Some(right), Some(merged)) => {
                    // The first of equal merges counts: it has the lower rank.
                    ranks.entry(pair(left, right)).or_insert((rank as u32, merged));
                }
                _ => return Err(fault("names a token that is not in the vocabulary")),
            }
        }
        self.merges = ranks;
        Ok(())
    }

    /// The id of the token with this text, as GGUF spells it.
    pub(crate) fn id(&self, text: &str) -> Option<u32> {
        let mut bytes = Vec::with_capacity(text.len());
        let decoded = Alphabet::new().decode(text.as_bytes(), &mut bytes);
        let found = |bytes: &[u8], spelled: bool| {
            self.index.get(&self.tokens, bytes).filter(|&id| self.spelled[id as usize] == spelled)
        };
        decoded.then(|| found(&bytes, true)).flatten().or_else(|| found(text.as_bytes(), false))
    }

    /// The token's text as GGUF spells it.
    pub(crate) fn text(&self, id: u32) -> String {
        let bytes = self.tokens.get(id);
        if self.spelled.get(id as usize) == Some(&true) {
            bytes.iter().map(|&byte| byte_char(byte)).collect()
        } else {
            String::from_utf8_lossy(bytes).into_owned()
        }
    }

    /// The bytes that token `id` stands for.
    pub(crate) fn bytes(&self, id: u32) -> &[u8] {
        self.tokens.get(id)
    }

    /// Appends the tokens of `text`.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] for a byte that has no token in a vocabulary without an unknown token.
    pub(crate) fn encode(&self, text: &str, scratch: &mut Scratch, ids: &mut Vec<u32>) -> Result<()> {
        self.pre.split(text, |piece| self.encode_piece(piece.as_bytes(), scratch, ids))
    }

    fn encode_piece(&self, piece: &[u8], scratch: &mut Scratch, ids: &mut Vec<u32>) -> Result<()> {
        let whole = self.index.get(&self.tokens, piece).filter(|&id| self.kinds[id as usize] != TokenKind::Control);
        if let Some(id) = whole {
            let state = self.whole[id as usize].load(Ordering::Relaxed);
            if state == WHOLE || self.pre.ignore_merges {
                ids.push(id);
                return Ok(());
            }
        }
        scratch.symbols.clear();
        for (start, &byte) in piece.iter().enumerate() {
            scratch.symbols.push(Symbol { start: start as u32, len: 1, id: self.bytes[usize::from(byte)] });
        }
        scratch.merge(piece, self);
        if let Some(id) = whole {
            let built = matches!(scratch.symbols[..], [only] if only.id == id);
            self.whole[id as usize].store(if built { WHOLE } else { BROKEN }, Ordering::Relaxed);
        }
        for symbol in &scratch.symbols {
            ids.push(match (symbol.id, self.unknown) {
                (NO_TOKEN, Some(unknown)) => unknown,
                (NO_TOKEN, None) => {
                    let byte = piece[symbol.start as usize];
                    return Err(Error::Tokenizer(format!("the vocabulary has no token for byte 0x{byte:02X}")));
                }
                (id, _) => id,
            });
        }
        Ok(())
    }
}

/// The character that stands for `byte` in GPT-2's alphabet: printable Latin-1 as it is, the rest from U+0100 up.
pub(crate) fn byte_char(byte: u8) -> char {
    let shifted = match byte {
        0..=0x20 => 0x100 + u32::from(byte),
        0x7F..=0xA0 => 0x121 + u32::from(byte - 0x7F),
        0xAD => 0x143,
        _ => u32::from(byte),
    };
    char::from_u32(shifted).unwrap_or(char::REPLACEMENT_CHARACTER)
}

/// From GPT-2's alphabet back to bytes.
pub(crate) struct Alphabet {
    /// By code point; `None` where a character stands for no byte.
    bytes: [Option<u8>; 0x144],
}

impl Alphabet {
    /// The table.
    pub(crate) fn new() -> Self {
        let mut bytes = [None; 0x144];
        for byte in 0..=255 {
            bytes[byte_char(byte) as usize] = Some(byte);
        }
        Self { bytes }
    }

    /// Appends the bytes that `text` spells; appends nothing and returns false when it isn't in the alphabet.
    pub(crate) fn decode(&self, text: &[u8], out: &mut Vec<u8>) -> bool {
        let start = out.len();
        let mut at = 0;
        while let Some(&lead) = text.get(at) {
            // Each character of the alphabet is one or two bytes of UTF-8.
            let (code, len) = match (lead, text.get(at + 1)) {
                (0..0x80, _) => (usize::from(lead), 1),
                (0xC2..=0xC5, Some(&next)) if next & 0xC0 == 0x80 => {
                    (usize::from(lead & 0x1F) << 6 | usize::from(next & 0x3F), 2)
                }
                _ => (usize::MAX, 1),
            };
            let Some(&Some(byte)) = self.bytes.get(code) else {
                out.truncate(start);
                return false;
            };
            out.push(byte);
            at += len;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All bytes, then `extra`.
    fn bpe(extra: &[(&str, TokenKind)], merges: &[&str], pre: &str) -> Result<Bpe> {
        let mut texts: Vec<String> = (0..=255).map(|byte| byte_char(byte).to_string()).collect();
        let mut kinds = vec![TokenKind::Normal; 256];
        for (text, kind) in extra {
            texts.push((*text).to_owned());
            kinds.push(*kind);
        }
        Bpe::new(
            PreTokenizer::named(Some(pre))?,
            texts.iter().map(String::as_bytes),
            kinds,
            merges.iter().map(|merge| merge.as_bytes()),
            None,
        )
    }

    fn encode(bpe: &Bpe, text: &str) -> Vec<u32> {
        let mut ids = Vec::new();
        bpe.encode(text, &mut Scratch::default(), &mut ids).unwrap();
        ids
    }

    const NORMAL: TokenKind = TokenKind::Normal;

    #[test]
    fn alphabet_is_a_bijection() {
        let alphabet = Alphabet::new();
        for byte in 0..=255 {
            let mut out = Vec::new();
            assert!(alphabet.decode(byte_char(byte).to_string().as_bytes(), &mut out));
            assert_eq!(out, [byte]);
        }
        for other in ["\u{144}", "▁", " ", "a\u{FF}b c", "\u{AD}"] {
            assert!(!alphabet.decode(other.as_bytes(), &mut Vec::new()), "{other:?}");
        }
    }

    #[test]
    fn merges_apply_in_order_of_rank() {
        let bpe = bpe(&[("ab", NORMAL), ("bc", NORMAL), ("abc", NORMAL)], &["b c", "a b", "a bc"], "gpt-2").unwrap();
        assert_eq!(encode(&bpe, "abc"), [258]);
        assert_eq!(encode(&bpe, "ab"), [256]);
        // The second time the answer comes from the look-up of whole words.
        assert_eq!(encode(&bpe, "abc"), [258]);
    }

    #[test]
    fn a_token_that_merges_do_not_build_is_used_only_where_merges_are_ignored() {
        let token = [("abc", NORMAL)];
        assert_eq!(encode(&bpe(&token, &[], "gpt-2").unwrap(), "abc").len(), 3);
        assert_eq!(encode(&bpe(&token, &[], "llama-bpe").unwrap(), "abc"), [256]);
        let control = [("abc", TokenKind::Control)];
        assert_eq!(encode(&bpe(&control, &[], "llama-bpe").unwrap(), "abc").len(), 3);
    }

    #[test]
    fn broken_merges_are_errors_that_name_them() {
        for (merge, word) in
            [("a zz", "not in the vocabulary"), ("ab", "a space between"), ("", "a space"), ("a b", "not in")]
        {
            let error = bpe(&[], &[merge], "gpt-2").unwrap_err().to_string();
            assert!(error.contains("merge 0") && error.contains(word), "{error}");
        }
    }

    #[test]
    fn duplicate_tokens_are_errors_but_added_twins_are_not() {
        let error = bpe(&[("a", NORMAL)], &[], "gpt-2").unwrap_err().to_string();
        assert!(error.contains("\"a\"") && error.contains("256"), "{error}");
        let twin = bpe(&[("ĠĠ", NORMAL), ("  ", TokenKind::UserDefined)], &["Ġ Ġ"], "gpt-2").unwrap();
        assert_eq!(encode(&twin, "a  "), [u32::from(b'a'), 256]);
        assert_eq!((twin.id("ĠĠ"), twin.text(257).as_str()), (Some(256), "  "));
    }

    #[test]
    fn missing_bytes_are_errors() {
        let pre = PreTokenizer::named(None).unwrap();
        let empty = Bpe::new(pre, std::iter::empty(), Vec::new(), std::iter::empty(), None).unwrap();
        let error = empty.encode("x", &mut Scratch::default(), &mut Vec::new()).unwrap_err().to_string();
        assert!(error.contains("0x78"), "{error}");
        assert!(empty.bytes(3).is_empty());
    }

    #[test]
    fn a_word_of_a_megabyte_takes_no_minutes() {
        let bpe = bpe(&[("aa", NORMAL), ("aaaa", NORMAL)], &["a a", "aa aa"], "gpt-2").unwrap();
        let ids = encode(&bpe, &"a".repeat(1 << 20));
        assert_eq!(ids.len(), 1 << 18);
        assert!(ids.iter().all(|&id| id == 257));
    }
}
