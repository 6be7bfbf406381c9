//! Guesses of the next tokens: what came after the last tokens when they occurred before, or what a draft model says.
//!
//! A guess is computed in the same step as the token before it, and stands if the sampler draws just that token from its
//! row. So the answer is the one that would have come token by token, in fewer steps. Guesses that were found in the text and
//! aren't computed are compared with what is drawn all the same, so it is known what they would have come to.

use super::payoff::{Chances, Offer, Record, Source, Then};
use super::request::Speculation;

/// Shortest ending that is looked for, and how many longer ones.
const SHORTEST_ENDING: usize = 2;
const NUM_ENDINGS: usize = 3;
/// Most guesses in a step.
const MOST_GUESSES: usize = 15;
/// What to expect of guesses after an ending, the shortest first, before there were any.
const PRIORS: [Chances; NUM_ENDINGS] =
    [Chances { first: 0.3, next: 0.7 }, Chances { first: 0.5, next: 0.8 }, Chances { first: 0.7, next: 0.9 }];

/// Guesses for one generation.
#[derive(Debug)]
pub(super) struct Guesser {
    speculation: Speculation,
    /// The next tokens, if the text goes on as before.
    guesses: Vec<u32>,
    /// How many tokens more than the shortest the ending has that they come after.
    ending: usize,
    /// What they came to, by ending.
    records: [Record; NUM_ENDINGS],
    /// What a draft model's came to.
    drafted: Record,
}

impl Guesser {
    pub(super) fn new(speculation: Speculation) -> Self {
        Self { speculation, guesses: Vec::new(), ending: 0, records: Default::default(), drafted: Record::default() }
    }

    /// Finds guesses of what comes after `tokens`, at most `most`.
    pub(super) fn offer(&mut self, tokens: &[u32], most: usize) -> Offer {
        self.guesses.clear();
        if self.speculation == Speculation::Ngram {
            let after = |ending| Some((ending, after_ending(tokens, SHORTEST_ENDING + ending)?));
            if let Some((ending, found)) = (0..NUM_ENDINGS).rev().find_map(after) {
                self.guesses.extend(found.iter().take(MOST_GUESSES.min(most)));
                self.ending = ending;
            }
        }
        let chances = self.records[self.ending].chances(PRIORS[self.ending]);
        Offer { most: self.guesses.len(), chances, source: Source::Found }
    }

    /// What a draft model may be asked for: `most` guesses, which cost `entry_seconds` beside its steps. `prior`: what its
    /// guesses come to elsewhere.
    pub(super) fn offer_drafts(&mut self, most: usize, prior: Chances, entry_seconds: f64) -> Offer {
        self.guesses.clear();
        Offer { most, chances: self.drafted.chances(prior), source: Source::Drafted { entry_seconds } }
    }

    /// The draft model was not asked.
    pub(super) fn decline_drafts(&mut self) {
        self.drafted.fade();
    }

    /// Takes the draft model's guesses.
    pub(super) fn set_drafts(&mut self, guesses: &[u32]) {
        self.guesses.clear();
        self.guesses.extend_from_slice(guesses);
    }

    /// Where its guesses come from.
    pub(super) fn speculation(&self) -> Speculation {
        self.speculation
    }

    /// The guesses found last.
    pub(super) fn guesses(&self) -> &[u32] {
        &self.guesses
    }

    /// These tokens were drawn in the step. Says how many guesses they prove right, and what came then.
    pub(super) fn learn(&mut self, drawn: &[u32]) -> (usize, Then) {
        let tested = self.guesses.len().min(drawn.len());
        let num_right = self.guesses.iter().zip(drawn).take_while(|(guess, token)| guess == token).count();
        let then = if num_right < tested { Then::Wrong } else { Then::Untested };
        let record = match self.speculation {
            Speculation::Draft => &mut self.drafted,
            Speculation::Off | Speculation::Ngram => &mut self.records[self.ending],
        };
        record.note(num_right, then);
        self.guesses.clear();
        (num_right, then)
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
        assert_eq!(guesser.offer(&tokens, 4).most, 4);
        assert_eq!(guesser.guesses(), [50, 51, 52, 53]);
        guesser.offer(&tokens, 1);
        assert_eq!(guesser.guesses(), [50]);
        assert_eq!(guesser.offer(&tokens, 0).most, 0);
        assert_eq!(guesser.offer(&[1, 2, 3], 9).most, 0);
        assert_eq!(Guesser::new(Speculation::Off).offer(&tokens, 9).most, 0);
    }

    #[test]
    fn each_ending_is_judged_by_what_came_after_it() {
        let mut guesser = Guesser::new(Speculation::Ngram);
        let long = [1, 2, 3, 4, 50, 51, 52, 1, 2, 3, 4];
        let short = [3, 4, 60, 61, 3, 4];
        let before = guesser.offer(&short, 9).chances;
        for _ in 0..20 {
            guesser.offer(&long, 9);
            guesser.learn(&[50, 51, 9]);
        }
        assert_eq!(guesser.offer(&short, 9).chances, before);
        let Chances { first, next } = guesser.offer(&long, 9).chances;
        assert!(first > 0.95 && (0.45..0.6).contains(&next), "{first} {next}");
        // A guess that wasn't computed is known to be wrong all the same; the second was never looked at.
        for _ in 0..20 {
            guesser.offer(&short, 9);
            guesser.learn(&[7]);
        }
        let after = guesser.offer(&short, 9).chances;
        assert!(after.first < 0.1 && after.next == before.next, "{after:?}");
    }

    #[test]
    fn without_guesses_there_is_nothing_to_learn() {
        let mut guesser = Guesser::new(Speculation::Ngram);
        let before = guesser.offer(&[1, 2, 3], 9).chances;
        guesser.learn(&[4]);
        assert_eq!(guesser.offer(&[1, 2, 3], 9).chances, before);
    }
}
