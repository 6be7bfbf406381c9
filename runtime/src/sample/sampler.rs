//! [`Sampler`]: one sequence's parameters, random numbers and token counts.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use super::math::{CHUNK, argmax, exp_nonpositive, sum_of};
use super::nucleus::{min_p_of_all, prefix_with, top_p_of_all};
use super::select::{Candidate, by_rank, top_k};
use crate::engine::SamplingParams;
use crate::error::Result;

/// Buffers that all sequences of an engine share; after the first tokens sampling allocates nothing.
#[derive(Debug, Default)]
pub struct Scratch {
    pub(super) candidates: Vec<Candidate>,
    /// Logits after bias and penalties. `[vocab]`
    logits: Vec<f32>,
    /// Distinct tokens of the penalty window.
    window: Vec<u32>,
    /// Weight of each candidate.
    weights: Vec<f32>,
    /// Sums of weights: of each chunk of the vocabulary, or of each range of logits.
    sums: Vec<f64>,
}

/// Draws the tokens of one sequence.
#[derive(Debug, Clone)]
pub struct Sampler {
    params: SamplingParams,
    seed: u64,
    rng: ChaCha8Rng,
    /// How often each token was generated; kept only if a penalty needs it.
    counts: HashMap<u32, u32>,
}

/// A seed that differs from call to call. It has 53 bits, so that it survives a trip through JSON numbers.
pub fn random_seed() -> u64 {
    // Std's hasher keys come from the operating system; no other source of randomness is needed for this.
    RandomState::new().build_hasher().finish() >> 11
}

impl Sampler {
    /// A sampler with these parameters; without a seed it takes a random one.
    pub fn new(params: SamplingParams) -> Self {
        let seed = params.seed.unwrap_or_else(random_seed);
        Self { params, seed, rng: ChaCha8Rng::seed_from_u64(seed), counts: HashMap::new() }
    }

    /// The seed in use.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Chooses the next token from a row of raw logits. `history` is the prompt and what was generated so far, the latter
    /// having been told to [`accept`](Self::accept).
    ///
    /// # Errors
    /// [`BadLogits`](crate::Error::BadLogits) when the row holds NaN or +∞, or nothing but −∞.
    pub fn sample(&mut self, logits: &[f32], history: &[u32], scratch: &mut Scratch) -> Result<u32> {
        if !self.changes_logits() {
            return self.choose(logits, scratch);
        }
        let mut changed = std::mem::take(&mut scratch.logits);
        changed.clear();
        changed.extend_from_slice(logits);
        self.process(&mut changed, history, scratch);
        let token = self.choose(&changed, scratch);
        scratch.logits = changed;
        token
    }

    /// Counts a token as generated.
    pub fn accept(&mut self, token: u32) {
        if self.counts_tokens() {
            *self.counts.entry(token).or_default() += 1;
        }
    }

    fn counts_tokens(&self) -> bool {
        self.params.presence_penalty != 0.0 || self.params.frequency_penalty != 0.0
    }

    fn repeats(&self) -> bool {
        self.params.repeat_penalty != 1.0 && self.params.repeat_last_n > 0
    }

    pub(super) fn changes_logits(&self) -> bool {
        !self.params.logit_bias.is_empty() || self.counts_tokens() || self.repeats()
    }

