//! How blocks become registers of 32 codes in the order of the elements.
//!
//! | file | what it holds |
//! |---|---|
//! | `plain.rs` | [`Format`]; Q4_0 to Q8_0, the K formats, IQ4 |
//! | `codebook.rs` | IQ1, IQ2 and IQ3 |
//! | `few_bits.rs` | ternary and smaller formats, MXFP4, NVFP4, and 8-bit activations as weights |

mod codebook;
mod few_bits;
mod plain;

pub(super) use plain::{Format, offset};
