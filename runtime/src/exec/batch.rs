//! The input of a step: pieces of sequences of mixed lengths, as flat arrays that are reused from step to step.

use std::ops::Range;

/// Which rows of a piece the caller wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputRows {
    /// None: a chunk of a prompt that isn't its last.
    None,
    /// The last token's.
    Last,
    /// Every token's (goldens, perplexity, speculation).
    All,
}

/// A piece of one sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeqStep {
    /// Where its tokens lie in [`StepBatch::tokens`].
    pub tokens: Range<usize>,
    /// Position of its first token; as many tokens of the sequence are in the cache already.
    pub start: usize,
    /// Tokens of the sequence known so far, those of later chunks included: at least `start + tokens.len()`.
    /// Dynamic rope scaling depends on it, which makes the result independent of the chunking.
    pub num_tokens: usize,
    /// Where its block table lies in [`StepBatch::blocks`]: token `p` is in block `table[p / BLOCK_TOKENS]`.
    pub blocks: Range<usize>,
    /// Wanted rows.
    pub output: OutputRows,
}

/// One step's work.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StepBatch {
    /// Token ids of all pieces, one after the other.
    pub tokens: Vec<u32>,
    /// Block tables of all pieces, one after the other.
    pub blocks: Vec<u32>,
    /// The pieces. A sequence appears at most once.
    pub seqs: Vec<SeqStep>,
}

impl StepBatch {
    /// Empties the batch and keeps its memory.
    pub fn clear(&mut self) {
        self.tokens.clear();
        self.blocks.clear();
        self.seqs.clear();
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
            blocks: b0..self.blocks.len(),
            output,
        });
    }

    /// Rows of output that the batch asks for.
    pub fn num_outputs(&self) -> usize {
        self.seqs
            .iter()
            .map(|seq| match seq.output {
                OutputRows::None => 0,
                OutputRows::Last => 1,
                OutputRows::All => seq.tokens.len(),
            })
            .sum()
    }
}
