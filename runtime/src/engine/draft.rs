//! Guesses by a draft model: a smaller one with the same vocabulary, which runs on the engine's thread between its steps.
//!
//! It has a KV pool of its own and follows the tokens of the sequences that it guesses for: it computes what it hasn't seen of
//! them, then its own most likely tokens, one after the other. Guesses that don't stand need no undoing: their slots are
//! written again. What it guesses decides how long answers take, never what they are, so its steps need not be exact.

use std::collections::HashMap;
use std::time::Instant;

use super::payoff::{Chances, Record, StepTimes, Then};
use super::rows::{Fetched, Logits};
use crate::error::{Error, Result};
use crate::exec::{Executor, Limits, OutputRows, PrefixReuse, RowTask, StepBatch};
use crate::kv::{BlockPool, BlockTable, PrefixSpace};
use crate::sched::{SeqId, TokenSource};

/// What to expect of its guesses before there were any.
const PRIOR: Chances = Chances { first: 0.7, next: 0.7 };
/// Tokens of a sequence that a step takes at most when it goes on where it was: the last guess and what was drawn after it.
const USUAL_LAG: usize = 2;
/// The blocks of one draft model are all of one kind.
const SPACE: PrefixSpace = PrefixSpace(0);

/// A draft model's executor.
pub struct DraftExecutor {
    /// What runs it.
    pub executor: Box<dyn Executor>,
    /// Ids are `0..vocab_size`. Of a text with others nothing is guessed.
    pub vocab_size: usize,
}

/// A sequence that the draft model follows.
#[derive(Debug, Default)]
struct Follower {
    table: BlockTable,
    /// Tokens of the sequence whose keys and values are in the pool.
    num_computed: usize,
    /// Guesses for what comes after all that was known.
    guesses: Vec<u32>,
    /// Those of them, from the first, whose keys and values are in the pool, after `num_computed`.
    num_fed: usize,
}

impl Follower {
    /// Compares what it computed with what the sequence has become. The last token is computed in any case, again if it must:
    /// its row is wanted.
    fn catch_up(&mut self, tokens: &[u32]) {
        let new = &tokens[self.num_computed..];
        let fed = &self.guesses[..self.num_fed];
        let num_right = fed.iter().zip(new).take_while(|(guess, token)| guess == token).count();
        self.num_computed = (self.num_computed + num_right).min(tokens.len() - 1);
        self.guesses.clear();
        self.num_fed = 0;
    }
}

/// A sequence to guess for, and how many tokens.
pub(super) type Wish = (SeqId, usize);

/// The draft model of an engine.
pub(super) struct Drafter {
    executor: Box<dyn Executor>,
    limits: Limits,
    /// Ids from here on are unknown to it or to the engine's vocabulary.
    vocab_size: usize,
    most_guesses: usize,
    pool: BlockPool,
    keeps_prefixes: bool,
    followers: HashMap<SeqId, Follower>,
    /// Of steps that go on from what is computed, by the number of their sequences.
    times: StepTimes,
    /// Seconds a token of longer pieces, smoothed.
    seconds_per_token: f64,
    record: Record,
    // Reused from step to step.
    batch: StepBatch,
    in_batch: Vec<Wish>,
    fetched: Fetched,
}

impl Drafter {
    /// `vocab_size`: of the engine's vocabulary.
    pub(super) fn new(draft: DraftExecutor, vocab_size: usize, most_guesses: usize) -> Self {
        let DraftExecutor { executor, vocab_size: own_vocab_size } = draft;
        let limits = executor.limits();
        let keeps_prefixes = executor.prefix_reuse() == PrefixReuse::Exact;
        Self {
            executor,
            limits,
            vocab_size: vocab_size.min(own_vocab_size),
            most_guesses,
            pool: BlockPool::new(limits.num_kv_blocks),
            keeps_prefixes,
            followers: HashMap::new(),
            times: StepTimes::default(),
            seconds_per_token: 0.0,
            record: Record::default(),
            batch: StepBatch::default(),
            in_batch: Vec::new(),
            fetched: Fetched::default(),
        }
    }

    /// How long its steps take, by the number of their sequences.
    pub(super) fn times(&self) -> &StepTimes {
        &self.times
    }

