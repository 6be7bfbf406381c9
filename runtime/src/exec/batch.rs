//! The input of a step: pieces of sequences of mixed lengths, as flat arrays that are reused from step to step.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::exec::{Limits, RowTask, RowTasks};
use crate::kv::{BLOCK_TOKENS, NO_BLOCK};
pub use shimmy_kernels::cpu::Numerics;

/// Which rows of a piece the caller wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputRows {
    /// None: a chunk of a prompt that isn't its last.
    None,
    /// The last token's.
    Last,
    /// Every token's (goldens, perplexity, speculation).
    All,
    /// No logits, but the hidden state of the last token after the final norm.
    LastHidden,
    /// No logits, but those of every token.
    AllHidden,
}

impl OutputRows {
    /// Which of these rows have logits.
    pub fn logits(self, rows: Range<usize>) -> Range<usize> {
        match self {
            Self::None | Self::LastHidden | Self::AllHidden => rows.end..rows.end,
            Self::Last => rows.end.saturating_sub(1).max(rows.start)..rows.end,
            Self::All => rows,
        }
    }

    /// Which of these rows have a hidden state.
    pub fn hidden(self, rows: Range<usize>) -> Range<usize> {
        match self {
            Self::None | Self::Last | Self::All => rows.end..rows.end,
            Self::LastHidden => rows.end.saturating_sub(1).max(rows.start)..rows.end,
            Self::AllHidden => rows,
        }
    }
}

/// A piece of one sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeqStep {
    /// Where its tokens lie in [`StepBatch::tokens`].
    pub tokens: Range<usize>,
    /// Position of its first token; as many tokens of the sequence are in the cache already.
    pub start: usize,
    /// Tokens of the sequence known so far, those of later chunks included: at least `start + tokens.len()`.
    pub num_tokens: usize,
    /// Those of them that were known from the start; see [`Self::length_at`].
    pub num_prompt: usize,
    /// Where its block table lies in [`StepBatch::blocks`]: token `p` is in block `table[p / BLOCK_TOKENS]`. In the same place
    /// of [`StepBatch::window_blocks`] lies that of the window's pool.
    pub blocks: Range<usize>,
    /// Wanted rows.
    pub output: OutputRows,
}

impl SeqStep {
    /// How long the text was when its token at `position` was first computed, which dynamic rope scaling depends on: a prompt is
    /// there at once, in whatever pieces it is computed, and later tokens come one by one, even where they are guesses or are
    /// computed anew with those before.
    pub fn length_at(&self, position: usize) -> usize {
        self.num_prompt.max(position + 1)
    }
}

/// One step's work.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StepBatch {
    /// Token ids of all pieces, one after the other.
    pub tokens: Vec<u32>,
    /// Block tables of all pieces, one after the other.
    pub blocks: Vec<u32>,
    /// The same for the window's pool, with [`NO_BLOCK`] for blocks that nobody needs any more; as long as `blocks`, or empty
    /// for an executor without such a pool.
    pub window_blocks: Vec<u32>,
    /// The pieces. A sequence appears at most once.
    pub seqs: Vec<SeqStep>,
    /// For all of them.
    pub numerics: Numerics,
    /// What is asked of their rows of logits. Executors that don't keep rows give them whole in any case.
    pub tasks: RowTasks,
}

impl StepBatch {
    /// Empties the batch and keeps its memory.
    pub fn clear(&mut self) {
        self.tokens.clear();
        self.blocks.clear();
        self.window_blocks.clear();
        self.seqs.clear();
        self.numerics = Numerics::Fast;
        self.tasks.clear();
    }

    /// Shows `run` the same work as steps of one row, in the order of the rows. `single` is their memory.
    ///
    /// # Errors
    /// Those of `run`.
    pub fn for_each_row(&self, single: &mut Self, mut run: impl FnMut(&Self) -> Result<()>) -> Result<()> {
        for seq in &self.seqs {
            for (position, row) in (seq.start..).zip(seq.tokens.clone()) {
                let output = if seq.output.logits(seq.tokens.clone()).contains(&row) {
                    OutputRows::Last
                } else if seq.output.hidden(seq.tokens.clone()).contains(&row) {
                    OutputRows::LastHidden
                } else {
                    OutputRows::None
                };
                single.clear();
                single.push(
                    &self.tokens[row..=row],
                    position,
                    seq.num_tokens,
                    &self.blocks[seq.blocks.clone()],
                    output,
                );
                single.prompt_of_last(seq.num_prompt);
                if let Some(window_blocks) = self.window_blocks.get(seq.blocks.clone()) {
                    single.window_of_last(window_blocks);
                }
                run(single)?;
            }
        }
        Ok(())
    }

