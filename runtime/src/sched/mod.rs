//! The scheduler: which tokens of which sequences are computed in the next step. Counters only: no tensors, no tokens,
//! no clocks, no threads.
//!
//! There are no phases. Every sequence has `num_computed < num_tokens`, and each step hands out one budget of tokens:
//! the running sequences come first, oldest first, then waiting ones are admitted in the order of their arrival. A
//! prompt that is longer than what is left of the budget goes on in the next step.
#![forbid(unsafe_code)]

mod state;
#[cfg(test)]
mod tests;

pub use state::{Capacity, Piece, SeqId, State, StepPlan};
