//! From logits to a token.
//!
//! The processors run in one order, that of the fields of [`SamplingParams`](crate::engine::SamplingParams), which is
//! also the default order of llama.cpp's sampler chain:
//!
//! 1. `logit_bias`: added to the logits of the named tokens.
//! 2. `repeat_penalty`: each distinct token among the last `repeat_last_n` of prompt and answer once: positive logits are
//!    divided, others multiplied.
//! 3. `presence_penalty` once and `frequency_penalty` for each occurrence in the answer so far (not in the prompt),
//!    subtracted.
//! 4. `temperature` 0: the highest logit, of equal ones the lowest id. The rest doesn't matter then.
//! 5. `top_k`: the `k` highest logits, of equal ones the lowest ids.
//! 6. `top_p`: of the softmax over what is left, the fewest tokens from the top that reach `p`; at least one.
//! 7. `min_p`: of what is left, tokens with at least this share of the best one's probability.
//! 8. `temperature`: a token is drawn from the softmax of logit / temperature over what is left.
//!
//! A device that keeps its rows sends what most requests need of them, and [`Sampler::sample_reduced`] chooses the same tokens
//! from that.
//!
//! The same seed gives the same tokens on every platform: the generator is ChaCha8, the exponential is our own
//! ([`math`]), and sums run in a fixed order.
#![forbid(unsafe_code)]

mod logprobs;
pub mod math;
mod nucleus;
pub(crate) mod reduced;
mod sampler;
mod select;
#[cfg(test)]
mod tests;

pub use logprobs::{Logprobs, logprobs};
pub use reduced::logprobs_reduced;
pub use sampler::{Sampler, Scratch, random_seed};
