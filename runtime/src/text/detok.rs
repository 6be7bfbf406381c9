//! Incremental detokenising: from the bytes of tokens, cut anywhere, to text that is always whole UTF-8.
#![forbid(unsafe_code)]

/// Turns a stream of bytes into text. What it gave out, put together, is exactly `String::from_utf8_lossy` of all bytes:
/// invalid bytes become U+FFFD, and an incomplete character at the end (at most 3 bytes) is held back until the bytes
/// that follow decide what it is.
#[derive(Debug, Clone, Default)]
pub struct Detokenizer {
    held: Vec<u8>,
}

impl Detokenizer {
    /// Nothing seen, nothing held.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds bytes; returns the text that is certain now.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        let mut text = String::with_capacity(bytes.len() + 3);
        self.push_to(bytes, &mut text);
        text
    }

    /// Adds bytes; appends the text that is certain now.
    pub fn push_to(&mut self, bytes: &[u8], text: &mut String) {
        // The common case: whole characters, nothing held.
        if self.held.is_empty()
            && let Ok(whole) = std::str::from_utf8(bytes)
        {
            text.push_str(whole);
            return;
        }
        self.held.extend_from_slice(bytes);
        let mut done = 0;
        for chunk in self.held.utf8_chunks() {
            text.push_str(chunk.valid());
            done += chunk.valid().len();
            let invalid = chunk.invalid();
            let at_end = done + invalid.len() == self.held.len();
            if at_end && is_incomplete(invalid) {
                break;
            }
            if !invalid.is_empty() {
                text.push(char::REPLACEMENT_CHARACTER);
                done += invalid.len();
            }
        }
        self.held.drain(..done);
    }

    /// Bytes that are held back: 0 to 3.
    pub fn num_held(&self) -> usize {
        self.held.len()
    }

    /// No more bytes will come: the text of what was held back.
    pub fn finish(&mut self) -> String {
        let rest = String::from_utf8_lossy(&self.held).into_owned();
        self.held.clear();
        rest
    }
}

/// Whether more bytes could make these a character.
fn is_incomplete(bytes: &[u8]) -> bool {
    matches!(std::str::from_utf8(bytes), Err(error) if error.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_character_waits_for_its_last_byte() {
        let mut detok = Detokenizer::new();
        assert_eq!(detok.push(b"a\xF0\x9F"), "a");
        assert_eq!(detok.num_held(), 2);
        assert_eq!(detok.push(b"\x98"), "");
        assert_eq!(detok.push(b"\x80!"), "\u{1F600}!");
        assert_eq!(detok.finish(), "");
    }

    #[test]
    fn invalid_bytes_are_replaced_as_soon_as_they_are_known_to_be() {
        let mut detok = Detokenizer::new();
        assert_eq!(detok.push(b"\xE2\x82"), "");
        assert_eq!(detok.push(b"A"), "\u{FFFD}A");
        assert_eq!(detok.push(b"\xFF"), "\u{FFFD}");
        assert_eq!(detok.push(b"\xE2\x82"), "");
        assert_eq!(detok.finish(), "\u{FFFD}");
        assert_eq!(detok.push(b"next"), "next");
    }

    /// Bytes that are near UTF-8: characters, halves of characters, and any byte.
    fn nearly_utf8() -> impl Strategy<Value = Vec<u8>> {
        let part = prop_oneof![
            4 => any::<char>().prop_map(|c| c.to_string().into_bytes()),
            2 => (any::<char>(), 0..4_usize).prop_map(|(c, cut)| {
                let bytes = c.to_string().into_bytes();
                bytes[..cut.min(bytes.len())].to_vec()
            }),
            1 => any::<u8>().prop_map(|byte| vec![byte]),
        ];
        prop::collection::vec(part, 0..40).prop_map(|parts| parts.concat())
    }

    proptest! {
        #[test]
        fn any_cut_gives_the_text_of_the_whole(
            bytes in prop_oneof![nearly_utf8(), prop::collection::vec(any::<u8>(), 0..80)],
            cuts in prop::collection::vec(0..100_usize, 0..40),
        ) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.push(bytes.len());
            cuts.sort_unstable();
            let (mut detok, mut text, mut from) = (Detokenizer::new(), String::new(), 0);
            for cut in cuts {
                text.push_str(&detok.push(&bytes[from..cut]));
                prop_assert!(detok.num_held() <= 3);
                from = cut;
            }
            text.push_str(&detok.finish());
            prop_assert_eq!(text, String::from_utf8_lossy(&bytes));
        }
    }
}
