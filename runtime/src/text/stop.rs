//! Stop strings, found across token edges.
#![forbid(unsafe_code)]

/// Lets text through until a stop string is complete. Text that could be the beginning of a stop string is held back;
/// a stop string is never let through.
///
/// The string that is complete first wins, and of several that are complete at the same character the longest: so the
/// result doesn't depend on how the text was cut.
#[derive(Debug, Clone)]
pub struct StopMatcher {
    patterns: Vec<Pattern>,
    /// What may be the beginning of a stop string: as long as the longest pattern's `matched`.
    held: String,
    /// Which of the strings was found.
    stopped_by: Option<usize>,
}

/// One stop string as a Knuth-Morris-Pratt automaton over bytes.
#[derive(Debug, Clone)]
struct Pattern {
    /// Its place among the strings.
    index: usize,
    bytes: Vec<u8>,
    /// `fallback[n]`: the longest proper prefix of the first `n` bytes that is their suffix too. `[bytes.len() + 1]`
    fallback: Vec<usize>,
    /// Bytes of the string that the text ends with. It starts at the first byte of a character, so it always covers whole
    /// characters of the text.
    matched: usize,
}

impl Pattern {
    fn new((index, stop): (usize, &str)) -> Self {
        let bytes = stop.as_bytes().to_vec();
        let mut fallback = vec![0; bytes.len() + 1];
        let mut k = 0;
        for n in 1..bytes.len() {
            while k > 0 && bytes[k] != bytes[n] {
                k = fallback[k];
            }
            k += usize::from(bytes[k] == bytes[n]);
            fallback[n + 1] = k;
        }
        Self { index, bytes, fallback, matched: 0 }
    }

    fn feed(&mut self, byte: u8) {
        while self.matched > 0 && self.bytes[self.matched] != byte {
            self.matched = self.fallback[self.matched];
        }
        self.matched += usize::from(self.bytes[self.matched] == byte);
    }

    fn is_complete(&self) -> bool {
        self.matched == self.bytes.len()
    }
}

impl StopMatcher {
    /// A matcher for these strings; empty ones can't match and are left out.
    pub fn new<S: AsRef<str>>(stops: &[S]) -> Self {
        let stops = stops.iter().map(AsRef::as_ref).enumerate().filter(|(_, stop)| !stop.is_empty());
        Self { patterns: stops.map(Pattern::new).collect(), held: String::new(), stopped_by: None }
    }

    /// Adds text and appends to `out` what can't be part of a stop string any more. After the stop it drops everything.
    pub fn push_to(&mut self, text: &str, out: &mut String) {
        if self.stopped_by.is_some() {
            return;
        }
        if self.patterns.is_empty() {
            out.push_str(text);
            return;
        }
        for (index, &byte) in text.as_bytes().iter().enumerate() {
            for pattern in &mut self.patterns {
                pattern.feed(byte);
            }
            let complete = self.patterns.iter().filter(|pattern| pattern.is_complete());
            if let Some(pattern) = complete.max_by_key(|pattern| pattern.bytes.len()) {
                let stop_bytes = pattern.bytes.len();
                self.stopped_by = Some(pattern.index);
                self.held.push_str(&text[..=index]);
                let end = self.held.len() - stop_bytes;
                out.push_str(&self.held[..end]);
                self.held.clear();
                return;
            }
        }
        self.held.push_str(text);
        let keep = self.patterns.iter().map(|pattern| pattern.matched).max().unwrap_or(0);
        out.extend(self.held.drain(..self.held.len() - keep));
    }

    /// Adds text; returns what can't be part of a stop string any more.
    pub fn push(&mut self, text: &str) -> String {
        let mut out = String::new();
        self.push_to(text, &mut out);
        out
    }

    /// Whether a stop string was found.
    pub fn is_stopped(&self) -> bool {
        self.stopped_by.is_some()
    }

