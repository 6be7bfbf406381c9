//! How blocks become registers. A chunk is as many blocks as one register holds scales for: sixteen blocks of 32, or one of 256.
//!
//! Codes come as unsigned bytes in the order of the elements, 64 to a register; so lane `l` of a dot product of register `i`
//! covers elements `64·i + 4·l ..+ 4` of the chunk. Decode takes two registers at once, in the order that costs a format least.
//!
//! | file | what it holds |
//! |---|---|
//! | `format.rs` | [`Format`], and what its implementations share |
//! | `plain.rs` | Q4_0 to Q8_0, IQ4_NL |
//! | `super_blocks.rs` | the K formats, IQ4_XS |
//! | `codebook.rs` | IQ1, IQ2 and IQ3 |
//! | `few_bits.rs` | ternary and smaller formats, MXFP4, NVFP4, and 8-bit activations as weights |

mod codebook;
mod few_bits;
mod format;
mod plain;
mod super_blocks;

pub(super) use format::{Format, Mins, Order};
