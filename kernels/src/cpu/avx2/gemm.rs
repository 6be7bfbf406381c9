//! The tile of the 8-bit GEMM: 8 rows of weights × up to 4 rows of activations at a time, and the transpose for panels.
//!
//! `vpmaddubsw` gives sums of two products in 16 bits. As many of them as can't overflow are added before they are widened:
//! `STEPS · 2 · MAX_CODE · 127 < 2^15` gives 8 steps for 4-bit codes, 4 for 5 bits, 2 for 6. 8-bit codes would saturate at once:
//! they are made signed, and give their sign to x, for 2 · 128 · 127 = 32512.

use core::arch::x86_64::*;

use super::Avx2;
use crate::{
    cpu::{
        gemm::{GemmIsa, GemmTile},
        matrix::{ACT_GROUP, ROW_TILE, SUM_GROUP},
        pack::{CodePanel, Transpose, assert_transpose, pack_codes},
    },
    quant::{Block, GroupKind},
};

/// Steps of 8-bit codes, which are signed.
const SIGNED: usize = 1;

/// Steps that codes up to `max` allow.
const fn steps(max: u8) -> usize {
    let mut steps = 8;
    while steps > SIGNED && steps * 2 * max as usize * 127 > i16::MAX as usize {
        steps /= 2;
    }
    steps
}
const _: () = assert!(steps(15) == 8 && steps(31) == 4 && steps(63) == 2 && steps(255) == SIGNED);

impl GemmIsa for Avx2 {
    const TILE_ROWS: usize = 4;

    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn pack<B: Block>(
        rows: &[B],
        blocks_per_row: usize,
        from: usize,
        num_elements: usize,
        panel: &mut CodePanel,
    ) {
        // SAFETY: same features.
        unsafe { pack_codes::<B, Self>(rows, blocks_per_row, from, num_elements, panel) };
    }

    #[inline(always)]
    fn prefetch(address: *const u8) {
        // SAFETY: a prefetch doesn't fault, and every x86-64 has it.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(address.cast()) }
    }

    unsafe fn tile<B: Block>(tile: &GemmTile, tile_rows: usize) {
        macro_rules! by_steps {
            ($group:ident, $min:literal) => {
                match steps(B::MAX_CODE) {
                    8 => by_rows::<$group, $min, 8>(tile, tile_rows),
                    4 => by_rows::<$group, $min, 4>(tile, tile_rows),
                    2 => by_rows::<$group, $min, 2>(tile, tile_rows),
                    _ => by_rows::<$group, $min, SIGNED>(tile, tile_rows),
                }
            };
        }
        // SAFETY: the caller's promises, passed on.
        unsafe {
            match (B::KIND, B::GROUP) {
                (GroupKind::Offset(_), ACT_GROUP) => by_steps!(ACT_GROUP, false),
                (GroupKind::Offset(_), _) => by_steps!(SUM_GROUP, false),
                (GroupKind::Min, ACT_GROUP) => by_steps!(ACT_GROUP, true),
                (GroupKind::Min, _) => by_steps!(SUM_GROUP, true),
            }
        }
    }
}

unsafe fn by_rows<const GROUP: usize, const MIN: bool, const STEPS: usize>(tile: &GemmTile, tile_rows: usize) {
    // SAFETY: the caller's promises, passed on.
    unsafe {
        match tile_rows {
            1 => compute::<GROUP, MIN, STEPS, 1>(tile),
            2 => compute::<GROUP, MIN, STEPS, 2>(tile),
            3 => compute::<GROUP, MIN, STEPS, 3>(tile),
            _ => compute::<GROUP, MIN, STEPS, 4>(tile),
        }
    }
}

