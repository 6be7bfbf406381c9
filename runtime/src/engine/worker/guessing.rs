//! The worker's guesses before a step: how many of each sequence, and those of the draft model.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{Worker, panic_message, times_of};
use crate::engine::draft::Drafter;
use crate::engine::handle::GuessPolicy;
use crate::engine::payoff::{Costs, Source, choose};
use crate::exec::Numerics;

impl Worker {
    /// Asks for guesses, as many as pay, for a step in which every sequence computes its next token. Of others nobody knows
    /// what they would take without.
    pub(super) fn guess(&mut self) {
        let (sequences, offers, drafter) = (&mut self.sequences.0, &mut self.offers, &self.drafter);
        let (mut num_rows, mut numerics) = (0, Numerics::Fast);
        offers.clear();
        self.state.guess(|id| {
            num_rows += 1;
            if let Some(sequence) = sequences.get_mut(&id) {
                if sequence.numerics == Numerics::Invariant {
                    numerics = Numerics::Invariant;
                }
                offers.push(sequence.offer(id, drafter.as_ref()));
            }
            0
        });
        if num_rows != self.state.num_running() || offers.len() != num_rows || offers.iter().all(|o| o.most == 0) {
            return;
        }
        match self.guess_policy {
            GuessPolicy::WherePays => {
                let costs =
                    Costs { steps: &self.times[times_of(numerics)], drafts: drafter.as_ref().map(Drafter::times) };
                choose(costs, num_rows, offers, &mut self.counts);
            }
            GuessPolicy::Always => {
                self.counts.clear();
                self.counts.extend(offers.iter().map(|offer| offer.most));
            }
        }
        self.draft();
        let mut counts = self.counts.iter();
        self.state.guess(|_| counts.next().copied().unwrap_or(0));
    }

    /// Lets the draft model make the guesses that were chosen of it. If it fails, there are none any more.
    fn draft(&mut self) {
        let Some(drafter) = &mut self.drafter else { return };
        self.wishes.clear();
        let (sequences, wishes) = (&mut self.sequences, &mut self.wishes);
        let mut chosen = self.offers.iter().zip(&self.counts);
        self.state.guess(|id| {
            if let (Some((offer, &count)), Some(sequence)) = (chosen.next(), sequences.0.get_mut(&id))
                && offer.source != Source::Found
            {
                match count {
                    0 => sequence.guesser.decline_drafts(),
                    _ => wishes.push((id, count)),
                }
            }
            0
        });
        if wishes.is_empty() {
            drafter.pass();
            return;
        }
        self.executor.rest();
        let result = catch_unwind(AssertUnwindSafe(|| drafter.guess(wishes, sequences)));
        let failure = match result {
            Ok(Ok(())) => {
                for &(id, _) in &*wishes {
                    if let Some(sequence) = sequences.0.get_mut(&id) {
                        sequence.guesser.set_drafts(drafter.guesses(id));
                    }
                }
                None
            }
            Ok(Err(error)) => Some(error.to_string()),
            Err(payload) => Some(panic_message(payload.as_ref())),
        };
        if let Some(failure) = failure {
            tracing::warn!(model = self.name, failure, "the draft model failed; answers go on without it");
            self.counts.clear();
            self.drop_drafter();
        } else {
            self.count_drafts();
        }
    }

    /// Where the draft model made fewer guesses than were chosen, fewer are computed.
    fn count_drafts(&mut self) {
        let (sequences, mut counts) = (&self.sequences.0, self.counts.iter_mut());
        self.state.guess(|id| {
            if let (Some(count), Some(sequence)) = (counts.next(), sequences.get(&id)) {
                *count = (*count).min(sequence.guesser.guesses().len());
            }
            0
        });
    }

    pub(super) fn drop_drafter(&mut self) {
        let drafter = self.drafter.take();
        if catch_unwind(AssertUnwindSafe(|| drop(drafter))).is_err() {
            tracing::error!(model = self.name, "the draft model's executor panicked while it was dropped");
        }
    }
}
