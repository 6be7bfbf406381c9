//! From token bytes to the text of events: detokeniser, stop strings, and the log-probabilities that belong to the text.

use std::collections::VecDeque;

use super::request::{FinishReason, TokenLogprob};
use crate::text::{Detokenizer, StopMatcher};

/// A token's log-probability and those of its alternatives.
pub(super) type Entry = (TokenLogprob, Vec<TokenLogprob>);

/// A token whose text isn't out yet.
struct Pending {
    /// Bytes of the answer up to the token's end.
    bytes_end: usize,
    /// Bytes of detokenised text when the token's last character was whole. The token that made it whole may have added
    /// more; then this one's entry goes out a little later than it could.
    text_end: Option<usize>,
    entry: Entry,
}

/// The text side of one generation.
pub(super) struct Output {
    detok: Detokenizer,
    stop: StopMatcher,
    pending: VecDeque<Pending>,
    /// Bytes that went into the detokeniser.
    bytes_in: usize,
    /// Bytes of text that came out of it.
    text_in: usize,
    /// Bytes of text that the stop matcher let through.
    text_out: usize,
    /// `text_end` of the last token whose entry went out.
    sent_end: usize,
}

/// What can be sent.
#[derive(Default)]
pub(super) struct Piece {
    pub(super) text: String,
    pub(super) logprobs: Vec<Entry>,
}

impl Piece {
    pub(super) fn is_empty(&self) -> bool {
        self.text.is_empty() && self.logprobs.is_empty()
    }
}

impl Output {
    pub(super) fn new(stops: &[String]) -> Self {
        Self {
            detok: Detokenizer::new(),
            stop: StopMatcher::new(stops),
            pending: VecDeque::new(),
            bytes_in: 0,
            text_in: 0,
            text_out: 0,
            sent_end: 0,
        }
    }

    /// Adds a token. After it, ask [`is_stopped`](Self::is_stopped).
    pub(super) fn push(&mut self, bytes: &[u8], entry: Option<Entry>) -> Piece {
        self.bytes_in += bytes.len();
        if let Some(entry) = entry {
            self.pending.push_back(Pending { bytes_end: self.bytes_in, text_end: None, entry });
        }
        let text = self.detok.push(bytes);
        let mut piece = Piece::default();
        self.pass(&text, &mut piece.text);
        self.release(&mut piece.logprobs);
        piece
    }

    /// No more tokens will come: what was held back, unless a stop string ended the text.
    pub(super) fn finish(&mut self) -> Piece {
        let mut piece = Piece::default();
        let rest = self.detok.finish();
        self.pass(&rest, &mut piece.text);
        let held = self.stop.finish();
        self.text_out += held.len();
        piece.text.push_str(&held);
        self.release(&mut piece.logprobs);
        piece
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stop.is_stopped()
    }

    /// Why the text ended, if a stop string ended it.
    pub(super) fn stop_reason(&self) -> Option<FinishReason> {
        self.stop.stopped_by().map(FinishReason::StopString)
    }

    fn pass(&mut self, text: &str, out: &mut String) {
        self.text_in += text.len();
        self.stop.push_to(text, out);
        self.text_out += out.len();
        let whole_bytes = self.bytes_in - self.detok.num_held();
        for pending in self.pending.iter_mut().filter(|pending| pending.bytes_end <= whole_bytes) {
            pending.text_end.get_or_insert(self.text_in);
        }
    }

    /// Takes the entries of tokens whose text is out. When a stop string ended the text, a token that only began before it
    /// belongs to the answer too; those inside the stop string don't.
    fn release(&mut self, entries: &mut Vec<Entry>) {
        while let Some(pending) = self.pending.front() {
            let Some(text_end) = pending.text_end else { return };
            let is_out = text_end <= self.text_out || (self.is_stopped() && self.sent_end < self.text_out);
            if !is_out {
                return;
            }
            self.sent_end = text_end;
            entries.extend(self.pending.pop_front().map(|pending| pending.entry));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(id: u32) -> Option<Entry> {
        Some((TokenLogprob { id, bytes: vec![], logprob: 0.0 }, vec![]))
    }

    fn ids(piece: &Piece) -> Vec<u32> {
        piece.logprobs.iter().map(|(token, _)| token.id).collect()
    }

    fn push(output: &mut Output, bytes: &[u8], id: u32) -> (String, Vec<u32>) {
        let piece = output.push(bytes, entry(id));
        (piece.text.clone(), ids(&piece))
    }

    #[test]
    fn entries_wait_for_the_text_that_their_token_completes() {
        let mut output = Output::new(&["</s>".to_owned()]);
        assert_eq!(push(&mut output, b"a", 1), ("a".into(), vec![1]));
        assert_eq!(push(&mut output, b"\xE2\x82", 2), (String::new(), vec![]));
        assert_eq!(push(&mut output, b"\xAC\xC3", 3), ("€".into(), vec![2]));
        assert_eq!(push(&mut output, b"\x9F<", 4), ("ß".into(), vec![]));
        assert_eq!(push(&mut output, b"/", 5), (String::new(), vec![]));
        assert_eq!(push(&mut output, b"b", 6), ("</b".into(), vec![3, 4, 5, 6]));
        assert_eq!(push(&mut output, b"", 7), (String::new(), vec![7]));
        assert!(!output.is_stopped());
    }

    #[test]
    fn tokens_of_a_stop_string_have_no_entry() {
        let mut output = Output::new(&["END".to_owned()]);
        assert_eq!(push(&mut output, b"xE", 1), ("x".into(), vec![]));
        assert_eq!(push(&mut output, b"N", 2), (String::new(), vec![]));
        assert_eq!(push(&mut output, b"D.", 3), (String::new(), vec![1]));
        assert!(output.is_stopped());
        assert!(output.finish().is_empty());
    }

    #[test]
    fn finish_gives_what_was_held_back() {
        let mut output = Output::new(&["END".to_owned()]);
        assert_eq!(push(&mut output, b"xEN", 1), ("x".into(), vec![]));
        assert_eq!(push(&mut output, b"\xF0\x9F", 2), (String::new(), vec![]));
        let piece = output.finish();
        assert_eq!((piece.text.as_str(), ids(&piece)), ("EN\u{FFFD}", vec![1, 2]));
    }
}
