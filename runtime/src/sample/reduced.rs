//! Sampling from what a row of logits was reduced to where it was computed: the same tokens as from the whole row, or none
//! where only the whole row can tell.

#[cfg(test)]
pub(crate) mod host;
#[cfg(test)]
mod tests;

use super::logprobs::Logprobs;
use super::nucleus::{FIRST, min_p_threshold, prefix_with};
use super::sampler::{Sampler, Scratch};
use crate::engine::SamplingParams;
use crate::exec::{Draw, MAX_BEST, ReducedRow, RowTask};

impl Sampler {
    /// What to ask of the row that is sampled after `num_before` others, of `width` logits. `None`: it's needed whole.
    pub fn task(&self, width: usize, num_before: usize) -> Option<RowTask> {
        let SamplingParams { top_k, top_p, min_p, temperature, .. } = *self.params();
        if self.changes_logits() {
            return None;
        }
        let best = |num_best, sum| Some(RowTask { num_best, sum, draw: None });
        if temperature == 0.0 {
            best(1, false)
        } else if top_k > 0 && top_k < width {
            best(top_k, false).filter(|_| top_k <= MAX_BEST)
        } else if top_p < 1.0 {
            best(FIRST, true)
        } else if min_p > 0.0 {
            best(FIRST, false)
        } else {
            let draw = Some(Draw { temperature, uniform: self.uniform_after(num_before) });
            Some(RowTask { num_best: 1, sum: false, draw })
        }
    }

    /// Chooses the token that [`sample`](Self::sample) chooses from the whole row of `width` logits. `None`: what is known of the
    /// row doesn't decide it, and nothing has changed.
    pub fn sample_reduced(&mut self, row: &ReducedRow<'_>, width: usize, scratch: &mut Scratch) -> Option<u32> {
        let SamplingParams { top_k, top_p, min_p, temperature, .. } = *self.params();
        if self.changes_logits() {
            return None;
        }
        let best = row.best.first()?;
        if temperature == 0.0 {
            return Some(best.id);
        }
        let (max, candidates) = (best.logit, &mut scratch.candidates);
        candidates.clear();
        if top_k > 0 && top_k < width {
            if row.best.len() < top_k && !row.is_complete {
                return None;
            }
            candidates.extend(row.best.iter().take(top_k));
            Self::cut_best(candidates, top_p, max);
        } else if top_p < 1.0 {
            candidates.extend(row.best.iter().take(FIRST));
            if candidates.len() < FIRST && !row.is_complete {
                return None;
            }
            // Where these are too few, the whole row is weighed in another order.
            let kept = prefix_with(candidates, f64::from(top_p) * row.sum?, max)?;
            candidates.truncate(kept);
        } else if min_p > 0.0 {
            let threshold = min_p_threshold(min_p, max);
            if !row.is_complete && row.best.last()?.logit >= threshold {
                return None;
            }
            candidates.extend(row.best.iter().filter(|candidate| candidate.logit >= threshold));
            candidates.sort_unstable_by_key(|candidate| candidate.id);
        } else {
            let (draw, token) = row.drawn?;
            let expected = Draw { temperature, uniform: self.uniform_after(0) };
            if draw != expected {
                return None;
            }
            self.uniform();
            return Some(token.id);
        }
        Some(self.finish(max, scratch))
    }
}

/// What [`logprobs`](super::logprobs()) says of the whole row. `None`: what is known of it doesn't tell.
pub fn logprobs_reduced(row: &ReducedRow<'_>, chosen: u32, num_top: usize) -> Option<Logprobs> {
    let (max, ln_sum) = (row.best.first()?.logit, row.sum?.ln());
    let ln_p = |logit: f32| (f64::from(logit) - f64::from(max) - ln_sum) as f32;
    if row.best.len() < num_top && !row.is_complete {
        return None;
    }
    let drawn = row.drawn.map(|(_, token)| token);
    let chosen = row.best.iter().copied().chain(drawn).find(|candidate| candidate.id == chosen)?;
    let top = row.best.iter().take(num_top).map(|candidate| (candidate.id, ln_p(candidate.logit))).collect();
    Some(Logprobs { chosen: ln_p(chosen.logit), top })
}