    /// What to expect of guesses for a sequence of which nothing is known.
    pub(super) fn chances(&self) -> Chances {
        self.record.chances(PRIOR)
    }

    /// Of guesses for some sequence so many were right, and then came what.
    pub(super) fn learn(&mut self, num_right: usize, then: Then) {
        self.record.note(num_right, then);
    }

    /// A step of the engine passed without it.
    pub(super) fn pass(&mut self) {
        self.times.pass();
        self.record.fade();
    }

    /// How many guesses for a sequence of `num_tokens` tokens it can make.
    pub(super) fn most(&self, num_tokens: usize) -> usize {
        // The last guess isn't computed, so it needs no place.
        self.most_guesses.min((self.limits.max_context + 1).saturating_sub(num_tokens))
    }

    /// Seconds that it takes to begin with a sequence of `num_tokens` tokens, spread over those that may still come: at most
    /// `num_left`.
    pub(super) fn entry_seconds(&self, id: SeqId, num_tokens: usize, num_left: usize) -> f64 {
        /// An answer may end long before it must.
        const USUAL_ANSWER: usize = 256;
        let num_computed = self.followers.get(&id).map_or(0, |follower| follower.num_computed + follower.num_fed);
        let lag = num_tokens.saturating_sub(num_computed);
        let seconds = if lag > USUAL_LAG + self.most_guesses { lag as f64 * self.seconds_per_token } else { 0.0 };
        seconds / num_left.clamp(1, USUAL_ANSWER) as f64
    }

    /// Guesses for these sequences. Those that it can't follow, for want of blocks or because their prompts take several steps,
    /// get none.
    ///
    /// # Errors
    /// Those of its executor, and one that says what is wrong with the executor's output. It is of no use any more then.
    pub(super) fn guess(&mut self, wishes: &[Wish], tokens: &dyn TokenSource) -> Result<()> {
        let start = Instant::now();
        let is_usual = self.push_new_tokens(wishes, tokens);
        if self.batch.seqs.is_empty() {
            return Ok(());
        }
        let num_rows = self.batch.tokens.len();
        self.step(tokens)?;
        let seconds = start.elapsed().as_secs_f64();
        if is_usual {
            self.times.note(self.in_batch.len(), seconds);
        } else {
            let seconds = seconds / num_rows as f64;
            let weight = if self.seconds_per_token == 0.0 { 1.0 } else { 0.25 };
            self.seconds_per_token += weight * (seconds - self.seconds_per_token);
        }
        loop {
            let start = Instant::now();
            self.push_guesses(wishes, tokens);
            if self.batch.seqs.is_empty() {
                break;
            }
            self.step(tokens)?;
            self.times.note(self.in_batch.len(), start.elapsed().as_secs_f64());
        }
        self.executor.rest();
        Ok(())
    }

    /// The guesses for a sequence.
    pub(super) fn guesses(&self, id: SeqId) -> &[u32] {
        self.followers.get(&id).map_or(&[], |follower| &follower.guesses)
    }

    /// A sequence has ended or lost its blocks: it gives back those that it has here.
    pub(super) fn forget(&mut self, id: SeqId) {
        if let Some(mut follower) = self.followers.remove(&id) {
            follower.table.clear(&mut self.pool);
        }
    }

    /// Writes what is new of the sequences into the batch, as far as a step takes it. Says whether they all go on where they
    /// were.
    fn push_new_tokens(&mut self, wishes: &[Wish], tokens: &dyn TokenSource) -> bool {
        self.batch.clear();
        self.in_batch.clear();
        let (mut budget, mut outputs) = (self.limits.max_step_tokens, self.limits.max_step_outputs);
        let mut is_usual = true;
        for &(id, most) in wishes {
            let known = tokens.tokens(id);
            let follower = self.followers.entry(id).or_insert_with(|| {
                let prefix = known.split_last().map(|(_, before)| self.pool.find(SPACE, before));
                let table = prefix.as_ref().map(|prefix| BlockTable::with_prefix(prefix, &mut self.pool));
                let num_computed = prefix.map_or(0, |prefix| prefix.num_tokens());
                Follower { table: table.unwrap_or_default(), num_computed, ..Follower::default() }
            });
            if known.is_empty() || most == 0 {
                continue;
            }
            follower.catch_up(known);
            let end = known.len() + most - 1;
            let new = &known[follower.num_computed..];
            // A draft model with a shorter list of tokens has nothing to say about those beyond its end.
            let is_strange = new.iter().any(|&token| token as usize >= self.vocab_size);
            if is_strange || end > self.limits.max_context || follower.table.reserve(end, &mut self.pool).is_err() {
                continue;
            }
            let len = new.len().min(budget);
            let reaches_end = len == new.len();
            if len == 0 || (reaches_end && outputs == 0) {
                continue;
            }
            is_usual &= new.len() <= USUAL_LAG;
            let output = if reaches_end { OutputRows::Last } else { OutputRows::None };
            self.batch.push(&new[..len], follower.num_computed, known.len(), follower.table.blocks(), output);
            self.in_batch.push((id, len));
            budget -= len;
            outputs -= usize::from(reaches_end);
        }
        is_usual
    }

