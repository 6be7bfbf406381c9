//! Finding the tokens that are cut out of a text before it is tokenised: user-defined ones always, control tokens where
//! the caller lets a text name them.

use std::collections::HashMap;

use super::ParseSpecial;
use super::vocab::{Arena, Index, TokenKind};
use crate::error::{Error, Result};

/// The special tokens of a vocabulary, found by leftmost, then longest match, as Hugging Face tokenizers find them.
#[derive(Debug)]
pub(crate) struct SpecialTokens {
    arena: Arena,
    index: Index,
    /// Vocabulary id and kind of the arena's strings.
    tokens: Vec<(u32, TokenKind)>,
    /// Which of them swallow the white space after them, as Phi-3's do; empty: none.
    strip_right: Vec<bool>,
    /// Whether a token starts with this byte: most positions of a text are ruled out here.
    first: [bool; 256],
    /// Lengths of the tokens that start with these two bytes (the second is 0 for single-byte tokens), longest first.
    lengths: HashMap<[u8; 2], Vec<u32>>,
}

/// A part of a text.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Part<'a> {
    /// Ordinary text, not empty.
    Text(&'a str),
    /// A special token's id.
    Token(u32),
}

impl SpecialTokens {
    /// From (id, kind, text) of control, unknown and user-defined tokens.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when two tokens have the same text.
    pub(crate) fn new<'a>(special: impl ExactSizeIterator<Item = (u32, TokenKind, &'a [u8])>) -> Result<Self> {
        let mut arena = Arena::with_capacity(special.len(), 0);
        let mut index = Index::with_capacity(special.len());
        let mut tokens = Vec::with_capacity(special.len());
        let mut first = [false; 256];
        let mut lengths: HashMap<[u8; 2], Vec<u32>> = HashMap::new();
        for (id, kind, text) in special {
            let Some(&byte) = text.first() else { continue };
            let local = tokens.len() as u32;
            arena.push_with(|bytes| bytes.extend_from_slice(text))?;
            tokens.push((id, kind));
            if let Some(other) = index.insert(&arena, local) {
                let (other, _) = tokens[other as usize];
                return Err(duplicate(text, other, id));
            }
            first[usize::from(byte)] = true;
            let key = [byte, text.get(1).copied().unwrap_or(0)];
            let known = lengths.entry(key).or_default();
            if !known.contains(&(text.len() as u32)) {
                known.push(text.len() as u32);
            }
        }
        for known in lengths.values_mut() {
            known.sort_unstable_by(|a, b| b.cmp(a));
        }
        Ok(Self { arena, index, tokens, first, lengths, strip_right: Vec::new() })
    }

    /// The same tokens, of which all but those in `keep` swallow the white space after them.
    pub(crate) fn stripping_right(mut self, keep: &[&str]) -> Self {
        let strips = |local| !keep.iter().any(|text| text.as_bytes() == self.arena.get(local));
        self.strip_right = (0..self.tokens.len() as u32).map(strips).collect();
        self
    }

    /// The id of the special token with this text.
    pub(crate) fn id(&self, text: &[u8]) -> Option<u32> {
        self.index.get(&self.arena, text).map(|local| self.tokens[local as usize].0)
    }

    /// Gives the parts of `text` to `part`, in order.
    ///
    /// # Errors
    /// Those of `part`.
    pub(crate) fn split<'t>(
        &self,
        text: &'t str,
        parse: ParseSpecial,
        mut part: impl FnMut(Part<'t>) -> Result<()>,
    ) -> Result<()> {
        let bytes = text.as_bytes();
        let (mut done, mut at) = (0, 0);
        while at < bytes.len() {
            // A token starts with the first byte of a character, so that a match can't start inside one.
            if !self.first[usize::from(bytes[at])] {
                at += 1;
                continue;
            }
            let Some((local, len)) = self.longest(bytes, at, parse) else {
                at += 1;
                continue;
            };
            if done < at {
                part(Part::Text(&text[done..at]))?;
            }
            part(Part::Token(self.tokens[local as usize].0))?;
            at += len;
            if self.strip_right.get(local as usize) == Some(&true) {
                at += bytes[at..].iter().take_while(|byte| byte.is_ascii_whitespace()).count();
            }
            done = at;
        }
        if done < bytes.len() { part(Part::Text(&text[done..])) } else { Ok(()) }
    }

    fn longest(&self, bytes: &[u8], at: usize, parse: ParseSpecial) -> Option<(u32, usize)> {
        let single = [bytes[at], 0];
        let double = [bytes[at], bytes.get(at + 1).copied().unwrap_or(0)];
        let keys = [Some(double), (single != double).then_some(single)];
        for len in keys.into_iter().flatten().filter_map(|key| self.lengths.get(&key)).flatten() {
            let len = *len as usize;
            let Some(text) = bytes.get(at..at + len) else { continue };
            if let Some(local) = self.index.get(&self.arena, text) {
                let (_, kind) = self.tokens[local as usize];
                if kind == TokenKind::UserDefined || parse == ParseSpecial::Yes {
                    return Some((local, len));
                }
            }
        }
        None
    }
}

/// The error for two ids with one text.
pub(crate) fn duplicate(text: &[u8], first: u32, second: u32) -> Error {
    Error::Tokenizer(format!("the token {:?} has two ids, {first} and {second}", String::from_utf8_lossy(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn special() -> SpecialTokens {
        let tokens: [(u32, TokenKind, &[u8]); 6] = [
            (10, TokenKind::Control, b"<s>"),
            (11, TokenKind::UserDefined, b"  "),
            (12, TokenKind::UserDefined, b"    "),
            (13, TokenKind::UserDefined, "é".as_bytes()),
            (14, TokenKind::Control, b"<s>x"),
            (15, TokenKind::UserDefined, b"\n"),
        ];
        SpecialTokens::new(tokens.into_iter()).unwrap()
    }

    fn parts(special: &SpecialTokens, text: &str, parse: ParseSpecial) -> Vec<String> {
        let mut parts = Vec::new();
        special
            .split(text, parse, |part| {
                parts.push(match part {
                    Part::Text(text) => text.to_owned(),
                    Part::Token(id) => format!("#{id}"),
                });
                Ok(())
            })
            .unwrap();
        parts
    }

    #[test]
    fn longest_match_from_the_left() {
        let special = special();
        assert_eq!(parts(&special, "<s>x<s>y", ParseSpecial::Yes), ["#14", "#10", "y"]);
        assert_eq!(parts(&special, "<s>a       b\né", ParseSpecial::No), ["<s>a", "#12", "#11", " b", "#15", "#13"]);
        assert_eq!(parts(&special, "", ParseSpecial::Yes), Vec::<String>::new());
    }

    #[test]
    fn tokens_can_swallow_white_space() {
        let special = special().stripping_right(&["<s>x"]);
        assert_eq!(parts(&special, "a<s>\n b<s>x c", ParseSpecial::Yes), ["a", "#10", "b", "#14", " c"]);
    }

    #[test]
    fn equal_texts_are_refused() {
        let twice: [(u32, TokenKind, &[u8]); 2] = [(1, TokenKind::Control, b"<s>"), (2, TokenKind::Control, b"<s>")];
        let error = SpecialTokens::new(twice.into_iter()).unwrap_err().to_string();
        assert!(error.contains("<s>") && error.contains("1 and 2"), "{error}");
    }
}
