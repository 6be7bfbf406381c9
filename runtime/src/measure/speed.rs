//! Tokens per second of an executor, without sampling or text around it. One that keeps rows of logits is asked for what the
//! sampler's defaults need of them.

use std::time::Instant;

use crate::engine::SamplingParams;
use crate::error::{Error, Result};
use crate::exec::{Executor, OutputRows, StepBatch};
use crate::kv::BLOCK_TOKENS;
use crate::sample::Sampler;

/// What to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Workload {
    /// Tokens that each sequence has in the cache before anything is measured.
    pub depth: usize,
    /// Tokens of the prompt, computed in steps of the executor's largest size, the last one's logits wanted. One sequence.
    pub prompt: usize,
    /// Tokens that each sequence decodes one by one.
    pub generate: usize,
    /// Sequences that decode together, one row of each a step. At least 1.
    pub parallel: usize,
    /// How often each is measured.
    pub repeat: usize,
}

impl Workload {
    /// Tokens of the longest sequence.
    pub fn sequence_tokens(&self) -> usize {
        self.depth + self.prompt.max(self.generate)
    }

    /// Tokens that the KV cache must hold over all sequences.
    pub fn kv_tokens(&self) -> usize {
        self.parallel * self.sequence_tokens().next_multiple_of(BLOCK_TOKENS)
    }
}

/// Tokens per second, one value a repetition.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Speed {
    /// Of the prompt.
    pub prefill: Vec<f64>,
    /// Of decoding, over all sequences.
    pub decode: Vec<f64>,
}

/// Token `index` of a fixed pseudo-random sequence: speed must not depend on a text that caches well.
pub fn token(index: usize, vocab_size: usize) -> u32 {
    let mixed = (index as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    // In range: the remainder is below the vocabulary's size, which fits u32 as token ids do.
    ((mixed >> 32) % vocab_size as u64) as u32
}

/// Measures, after one warm-up of each kind. `watch` is called after every repetition.
///
/// # Errors
/// When the workload doesn't fit the executor's context or cache, or a step fails.
pub fn measure(
    executor: &mut dyn Executor,
    vocab_size: usize,
    work: Workload,
    mut watch: impl FnMut(&Speed),
) -> Result<Speed> {
    let limits = executor.limits();
    if work.sequence_tokens() > limits.max_context {
        return Err(Error::ContextLength {
            prompt_tokens: work.depth + work.prompt,
            max_tokens: work.generate,
            context_tokens: limits.max_context,
        });
    }
    let held = limits.num_kv_blocks * BLOCK_TOKENS;
    if work.kv_tokens() > held {
        let message = format!("{} sequences take {} tokens of a cache of {held}", work.parallel, work.kv_tokens());
        return Err(Error::InvalidRequest { param: "parallel", message });
    }
    let mut bench = Bench {
        tokens: (0..work.sequence_tokens() + work.parallel).map(|index| token(index, vocab_size)).collect(),
        blocks_each: work.sequence_tokens().div_ceil(BLOCK_TOKENS),
        piece: limits.max_step_tokens,
        executor,
        vocab_size,
        batch: StepBatch::default(),
    };
    for sequence in 0..work.parallel {
        bench.prompt(sequence, 0, work.depth, OutputRows::None)?;
    }

    let mut speed = Speed::default();
    if work.prompt > 0 {
        bench.prompt(0, work.depth, work.prompt, OutputRows::Last)?;
    }
    if work.generate > 0 {
        bench.decode(work.parallel, work.depth, work.generate.min(16))?;
    }
    for _ in 0..work.repeat {
        if work.prompt > 0 {
            let start = Instant::now();
            bench.prompt(0, work.depth, work.prompt, OutputRows::Last)?;
            speed.prefill.push(work.prompt as f64 / start.elapsed().as_secs_f64());
        }
        if work.generate > 0 {
            let start = Instant::now();
            bench.decode(work.parallel, work.depth, work.generate)?;
            speed.decode.push((work.parallel * work.generate) as f64 / start.elapsed().as_secs_f64());
        }
        watch(&speed);
    }
    Ok(speed)
}

struct Bench<'a> {
    executor: &'a mut dyn Executor,
    /// Of sequence `s`, the token at position `p` is number `s + p`.
    tokens: Vec<u32>,
    /// Blocks in the table of each sequence.
    blocks_each: usize,
    /// Tokens of a prompt in one step.
    piece: usize,
    vocab_size: usize,
    batch: StepBatch,
}

impl Bench<'_> {
    fn push(&mut self, sequence: usize, from: usize, to: usize, num_tokens: usize, output: OutputRows) {
        let first = sequence * self.blocks_each;
        // Block ids fit u32: the executor has that many blocks, and its tables hold them as u32.
        let blocks: Vec<u32> = (first..first + self.blocks_each).map(|block| block as u32).collect();
        self.batch.push(&self.tokens[sequence + from..sequence + to], from, num_tokens, &blocks, output);
    }

    /// Computes `count` tokens of a sequence from position `start`; `last` is what the last step gives out.
    fn prompt(&mut self, sequence: usize, start: usize, count: usize, last: OutputRows) -> Result<()> {
        let end = start + count;
        for from in (start..end).step_by(self.piece) {
            let to = (from + self.piece).min(end);
            self.batch.clear();
            self.push(sequence, from, to, end, if to == end { last } else { OutputRows::None });
            self.step()?;
        }
        Ok(())
    }

    /// `count` steps with one row of every sequence, from position `start`.
    fn decode(&mut self, parallel: usize, start: usize, count: usize) -> Result<()> {
        for at in start..start + count {
            self.batch.clear();
            for sequence in 0..parallel {
                self.push(sequence, at, at + 1, at + 1, OutputRows::Last);
            }
            self.step()?;
        }
        Ok(())
    }

    fn step(&mut self) -> Result<()> {
        if self.executor.keeps_rows()
            && let Some(task) = Sampler::new(SamplingParams::default()).task(self.vocab_size, 0)
        {
            self.batch.ask_of_all(self.vocab_size, task);
        }
        self.executor.step(&self.batch)?;
        Ok(())
    }
}

/// The middle value; 0 of none.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        n if n.is_multiple_of(2) => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
        n => sorted[n / 2],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_of_few() {
        assert_eq!(median(&[]), 0.0);
        assert_eq!(median(&[3.0]), 3.0);
        assert_eq!(median(&[9.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0]), 2.5);
    }

    #[test]
    fn tokens_stay_inside_any_vocabulary() {
        for vocab_size in [1, 2, 511, 262_144] {
            assert!((0..1000).all(|index| (token(index, vocab_size) as usize) < vocab_size));
        }
    }
}