    /// Which stop string was found: its place among those of [`new`](Self::new).
    pub fn stopped_by(&self) -> Option<usize> {
        self.stopped_by
    }

    /// No more text will come: what was held back is no stop string after all.
    pub fn finish(&mut self) -> String {
        for pattern in &mut self.patterns {
            pattern.matched = 0;
        }
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_stop_across_edges_is_never_let_through() {
        let mut stop = StopMatcher::new(&["\n\nUser:"]);
        assert_eq!(stop.push("Hi.\n"), "Hi.");
        assert_eq!(stop.push("\nUs"), "");
        assert_eq!(stop.push("er: and more"), "");
        assert!(stop.is_stopped());
        assert_eq!(stop.push("late"), "");
        assert_eq!(stop.finish(), "");
    }

    #[test]
    fn what_turns_out_to_be_no_stop_is_let_through() {
        let mut stop = StopMatcher::new(&["</end>", "<|x|>"]);
        assert_eq!(stop.push("a <"), "a ");
        assert_eq!(stop.push("<|"), "<");
        assert_eq!(stop.push("y"), "<|y");
        assert_eq!(stop.push("</en"), "");
        assert_eq!(stop.finish(), "</en");
        assert!(!stop.is_stopped());
    }

    #[test]
    fn a_failed_start_may_hide_a_later_one() {
        let mut stop = StopMatcher::new(&["aab"]);
        assert_eq!(stop.push("aaa"), "a");
        assert_eq!(stop.push("b"), "");
        assert!(stop.is_stopped());
    }

    #[test]
    fn the_first_complete_stop_wins_whatever_the_cut() {
        for cut in 0..=4 {
            let mut stop = StopMatcher::new(&["abcd", "bc"]);
            let text = stop.push(&"abcd"[..cut]) + &stop.push(&"abcd"[cut..]);
            assert_eq!(text, "a", "cut at {cut}");
        }
        let mut stop = StopMatcher::new(&["bc", "abc"]);
        assert_eq!(stop.push("xabc"), "x", "of two that end together the longer");
    }

    #[test]
    fn without_stops_text_passes() {
        let mut stop = StopMatcher::new::<&str>(&[]);
        assert_eq!(stop.push("abc"), "abc");
        let mut stop = StopMatcher::new(&[""]);
        assert_eq!(stop.push("abc"), "abc");
        assert!(!stop.is_stopped());
    }

    /// The definition: the smallest prefix of the text that ends with a stop string, cut before the longest such.
    fn naive(text: &str, stops: &[String]) -> (String, bool) {
        for end in 0..=text.len() {
            let found = stops.iter().filter(|stop| text.as_bytes()[..end].ends_with(stop.as_bytes()));
            if let Some(longest) = found.map(String::len).max() {
                return (text[..end - longest].to_owned(), true);
            }
        }
        (text.to_owned(), false)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn streaming_is_the_search_over_the_whole_text(
            parts in prop::collection::vec("[abß→]{0,4}", 0..12),
            stops in prop::collection::vec("[abß→]{1,5}", 0..4),
        ) {
            let (expected, stopped) = naive(&parts.concat(), &stops);
            let mut matcher = StopMatcher::new(&stops);
            let mut text = String::new();
            for part in &parts {
                text.push_str(&matcher.push(part));
                prop_assert!(expected.starts_with(&text), "{text:?} went out too early");
            }
            prop_assert_eq!(matcher.is_stopped(), stopped);
            text.push_str(&matcher.finish());
            prop_assert_eq!(text, expected);
        }

        #[test]
        fn nothing_is_held_without_need(text in "[ab]{0,12}", stops in prop::collection::vec("[ab]{1,5}", 1..4)) {
            let mut matcher = StopMatcher::new(&stops);
            let out = matcher.push(&text);
            if !matcher.is_stopped() {
                let rest = &text[out.len()..];
                prop_assert!(rest.is_empty() || stops.iter().any(|stop| stop.starts_with(rest)));
            }
        }
    }
}
