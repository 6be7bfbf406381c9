//! The scheduler: which tokens of which sequences are computed in the next step. Counters only: no tensors, no clocks, no
//! threads; tokens pass through it to the prefix cache, unread.
//!
//! There are no phases. Every sequence has `num_computed < num_tokens`, and each step hands out one budget of tokens:
//! the running sequences come first, each with at least one token, then waiting ones are admitted. A prompt that is longer
//! than what is left of the budget goes on in the next step.
//!
//! | part | what it is |
//! |---|---|
//! | `state` | [`State`]: the sequences, their blocks, the choice of each step's work |
//! | `queue` | whose turn it is among those that wait |
//! | `sequence` | one sequence's counters |
#![forbid(unsafe_code)]

mod queue;
mod sequence;
mod state;
#[cfg(test)]
mod tests;

pub use sequence::{Class, SeqId};
pub use state::{Admission, BlockCopy, Capacity, Fork, Piece, State, StepPlan, TokenSource};