    /// Writes the last guesses of the sequences that want more into the batch.
    fn push_guesses(&mut self, wishes: &[Wish], tokens: &dyn TokenSource) {
        self.batch.clear();
        self.in_batch.clear();
        for &(id, most) in wishes {
            let Some(follower) = self.followers.get(&id) else { continue };
            let Some(&last) = follower.guesses.last().filter(|_| follower.guesses.len() < most) else { continue };
            let start = tokens.tokens(id).len() + follower.num_fed;
            self.batch.push(&[last], start, start + 1, follower.table.blocks(), OutputRows::Last);
            self.in_batch.push((id, 1));
        }
    }

    /// Runs the batch and adds a guess to each sequence whose row came out.
    fn step(&mut self, tokens: &dyn TokenSource) -> Result<()> {
        let num_outputs = self.batch.num_outputs();
        if self.executor.keeps_rows() {
            self.batch.ask_of_all(self.vocab_size, RowTask { num_best: 1, sum: false, draw: None });
        }
        let output = self.executor.step(&self.batch)?;
        let num_elements = if output.kept.is_some() { 0 } else { num_outputs * output.width };
        if output.num_rows != num_outputs || output.data.len() != num_elements || output.width == 0 {
            return Err(Error::EngineStopped(format!(
                "its executor returned {} rows of {} in {} elements instead of {num_outputs} rows",
                output.num_rows,
                output.width,
                output.data.len()
            )));
        }
        let width = output.width.min(self.vocab_size);
        let mut row = 0;
        for (&(id, len), seq) in self.in_batch.iter().zip(&self.batch.seqs) {
            let Some(follower) = self.followers.get_mut(&id) else { continue };
            let known = tokens.tokens(id);
            if seq.start < known.len() {
                follower.num_computed += len;
                if self.keeps_prefixes {
                    follower.table.cache(SPACE, &known[..follower.num_computed], &mut self.pool);
                }
            } else {
                follower.num_fed += len;
            }
            if seq.output != OutputRows::None {
                let logits = Logits::of(&output, row, width, &mut self.fetched);
                let guess = match logits.best() {
                    Some(token) => token,
                    None => likeliest(logits.whole()?),
                };
                follower.guesses.push(guess);
                row += 1;
            }
        }
        Ok(())
    }

    /// Blocks that followed sequences own.
    pub(super) fn num_blocks(&self) -> usize {
        self.pool.num_blocks() - self.pool.num_free()
    }

    /// Checks that its blocks are those of the sequences that it follows.
    #[cfg(test)]
    fn check(&self) -> Result<(), String> {
        self.pool.check(self.followers.values().map(|follower| &follower.table))
    }
}

