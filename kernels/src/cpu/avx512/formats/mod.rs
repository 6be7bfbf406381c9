//! How blocks become registers. A chunk is as many blocks as one register holds scales for: sixteen blocks of 32, or one of 256.
//!
//! Codes come as unsigned bytes in the order of the elements, 64 to a register; so lane `l` of a dot product of register `i`
//! covers elements `64·i + 4·l ..+ 4` of the chunk.
//!
//! | file | what it holds |
//! |---|---|
//! | `plain.rs` | [`Format`]; Q4_0 to Q8_0, the K formats, IQ4 |
//! | `codebook.rs` | IQ1, IQ2 and IQ3 |
//! | `few_bits.rs` | ternary and smaller formats, MXFP4, NVFP4, and 8-bit activations as weights |

mod codebook;
mod few_bits;
mod plain;

pub(super) use plain::{Format, Mins};
