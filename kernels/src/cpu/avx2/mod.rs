//! AVX2 kernels, with and without AVX-VNNI.
//!
//! | file | what it holds |
//! |---|---|
//! | `dot.rs` | [`Dot`]: the 8-bit dot product of decode |
//! | `vnni.rs` | that dot product and the 8-bit GEMM in one instruction |
//! | `formats.rs` | [`Format`]: how a block becomes registers |
//! | `decode.rs` | few rows of activations: weights straight from the file |
//! | `gemm.rs` | many rows: registers and transpose of the GEMM |
//! | `float.rs` | f32 dot products and tiles |
//! | `act.rs` | quantisation of activations, and start values of dot products |

#![allow(
    clippy::needless_range_loop,
    reason = "tile loops use one index for several arrays and pointers, and their bounds are constants that unroll"
)]

pub(super) mod act;
mod decode;
mod dot;
mod float;
mod formats;
pub(super) mod gemm;
mod vnni;

use std::ops::Range;

use dot::{Dot, Maddubs};
use vnni::Vnni;

use super::{
    CpuKernels, DECODE_ROWS, Isa, float as float_loops,
    float::FloatIsa,
    gemm as gemm_loops,
    matrix::{ActRows, MatrixRef, Scratch},
};

/// The ISA, for the shared loops.
pub(super) struct Avx2;

/// The table for CPUs without AVX-VNNI.
pub(super) const KERNELS: CpuKernels = CpuKernels {
    isa: Isa::Avx2,
    few_rows: DECODE_ROWS,
    quantize_act_row: act::quantize_act_row,
    matmul_q8: matmul_q8::<Maddubs>,
    matmul_q8_lanes: Some(gemm_loops::matmul_lanes::<<Maddubs as Dot>::Gemm>),
    matmul_f32: float_loops::matmul::<Avx2>,
    matmul_bf16: None,
    rounded: None,
    dequantize_row: Avx2::dequantize_row,
    transpose: gemm::transpose,
};

/// The table for CPUs with it.
pub(super) const VNNI: CpuKernels = CpuKernels {
    isa: Isa::AvxVnni,
    matmul_q8: matmul_q8::<Vnni>,
    matmul_q8_lanes: Some(gemm_loops::matmul_lanes::<<Vnni as Dot>::Gemm>),
    ..KERNELS
};

/// [`VNNI`] for CPUs without it.
#[cfg(test)]
pub(super) const EMULATED_VNNI: CpuKernels = CpuKernels {
    isa: Isa::AvxVnni,
    matmul_q8: matmul_q8::<vnni::Emulated>,
    matmul_q8_lanes: Some(gemm_loops::matmul_lanes::<<vnni::Emulated as Dot>::Gemm>),
    ..KERNELS
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
            decode::matmul::<D>(w, rows, acts, out, stride, scratch);
        } else {
            gemm_loops::matmul::<D::Gemm>(w, rows, acts, out, stride, scratch);
        }
    }
}
