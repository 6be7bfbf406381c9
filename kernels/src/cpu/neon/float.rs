//! f32 arithmetic. Dot products: `R` rows of weights × `M` of activations, each in two registers of four sums. Tiles:
//! 6 rows of weights × two registers of activation rows, or 12 × 1.

use core::arch::aarch64::*;

use super::{
    Neon,
    dot::Widening,
    gemm::{Lanes, transpose},
};
use crate::{
    cpu::{
        dequantize_checked,
        float::{FloatIsa, FloatJob},
        tile::{self, FloatTile},
    },
    quant::QuantType,
};

/// Elements of a step.
const STEP: usize = 8;

/// A float type in memory.
trait Element {
    const BYTES: usize;

    /// Eight elements.
    ///
    /// # Safety
    /// They must be readable; the CPU must have NEON.
    unsafe fn load(p: *const u8) -> [float32x4_t; 2];
}

struct F32;
impl Element for F32 {
    const BYTES: usize = 4;

    #[inline(always)]
    unsafe fn load(p: *const u8) -> [float32x4_t; 2] {
        // SAFETY: the caller's elements, which may lie anywhere: loads of bytes have no alignment.
        unsafe { [vreinterpretq_f32_u8(vld1q_u8(p)), vreinterpretq_f32_u8(vld1q_u8(p.add(16)))] }
    }
}

struct F16;
impl Element for F16 {
    const BYTES: usize = 2;

    #[inline(always)]
    unsafe fn load(p: *const u8) -> [float32x4_t; 2] {
        // SAFETY: the caller's elements.
        unsafe {
            let halves = vreinterpretq_f16_u8(vld1q_u8(p));
            [vcvt_f32_f16(vget_low_f16(halves)), vcvt_high_f32_f16(halves)]
        }
    }
}

struct Bf16;
impl Element for Bf16 {
    const BYTES: usize = 2;

    #[inline(always)]
    unsafe fn load(p: *const u8) -> [float32x4_t; 2] {
        // SAFETY: the caller's elements. bfloat16 is the upper half of an f32.
        unsafe {
            let halves = vreinterpretq_u16_u8(vld1q_u8(p));
            let low = vshll_n_u16::<16>(vget_low_u16(halves));
            [vreinterpretq_f32_u32(low), vreinterpretq_f32_u32(vshll_high_n_u16::<16>(halves))]
        }
    }
}

/// The first `count` < 8 elements, zero behind.
#[inline(always)]
unsafe fn load_some<E: Element>(p: *const u8, count: usize) -> [float32x4_t; 2] {
    let mut buffer = [0; 4 * STEP];
    // SAFETY: the caller's `count` elements, at most 28 bytes.
    unsafe {
        std::ptr::copy_nonoverlapping(p, buffer.as_mut_ptr(), count * E::BYTES);
        E::load(buffer.as_ptr())
    }
}

/// `acc + w · x`, lane by lane.
#[inline(always)]
unsafe fn fma(acc: [float32x4_t; 2], w: [float32x4_t; 2], x: [float32x4_t; 2]) -> [float32x4_t; 2] {
    // SAFETY: value-only.
    unsafe { [vfmaq_f32(acc[0], w[0], x[0]), vfmaq_f32(acc[1], w[1], x[1])] }
}

/// `R` rows of weights at `w` against `M` rows of activations.
///
/// # Safety
/// Weights and job must be valid for the shapes; the CPU must have NEON.
#[target_feature(enable = "neon")]
unsafe fn dot_tile<E: Element, const R: usize, const M: usize>(w: *const u8, row_bytes: usize, job: &FloatJob) {
    // SAFETY: R rows of `row_bytes`, M rows of x; the part of K that isn't a multiple of 8 is loaded apart.
    unsafe {
        let mut acc = [[[vdupq_n_f32(0.0); 2]; M]; R];
        let whole = job.k / STEP * STEP;
        for i in (0..whole).step_by(STEP) {
            let mut weights = [[vdupq_n_f32(0.0); 2]; R];
            for r in 0..R {
                weights[r] = E::load(w.add(r * row_bytes + i * E::BYTES));
            }
            for m in 0..M {
                let x = F32::load(job.x.add(m * job.x_stride + i).cast());
                for r in 0..R {
                    acc[r][m] = fma(acc[r][m], weights[r], x);
                }
            }
        }
        let rest = job.k - whole;
        if rest > 0 {
            for r in 0..R {
                let weights = load_some::<E>(w.add(r * row_bytes + whole * E::BYTES), rest);
                for m in 0..M {
                    let x = load_some::<F32>(job.x.add(m * job.x_stride + whole).cast(), rest);
                    acc[r][m] = fma(acc[r][m], weights, x);
                }
            }
        }
        for r in 0..R {
            for m in 0..M {
                *job.out.add(m * job.out_stride + r) = vaddvq_f32(vaddq_f32(acc[r][m][0], acc[r][m][1]));
            }
        }
    }
}

