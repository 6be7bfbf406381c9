//! f32 arithmetic. Dot products: `R` rows of weights × `M` of activations, one chain of multiply-adds each. Tiles: 12 rows of
//! weights × up to two registers of activation rows, 24 sums.

use super::{
    Avx512,
    decode::sum_four,
    dot::Emulated,
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
use core::arch::x86_64::*;

/// A float type in memory.
trait Element {
    const BYTES: usize;

    /// 16 elements.
    ///
    /// # Safety
    /// They must be readable; the CPU must have AVX-512 F, BW, VL and DQ.
    unsafe fn load(p: *const u8) -> __m512;

    /// The elements of `mask`, zero elsewhere.
    ///
    /// # Safety
    /// As [`Self::load`] for those elements.
    unsafe fn load_masked(p: *const u8, mask: u16) -> __m512;
}

struct F32;
impl Element for F32 {
    const BYTES: usize = 4;

    #[inline(always)]
    unsafe fn load(p: *const u8) -> __m512 {
        // SAFETY: the caller's elements.
        unsafe { _mm512_loadu_ps(p.cast()) }
    }

    #[inline(always)]
    unsafe fn load_masked(p: *const u8, mask: u16) -> __m512 {
        // SAFETY: the caller's elements.
        unsafe { _mm512_maskz_loadu_ps(mask, p.cast()) }
    }
}

struct F16;
impl Element for F16 {
    const BYTES: usize = 2;

    #[inline(always)]
    unsafe fn load(p: *const u8) -> __m512 {
        // SAFETY: the caller's elements.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }

    #[inline(always)]
    unsafe fn load_masked(p: *const u8, mask: u16) -> __m512 {
        // SAFETY: the caller's elements.
        unsafe { _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, p.cast())) }
    }
}

struct Bf16;
impl Element for Bf16 {
    const BYTES: usize = 2;

    #[inline(always)]
    unsafe fn load(p: *const u8) -> __m512 {
        // SAFETY: the caller's elements.
        unsafe { widen(_mm256_loadu_si256(p.cast())) }
    }

    #[inline(always)]
    unsafe fn load_masked(p: *const u8, mask: u16) -> __m512 {
        // SAFETY: the caller's elements.
        unsafe { widen(_mm256_maskz_loadu_epi16(mask, p.cast())) }
    }
}

/// bfloat16 is the upper half of an f32.
#[inline(always)]
unsafe fn widen(x: __m256i) -> __m512 {
    // SAFETY: value-only.
    unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(x))) }
}

/// `R` rows of weights at `w` against `M` rows of activations.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
unsafe fn dot_tile<E: Element, const R: usize, const M: usize>(w: *const u8, row_bytes: usize, job: &FloatJob) {
    // SAFETY: R rows of `row_bytes`, M rows of x; the part of K that isn't a multiple of 16 is masked.
    unsafe {
        let mut acc = [[_mm512_setzero_ps(); M]; R];
        let read_once = job.read_once;
        let whole = job.k / 16 * 16;
        for i in (0..whole).step_by(16) {
            let mut weights = [_mm512_setzero_ps(); R];
            for r in 0..R {
                let p = w.add(r * row_bytes + i * E::BYTES);
                read_once.ask(p.wrapping_add(R * row_bytes));
                weights[r] = E::load(p);
            }
            for m in 0..M {
                let x = _mm512_loadu_ps(job.x.add(m * job.x_stride + i));
                for r in 0..R {
                    acc[r][m] = _mm512_fmadd_ps(weights[r], x, acc[r][m]);
                }
            }
        }
        if whole < job.k {
            let mask = (1u16 << (job.k - whole)) - 1;
            for r in 0..R {
                let weights = E::load_masked(w.add(r * row_bytes + whole * E::BYTES), mask);
                for m in 0..M {
                    let x = _mm512_maskz_loadu_ps(mask, job.x.add(m * job.x_stride + whole));
                    acc[r][m] = _mm512_fmadd_ps(weights, x, acc[r][m]);
                }
            }
        }
        for m in 0..M {
            let mut four = [acc[0][m]; 4];
            for r in 0..R {
                four[r] = acc[r][m];
            }
            _mm_mask_storeu_ps(job.out.add(m * job.out_stride), ((1u32 << R) - 1) as u8, sum_four(four));
        }
    }
}

/// `num_rows` ≤ 4 rows of weights at `w`, `num_acts` ≤ 8 rows of activations.
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
            3 => tiles::<E, 4, 3>(w, row_bytes, num_rows, job),
            4 => tiles::<E, 4, 4>(w, row_bytes, num_rows, job),
            5 => tiles::<E, 2, 5>(w, row_bytes, num_rows, job),
            6 => tiles::<E, 2, 6>(w, row_bytes, num_rows, job),
            7 => tiles::<E, 2, 7>(w, row_bytes, num_rows, job),
            _ => tiles::<E, 2, 8>(w, row_bytes, num_rows, job),
        }
    }
}

/// A row of floats to f32.
#[inline(always)]
unsafe fn widen_row<E: Element>(src: &[u8], dst: &mut [f32]) {
    // SAFETY: `src` holds as many elements as `dst`; the last are masked.
    unsafe {
        let whole = dst.len() / 16 * 16;
        for i in (0..whole).step_by(16) {
            _mm512_storeu_ps(dst.as_mut_ptr().add(i), E::load(src.as_ptr().add(i * E::BYTES)));
        }
        if whole < dst.len() {
            let mask = (1u16 << (dst.len() - whole)) - 1;
            let last = E::load_masked(src.as_ptr().add(whole * E::BYTES), mask);
            _mm512_mask_storeu_ps(dst.as_mut_ptr().add(whole), mask, last);
        }
    }
}

impl FloatIsa for Avx512 {
    const LANES: usize = 16;
    const TILE_COLS: [usize; 2] = [12, 12];

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
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
                1 => compute::<1>(tile),
                _ => compute::<2>(tile),
            }
        }
    }
}

/// [`tile::compute_float`] of 12 rows of weights.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
unsafe fn compute<const R: usize>(tile: &FloatTile) {
    // SAFETY: the caller's promises, passed on.
    unsafe { tile::compute_float::<Lanes<Emulated>, R, 12>(tile) }
}
