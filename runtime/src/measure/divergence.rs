//! How far one executor's distributions are from another's, on the same tokens.

use crate::error::{Error, Result};
use crate::exec::{Executor, OutputRows, StepBatch};
use crate::kv::BLOCK_TOKENS;
use crate::sample::math::argmax;

/// Over the positions of a text.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Divergence {
    /// Positions compared.
    pub positions: usize,
    /// Mean of KL(reference ‖ tested), in nats.
    pub mean_kl: f64,
    /// Largest of them.
    pub max_kl: f64,
    /// Largest |Δlogit|.
    pub max_logit_difference: f64,
    /// Share of positions where the most probable token is the same.
    pub same_top_token: f64,
}

/// Feeds `tokens` to both, `piece` at a time, and compares every position's distribution. Few and many rows take
/// different kernels: 1 tests those of decoding, a large piece those of prefill.
///
/// # Errors
/// When the tokens don't fit a context, a piece a step, a step fails, or a logit isn't finite.
pub fn compare(
    reference: &mut dyn Executor,
    tested: &mut dyn Executor,
    tokens: &[u32],
    piece: usize,
) -> Result<Divergence> {
    let blocks: Vec<u32> = (0..tokens.len().div_ceil(BLOCK_TOKENS) as u32).collect();
    let mut total =
        Divergence { positions: 0, mean_kl: 0.0, max_kl: 0.0, max_logit_difference: 0.0, same_top_token: 0.0 };
    let mut batch = StepBatch::default();
    for (index, chunk) in tokens.chunks(piece).enumerate() {
        batch.clear();
        batch.push(chunk, index * piece, tokens.len(), &blocks, OutputRows::All);
        let expected = reference.step(&batch)?;
        let got = tested.step(&batch)?;
        for row in 0..expected.num_rows {
            let (p, q) = (expected.row(row), got.row(row));
            if p.iter().chain(q).any(|x| !x.is_finite()) {
                return Err(Error::BadLogits(format!("position {} has a logit that isn't finite", total.positions)));
            }
            let kl = kl(p, q);
            total.mean_kl += kl;
            total.max_kl = total.max_kl.max(kl);
            let differences = p.iter().zip(q).map(|(p, q)| f64::from((p - q).abs()));
            total.max_logit_difference = differences.fold(total.max_logit_difference, f64::max);
            total.same_top_token += f64::from(u8::from(argmax(p)?.0 == argmax(q)?.0));
            total.positions += 1;
        }
    }
    let count = total.positions.max(1) as f64;
    total.mean_kl /= count;
    total.same_top_token /= count;
    Ok(total)
}

/// `KL(softmax(p) ‖ softmax(q))` in f64. Not below 0: rounding of equal distributions could be.
fn kl(p: &[f32], q: &[f32]) -> f64 {
    let log_sum = |x: &[f32]| {
        let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        f64::from(max) + x.iter().map(|&x| f64::from(x - max).exp()).sum::<f64>().ln()
    };
    let (p_sum, q_sum) = (log_sum(p), log_sum(q));
    let term = |(&p, &q): (&f32, &f32)| {
        let (p, q) = (f64::from(p) - p_sum, f64::from(q) - q_sum);
        p.exp() * (p - q)
    };
    p.iter().zip(q).map(term).sum::<f64>().max(0.0)
}

/// Continues `prompt` by always taking the most probable token.
///
/// # Errors
/// When it doesn't fit the context or a step fails.
pub fn greedy(executor: &mut dyn Executor, prompt: &[u32], num_tokens: usize) -> Result<Vec<u32>> {
    let all = prompt.len() + num_tokens;
    let blocks: Vec<u32> = (0..all.div_ceil(BLOCK_TOKENS) as u32).collect();
    let piece = executor.limits().max_step_tokens;
    let mut known = prompt.to_vec();
    let mut computed = 0;
    let mut batch = StepBatch::default();
    while known.len() < all {
        let to = (computed + piece).min(known.len());
        let output = if to == known.len() { OutputRows::Last } else { OutputRows::None };
        batch.clear();
        batch.push(&known[computed..to], computed, known.len(), &blocks, output);
        computed = to;
        let step = executor.step(&batch)?;
        if step.num_rows == 1 {
            known.push(argmax(step.row(0))?.0);
        }
    }
    Ok(known.split_off(prompt.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergence_of_known_distributions() {
        assert_eq!(kl(&[1.0, 2.0, 3.0], &[1.0, 2.0, 3.0]), 0.0);
        // Adding a constant changes nothing.
        assert!(kl(&[1.0, 2.0], &[101.0, 102.0]) < 1e-9);
        // Bernoulli(1/2) against Bernoulli(1/4): ½ ln 2 + ½ ln (2/3).
        let expected = 0.5 * 2f64.ln() + 0.5 * (2f64 / 3.0).ln();
        assert!((kl(&[0.0, 0.0], &[0.0, 3f32.ln()]) - expected).abs() < 1e-7);
    }
}