/// Rows of weights at `w` against up to 8 rows of activations.
unsafe fn dots<E: Element>(w: *const u8, row_bytes: usize, num_rows: usize, num_acts: usize, job: &FloatJob) {
    /// Tiles of `R` rows, then single rows.
    unsafe fn tiles<E: Element, const R: usize, const M: usize>(
        w: *const u8,
        row_bytes: usize,
        num_rows: usize,
        job: &FloatJob,
    ) {
        let mut row = 0;
        // SAFETY: rows stay below `num_rows`; the rest is the caller's promise.
        unsafe {
            while row + R <= num_rows {
                let job = FloatJob { out: job.out.add(row), ..*job };
                dot_tile::<E, R, M>(w.add(row * row_bytes), row_bytes, &job);
                row += R;
            }
            while row < num_rows {
                let job = FloatJob { out: job.out.add(row), ..*job };
                dot_tile::<E, 1, M>(w.add(row * row_bytes), row_bytes, &job);
                row += 1;
            }
        }
    }
    // SAFETY: the caller's promises, passed on.
    unsafe {
        match num_acts {
            0 => {}
            1 => tiles::<E, 4, 1>(w, row_bytes, num_rows, job),
            2 => tiles::<E, 4, 2>(w, row_bytes, num_rows, job),
            3 => tiles::<E, 2, 3>(w, row_bytes, num_rows, job),
            4 => tiles::<E, 2, 4>(w, row_bytes, num_rows, job),
            5 => tiles::<E, 2, 5>(w, row_bytes, num_rows, job),
            6 => tiles::<E, 2, 6>(w, row_bytes, num_rows, job),
            7 => tiles::<E, 1, 7>(w, row_bytes, num_rows, job),
            _ => tiles::<E, 1, 8>(w, row_bytes, num_rows, job),
        }
    }
}

/// A row of floats to f32.
#[inline(always)]
unsafe fn widen_row<E: Element>(src: &[u8], dst: &mut [f32]) {
    let (chunks, rest) = dst.as_chunks_mut::<STEP>();
    let count = rest.len();
    // SAFETY: `src` holds as many elements as `dst`.
    unsafe {
        let store = |to: &mut [f32; STEP], x: [float32x4_t; 2]| {
            vst1q_f32(to.as_mut_ptr(), x[0]);
            vst1q_f32(to.as_mut_ptr().add(4), x[1]);
        };
        let mut p = src.as_ptr();
        for chunk in chunks {
            store(chunk, E::load(p));
            p = p.add(STEP * E::BYTES);
        }
        if count > 0 {
            let mut last = [0.0; STEP];
            store(&mut last, load_some::<E>(p, count));
            rest.copy_from_slice(&last[..count]);
        }
    }
}

impl FloatIsa for Neon {
    const LANES: usize = 4;
    const TILE_COLS: [usize; 2] = [12, 6];

    #[target_feature(enable = "neon")]
    unsafe fn dequantize_row(dtype: QuantType, src: &[u8], dst: &mut [f32]) {
        // SAFETY: same features; lengths are the caller's promise.
        unsafe {
            match dtype {
                QuantType::F32 => widen_row::<F32>(src, dst),
                QuantType::F16 => widen_row::<F16>(src, dst),
                QuantType::BF16 => widen_row::<Bf16>(src, dst),
                _ => dequantize_checked(dtype, src, dst),
            }
        }
    }

    unsafe fn dots(dtype: QuantType, w: *const u8, row_bytes: usize, num_rows: usize, num_acts: usize, job: &FloatJob) {
        // SAFETY: the caller's promises, passed on.
        unsafe {
            match dtype {
                QuantType::F16 => dots::<F16>(w, row_bytes, num_rows, num_acts, job),
                QuantType::BF16 => dots::<Bf16>(w, row_bytes, num_rows, num_acts, job),
                _ => dots::<F32>(w, row_bytes, num_rows, num_acts, job),
            }
        }
    }

    unsafe fn transpose(
        rows: *const u32,
        stride: usize,
        num_rows: usize,
        num_units: usize,
        to: *mut u32,
        to_stride: usize,
    ) {
        // SAFETY: the caller's promises, passed on.
        unsafe { transpose(rows, stride, num_rows, num_units, to, to_stride) }
    }

    #[inline(always)]
    fn prefetch(_: *const u8) {
        // As for 8-bit activations: the intrinsic is not stable, and the hardware follows rows of weights by itself.
    }

    unsafe fn tile(tile: &FloatTile, registers: usize) {
        // SAFETY: the caller's promises, passed on.
        unsafe {
            match registers {
                1 => compute::<1, 12>(tile),
                _ => compute::<2, 6>(tile),
            }
        }
    }
}

/// [`tile::compute_float`] of `N` rows of weights.
#[target_feature(enable = "neon")]
unsafe fn compute<const R: usize, const N: usize>(tile: &FloatTile) {
    // SAFETY: the caller's promises, passed on.
    unsafe { tile::compute_float::<Lanes<Widening>, R, N>(tile) }
}