    /// Bias and penalties. Ids outside the row are ignored.
    fn process(&self, logits: &mut [f32], history: &[u32], scratch: &mut Scratch) {
        let params = &self.params;
        for &(id, bias) in &params.logit_bias {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit += bias;
            }
        }
        if self.repeats() {
            let window = &mut scratch.window;
            window.clear();
            window.extend_from_slice(&history[history.len().saturating_sub(params.repeat_last_n)..]);
            window.sort_unstable();
            window.dedup();
            for &id in window.iter() {
                if let Some(logit) = logits.get_mut(id as usize) {
                    *logit = if *logit > 0.0 { *logit / params.repeat_penalty } else { *logit * params.repeat_penalty };
                }
            }
        }
        for (&id, &count) in &self.counts {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit -= params.presence_penalty + params.frequency_penalty * count as f32;
            }
        }
    }

    fn choose(&mut self, logits: &[f32], scratch: &mut Scratch) -> Result<u32> {
        let SamplingParams { top_k: k, top_p, min_p, temperature, .. } = self.params;
        if temperature == 0.0 {
            return Ok(argmax(logits)?.0);
        }
        let Scratch { candidates, sums, .. } = scratch;
        let max = if k > 0 && k < logits.len() {
            top_k(logits, k, candidates)?;
            candidates.sort_unstable_by(by_rank);
            let max = candidates[0].logit;
            Self::cut_best(candidates, top_p, max);
            max
        } else {
            let (_, max) = argmax(logits)?;
            if top_p < 1.0 {
                top_p_of_all(logits, top_p, max, candidates, sums)?;
            } else if min_p > 0.0 {
                min_p_of_all(logits, min_p, max, candidates);
            } else {
                return Ok(self.draw_from_all(logits, max, sums));
            }
            max
        };
        Ok(self.finish(max, scratch))
    }

    /// Leaves of the best tokens, best first, those that have the share `top_p` of them.
    pub(super) fn cut_best(candidates: &mut Vec<Candidate>, top_p: f32, max: f32) {
        if top_p < 1.0 {
            let total = candidates.iter().map(|c| f64::from(exp_nonpositive(c.logit - max))).sum::<f64>();
            let kept = prefix_with(candidates, f64::from(top_p) * total, max);
            candidates.truncate(kept.unwrap_or(candidates.len()));
        }
    }

    /// Draws one of the scratch's candidates that have their share of the best one's, which has the logit `max`.
    pub(super) fn finish(&mut self, max: f32, scratch: &mut Scratch) -> u32 {
        let Scratch { candidates, weights, .. } = scratch;
        candidates.retain(|c| exp_nonpositive(c.logit - max) >= self.params.min_p);
        weights.clear();
        weights.extend(candidates.iter().map(|c| exp_nonpositive((c.logit - max) / self.params.temperature)));
        let total: f64 = weights.iter().map(|&weight| f64::from(weight)).sum();
        let index = pick(weights.iter().copied(), self.uniform() * total);
        candidates[index].id
    }

    /// Draws from the whole row without sorting or storing it: sums of chunks first, then one chunk token by token.
    fn draw_from_all(&mut self, logits: &[f32], max: f32, sums: &mut Vec<f64>) -> u32 {
        let temperature = self.params.temperature;
        sums.clear();
        let weight = |logit: f32| exp_nonpositive((logit - max) / temperature);
        sums.extend(logits.chunks(CHUNK).map(|chunk| sum_of(chunk, weight)));
        let mut target = self.uniform() * sums.iter().sum::<f64>();
        let mut chosen = 0;
        for (index, &sum) in sums.iter().enumerate().filter(|(_, sum)| **sum > 0.0) {
            chosen = index;
            if target < sum {
                break;
            }
            target -= sum;
        }
        let start = chosen * CHUNK;
        let chunk = &logits[start..logits.len().min(start + CHUNK)];
        let index = pick(chunk.iter().map(|&logit| weight(logit)), target);
        (start + index) as u32
    }

    pub(super) fn params(&self) -> &SamplingParams {
        &self.params
    }

    /// In [0, 1), a multiple of 2^-53.
    pub(super) fn uniform(&mut self) -> f64 {
        uniform(&mut self.rng)
    }

    /// What [`uniform`](Self::uniform) will give after so many others.
    pub(super) fn uniform_after(&self, num_before: usize) -> f64 {
        let mut rng = self.rng.clone();
        (0..num_before).for_each(|_| {
            rng.next_u64();
        });
        uniform(&mut rng)
    }
}

fn uniform(rng: &mut ChaCha8Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
}

/// The first index at which the running sum of the weights passes `target`. A target that rounding put beyond the last
/// sum gets the last index with any weight.
fn pick(weights: impl Iterator<Item = f32>, mut target: f64) -> usize {
    let mut chosen = 0;
    for (index, weight) in weights.enumerate().filter(|&(_, weight)| weight > 0.0) {
        chosen = index;
        target -= f64::from(weight);
        if target < 0.0 {
            break;
        }
    }
    chosen
}
