//! NEON kernels, with and without dot product instructions.
//!
//! | file | what it holds |
//! |---|---|
//! | `dot.rs` | [`Dot`]: the 8-bit dot product, as `sdot` or as widening multiplications |
//! | `decode.rs` | few rows of activations: weights straight from the file |
//! | `float.rs` | f32 dot products |
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
pub(super) mod lanes;

use std::ops::Range;

use dot::{Dot, Dotprod, Widening};

use super::{
    CpuKernels, DECODE_ROWS, Isa,
    matrix::{ActRows, MatrixRef, Scratch},
};

/// The table for CPUs without dot product instructions.
pub(super) const BASE: CpuKernels = CpuKernels {
    isa: Isa::Neon,
    quantize_act_row: act::quantize_act_row,
    matmul_q8: matmul_q8::<Widening>,
    matmul_f32: float::matmul,
    dequantize_row: float::dequantize_row,
    transpose: super::pack::transpose,
};

/// The table for CPUs with them.
pub(super) const DOTPROD: CpuKernels = CpuKernels { isa: Isa::NeonDotprod, matmul_q8: matmul_q8::<Dotprod>, ..BASE };

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
    _: &mut Scratch,
) {
    for m in (0..acts.num_rows).step_by(DECODE_ROWS) {
        let part = acts.rows(m..acts.num_rows.min(m + DECODE_ROWS));
        // SAFETY: the caller's promises, passed on; rows m.. of `out`.
        unsafe { decode::matmul::<D>(w, rows.clone(), &part, out.add(m * stride), stride) };
    }
}
