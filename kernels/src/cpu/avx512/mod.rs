//! AVX-512 kernels, with and without VNNI, BF16 and AMX.
//!
//! | file | what it holds |
//! |---|---|
//! | `dot.rs` | [`Dot`]: the 8-bit dot product, as one VNNI instruction or as exact 16-bit arithmetic |
//! | `formats.rs` | [`Format`]: how a chunk of blocks becomes registers |
//! | `decode.rs` | few rows of activations: weights straight from the file |
//! | `gemm.rs` | many rows: unpacking, registers and transpose of the GEMM |
//! | `half.rs` | its tiles of 8 rows of activations |
//! | `float.rs` | f32 dot products and tiles |
//! | `bf16.rs` | many rows on bfloat16 weights |
//! | `rounded.rs` | many rows on quantised weights, both as bfloat16 |
//! | `amx.rs` | AMX: tiles of the two, permission and check |
//! | `act.rs` | quantisation of activations |

#![allow(
    clippy::needless_range_loop,
    reason = "tile loops use one index for several arrays and pointers, and their bounds are constants that unroll"
)]

mod act;
pub(super) mod amx;
pub(super) mod bf16;
mod decode;
mod dot;
mod float;
mod formats;
mod gemm;
mod half;
mod rounded;

use dot::{Dot, Emulated, Vnni, VnniConverts};
use gemm::Gemm;

use super::{
    CpuKernels, DECODE_ROWS, Isa, float as float_loops,
    float::FloatIsa,
    gemm::{self as gemm_loops, GemmIsa},
    kernels::Rounding,
    matrix::{ActRows, MatrixRef, Scratch},
};

/// What doesn't depend on VNNI.
pub(super) struct Avx512;

/// The table for CPUs with AMX.
pub(super) const AMX: CpuKernels = CpuKernels {
    isa: Isa::Amx,
    matmul_bf16: Some(bf16::matmul::<amx::AmxBf16>),
    rounded: Some(rounding::<amx::AmxPairs>()),
    ..VNNI
};

/// [`AMX`] for CPUs without it, but with BF16.
#[cfg(test)]
pub(super) const EMULATED_AMX: CpuKernels =
    CpuKernels { isa: Isa::Amx, rounded: Some(rounding::<rounded::Emulated>()), ..BF16 };

const fn rounding<I: rounded::TileIsa>() -> Rounding {
    Rounding { matmul: rounded::matmul::<I>, round_acts: rounded::round_acts, round_lanes: rounded::round_lanes }
}

/// Scratch of the kernels here that take more than those of all ISAs.
pub(super) const SCRATCH_BYTES: usize = rounded::SCRATCH_BYTES;

/// The table for CPUs with VNNI and BF16.
pub(super) const BF16: CpuKernels = CpuKernels {
    isa: Isa::Avx512Bf16,
    // The GEMM has tiles for 8 rows.
    few_rows: 4,
    matmul_q8: matmul_q8::<Vnni, Gemm<VnniConverts>>,
    matmul_q8_lanes: Some(gemm_loops::matmul_lanes::<Gemm<VnniConverts>>),
    matmul_bf16: Some(bf16::matmul::<bf16::Avx512Bf16>),
    ..VNNI
};

/// [`BF16`] for CPUs without it.
#[cfg(test)]
pub(super) const EMULATED_BF16: CpuKernels = CpuKernels { matmul_bf16: Some(bf16::matmul::<bf16::Emulated>), ..BF16 };

/// The table for CPUs with VNNI.
pub(super) const VNNI: CpuKernels = CpuKernels {
    isa: Isa::Avx512Vnni,
    matmul_q8: matmul_q8::<Vnni, Gemm<Vnni>>,
    matmul_q8_lanes: Some(gemm_loops::matmul_lanes::<Gemm<Vnni>>),
    ..BASE
};

/// The table for CPUs without.
pub(super) const BASE: CpuKernels = CpuKernels {
    isa: Isa::Avx512,
    few_rows: DECODE_ROWS,
    quantize_act_row: act::quantize_act_row,
    matmul_q8: matmul_q8::<Emulated, Gemm<Emulated>>,
    matmul_q8_lanes: Some(gemm_loops::matmul_lanes::<Gemm<Emulated>>),
    matmul_bf16: None,
    rounded: None,
    matmul_f32: float_loops::matmul::<Avx512>,
    dequantize_row: Avx512::dequantize_row,
    transpose: gemm::transpose,
};

/// See `CpuKernels::matmul_q8`.
///
/// # Safety
/// As there, and the CPU must have the features of `D` and `G`.
unsafe fn matmul_q8<D: Dot, G: GemmIsa>(
    w: &MatrixRef,
    rows: std::ops::Range<usize>,
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
            gemm_loops::matmul::<G>(w, rows, acts, out, stride, scratch);
        }
    }
}