    /// Adds a piece: `tokens` at positions `start..`, of a sequence with `num_tokens` known tokens and this block table.
    pub fn push(&mut self, tokens: &[u32], start: usize, num_tokens: usize, blocks: &[u32], output: OutputRows) {
        let (t0, b0) = (self.tokens.len(), self.blocks.len());
        self.tokens.extend_from_slice(tokens);
        self.blocks.extend_from_slice(blocks);
        self.seqs.push(SeqStep {
            tokens: t0..self.tokens.len(),
            start,
            num_tokens,
            num_prompt: num_tokens,
            blocks: b0..self.blocks.len(),
            output,
        });
    }

    /// Gives the piece that was pushed last its block table of the window's pool: as long as the other one, or shorter by
    /// blocks whose tokens aren't computed yet.
    pub fn window_of_last(&mut self, blocks: &[u32]) {
        let Some(seq) = self.seqs.last() else { return };
        self.window_blocks.resize(seq.blocks.start, NO_BLOCK);
        self.window_blocks.extend(blocks.iter().take(seq.blocks.len()));
        self.window_blocks.resize(seq.blocks.end, NO_BLOCK);
    }

    /// Adds tokens to the end of the piece that was pushed last.
    pub fn extend_last(&mut self, tokens: &[u32]) {
        if let Some(seq) = self.seqs.last_mut() {
            self.tokens.extend_from_slice(tokens);
            seq.tokens.end += tokens.len();
        }
    }

    /// Says how many tokens of the last piece's sequence were known from the start; without it, all that are known now.
    pub fn prompt_of_last(&mut self, num_prompt: usize) {
        if let Some(seq) = self.seqs.last_mut() {
            seq.num_prompt = num_prompt;
        }
    }

    /// Asks the same of all rows of output, of which the first `width` columns are tokens, for an executor that keeps them.
    pub fn ask_of_all(&mut self, width: usize, task: RowTask) {
        let num_outputs = self.num_outputs();
        self.tasks.width = width;
        self.tasks.rows.clear();
        self.tasks.rows.resize(num_outputs, Some(task));
    }

    /// Rows of output that the batch asks for.
    pub fn num_outputs(&self) -> usize {
        self.seqs.iter().map(|seq| seq.output.logits(seq.tokens.clone()).len()).sum()
    }

    /// Hidden states that the batch asks for.
    pub fn num_hidden(&self) -> usize {
        self.seqs.iter().map(|seq| seq.output.hidden(seq.tokens.clone()).len()).sum()
    }

