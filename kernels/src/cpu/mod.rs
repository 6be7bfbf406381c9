//! CPU kernels: a table of functions picked once from the CPU's features, and what they work on.
//!
//! | file | what it holds |
//! |---|---|
//! | `isa.rs` | [`Isa`]: the levels that kernels are written for, and detection |
//! | `kernels.rs` | [`CpuKernels`]: the table, and wrappers that check shapes |
//! | `matrix.rs` | [`MatrixRef`], [`ActRows`], [`Scratch`]: what goes into a matmul |
//! | `gemm.rs`, `tile.rs`, `float.rs` | loops and tiles of the large matmuls, shared by the ISAs |
//! | `pack.rs` | activations packed for them |
//! | `scalar/`, `avx2/`, `avx512/`, `neon/` | the matmul kernels of an ISA, and nothing else |
//! | [`vector`], `math.rs`, `simd.rs` | row-wise kernels, written once over sixteen lanes |
//! | [`attention`], [`kv`] | online-softmax attention over the paged cache, and the cache's element types |
//! | [`team`], [`topology`] | the worker threads and the cores that they live on |
//! | [`program`] | a model's step as instructions that the team runs together |
//! | [`ceiling`] | what the machine can do at most, measured |

mod ahead;
pub mod attention;
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "only tests multiply pairs there"))]
mod attention_rounded;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub mod ceiling;
mod float;
mod gemm;
mod isa;
mod kernels;
pub mod kv;
mod lines;
mod math;
mod matrix;
#[cfg(target_arch = "aarch64")]
mod neon;
mod pack;
pub mod program;
mod scalar;
mod simd;
pub mod team;
#[cfg(test)]
mod tests;
mod tile;
pub mod topology;
pub mod vector;
#[cfg(test)]
mod vector_tests;

pub use isa::{Isa, detected_features};
pub use kernels::CpuKernels;
use kernels::dequantize_checked;
pub use matrix::{ACT_GROUP, ActBuffer, ActRows, FloatActs, MatrixRef, ROW_TILE, SUM_GROUP, Scratch};
pub use pack::{PACK_ROWS, PackedActs, PackedBlock, RoundedActs, RoundedBuffer};

/// Most rows of activations for which a matmul can read the weights as they lie in the file. With more, it unpacks a panel of
/// them first; see [`CpuKernels::few_rows`] for what is fastest.
pub const DECODE_ROWS: usize = 8;

/// What a row's result may depend on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Numerics {
    /// On how many rows there are: their number chooses the kernels, and with them the order of additions.
    #[default]
    Fast,
    /// On that row only: the kernels of many rows take any number of them.
    Invariant,
}