/// The index of the largest element, the first of several. What is no number is never it.
fn likeliest(row: &[f32]) -> u32 {
    let mut best = (0, f32::NEG_INFINITY);
    for (index, &logit) in row.iter().enumerate() {
        if logit > best.1 {
            best = (index, logit);
        }
    }
    best.0 as u32
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::engine::testing::TestExecutor;

    const SIZE: usize = 50;

    /// The token after a text, of all its tokens.
    fn next(tokens: &[u32]) -> u32 {
        tokens.iter().fold(7, |sum, token| (sum * 31 + token) % 1009) % SIZE as u32
    }

    #[derive(Default)]
    struct Texts(BTreeMap<SeqId, Vec<u32>>);

    impl TokenSource for Texts {
        fn tokens(&self, id: SeqId) -> &[u32] {
            self.0.get(&id).map_or(&[], Vec::as_slice)
        }
    }

    fn drafter(limits: Limits) -> Drafter {
        let executor = Box::new(TestExecutor::continuing(next, SIZE, limits));
        Drafter::new(DraftExecutor { executor, vocab_size: SIZE }, SIZE, 6)
    }

    #[test]
    fn long_prompts_take_several_steps_and_the_next_finds_them() {
        let limits = Limits { max_step_tokens: 40, ..TestExecutor::LIMITS };
        let mut drafter = drafter(limits);
        let mut texts = Texts::default();
        let prompt: Vec<u32> = (0..100).map(|i| i % 47).collect();
        texts.0.insert(SeqId(1), prompt.clone());
        for expected in [0, 0, 3] {
            drafter.guess(&[(SeqId(1), 3)], &texts).unwrap();
            assert_eq!(drafter.guesses(SeqId(1)).len(), expected);
        }
        let mut text = prompt.clone();
        for _ in 0..3 {
            text.push(next(&text));
        }
        assert_eq!(drafter.guesses(SeqId(1)), &text[100..]);
        assert!(drafter.entry_seconds(SeqId(2), 100, 10) > drafter.entry_seconds(SeqId(2), 100, 20));
        assert_eq!(drafter.entry_seconds(SeqId(1), 103, 10), 0.0);
        // A second one with the same prompt goes on from its blocks.
        texts.0.insert(SeqId(2), prompt);
        drafter.guess(&[(SeqId(2), 1)], &texts).unwrap();
        assert_eq!(drafter.guesses(SeqId(2)), &text[100..101]);
        assert_eq!(drafter.num_blocks(), 5, "three of them are shared");
        drafter.check().unwrap();
    }

    #[test]
    fn it_says_how_far_its_context_reaches() {
        let drafter = drafter(Limits { max_context: 50, ..TestExecutor::LIMITS });
        assert_eq!([10, 44, 46, 50, 51, 90].map(|len| drafter.most(len)), [6, 6, 5, 1, 0, 0]);
    }

    proptest! {
        /// Sequences grow by what was guessed and by what was not, come and go, and want guesses or none: each guess is
        /// what the model says of the whole text, and no block is lost.
        #[test]
        fn guesses_follow_the_texts(trace in proptest::collection::vec((0u64..5, 0usize..7, 0usize..8, 0u32..40), 1..80)) {
            let limits = Limits { max_step_tokens: 48, num_kv_blocks: 9, max_context: 90, ..TestExecutor::LIMITS };
            let mut drafter = drafter(limits);
            let mut texts = Texts::default();
            let (mut fresh, mut alive) = (0, BTreeMap::new());
            for (slot, most, right, token) in trace {
                let id = *alive.entry(slot).or_insert_with(|| {
                    fresh += 1;
                    texts.0.insert(SeqId(fresh), (0..=token).map(|i| (i * i + slot as u32) % 40).collect());
                    SeqId(fresh)
                });
                if token == 0 {
                    drafter.forget(id);
                    texts.0.remove(&id);
                    alive.remove(&slot);
                    continue;
                }
                // The one that the step is about, and another one.
                let wish = |id: SeqId, most: usize| (id, most.min(drafter.most(texts.tokens(id).len())));
                let mut wishes = vec![wish(id, most)];
                wishes.extend(alive.values().find(|&&other| other != id).map(|&other| wish(other, 2)));
                wishes.retain(|&(_, most)| most > 0);
                drafter.guess(&wishes, &texts).unwrap();
                for &(id, most) in &wishes {
                    let mut text = texts.tokens(id).to_vec();
                    prop_assert!(drafter.guesses(id).len() <= most);
                    for &guess in drafter.guesses(id) {
                        prop_assert_eq!(guess, next(&text));
                        text.push(guess);
                    }
                }
                let stood = drafter.guesses(id).iter().take(right).copied().collect::<Vec<_>>();
                let text = texts.0.get_mut(&id).unwrap();
                text.extend(stood);
                text.push(token);
                prop_assert_eq!(drafter.check(), Ok(()));
            }
            alive.values().for_each(|&id| drafter.forget(id));
            prop_assert_eq!(drafter.num_blocks(), 0);
            prop_assert_eq!(drafter.check(), Ok(()));
        }
    }
}
