//! CPU kernels: a table of functions picked once from the CPU's features, and what they work on.
//!
//! | file | what it holds |
//! |---|---|
//! | `isa.rs` | [`Isa`]: the levels that kernels are written for, and detection |
//! | `kernels.rs` | [`CpuKernels`]: the table, and wrappers that check shapes |
//! | `matrix.rs` | [`MatrixRef`], [`ActRows`], [`Scratch`]: what goes into a matmul |
//! | `gemm.rs`, `float.rs`, `pack.rs` | loops of the large matmuls and panels of weights, shared by the ISAs |
//! | `scalar/`, `avx2/`, `avx512/` | the kernels of an ISA, and nothing else |

#[cfg(target_arch = "x86_64")]
mod avx512;
mod float;
mod gemm;
mod isa;
mod kernels;
mod matrix;
mod pack;
mod scalar;
#[cfg(test)]
mod tests;

pub use isa::{Isa, detected_features};
pub use kernels::CpuKernels;
use kernels::dequantize_checked;
pub use matrix::{ACT_GROUP, ActBuffer, ActRows, MatrixRef, ROW_TILE, SUM_GROUP, Scratch};

/// Rows of activations up to which a matmul reads the weights as they lie in the file. With more, it unpacks a panel of
/// them first.
pub const DECODE_ROWS: usize = 8;
