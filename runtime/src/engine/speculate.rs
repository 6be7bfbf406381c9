//! Guesses of the next tokens without a second model: what came after the last tokens when they occurred before.
//!
//! A guess is computed in the same step as the token before it, and stands if the sampler draws just that token from its
//! row. So the answer is the one that would have come token by token, in fewer steps where texts repeat themselves.

use super::request::Speculation;

/// Longest and shortest ending that is looked for.
const LONGEST_ENDING: usize = 4;
const SHORTEST_ENDING: usize = 2;
/// Most guesses in a step: with the known token as many rows as the kernels for few rows take.
const MOST_GUESSES: usize = 7;
/// Most steps without a guess after guesses that failed.
const LONGEST_PAUSE: u32 = 64;

/// Guesses for one generation, as many as have paid lately.
#[derive(Debug)]
pub(super) struct Guesser {
    speculation: Speculation,
    /// The next tokens, if the text goes on as before.
    guesses: Vec<u32>,
    /// Most guesses in the next step.
    length: usize,
    /// Steps to go without a guess.
    pause: u32,
    /// The last pause.
    last_pause: u32,
}

impl Guesser {
    pub(super) fn new(speculation: Speculation) -> Self {
        Self { speculation, guesses: Vec::new(), length: MOST_GUESSES.div_ceil(2), pause: 0, last_pause: 0 }
    }

    /// What comes after `tokens`, at most `most` of them.
    pub(super) fn guess(&mut self, tokens: &[u32], most: usize) -> &[u32] {
        self.guesses.clear();
        if self.speculation == Speculation::Off {
            return &[];
        }
        if self.pause > 0 {
            self.pause -= 1;
            return &[];
        }
        let found = (SHORTEST_ENDING..=LONGEST_ENDING).rev().find_map(|len| after_ending(tokens, len));
        if let Some(found) = found {
            self.guesses.extend(found.iter().take(self.length.min(most)));
        }
        &self.guesses
    }

    /// The last guesses.
    pub(super) fn guesses(&self) -> &[u32] {
        &self.guesses
    }

    /// So many guesses were computed, and the first so many of them stood.
    pub(super) fn learn(&mut self, num_computed: usize, num_right: usize) {
        if num_computed == 0 {
            return;
        }
        if num_right == 0 {
            self.length = (self.length / 2).max(1);
            self.last_pause = (2 * self.last_pause + 1).min(LONGEST_PAUSE);
            self.pause = self.last_pause;
        } else {
            self.last_pause = 0;
            if num_right == num_computed {
                self.length = (2 * self.length).min(MOST_GUESSES);
            }
        }
    }
}

/// What followed the last `len` tokens when they last occurred before.
fn after_ending(tokens: &[u32], len: usize) -> Option<&[u32]> {
    let (last, before) = tokens.split_last()?;
    let ending = tokens.get(tokens.len().checked_sub(len)?..)?;
    // The places where the ending's last token occurs; most aren't it, so the rest is rarely compared.
    let places = before.iter().enumerate().rev().filter(|&(_, token)| token == last);
    let mut ends = places.map(|(place, _)| place + 1).filter(|&end| end >= len);
    let end = ends.find(|&end| tokens[end - len..end] == *ending)?;
    Some(&tokens[end..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_occurrence_of_the_ending_goes_on() {
        assert_eq!(after_ending(&[1, 2, 3, 9, 1, 2, 4, 5, 1, 2], 2), Some(&[4, 5, 1, 2][..]));
        assert_eq!(after_ending(&[1, 2, 3, 1, 2], 3), None);
        assert_eq!(after_ending(&[7, 7, 7], 2), Some(&[7][..]));
        assert_eq!(after_ending(&[7], 2), None);
        assert_eq!(after_ending(&[], 2), None);
    }

    #[test]
    fn longer_endings_come_first_and_no_more_than_allowed_is_guessed() {
        let mut guesser = Guesser::new(Speculation::Ngram);
        let tokens = [1, 2, 3, 4, 50, 51, 52, 53, 54, 3, 4, 60, 1, 2, 3, 4];
        assert_eq!(guesser.guess(&tokens, 9), [50, 51, 52, 53]);
        assert_eq!(guesser.guess(&tokens, 1), [50]);
        assert_eq!(guesser.guess(&tokens, 0), [0; 0]);
        assert_eq!(Guesser::new(Speculation::Off).guess(&tokens, 9), [0; 0]);
    }

    #[test]
    fn success_makes_longer_guesses_and_failure_longer_pauses() {
        let mut guesser = Guesser::new(Speculation::Ngram);
        let tokens: Vec<u32> = (0..20).chain(0..4).collect();
        guesser.learn(4, 4);
        assert_eq!(guesser.guess(&tokens, 100).len(), MOST_GUESSES);
        let mut pauses = Vec::new();
        for _ in 0..9 {
            guesser.learn(1, 0);
            pauses.push((0..).take_while(|_| guesser.guess(&tokens, 100).is_empty()).count());
        }
        assert_eq!(pauses, [1, 3, 7, 15, 31, 63, 64, 64, 64]);
        assert_eq!(guesser.guesses().len(), 1);
        guesser.learn(1, 1);
        assert_eq!(guesser.guess(&tokens, 100).len(), 2);
        guesser.learn(2, 0);
        assert!(
            guesser.guess(&tokens, 100).is_empty() && !guesser.guess(&tokens, 100).is_empty(),
            "pauses are short again"
        );
    }
}
