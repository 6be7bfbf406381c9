//! Log-probabilities: log-softmax of the raw logits, before any processor.

use super::math::{argmax, partition_sum};
use super::sampler::Scratch;
use super::select::{by_rank, top_k};
use crate::error::Result;

/// Log-probabilities at one position.
#[derive(Debug, Clone, PartialEq)]
pub struct Logprobs {
    /// ln p of the token that was chosen.
    pub chosen: f32,
    /// The most probable tokens with their ln p, best first.
    pub top: Vec<(u32, f32)>,
}

/// ln p of token `chosen` and of the `num_top` most probable ones in a row of raw logits.
///
/// # Errors
/// `BadLogits` for NaN, +∞, and a row of nothing but −∞.
pub fn logprobs(logits: &[f32], chosen: u32, num_top: usize, scratch: &mut Scratch) -> Result<Logprobs> {
    let (_, max) = argmax(logits)?;
    let ln_sum = partition_sum(logits, max).ln();
    let ln_p = |logit: f32| (f64::from(logit) - f64::from(max) - ln_sum) as f32;
    let mut top = Vec::new();
    if num_top > 0 {
        let candidates = &mut scratch.candidates;
        top_k(logits, num_top, candidates)?;
        candidates.sort_unstable_by(by_rank);
        top.extend(candidates.iter().map(|candidate| (candidate.id, ln_p(candidate.logit))));
    }
    let chosen = logits.get(chosen as usize).map_or(f32::NEG_INFINITY, |&logit| ln_p(logit));
    Ok(Logprobs { chosen, top })
}