    /// Refuses a batch that an executor with these limits and this vocabulary can't run. Executors call it before they
    /// write anything.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] on the parameter `batch`, with what breaks which bound.
    pub fn validate(&self, limits: &Limits, vocab_size: usize) -> Result<()> {
        let refuse = |message: String| Err(Error::InvalidRequest { param: "batch", message });
        if self.tokens.len() > limits.max_step_tokens {
            return refuse(format!("{} tokens in a step of at most {}", self.tokens.len(), limits.max_step_tokens));
        }
        if let Some(&token) = self.tokens.iter().find(|&&token| token as usize >= vocab_size) {
            return refuse(format!("token {token} is outside the vocabulary of {vocab_size}"));
        }
        if let Some(&block) = self.blocks.iter().find(|&&block| block as usize >= limits.num_kv_blocks) {
            return refuse(format!("block {block} is outside the pool of {}", limits.num_kv_blocks));
        }
        if limits.window.is_some() && self.window_blocks.len() != self.blocks.len() {
            return refuse("layers with a window have blocks of their own, and no table names them".into());
        }
        let (mut next_token, mut next_block) = (0, 0);
        for (index, seq) in self.seqs.iter().enumerate() {
            if seq.tokens.start != next_token || seq.tokens.end > self.tokens.len() || seq.tokens.is_empty() {
                return refuse(format!("piece {index} has no tokens or leaves a gap: {:?}", seq.tokens));
            }
            if seq.blocks.start != next_block || seq.blocks.end > self.blocks.len() || seq.blocks.end < seq.blocks.start
            {
                return refuse(format!("piece {index} leaves a gap in the block tables: {:?}", seq.blocks));
            }
            (next_token, next_block) = (seq.tokens.end, seq.blocks.end);
            let end = seq.start.saturating_add(seq.tokens.len());
            if end > limits.max_context {
                return refuse(format!("piece {index} ends at position {end} of {}", limits.max_context));
            }
            if end > seq.num_tokens {
                return refuse(format!("piece {index} ends at position {end} of {} known tokens", seq.num_tokens));
            }
            if seq.blocks.len() * BLOCK_TOKENS < end {
                return refuse(format!("piece {index} has {} blocks for {end} tokens", seq.blocks.len()));
            }
            if let Some(window) = limits.window {
                let needed = window.first_block(seq.start)..end.div_ceil(BLOCK_TOKENS);
                let table = &self.window_blocks[seq.blocks.clone()][needed];
                if let Some(block) = table.iter().find(|&&block| block as usize >= window.num_blocks) {
                    return refuse(format!(
                        "piece {index} needs a window's block that it has not, or no block: {block}"
                    ));
                }
            }
        }
        if next_token != self.tokens.len() || next_block != self.blocks.len() {
            return refuse(format!("{} tokens belong to no piece", self.tokens.len() - next_token));
        }
        let num_outputs = self.num_outputs();
        if num_outputs > limits.max_step_outputs {
            return refuse(format!("{num_outputs} rows of output in a step of at most {}", limits.max_step_outputs));
        }
        let num_tasks = self.tasks.rows.len();
        if num_tasks != 0 && num_tasks != num_outputs {
            return refuse(format!("{num_tasks} tasks for {num_outputs} rows of output"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits =
        Limits { max_step_tokens: 8, max_step_outputs: 2, num_kv_blocks: 4, window: None, max_context: 64 };

    fn batch(tokens: &[u32], start: usize, num_tokens: usize, blocks: &[u32], output: OutputRows) -> StepBatch {
        let mut batch = StepBatch::default();
        batch.push(tokens, start, num_tokens, blocks, output);
        batch
    }

    #[test]
    fn a_sound_batch_passes() {
        let mut sound = batch(&[1, 2, 3], 30, 40, &[3, 0], OutputRows::None);
        sound.push(&[9], 0, 1, &[1], OutputRows::Last);
        sound.validate(&LIMITS, 10).unwrap();
        assert_eq!(sound.num_outputs(), 1);
    }

    #[test]
    fn rows_come_one_by_one_with_the_output_that_was_asked_for() {
        let mut whole = batch(&[5, 6], 30, 40, &[3, 0], OutputRows::All);
        whole.push(&[7, 8], 0, 2, &[1], OutputRows::Last);
        whole.push(&[9], 4, 9, &[2], OutputRows::None);
        let mut seen = Vec::new();
        whole
            .for_each_row(&mut StepBatch::default(), |row| {
                let seq = &row.seqs[0];
                seen.push((row.tokens[0], seq.start, seq.num_tokens, row.blocks.clone(), row.num_outputs()));
                Ok(())
            })
            .unwrap();
        let expected = [
            (5, 30, 40, vec![3, 0], 1),
            (6, 31, 40, vec![3, 0], 1),
            (7, 0, 2, vec![1], 0),
            (8, 1, 2, vec![1], 1),
            (9, 4, 9, vec![2], 0),
        ];
        assert_eq!(seen, expected);
    }

    #[test]
    fn a_text_is_as_long_as_it_was_when_a_token_came() {
        let mut resumed = batch(&[1, 2, 3, 4], 2, 6, &[0], OutputRows::Last);
        let lengths = |batch: &StepBatch| -> Vec<usize> {
            let lengths =
                |seq: &SeqStep| (seq.start..).take(seq.tokens.len()).map(|at| seq.length_at(at)).collect::<Vec<_>>();
            batch.seqs.iter().flat_map(lengths).collect()
        };
        assert_eq!(lengths(&resumed), [6, 6, 6, 6], "a prompt comes at once");
        resumed.prompt_of_last(4);
        assert_eq!(lengths(&resumed), [4, 4, 5, 6]);
        let mut rows = Vec::new();
        resumed
            .for_each_row(&mut StepBatch::default(), |row| {
                rows.extend(lengths(row));
                Ok(())
            })
            .unwrap();
        assert_eq!(rows, [4, 4, 5, 6]);
    }

    #[test]
    fn every_bound_is_held() {
        let last = OutputRows::Last;
        for (why, bad) in [
            ("step tokens", batch(&[1; 9], 0, 9, &[0], last)),
            ("vocabulary", batch(&[10], 0, 1, &[0], last)),
            ("pool", batch(&[1], 0, 1, &[4], last)),
            ("blocks", batch(&[1], 32, 33, &[0], last)),
            ("context", batch(&[1], 64, 65, &[0, 1, 2], last)),
            ("overflow", batch(&[1], usize::MAX, usize::MAX, &[0, 1, 2], last)),
            ("known tokens", batch(&[1, 2], 0, 1, &[0], last)),
            ("outputs", batch(&[1, 2, 3], 0, 3, &[0], OutputRows::All)),
            ("no tokens", batch(&[], 0, 3, &[0], last)),
        ] {
            assert!(matches!(bad.validate(&LIMITS, 10), Err(Error::InvalidRequest { param: "batch", .. })), "{why}");
        }
    }

    #[test]
    fn ranges_must_tile_the_arrays() {
        let mut gap = batch(&[1, 2], 0, 2, &[0], OutputRows::None);
        gap.tokens.push(3);
        assert!(gap.validate(&LIMITS, 10).is_err());
        let mut overlap = batch(&[1, 2], 0, 2, &[0], OutputRows::None);
        overlap.push(&[3], 0, 1, &[1], OutputRows::None);
        overlap.seqs[1].tokens = 1..3;
        assert!(overlap.validate(&LIMITS, 10).is_err());
        let mut reversed = batch(&[1, 2], 0, 2, &[0], OutputRows::None);
        reversed.seqs[0].blocks = Range { start: 0, end: 9 };
        assert!(reversed.validate(&LIMITS, 10).is_err());
    }
}
