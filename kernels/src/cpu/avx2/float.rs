//! f32 arithmetic. Dot products: `R` rows of weights × `M` of activations, one chain of multiply-adds each. Tiles: 6 rows of
//! weights × two registers of activation rows, or 12 × 1.

use core::arch::x86_64::*;

use super::{
    Avx2,
    decode::sum,
    gemm::{Lanes, lanes, transpose},
};
use crate::{
    cpu::{
        dequantize_checked,
        float::{FloatIsa, FloatJob},
        tile::{self, FloatTile},
    },
    quant::QuantType,
};

/// A float type in memory.
trait Element {
    const BYTES: usize;

    /// Eight elements.
    ///
    /// # Safety
    /// They must be readable; the CPU must have AVX2 and F16C.
    unsafe fn load(p: *const u8) -> __m256;
}

struct F32;
impl Element for F32 {
    const BYTES: usize = 4;

    #[inline(always)]
    unsafe fn load(p: *const u8) -> __m256 {
        // SAFETY: the caller's elements.
        unsafe { _mm256_loadu_ps(p.cast()) }
    }
}

struct F16;
impl Element for F16 {
    const BYTES: usize = 2;

    #[inline(always)]
    unsafe fn load(p: *const u8) -> __m256 {
        // SAFETY: the caller's elements.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) }
    }
}

struct Bf16;
impl Element for Bf16 {
    const BYTES: usize = 2;

    #[inline(always)]
    unsafe fn load(p: *const u8) -> __m256 {
        // SAFETY: the caller's elements. bfloat16 is the upper half of an f32.
        unsafe {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        }
    }
}

/// The first `count` < 8 elements, zero behind: through a buffer, as two-byte elements have no masked load.
#[inline(always)]
unsafe fn load_some<E: Element>(p: *const u8, count: usize) -> __m256 {
    let mut buffer = [0u8; 32];
    // SAFETY: the caller's `count` elements, at most 28 bytes.
    unsafe {
        std::ptr::copy_nonoverlapping(p, buffer.as_mut_ptr(), count * E::BYTES);
        E::load(buffer.as_ptr())
    }
}

/// `R` rows of weights at `w` against `M` rows of activations.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn dot_tile<E: Element, const R: usize, const M: usize>(w: *const u8, row_bytes: usize, job: &FloatJob) {
    // SAFETY: R rows of `row_bytes`, M rows of x; the part of K that isn't a multiple of 8 is loaded apart.
    unsafe {
        let mut acc = [[_mm256_setzero_ps(); M]; R];
        let read_once = job.read_once;
        let whole = job.k / 8 * 8;
        for i in (0..whole).step_by(8) {
            let mut weights = [_mm256_setzero_ps(); R];
            for r in 0..R {
                let p = w.add(r * row_bytes + i * E::BYTES);
                read_once.ask(p.wrapping_add(R * row_bytes));
                weights[r] = E::load(p);
            }
            for m in 0..M {
                let x = _mm256_loadu_ps(job.x.add(m * job.x_stride + i));
                for r in 0..R {
                    acc[r][m] = _mm256_fmadd_ps(weights[r], x, acc[r][m]);
                }
            }
        }
        let rest = job.k - whole;
        if rest > 0 {
            for r in 0..R {
                let weights = load_some::<E>(w.add(r * row_bytes + whole * E::BYTES), rest);
                for m in 0..M {
                    let x = load_some::<F32>(job.x.add(m * job.x_stride + whole).cast(), rest);
                    acc[r][m] = _mm256_fmadd_ps(weights, x, acc[r][m]);
                }
            }
        }
        for r in 0..R {
            for m in 0..M {
                *job.out.add(m * job.out_stride + r) = sum(acc[r][m]);
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
            5 => tiles::<E, 1, 5>(w, row_bytes, num_rows, job),
            6 => tiles::<E, 1, 6>(w, row_bytes, num_rows, job),
            7 => tiles::<E, 1, 7>(w, row_bytes, num_rows, job),
            _ => tiles::<E, 1, 8>(w, row_bytes, num_rows, job),
        }
    }
}

/// A row of floats to f32.
#[inline(always)]
unsafe fn widen_row<E: Element>(src: &[u8], dst: &mut [f32]) {
    // SAFETY: `src` holds as many elements as `dst`; the last are loaded apart and masked.
    unsafe {
        let whole = dst.len() / 8 * 8;
        for i in (0..whole).step_by(8) {
            _mm256_storeu_ps(dst.as_mut_ptr().add(i), E::load(src.as_ptr().add(i * E::BYTES)));
        }
        let rest = dst.len() - whole;
        if rest > 0 {
            let last = load_some::<E>(src.as_ptr().add(whole * E::BYTES), rest);
            _mm256_maskstore_ps(dst.as_mut_ptr().add(whole), lanes(rest), last);
        }
    }
}

impl FloatIsa for Avx2 {
    const LANES: usize = 8;
    const TILE_COLS: [usize; 2] = [12, 6];

    #[target_feature(enable = "avx2,fma,f16c")]
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
    fn prefetch(address: *const u8) {
        // SAFETY: a prefetch doesn't fault, and every x86-64 has it.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(address.cast()) }
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
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn compute<const R: usize, const N: usize>(tile: &FloatTile) {
    // SAFETY: the caller's promises, passed on.
    unsafe { tile::compute_float::<Lanes, R, N>(tile) }
}
