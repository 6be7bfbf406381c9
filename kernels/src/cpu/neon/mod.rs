//! NEON kernels, with and without the instructions for dot products and 8-bit matrix multiplication.
//!
//! | file | what it holds |
//! |---|---|
//! | `dot.rs` | [`Dot`]: the 8-bit dot product, as `sdot`, as `smmla` where there are many, or as widening multiplications |
//! | `decode.rs` | few rows of activations: weights straight from the file |
//! | `gemm.rs` | many rows: registers and transpose of the GEMM |
//! | `float.rs` | f32 dot products and tiles |
//! | `act.rs` | quantisation of activations |
//! | `lanes.rs` | sixteen f32 lanes, for the row-wise kernels |

#![allow(
    clippy::needless_range_loop,
    reason = "tile loops use one index for several arrays and pointers, and their bounds are constants that unroll"
)]

mod act;
mod decode;
mod dot;
mod float;
mod gemm;
pub(super) mod lanes;

use std::ops::Range;

use dot::{Dot, Dotprod, I8mm, Widening};
pub(super) use dot::{dots, dots_dotprod, matrix_products};

use super::{
    CpuKernels, DECODE_ROWS, Isa, float as float_loops,
    float::FloatIsa,
    gemm as gemm_loops,
    matrix::{ActRows, MatrixRef, Scratch},
};

/// What doesn't depend on dot product instructions.
pub(super) struct Neon;

/// The table for CPUs without dot product instructions.
pub(super) const BASE: CpuKernels = CpuKernels {
    isa: Isa::Neon,
    few_rows: DECODE_ROWS,
    quantize_act_row: act::quantize_act_row,
    matmul_q8: matmul_q8::<Widening>,
    matmul_q8_lanes: Some(gemm_loops::matmul_lanes::<gemm::Gemm<Widening>>),
    matmul_f32: float_loops::matmul::<Neon>,
    matmul_bf16: None,
    rounded: None,
    dequantize_row: Neon::dequantize_row,
    transpose: gemm::transpose,
};

/// The table for CPUs with them.
pub(super) const DOTPROD: CpuKernels = CpuKernels {
    isa: Isa::NeonDotprod,
    matmul_q8: matmul_q8::<Dotprod>,
    matmul_q8_lanes: Some(gemm_loops::matmul_lanes::<gemm::Gemm<Dotprod>>),
    ..BASE
};

/// The table for CPUs with 8-bit matrix multiplication as well.
pub(super) const I8MM: CpuKernels = CpuKernels {
    isa: Isa::NeonI8mm,
    matmul_q8: matmul_q8::<I8mm>,
    matmul_q8_lanes: Some(gemm_loops::matmul_lanes::<gemm::Gemm<I8mm>>),
    ..BASE
};

/// See `CpuKernels::matmul_q8`.
///
/// # Safety
/// As there, and the CPU must have the features of `D`.
unsafe fn matmul_q8<D: Dot>(
    w: &MatrixRef,
    rows: Range<usize>,
    acts: &ActRows,
    out: *mut f32,
    stride: usize,
    scratch: &mut Scratch,
) {
    // SAFETY: the caller's promises, passed on.
    unsafe {
        if acts.packed.is_none() {
            decode::matmul::<D>(w, rows, acts, out, stride);
        } else {
            gemm_loops::matmul::<gemm::Gemm<D>>(w, rows, acts, out, stride, scratch);
        }
    }
}
