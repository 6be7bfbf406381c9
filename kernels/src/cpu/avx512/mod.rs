//! AVX-512 kernels, with and without VNNI.
//!
//! | file | what it holds |
//! |---|---|
//! | `dot.rs` | [`Dot`]: the 8-bit dot product, as one VNNI instruction or as exact 16-bit arithmetic |
//! | `formats.rs` | [`Format`]: how a chunk of blocks becomes registers |
//! | `decode.rs` | few rows of activations: weights straight from the file |
//! | `gemm.rs` | many rows: unpacking, registers and transpose of the GEMM |
//! | `float.rs` | f32 dot products and tiles |
//! | `act.rs` | quantisation of activations |

#![allow(
    clippy::needless_range_loop,
    reason = "tile loops use one index for several arrays and pointers, and their bounds are constants that unroll"
)]

mod act;
mod decode;
mod dot;
mod float;
mod formats;
mod gemm;

use dot::{Dot, Emulated, Vnni};

use super::{
    CpuKernels, DECODE_ROWS, Isa, float as float_loops,
    float::FloatIsa,
    gemm as gemm_loops,
    matrix::{ActRows, MatrixRef, Scratch},
};

/// What doesn't depend on VNNI.
pub(super) struct Avx512;

/// The table for CPUs with VNNI.
pub(super) const VNNI: CpuKernels = CpuKernels { isa: Isa::Avx512Vnni, matmul_q8: matmul_q8::<Vnni>, ..BASE };

/// The table for CPUs without.
pub(super) const BASE: CpuKernels = CpuKernels {
    isa: Isa::Avx512,
    quantize_act_row: act::quantize_act_row,
    matmul_q8: matmul_q8::<Emulated>,
    matmul_f32: float_loops::matmul::<Avx512>,
    dequantize_row: Avx512::dequantize_row,
    transpose: gemm::transpose,
};

/// See `CpuKernels::matmul_q8`.
///
/// # Safety
/// As there, and the CPU must have the features of `D`.
unsafe fn matmul_q8<D: Dot>(
    w: &MatrixRef,
    rows: std::ops::Range<usize>,
    acts: &ActRows,
    out: *mut f32,
    stride: usize,
    scratch: &mut Scratch,
) {
    // SAFETY: the caller's promises, passed on.
    unsafe {
        if acts.num_rows <= DECODE_ROWS {
            decode::matmul::<D>(w, rows, acts, out, stride, scratch);
        } else {
            gemm_loops::matmul::<gemm::Gemm<D>>(w, rows, acts, out, stride, scratch);
        }
    }
}