/// Computes a tile of `M` rows of activations.
///
/// # Safety
/// The tile's pointers must be valid for its shapes; the CPU must have AVX2 and FMA.
#[target_feature(enable = "avx2,fma")]
unsafe fn compute<const GROUP: usize, const MIN: bool, const STEPS: usize, const M: usize>(tile: &GemmTile) {
    let ones = _mm256_set1_epi16(1);
    // SAFETY: all offsets are inside the shapes that the fields state; stores are masked to `num_cols`.
    unsafe {
        for col in (0..tile.num_cols).step_by(8) {
            let mut acc = [_mm256_setzero_ps(); M];
            for group in 0..tile.num_groups {
                for part in 0..32 / GROUP {
                    let index = group * (32 / GROUP) + part;
                    let mut dots = [_mm256_setzero_si256(); M];
                    if !MIN && STEPS != SIGNED {
                        for m in 0..M {
                            dots[m] = _mm256_set1_epi32(*tile.aux.add(m * tile.aux_stride + index));
                        }
                    }
                    let q = tile.q.add(group * 32 + part * GROUP);
                    let codes = tile.codes.add((group * 8 + part * (GROUP / 4)) * ROW_TILE + col);
                    for first in (0..GROUP / 4).step_by(STEPS) {
                        let mut pairs = [_mm256_setzero_si256(); M];
                        // A group of 16 has four steps only.
                        for step in first..(first + STEPS).min(GROUP / 4) {
                            let mut w = _mm256_loadu_si256(codes.add(step * ROW_TILE).cast());
                            let mut signs = w;
                            if STEPS == SIGNED {
                                signs = _mm256_xor_si256(w, _mm256_set1_epi8(-128));
                                w = _mm256_abs_epi8(signs);
                            }
                            for m in 0..M {
                                let x = q.add(m * tile.q_stride + step * 4).cast::<i32>().read_unaligned();
                                let mut x = _mm256_set1_epi32(x);
                                if STEPS == SIGNED {
                                    x = _mm256_sign_epi8(x, signs);
                                }
                                pairs[m] = _mm256_add_epi16(pairs[m], _mm256_maddubs_epi16(w, x));
                            }
                        }
                        for m in 0..M {
                            dots[m] = _mm256_add_epi32(dots[m], _mm256_madd_epi16(pairs[m], ones));
                        }
                    }
                    let scales = _mm256_loadu_ps(tile.scales.add(index * ROW_TILE + col));
                    for m in 0..M {
                        let d = _mm256_set1_ps(*tile.d.add(m * tile.d_stride + group));
                        let dot = _mm256_mul_ps(_mm256_cvtepi32_ps(dots[m]), d);
                        acc[m] = _mm256_fmadd_ps(dot, scales, acc[m]);
                    }
                    if MIN {
                        let mins = _mm256_loadu_ps(tile.mins.add(index * ROW_TILE + col));
                        for m in 0..M {
                            let sum = _mm256_set1_ps(*tile.aux.add(m * tile.aux_stride + index).cast::<f32>());
                            acc[m] = _mm256_fmadd_ps(sum, mins, acc[m]);
                        }
                    }
                }
            }
            let mask = lanes(tile.num_cols - col);
            for m in 0..M {
                store(tile.out.add(m * tile.out_stride + col), mask, acc[m], tile.accumulate);
            }
        }
    }
}

/// A mask of the first `count` of eight lanes.
#[inline(always)]
pub(super) unsafe fn lanes(count: usize) -> __m256i {
    // SAFETY: value-only.
    unsafe {
        let index = _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0);
        _mm256_cmpgt_epi32(_mm256_set1_epi32(count.min(8) as i32), index)
    }
}

/// Writes the lanes of `mask`, added to what is there if `accumulate`.
#[inline(always)]
pub(super) unsafe fn store(out: *mut f32, mask: __m256i, sum: __m256, accumulate: bool) {
    // SAFETY: the caller owns those lanes.
    unsafe {
        let sum = if accumulate { _mm256_add_ps(sum, _mm256_maskload_ps(out, mask)) } else { sum };
        _mm256_maskstore_ps(out, mask, sum);
    }
}

impl Transpose for Avx2 {
    #[target_feature(enable = "avx2")]
    unsafe fn transpose(rows: &[u32], stride: usize, num_units: usize, panel: &mut [u32]) {
        assert_transpose(rows, stride, num_units, panel);
        for unit in (0..num_units).step_by(8) {
            for part in 0..ROW_TILE / 8 {
                // SAFETY: 8 units from `unit` on in 8 rows (asserted); as many rows of the panel as there are units.
                unsafe {
                    let mut square = [_mm256_setzero_si256(); 8];
                    for (r, line) in square.iter_mut().enumerate() {
                        *line = _mm256_loadu_si256(rows.as_ptr().add((part * 8 + r) * stride + unit).cast());
                    }
                    transpose_8(&mut square);
                    for (u, &line) in square.iter().enumerate().take(num_units - unit) {
                        _mm256_storeu_si256(panel.as_mut_ptr().add((unit + u) * ROW_TILE + part * 8).cast(), line);
                    }
                }
            }
        }
    }
}

/// Transposes 8 × 8 units.
#[target_feature(enable = "avx2")]
#[inline]
fn transpose_8(x: &mut [__m256i; 8]) {
    // 2 × 2 and 4 × 4 squares inside each half of 128 bits, then the halves.
    for i in (0..8).step_by(4) {
        let (a, b) = (_mm256_unpacklo_epi32(x[i], x[i + 1]), _mm256_unpackhi_epi32(x[i], x[i + 1]));
        let (c, d) = (_mm256_unpacklo_epi32(x[i + 2], x[i + 3]), _mm256_unpackhi_epi32(x[i + 2], x[i + 3]));
        x[i] = _mm256_unpacklo_epi64(a, c);
        x[i + 1] = _mm256_unpackhi_epi64(a, c);
        x[i + 2] = _mm256_unpacklo_epi64(b, d);
        x[i + 3] = _mm256_unpackhi_epi64(b, d);
    }
    for i in 0..4 {
        let (low, high) = (x[i], x[i + 4]);
        x[i] = _mm256_permute2x128_si256::<0x20>(low, high);
        x[i + 4] = _mm256_permute2x128_si256::<0x31>(low, high);
    }
}
