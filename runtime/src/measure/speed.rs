//! Tokens per second of an executor, without sampling or text around it.

use std::time::Instant;

use crate::error::{Error, Result};
use crate::exec::{Executor, OutputRows, StepBatch};
use crate::kv::BLOCK_TOKENS;

/// What to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Workload {
    /// Tokens of the prompt, computed in steps of the executor's largest size, the last one's logits wanted.
    pub prompt: usize,
    /// Tokens decoded one by one, from an empty context.
    pub generate: usize,
    /// How often each is measured.
    pub repeat: usize,
}

/// Tokens per second, one value a repetition.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Speed {
    /// Of the prompt.
    pub prefill: Vec<f64>,
    /// Of decoding.
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
/// When the workload doesn't fit the executor's context, or a step fails.
pub fn measure(
    executor: &mut dyn Executor,
    vocab_size: usize,
    work: Workload,
    mut watch: impl FnMut(&Speed),
) -> Result<Speed> {
    let limits = executor.limits();
    let longest = work.prompt.max(work.generate);
    if longest > limits.max_context {
        return Err(Error::ContextLength {
            prompt_tokens: work.prompt,
            max_tokens: work.generate,
            context_tokens: limits.max_context,
        });
    }
    let blocks: Vec<u32> = (0..longest.div_ceil(BLOCK_TOKENS) as u32).collect();
    let prompt: Vec<u32> = (0..longest).map(|index| token(index, vocab_size)).collect();
    let mut batch = StepBatch::default();
    let mut run = |tokens: usize, piece: usize| -> Result<f64> {
        let start = Instant::now();
        for from in (0..tokens).step_by(piece) {
            let to = (from + piece).min(tokens);
            let output = if to == tokens || piece == 1 { OutputRows::Last } else { OutputRows::None };
            batch.clear();
            batch.push(&prompt[from..to], from, tokens, &blocks, output);
            executor.step(&batch)?;
        }
        Ok(tokens as f64 / start.elapsed().as_secs_f64())
    };

    let mut speed = Speed::default();
    if work.prompt > 0 {
        run(work.prompt, limits.max_step_tokens)?;
    }
    if work.generate > 0 {
        run(work.generate.min(16), 1)?;
    }
    for _ in 0..work.repeat {
        if work.prompt > 0 {
            speed.prefill.push(run(work.prompt, limits.max_step_tokens)?);
        }
        if work.generate > 0 {
            speed.decode.push(run(work.generate, 1)?);
        }
        watch(&speed);
    }
    Ok(speed)
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
